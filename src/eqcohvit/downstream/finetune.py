"""Supervised training of a head, a whole model, or LoRA adapters (arXiv:2106.09685), on labeled rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from ..data.shared_memory import WAIT_SECONDS, check_result, share
from ..training.launcher import launcher_settings, make_accelerator, precision_of
from ..training.lora import add_lora, merged
from ..training.optim import make_optimizer, set_step
from ..training.run import Run
from ..training.schedules import StepValues, warmup_cosine
from ..training.signals import StopSignals
from .backbones import find_backbone
from .base import DenseTask
from .options import FinetuneArguments

_MAX_GRAD_NORM = 1.0
_KEPT_CHECKPOINTS = 2


def choose_parameters(backbone: PreTrainedModel, train: str, lora_rank: int) -> None:
    """Freeze the backbone or add adapters, in place, as `train` says."""
    if train != "all":
        backbone.requires_grad_(False)
    if train == "lora":
        add_lora(backbone, lora_rank)


def batch_indices(
    num_samples: int, batch_size: int, seed: int, first_step: int, rank: int = 0, world_size: int = 1
) -> Iterator[list]:
    """(epoch, index) of each sample in the batches of a process, from `first_step` on, without end.

    The shuffled orders of all epochs form one sequence, and step s reads it from s * B * world_size on. So any step can
    be computed, and a resumed run sees the same batches as an uninterrupted one.
    """
    epoch = -1
    order = np.empty(0, dtype=np.int64)
    step = first_step
    while True:
        start = (step * world_size + rank) * batch_size
        batch = []
        for place in range(start, start + batch_size):
            if place // num_samples != epoch:
                epoch = place // num_samples
                order = np.random.default_rng((seed, epoch)).permutation(num_samples)
            batch.append((epoch, int(order[place % num_samples])))
        yield batch
        step += 1


class _TrainSamples(Dataset):
    def __init__(self, task: DenseTask, rows: Any, seed: int):
        self.task = task
        self.rows = rows
        self.seed = seed

    def __getitem__(self, index: tuple[int, int]) -> tuple[int, dict[str, Any]] | ValueError:
        epoch, row = index
        try:
            return row, self.task.train_sample(self.rows[row], np.random.default_rng((self.seed, epoch, row)))
        except ValueError as error:  # a worker's exception would arrive as a page of traceback
            return ValueError(f"train row {row}: {error}")

    def collate(
        self, samples: list[tuple[int, dict[str, Any]] | ValueError]
    ) -> tuple[list[int], dict[str, Any]] | ValueError:
        for sample in samples:
            if isinstance(sample, ValueError):
                return sample
        indices, samples = zip(*samples, strict=True)
        return share((list(indices), self.task.collate(samples)))


def check_finite(terms: dict[str, torch.Tensor], step: int, indices: list[int]) -> None:
    """Raise a `FloatingPointError` with the terms that are not finite, the step, and the rows of its batch."""
    broken = [name for name, value in terms.items() if not value.isfinite()]
    if broken:
        raise FloatingPointError(
            f"{', '.join(broken)} not finite at step {step}, on the train rows {indices}; try a lower learning_rate"
        )


def open_accelerator(args: FinetuneArguments) -> Accelerator:
    """The accelerator of these settings, which get their precision if they have none.

    Raises:
        ValueError: the launcher asks for something that fine-tuning cannot do.
    """
    launched = launcher_settings()
    num_batches = launched.get("gradient_accumulation_steps", 1)
    if num_batches != 1:
        raise ValueError(
            "fine-tuning has no gradient accumulation, "
            f"but the launcher sets gradient_accumulation_steps to {num_batches}"
        )
    args.mixed_precision = precision_of(args.mixed_precision or launched.get("mixed_precision"))
    return make_accelerator(args.mixed_precision, uses_all_weights=False)  # a head may not read the whole backbone


def train(
    args: FinetuneArguments,
    accelerator: Accelerator,
    stop: StopSignals,
    task: DenseTask,
    model: PreTrainedModel,
    rows: Any,
    checkpoint: Path | None = None,
    draw: Callable[[int, torch.nn.Module], None] | None = None,
) -> PreTrainedModel:
    """Train until `max_steps` or a signal; returns the model, with adapters merged.

    Args:
        model: its backbone, and a new head.
        rows: to train on.
        checkpoint: to resume from.
        draw: called on the main process with the step and the model in eval mode whenever a checkpoint is written.

    Raises:
        StopRequested: a signal has stopped the run; all finished steps are saved.
        ValueError: a row cannot be used; the message names it.
    """
    # ------------------------------------------------------------------------------------ model, optimizer and data
    set_seed(args.seed)
    backbone = find_backbone(model)
    choose_parameters(backbone, args.train, args.lora_rank)
    optimizer = make_optimizer(model.to(accelerator.device), args.learning_rate, args.weight_decay)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    run = open_at(args, accelerator, stop, model, checkpoint)
    batches = open_batches(args, run, task, rows)
    run.bar.say(f"{run.progress.samples_per_step} samples a step from {len(rows)} rows")

    # ----------------------------------------------------------------------------------------------------- the loop
    while run.step < args.max_steps:
        indices, batch = next_batch(run, batches)
        rate = warmup_cosine(run.step, args.max_steps, args.warmup_steps, args.learning_rate, 0.0)
        set_step(optimizer, StepValues(rate, rate, args.weight_decay, args.backbone_lr_scale))
        model.train()
        if args.train == "head":
            backbone.eval()
        moved: Any = send_to_device(batch, accelerator.device, non_blocking=True)
        terms = task.loss(wrapped, moved)
        check_finite(terms, run.step + 1, indices)
        accelerator.backward(terms["loss"])
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
        assert grad_norm is not None  # it is None only with DeepSpeed
        terms["grad_norm"] = grad_norm
        optimizer.step()
        optimizer.zero_grad()
        run.progress.add_terms(terms)
        run.advance()
        done = run.step == args.max_steps
        if run.step % args.logging_steps == 0 or done:
            run.write_line(rate, {}, {})
        if run.step % args.save_steps == 0 or done:
            run.save({}, {})
            if draw is not None and accelerator.is_main_process:
                draw(run.step, model.eval())
    run.bar.close()
    return merged(model.eval())


def open_at(
    args: FinetuneArguments,
    accelerator: Accelerator,
    stop: StopSignals,
    model: PreTrainedModel,
    checkpoint: Path | None,
) -> Run:
    """The run at the step of the checkpoint, or at the beginning, with its logs."""
    samples_per_step = args.per_device_train_batch_size * accelerator.num_processes
    run = Run(
        accelerator,
        stop,
        Path(args.output_dir),
        args.max_steps,
        samples_per_step,
        model,
        checkpoint,
        keeps=(_KEPT_CHECKPOINTS, 0),
    )
    run.open_logs(run.step)
    trained = model.num_parameters(only_trainable=True) / 1e6
    run.bar.say(
        f"training {args.train}: {trained:.2f} of {model.num_parameters() / 1e6:.2f} M parameters, "
        f"steps {run.step} to {args.max_steps}"
    )
    return run


def next_batch(run: Run, batches: Iterator[Any]) -> tuple[list[int], dict[str, Any]]:
    """The next batch and the indices of its rows; a signal saves the finished steps and stops the run."""
    taken = run.next_batches(batches, 1)
    if taken is None:
        if run.step > run.saved_step:
            run.save({}, {})
        run.stopped()
    check_result(taken[0])
    if isinstance(taken[0], ValueError):
        raise taken[0]
    return taken[0]


def open_batches(args: FinetuneArguments, run: Run, task: DenseTask, rows: Any) -> Iterator[Any]:
    """The batches of this process with the indices of their rows, from the step of the run on."""
    order = batch_indices(
        len(rows),
        args.per_device_train_batch_size,
        args.seed,
        run.step,
        run.accelerator.process_index,
        run.accelerator.num_processes,
    )
    samples = _TrainSamples(task, rows, args.seed)
    workers = {"num_workers": args.num_workers, "timeout": WAIT_SECONDS if args.num_workers else 0}
    return iter(DataLoader(samples, batch_sampler=order, collate_fn=samples.collate, **workers))
