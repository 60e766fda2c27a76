#!/usr/bin/env python
"""Pretrain an equivariance-coherent ViT (arXiv:2503.18753).

    python scripts/pretrain.py                                           # embedded sprites, small model, minutes on two CPU cores
    accelerate launch scripts/pretrain.py --train_dir ~/photos --output_dir runs/photos
    accelerate launch scripts/pretrain.py --config scripts/recipes/cifar10_vicreg.yaml
    accelerate launch scripts/pretrain.py --init_from facebook/dinov2-small --train_dir ~/photos --output_dir runs/continued

Each setting of a recipe is also a flag; `--help` explains them. The run's folder holds metrics.jsonl, samples/, checkpoints/ and model/.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object, set_seed
from transformers.utils import logging as transformers_logging

from eqcohvit.data import CanvasStream, ResidentCanvases, Source, TooManyBadImages, hold_out, open_source
from eqcohvit.evaluation.guard import AccuracyFell, KnnGuard
from eqcohvit.export import push_hub_folder, read_run, render_card, save_hub_folder
from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
from eqcohvit.training.arguments import PretrainArguments, parse_arguments
from eqcohvit.training.build import build
from eqcohvit.training.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, on_main_process, open_run, save_checkpoint
from eqcohvit.training.finite import check_step, check_weights
from eqcohvit.training.health import HealthWatch
from eqcohvit.training.lora import merged
from eqcohvit.training.monitor import MetricsLog, Progress, describe_size, save_samples
from eqcohvit.training.optim import make_optimizer, set_step
from eqcohvit.training.prefetch import DevicePrefetcher
from eqcohvit.training.schedules import step_values
from eqcohvit.training.signals import EXIT_STOPPED, StopRequested, StopSignals, leave
from eqcohvit.training.warm_start import complete_settings, describe_run
from eqcohvit.transforms import ViewRenderer

CARD_TEMPLATE = Path(__file__).parents[1] / "model_cards" / "TEMPLATE.md"


def main(args: PretrainArguments, stop: StopSignals) -> None:
    # ------------------------------------------------------------------ what can be wrong is found before anything is written
    output_dir = Path(args.output_dir)
    precision = args.mixed_precision or ("bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no")
    with stop.interruptible():
        source, guard = open_sources(args)
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=None if args.report_to == "none" else args.report_to,
            project_dir=str(output_dir),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        transformers_logging.disable_progress_bar()
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # lists all weights that a teacher shares with its student
        resident = ResidentCanvases(source, args.canvas_size, accelerator.device, accelerator.print) if args.resident else None
        set_seed(args.seed)
        built = None if args.resume_from_checkpoint else build(args, report=accelerator.print)
    checkpoint = on_main_process(accelerator, lambda: open_run(output_dir, args))
    stop.connect()
    torch.set_float32_matmul_precision("high")

    # ------------------------------------------------------------------ model, objective, optimizer
    if built is None:
        built = build(args, checkpoint, report=accelerator.print)
    trained, renderer = built
    trained.to(accelerator.device)
    set_seed(args.seed, device_specific=True)
    if args.gradient_checkpointing:
        trained.model.eqcohvit.backbone.activation_checkpointing_enable()
    if args.compile:
        trained.compile()
        if accelerator.device.type == "cuda":
            renderer.compile()
    optimizer = make_optimizer(trained, args.learning_rate, args.weight_decay, args.layer_decay, args.patch_embed_lr_scale)
    module, optimizer = accelerator.prepare(trained, optimizer)

    # ------------------------------------------------------------------ resume
    rank = accelerator.process_index
    state: dict[str, Any] = {"step": 0, "logged_step": 0, "ranks": [{"position": None, "progress": None}] * accelerator.num_processes}
    if checkpoint is not None:
        state = load_checkpoint(accelerator, checkpoint)
        accelerator.print(f"resuming from {checkpoint}")
    elif args.resume_from_checkpoint:
        accelerator.print(f"no checkpoint in {output_dir} yet: starting from the beginning")

    # ------------------------------------------------------------------ data and views
    stream = CanvasStream(
        source,
        args.canvas_size,
        args.per_device_train_batch_size,
        seed=args.seed,
        rank=rank,
        world_size=accelerator.num_processes,
        num_workers=args.dataloader_num_workers,
        max_bad_fraction=args.max_bad_fraction,
        bad_images_path=output_dir / "bad_images.jsonl",
        position=state["ranks"][rank]["position"],
        resident=resident,
    )
    batches = DevicePrefetcher(iter(stream), accelerator.device)

    # ------------------------------------------------------------------ train
    first_step = step = saved_step = state["step"]
    logged_step, position = state["logged_step"], stream.position
    samples_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    log = MetricsLog(output_dir / "metrics.jsonl", step) if accelerator.is_main_process else None
    if args.report_to != "none":
        accelerator.init_trackers("eqcohvit", config={k: v for k, v in args.to_dict().items() if v is not None})
    accelerator.print(
        f"{args.objective} + {args.path}: {describe_size(trained)}, steps {first_step} to {args.max_steps}, "
        f"{samples_per_step} samples a step from {source.name}, on {accelerator.num_processes} x {accelerator.device.type} ({precision})"
    )
    compared = args.per_device_train_batch_size * accelerator.num_processes
    for name, value in trained.objective.start_values(compared).items():
        accelerator.print(f"expected at the start, with new heads: {name} about {value:.4g}")
    watch = HealthWatch(trained.objective.uninformed_values(compared), args.head_warmup_steps + args.warmup_steps)
    if guard is not None:
        guard.start = state.get("knn_start")
        if guard.start is None:
            guard.start = guard.measure(trained.model.eqcohvit, renderer.mean, renderer.std)
        accelerator.print(f"kNN accuracy at the start: {guard.start:.3f}; the run stops if it falls by more than {args.knn_guard_drop:g}")
    progress = Progress(args.max_steps, samples_per_step, state["ranks"][rank]["progress"], accelerator.device)
    shown = None

    def save_state(folder: str) -> None:
        accelerator.save_state(folder)
        if accelerator.is_main_process:
            describe_run(Path(folder), args, trained.model.config)

    def save() -> None:
        ranks = gather_object([{"position": position, "progress": progress.state()}])
        new_state = {"step": step, "logged_step": logged_step, "ranks": ranks, "knn_start": guard.start if guard else None}
        new_state |= {"image_mean": list(renderer.mean), "image_std": list(renderer.std)}
        check_weights(trained, step)
        save_checkpoint(accelerator, output_dir, step, new_state, save_state, args.save_total_limit, args.keep_every_steps)

    module.train()
    while step < args.max_steps:
        waiting = time.perf_counter()
        if (taken := stop.take(batches, args.gradient_accumulation_steps)) is None:
            break
        progress.add_wait(time.perf_counter() - waiting)
        values = step_values(step, args)
        set_step(optimizer, values)
        done = step + 1 == args.max_steps
        ranks: dict[str, torch.Tensor] = {}
        for batch in taken:
            views = renderer(batch.canvases, batch.sizes, batch.epochs, batch.keys, with_intermediates=args.recon_weight > 0)
            with accelerator.accumulate(module):
                terms = module(views, values)
                accelerator.backward(terms["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(module.parameters(), args.max_grad_norm)
                    assert norm is not None  # where DeepSpeed would clip alone
                    # With fp16 an infinite norm is no trouble: the scaler leaves the step out and lowers its scale.
                    terms["grad_norm"] = norm.nan_to_num(0.0, 0.0, 0.0) if precision == "fp16" else norm
                check_step(accelerator, output_dir, step + 1, terms, taken, trained)
                optimizer.step()
                optimizer.zero_grad()
            ranks = {name: terms.pop(name) for name in list(terms) if name.startswith("rank/")}
            progress.add_terms(terms)
            shown = batch if shown is None else shown
        trained.update_teacher(values.teacher_momentum)
        step, position = step + 1, batch.position

        # -------------------------------------------------------------- log, look, save
        accuracy = {}
        if guard is not None and (step % args.knn_guard_steps == 0 or done):
            accuracy["probe/knn"] = guard.measure(trained.model.eqcohvit, renderer.mean, renderer.std)
            accelerator.print(f"step {step}: kNN accuracy {accuracy['probe/knn']:.3f}, {guard.start:.3f} at the start")
        if values.is_logged:
            means = {name: value.item() for name, value in accelerator.reduce({**progress.means(), **ranks}, reduction="mean").items()}
            line, figures = progress.line(step, means, step - max(logged_step, first_step))
            logged_step = step
            accelerator.print(line)
            figures = {"learning_rate": values.learning_rate, **figures, **accuracy}
            accelerator.log(figures, step=step)
            if log:
                log.write(step, figures)
            for warning in watch.warnings(step, means):
                accelerator.print(warning)
        if guard is not None and accuracy:
            guard.check(accelerator.reduce(torch.tensor(accuracy["probe/knn"], device=accelerator.device), reduction="mean").item(), step)
        if accelerator.is_main_process and args.recon_weight > 0 and (step % args.sample_steps == 0 or done):
            draw_samples(output_dir / "samples" / f"step-{step}.png", trained.model, renderer, shown)
        if step % args.save_steps == 0 or done:
            save()
            saved_step = step
            if accelerator.is_main_process and args.push_to_hub and not done:
                export(output_dir, trained.model, renderer, args, stop, may_fail=True)

    # ------------------------------------------------------------------ end
    if step < args.max_steps:
        if step > saved_step:
            save()
        reason = stop.name or "a signal to another process"
        accelerator.print(f"stopped by {reason} after step {step}; --resume_from_checkpoint latest goes on from there")
        accelerator.end_training()
        raise StopRequested
    if accelerator.is_main_process:
        export(output_dir, trained.model, renderer, args, stop)
        print(f"model in {output_dir / 'model'}, pictures in {output_dir / 'samples'}, bad images skipped: {stream.num_bad}")
    accelerator.end_training()


def open_sources(args: PretrainArguments) -> tuple[Source, KnnGuard | None]:
    """The images to train on, and the guard with labelled images that are not among them, where it is asked for."""
    columns = (args.train_dir, args.image_column, args.label_column)
    source = open_source(args.dataset_name, args.dataset_config_name, args.dataset_split, args.data_files, *columns)
    if args.knn_guard_steps == 0:
        return source, None
    files = args.knn_guard_data_files
    if files and Path(files).is_dir():
        labelled = open_source(train_dir=files, label_column="folder")
    elif files and args.train_dir:
        labelled = open_source(data_files=files)
    elif files or args.knn_guard_split:
        split = args.knn_guard_split or args.dataset_split
        labelled = open_source(args.dataset_name, args.dataset_config_name, split, files or args.data_files, *columns)
    else:
        source, labelled = hold_out(source, args.knn_guard_samples)
    return source, KnnGuard(labelled, args.knn_guard_samples, args.image_size, args.knn_guard_drop)


def export(
    output_dir: Path,
    model: EqCohViTForPreTraining,
    renderer: ViewRenderer,
    args: PretrainArguments,
    stop: StopSignals,
    may_fail: bool = False,
) -> None:
    """Write the Hub folder with its card, and upload it where that is asked for; with `may_fail` the run survives a failed upload."""
    card = render_card(CARD_TEMPLATE.read_text(), read_run(output_dir))
    state = list_checkpoints(output_dir)[-1] if args.push_training_state else None
    mean_std = {"image_mean": renderer.mean, "image_std": renderer.std}
    save_hub_folder(output_dir / "model", merged(model), **mean_std, card=card, training_state=state)
    if args.push_to_hub and args.hub_model_id is not None:  # checked with the other settings
        try:
            with stop.interruptible():
                print(f"pushed to {push_hub_folder(output_dir / 'model', args.hub_model_id)}")
        except (ConnectionError, ValueError, StopRequested) as error:
            if not may_fail:
                raise
            print(f"not pushed, the next checkpoint tries again: {error}", file=sys.stderr)


@torch.no_grad()
def draw_samples(path: Path, model: EqCohViTForPreTraining, renderer: ViewRenderer, batch, num_samples: int = 6) -> None:
    """Picture of the first samples of the first batch, with the model as it is now."""
    views = renderer(*(t[:num_samples] for t in (batch.canvases, batch.sizes, batch.epochs, batch.keys)))
    assert views.intermediates is not None
    model.eval()
    reconstructions = model(views.first, views.end).reconstructions
    model.train()
    targets = (views.intermediates, reconstructions, renderer.mean, renderer.std, renderer.target_fractions)
    save_samples(path, views.first, views.end, *targets)


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; the exit code is 2 for bad input, 1 for a run that had to stop, 75 after a signal (`signals`)."""
    # Large tensors of a CPU in pages of 2 MiB, where Linux offers them: a step of a ViT-S/16 takes 4 to 8 % less. Read at the first one.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        with StopSignals() as stop:
            main(parse_arguments(argv, complete_settings), stop)
    except StopRequested:
        return EXIT_STOPPED
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TooManyBadImages, AccuracyFell, FloatingPointError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception:  # such as another process that has died in the middle of a step; `leave` must be reached all the same
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    leave(cli())
