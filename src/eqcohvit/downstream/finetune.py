"""Supervised training of a head, a whole model, or LoRA adapters (arXiv:2106.09685), on labeled rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from ..data.shared_memory import WAIT_SECONDS, check_result, share
from ..training.checkpoint import load_checkpoint, save_checkpoint
from ..training.finite import check_weights
from ..training.launcher import launcher_settings, precision_of
from ..training.lora import add_lora, merged
from ..training.monitor import MetricsLog, Progress
from ..training.optim import make_optimizer, set_step
from ..training.schedules import StepValues, warmup_cosine
from ..training.signals import StopRequested, StopSignals
from .options import FinetuneSettings


class TrainableTask(Protocol):
    """What the loop needs from a task."""

    def train_sample(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A row of the data -> a randomly augmented sample."""

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Samples -> batch."""

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Named scalars, `loss` among them."""


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
    epoch, order = -1, np.empty(0, dtype=np.int64)
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
    def __init__(self, task: TrainableTask, rows: Any, seed: int):
        self.task, self.rows, self.seed = task, rows, seed

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


def move_batch(batch: Any, device: torch.device) -> Any:
    """Tensors of a nested batch on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move_batch(value, device) for key, value in batch.items()}
    return [move_batch(value, device) for value in batch] if isinstance(batch, list) else batch


def make_accelerator(mixed_precision: str | None) -> Accelerator:
    """An accelerator with this precision; default: the launcher's, else bf16 on GPUs that have it.

    Parameters without a gradient are allowed, because a head may not use the whole backbone.
    """
    launched = launcher_settings()
    if launched.get("gradient_accumulation_steps", 1) != 1:
        steps = launched["gradient_accumulation_steps"]
        raise ValueError(
            f"fine-tuning has no gradient accumulation, but the launcher sets gradient_accumulation_steps to {steps}"
        )
    precision = precision_of(mixed_precision or launched.get("mixed_precision"))
    return Accelerator(
        mixed_precision=precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )


class Finetuning:
    """Trains `model`, which contains `backbone`, on `rows`. metrics.jsonl and checkpoints/ go to `output_dir`.

    Args:
        checkpoint: to resume from.
        look: called on the main process with the model in eval mode whenever a checkpoint is written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        stop: StopSignals,
        task: TrainableTask,
        model: PreTrainedModel,
        backbone: PreTrainedModel,
        rows: Any,
        settings: FinetuneSettings,
        output_dir: Path,
        checkpoint: Path | None = None,
        look: Callable[[int, torch.nn.Module], None] = lambda step, model: None,
    ):
        self.accelerator, self.stop, self.task, self.model, self.backbone = accelerator, stop, task, model, backbone
        self.settings, self.output_dir, self.look = settings, output_dir, look
        # -------------------------------------------------------------- model and optimizer
        set_seed(settings.seed)
        choose_parameters(backbone, settings.train, settings.lora_rank)
        optimizer = make_optimizer(model.to(accelerator.device), settings.learning_rate, settings.weight_decay)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        rank = accelerator.process_index
        state: dict[str, Any] = {"step": 0, "logged_step": 0, "ranks": [{"progress": None}] * accelerator.num_processes}
        if checkpoint is not None:
            state = load_checkpoint(accelerator, checkpoint)
            accelerator.print(f"resuming from {checkpoint}")
        self.first_step = self.step = self.saved_step = state["step"]
        self.logged_step = state["logged_step"]

        # -------------------------------------------------------------- data
        samples = _TrainSamples(task, rows, settings.seed)
        order = batch_indices(len(rows), settings.batch_size, settings.seed, self.step, rank, accelerator.num_processes)
        workers = {"num_workers": settings.num_workers, "timeout": WAIT_SECONDS if settings.num_workers else 0}
        self.batches = iter(DataLoader(samples, batch_sampler=order, collate_fn=samples.collate, **workers))

        # -------------------------------------------------------------- output
        samples_per_step = settings.batch_size * accelerator.num_processes
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in model.parameters())
        accelerator.print(
            f"training {settings.train}: {trainable / 1e6:.2f} of {total / 1e6:.2f} M parameters, "
            f"steps {self.step} to {settings.max_steps}, {samples_per_step} samples a step from {len(rows)} rows"
        )
        self.log = MetricsLog(output_dir / "metrics.jsonl", self.step) if accelerator.is_main_process else None
        self.progress = Progress(
            settings.max_steps, samples_per_step, state["ranks"][rank]["progress"], accelerator.device
        )

    def train(self) -> PreTrainedModel:
        """Train; returns the model, with adapters merged.

        Raises:
            StopRequested: a signal has stopped the run, and a checkpoint was written.
            ValueError: a row cannot be used; the message names it.
        """
        settings = self.settings
        while self.step < settings.max_steps:
            waiting = time.perf_counter()
            if (taken := self.stop.take(self.batches, 1)) is None:
                if self.step > self.saved_step:
                    self.save()
                self.accelerator.print(self.stop.message(self.step))
                raise StopRequested
            self.progress.add_wait(time.perf_counter() - waiting)
            check_result(taken[0])
            if isinstance(taken[0], ValueError):
                raise taken[0]
            rate = warmup_cosine(self.step, settings.max_steps, settings.warmup_steps, settings.learning_rate, 0.0)
            set_step(self.optimizer, StepValues(rate, rate, settings.weight_decay, settings.backbone_lr_scale))
            self.optimize(*taken[0])
            self.step += 1
            done = self.step == settings.max_steps
            if self.step % settings.logging_steps == 0 or done:
                self.write_line(rate)
            if self.step % settings.save_steps == 0 or done:
                self.save()
                if self.accelerator.is_main_process:
                    self.look(self.step, self.model.eval())
        return merged(self.model.eval())

    def optimize(self, indices: list[int], batch: dict[str, Any]) -> None:
        """One step of the optimizer on a batch of the rows `indices`."""
        self.model.train()
        if self.settings.train == "head":
            self.backbone.eval()
        terms = self.task.loss(self.wrapped, move_batch(batch, self.accelerator.device))
        check_finite(terms, self.step + 1, indices)
        self.accelerator.backward(terms["loss"])
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        assert grad_norm is not None  # it is None only with DeepSpeed
        terms["grad_norm"] = grad_norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.add_terms(terms)

    def write_line(self, learning_rate: float) -> None:
        """Print the progress line, and write its figures into metrics.jsonl."""
        means = {
            name: value.item()
            for name, value in self.accelerator.reduce(self.progress.means(), reduction="mean").items()
        }
        line, figures = self.progress.line(self.step, means, self.step - max(self.logged_step, self.first_step))
        self.logged_step = self.step
        self.accelerator.print(line)
        if self.log:
            self.log.write(self.step, {"learning_rate": learning_rate, **figures})

    def save(self) -> None:
        """Write a checkpoint of all processes."""
        check_weights(self.model, self.step)
        state = {
            "step": self.step,
            "logged_step": self.logged_step,
            "ranks": gather_object([{"progress": self.progress.state()}]),
        }
        save_checkpoint(
            self.accelerator,
            self.output_dir,
            self.step,
            state,
            self.accelerator.save_state,
            self.settings.save_total_limit,
        )
        self.saved_step = self.step
