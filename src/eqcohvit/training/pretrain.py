"""The pretraining loop, from top to bottom: `pretrain`. The command is `eqcohvit.commands.pretrain`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..data import Batch, CanvasStream, ResidentCanvases, describe_data
from ..files import MODEL_FOLDER, PLACEHOLDER, RESULTS_FILE, WEIGHTS_FILE, link_model
from ..publish.card import read_run, read_template, render_card
from ..publish.folder import save_hub_folder
from ..publish.upload import push_hub_folder
from ..transforms import Draws, ViewRenderer
from .arguments import PretrainArguments
from .build import build, build_saved_model
from .checkpoint import list_checkpoints, on_main_process
from .finite import check_step
from .launcher import make_accelerator, precision_of
from .lora import merged
from .observe import Observer
from .optim import clip_gradients, make_optimizer, set_step
from .output import entry_of, fitted, fitted_command, teller, viewer
from .prefetch import DevicePrefetcher
from .pretrain_module import PretrainModule
from .run import Run
from .run_folder import check_output_dir, open_run
from .schedules import StepValues, step_values
from .sharding import check_plugin, connect, fill_states, is_sharded, save_whole
from .signals import StopRequested, StopSignals
from .source import open_images
from .start import write_model_files
from .trackers import check_tracker, open_trackers


@dataclass
class Parts:
    """The trained module, bare (`trained`) and wrapped for the processes (`module`), its optimizer, and its
    renderer."""

    trained: PretrainModule
    module: torch.nn.Module
    optimizer: Any
    renderer: ViewRenderer


def pretrain(args: PretrainArguments, stop: StopSignals, command: str = "") -> Path:
    """Train until `max_steps` or a signal; returns the model folder.

    Args:
        command: for the page of the run.

    Raises:
        StopRequested: a signal has stopped the run; all finished steps are saved.
    """
    # ---------------------------------------------------------------- find what is wrong before anything is written
    output_dir = Path(args.output_dir)
    with stop.interruptible():
        accelerator = open_accelerator(args)
        images = open_images(args, accelerator)
        resident = open_resident(args, images.source, accelerator)
        set_seed(args.seed)
        built = None if args.resume_from_checkpoint else build(args, report=teller(accelerator.print))
        on_main_process(accelerator, lambda: check_output_dir(output_dir, args))
        on_main_process(accelerator, lambda: open_trackers(accelerator, args.to_dict(), in_folder=False))
    data = on_main_process(accelerator, lambda: describe_data(images.source))
    checkpoint = on_main_process(accelerator, lambda: open_run(output_dir, args, data))
    on_main_process(accelerator, lambda: open_trackers(accelerator, args.to_dict(), in_folder=True))
    stop.connect()

    # ------------------------------------------- model, objective and optimizer; where the run stands, and its data
    parts = prepare(args, accelerator, *(built or build(args, checkpoint, report=teller(accelerator.print))))
    run = open_at(args, accelerator, stop, parts, checkpoint)
    stream = open_stream(args, run, images.source, resident)
    batches = DevicePrefetcher(iter(stream), accelerator.device, partial(draw, args, parts.renderer))
    position = stream.position
    observer = Observer(args, run, parts.trained, parts.renderer, images, command)
    observer.begin()

    # ----------------------------------------------------------------------------------------------------- the loop
    parts.module.train()
    while run.step < args.max_steps:
        taken = run.next_batches(batches, args.gradient_accumulation_steps)
        if taken is None:  # a signal
            if run.step > run.saved_step:
                save(args, run, parts, observer, data, position)
            run.stopped()
        values = step_values(run.step, args)
        set_step(parts.optimizer, values)
        ranks = optimize(args, run, parts, taken, values, batches)
        parts.trained.after_step(run.step, values.teacher_momentum)
        position = taken[-1][0].position
        run.advance()
        observer.after_step(taken[0][0], values, ranks)
        if run.step % args.save_steps == 0 or run.step == args.max_steps:
            save(args, run, parts, observer, data, position)
            if accelerator.is_main_process and args.push_to_hub and run.step < args.max_steps:
                export(args, run, parts, may_fail=True)

    # ------------------------------------------------------------------------------------------------------ the end
    run.bar.close()
    if accelerator.is_main_process:
        export(args, run, parts)
        print(next_steps(args, stream.num_bad, observer.verdict(), observer.has_few_images))
    run.trackers.finish()
    return output_dir / MODEL_FOLDER


# ------------------------------------------------------------------------------------------------------------- parts


def open_accelerator(args: PretrainArguments) -> Accelerator:
    """The accelerator of these settings, which get their precision if they have none.

    Raises:
        ValueError: the tracker is not installed, or the launcher asks for something that a run cannot do.
    """
    check_tracker(args.report_to)
    args.mixed_precision = precision_of(args.mixed_precision)
    log_with = None if args.report_to == "none" else args.report_to
    accelerator = make_accelerator(
        args.mixed_precision,
        args.gradient_accumulation_steps,
        uses_all_weights=not args.head_warmup_steps,  # in which the backbone gets no gradients
        log_with=log_with,
        project_dir=args.output_dir,
    )
    check_plugin(accelerator, args.peft)
    return accelerator


def open_resident(args: PretrainArguments, source: Any, accelerator: Accelerator) -> ResidentCanvases | None:
    """The decoded images in the memory of the device, if the settings ask for them."""
    if not args.resident:
        return None
    return ResidentCanvases(source, args.canvas_size, accelerator.device, teller(accelerator.print))


def open_stream(args: PretrainArguments, run: Run, source: Any, resident: ResidentCanvases | None) -> CanvasStream:
    """The batches of this process, from where the run stands."""
    return CanvasStream(
        source,
        args.canvas_size,
        args.per_device_train_batch_size,
        seed=args.seed,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        num_workers=args.dataloader_num_workers,
        max_bad_fraction=args.max_bad_fraction,
        bad_images_path=run.output_dir / "bad_images.jsonl",
        position=run.of_this_process("position"),
        resident=resident,
    )


def draw(args: PretrainArguments, renderer: ViewRenderer, batch: Batch) -> Draws:
    """All that is random about the views of a batch."""
    return renderer.draw(batch.sizes, batch.keys, batch.epochs, with_intermediates=args.recon_weight > 0)


def prepare(
    args: PretrainArguments, accelerator: Accelerator, trained: PretrainModule, renderer: ViewRenderer
) -> Parts:
    """Model and optimizer on this device, wrapped for the other processes."""
    trained.to(accelerator.device)
    set_seed(args.seed, device_specific=True)
    torch.set_float32_matmul_precision("high")
    if args.gradient_checkpointing:
        trained.model.eqcohvit.backbone.activation_checkpointing_enable()
    if args.compile:
        trained.compile()
    renderer.compile_on_gpu(accelerator.device)
    optimizer = make_optimizer(
        trained, args.learning_rate, args.weight_decay, args.layer_decay, args.patch_embed_lr_scale
    )
    module, optimizer = accelerator.prepare(trained, optimizer)
    connect(trained)
    return Parts(trained, module, optimizer, renderer)


def open_at(
    args: PretrainArguments, accelerator: Accelerator, stop: StopSignals, parts: Parts, checkpoint: Path | None
) -> Run:
    """The run at the step of the checkpoint, or at the beginning."""
    samples_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    return Run(
        accelerator,
        stop,
        Path(args.output_dir),
        args.max_steps,
        samples_per_step,
        parts.trained,
        checkpoint,
        keeps=(args.save_total_limit, args.keep_every_steps),
    )


def optimize(
    args: PretrainArguments,
    run: Run,
    parts: Parts,
    taken: Sequence[tuple[Batch, Draws]],
    values: StepValues,
    batches: DevicePrefetcher,
) -> dict[str, torch.Tensor]:
    """One step of the optimizer on the batches `taken`; returns the ranks of the parts' features if measured.

    Those of the next step are taken from `batches` before this one waits for its results.
    """
    accelerator = run.accelerator
    trained = parts.trained
    ranks: dict[str, torch.Tensor] = {}
    for batch, draws in taken:
        views = parts.renderer.render(batch.canvases, draws)
        with accelerator.accumulate(parts.module):
            with accelerator.autocast():
                terms = parts.module(views, values)
            accelerator.backward(terms["loss"])
            if accelerator.sync_gradients:
                accelerator.unscale_gradients()
                norms = clip_gradients(trained.parts(), args.clip_gradients, args.max_grad_norm)
                if accelerator.mixed_precision == "fp16":  # with an infinite norm the scaler skips the step
                    norms = {name: norm.nan_to_num(0.0, 0.0, 0.0) for name, norm in norms.items()}
                terms |= norms
            if run.step + 1 < args.max_steps:
                run.progress.add_wait(batches.fetch(run.stop))
            check_step(accelerator, run.output_dir, run.step + 1, terms, [batch for batch, _ in taken], trained)
            parts.optimizer.step()
            parts.optimizer.zero_grad()
        ranks = {name: terms.pop(name) for name in list(terms) if name.startswith("rank/")}
        run.progress.add_terms(terms)
    return ranks


def save(
    args: PretrainArguments, run: Run, parts: Parts, observer: Observer, data: dict[str, Any], position: Any
) -> None:
    """Write a checkpoint of all processes, with all that others need to start from it, and the page."""
    trained = parts.trained
    renderer = parts.renderer

    def write(folder: str) -> None:
        if is_sharded(trained):
            fill_states(parts.optimizer)
        run.accelerator.save_state(folder)
        if is_sharded(trained):
            save_whole(trained, Path(folder) / WEIGHTS_FILE)
        if run.accelerator.is_main_process:
            write_model_files(Path(folder), args, trained.model.config, renderer.mean, renderer.std)

    state = {**observer.state(), "data": data}
    state |= {"image_mean": list(renderer.mean), "image_std": list(renderer.std)}
    run.save(state, {"position": position}, write)
    # With adapters only the exported model can be loaded.
    if run.checkpoint is not None and run.accelerator.is_main_process and not args.peft:
        link_model(run.output_dir, run.checkpoint)
    observer.write_page()


def export(args: PretrainArguments, run: Run, parts: Parts, may_fail: bool = False) -> None:
    """Write the model folder with its card, and upload it with `push_to_hub`; with `may_fail` the run survives a failed
    upload."""
    folder = run.output_dir / MODEL_FOLDER
    card = render_card(read_template(), read_run(run.output_dir))
    state = list_checkpoints(run.output_dir)[-1] if args.push_training_state else None
    model = parts.trained.model
    if is_sharded(parts.trained):
        assert run.checkpoint is not None  # of this step, or what a finished run was resumed from
        model = build_saved_model(args, run.checkpoint)
    mean_std = {"image_mean": parts.renderer.mean, "image_std": parts.renderer.std}
    save_hub_folder(folder, merged(model), **mean_std, card=card, training_state=state)
    link_model(run.output_dir, folder)
    if not args.push_to_hub or args.hub_model_id is None:
        return
    try:
        with run.stop.interruptible():
            print(f"pushed to {push_hub_folder(folder, args.hub_model_id)}")
    except (ConnectionError, ValueError, StopRequested) as error:
        if not may_fail:
            raise
        print(f"not pushed, the next checkpoint tries again: {error}", file=sys.stderr)


def next_steps(args: PretrainArguments, num_bad: int, verdict: str = "", has_few_images: bool = False) -> str:
    """Where everything is, and three commands for the next steps: look, evaluate on the same images, publish.

    Args:
        num_bad: unreadable images.
        verdict: more text, above the commands.
        has_few_images: the evaluation then uses the head that reads most from few.
    """
    output_dir = Path(args.output_dir)
    model = str(output_dir / MODEL_FOLDER)
    page = str(output_dir / "report.html")
    places = [f"model: {model}", f"page: {page}"]
    if args.recon_weight > 0:
        places.append(f"pictures: {output_dir / 'samples'}")
    if num_bad:
        places.append(f"unreadable images, skipped: {num_bad} (bad_images.jsonl)")
    data = []
    for name in ("dataset_name", "dataset_config_name", "data_files", "train_dir", "image_column"):
        if getattr(args, name):
            data += [f"--{name}", str(getattr(args, name))]
    head = ["--head", "kernel"] if has_few_images else []
    evaluate = ["--model", model, *data, *head, "--output", str(output_dir / RESULTS_FILE)]
    push = ["--folder", model, "--run_dir", str(output_dir), "--repo_id", PLACEHOLDER, "--dry_run"]
    commands = [viewer(page), [*entry_of("evaluate"), *evaluate], [*entry_of("push_to_hub"), *push]]
    said = [fitted(verdict)] if verdict else []
    return "\n".join([*places, *said, "next:", *map(fitted_command, commands)])
