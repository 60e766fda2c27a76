"""The pretraining loop; the command is `eqcohvit.commands.pretrain`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from ..data import (
    Batch,
    CanvasStream,
    ResidentCanvases,
    Source,
    describe_data,
    hold_out,
    open_source,
)
from ..evaluation.guard import KnnGuard
from ..evaluation.results import versions
from ..evaluation.run_probe import RunProbe, open_probe
from ..files import MODEL_FOLDER, WEIGHTS_FILE
from ..publish.card import read_run, read_template, render_card
from ..publish.folder import save_hub_folder
from ..publish.upload import push_hub_folder
from ..transforms import make_path
from .arguments import PretrainArguments
from .build import build, build_saved_model
from .checkpoint import (
    check_output_dir,
    list_checkpoints,
    load_checkpoint,
    on_main_process,
    open_run,
    save_checkpoint,
)
from .finite import check_step, check_weights
from .health import HealthWatch
from .launcher import describe_launch, make_accelerator
from .lora import merged
from .monitor import MetricsLog, Progress, StepBar, describe_size, save_samples
from .optim import clip_gradients, make_optimizer, set_step
from .prefetch import DevicePrefetcher
from .run_page import write_run_page
from .schedules import StepValues, step_values
from .sharding import connect, is_sharded, save_whole, with_weights
from .signals import StopRequested, StopSignals
from .source import open_training_source
from .start import describe_run
from .trackers import Trackers, open_trackers


class Pretraining:
    """One process of a run: `__init__` makes its parts, `train` is the loop, and the methods after it are what the loop
    calls."""

    def __init__(self, args: PretrainArguments, stop: StopSignals, command: str = ""):
        self.args, self.stop, self.output_dir, self.command = args, stop, Path(args.output_dir), command
        # -------------------------------------------------------------- what can be wrong is found before anything is written
        with stop.interruptible():
            self.accelerator = accelerator = make_accelerator(args)
            source, self.probe, self.guard = open_sources(args, accelerator)
            resident = (
                ResidentCanvases(source, args.canvas_size, accelerator.device, accelerator.print)
                if args.resident
                else None
            )
            set_seed(args.seed)
            built = None if args.resume_from_checkpoint else build(args, report=accelerator.print)
            on_main_process(accelerator, lambda: check_output_dir(self.output_dir, args))
            settings = {name: value for name, value in args.to_dict().items() if value is not None}
            on_main_process(accelerator, lambda: open_trackers(accelerator, settings, in_folder=False))
        self.data = on_main_process(accelerator, lambda: describe_data(source))
        self.checkpoint = checkpoint = on_main_process(accelerator, lambda: open_run(self.output_dir, args, self.data))
        on_main_process(accelerator, lambda: open_trackers(accelerator, settings, in_folder=True))
        stop.connect()

        # -------------------------------------------------------------- model, objective, optimizer
        self.trained, self.renderer = built or build(args, checkpoint, report=accelerator.print)
        self.trained.to(accelerator.device)
        set_seed(args.seed, device_specific=True)
        self.prepare()

        # -------------------------------------------------------------- where the run stands
        rank = accelerator.process_index
        state: dict[str, Any] = {
            "step": 0,
            "logged_step": 0,
            "ranks": [{"position": None, "progress": None}] * accelerator.num_processes,
        }
        if checkpoint is not None:
            state = load_checkpoint(accelerator, checkpoint)
            accelerator.print(f"resuming from {checkpoint}")
        elif args.resume_from_checkpoint:
            accelerator.print(f"no checkpoint in {self.output_dir} yet: starting from the beginning")
        self.first_step = self.step = self.saved_step = state["step"]
        self.logged_step = state["logged_step"]

        # -------------------------------------------------------------- data, and what one sees of the run
        self.stream = CanvasStream(
            source,
            args.canvas_size,
            args.per_device_train_batch_size,
            seed=args.seed,
            rank=rank,
            world_size=accelerator.num_processes,
            num_workers=args.dataloader_num_workers,
            max_bad_fraction=args.max_bad_fraction,
            bad_images_path=self.output_dir / "bad_images.jsonl",
            position=state["ranks"][rank]["position"],
            resident=resident,
        )
        self.batches, self.position = DevicePrefetcher(iter(self.stream), accelerator.device), self.stream.position
        self.shown: Batch | None = None  # the first batch of this process, of which pictures are drawn
        self.announce(state.get("knn_start"))
        samples_per_step = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
        )
        self.probe_interval = args.probe_interval(accelerator.num_processes)
        self.progress = Progress(args.max_steps, samples_per_step, state["ranks"][rank]["progress"], accelerator.device)
        self.bar = StepBar(args.max_steps, self.step, accelerator.is_main_process)
        self.shown_r2 = state.get("shown_r2", "")  # of the newest probe, in the progress lines
        if self.step == 0:
            self.write_figures(self.measure_probe())  # what the model knows before it has learnt anything
            if self.shown_r2:
                self.bar.say(f"step 0/{args.max_steps}  {self.shown_r2}")

    def prepare(self) -> None:
        """Wrap model and optimizer for this device and the other processes."""
        args, trained = self.args, self.trained
        torch.set_float32_matmul_precision("high")
        if args.gradient_checkpointing:
            trained.model.eqcohvit.backbone.activation_checkpointing_enable()
        if args.compile:
            trained.compile()
            if self.accelerator.device.type == "cuda":
                self.renderer.compile()
        optimizer = make_optimizer(
            trained, args.learning_rate, args.weight_decay, args.layer_decay, args.patch_embed_lr_scale
        )
        self.module, self.optimizer = self.accelerator.prepare(trained, optimizer)
        connect(trained)

    def announce(self, knn_start: float | None) -> None:
        """Open the logs and say what is about to run, on what, and which figures to expect of it."""
        args, accelerator = self.args, self.accelerator
        self.log = (
            MetricsLog(self.output_dir / "metrics.jsonl", self.step or -1) if accelerator.is_main_process else None
        )
        self.trackers = Trackers(accelerator, lambda text: self.bar.say(text))
        compared = args.per_device_train_batch_size * accelerator.num_processes
        accelerator.print(
            f"{args.objective} + {args.path}: {describe_size(self.trained)}, steps {self.step} to {args.max_steps}, "
            f"{compared * args.gradient_accumulation_steps} samples a step from {self.stream.source.name}, "
            f"on {describe_launch(args, accelerator)}"
        )
        for name, value in self.trained.objective.start_values(compared).items():
            accelerator.print(f"expected at the start, with new heads: {name} about {value:.4g}")
        self.watch = self.make_watch()
        if self.guard is not None:
            self.guard.start = self.measure_knn(self.guard) if knn_start is None else knn_start
            drop = f"the run stops if it falls by more than {args.knn_guard_drop:g}"
            accelerator.print(f"kNN accuracy at the start: {self.guard.start:.3f}; {drop}")

    # ------------------------------------------------------------------ the loop
    def train(self) -> None:
        """Steps until `max_steps` or a signal, and the model folder at the end.

        Raises:
            StopRequested: a signal has stopped the run; all finished steps are saved.
        """
        args = self.args
        self.module.train()
        while self.step < args.max_steps:
            waiting = time.perf_counter()
            if (taken := self.stop.take(self.batches, args.gradient_accumulation_steps)) is None:
                self.end_early()
            self.progress.add_wait(time.perf_counter() - waiting)
            values = step_values(self.step, args)
            set_step(self.optimizer, values)
            ranks = self.optimize(taken, values)
            self.trained.after_step(self.step, values.teacher_momentum)
            self.step, self.position = self.step + 1, taken[-1].position
            self.bar.advance()
            self.after_step(values, ranks)
        self.end()

    def optimize(self, taken: list[Batch], values: StepValues) -> dict[str, torch.Tensor]:
        """One step of the optimizer on the batches `taken`; returns the ranks of the parts' features, in the steps that
        measure them."""
        ranks: dict[str, torch.Tensor] = {}
        for batch in taken:
            views = self.renderer(
                batch.canvases, batch.sizes, batch.epochs, batch.keys, with_intermediates=self.args.recon_weight > 0
            )
            with self.accelerator.accumulate(self.module):
                with self.accelerator.autocast():
                    terms = self.module(views, values)
                self.accelerator.backward(terms["loss"])
                if self.accelerator.sync_gradients:
                    self.accelerator.unscale_gradients()
                    norms = clip_gradients(self.trained.parts(), self.args.clip_gradients, self.args.max_grad_norm)
                    if (
                        self.accelerator.mixed_precision == "fp16"
                    ):  # an infinite norm: the scaler leaves the step out, lowers its scale
                        norms = {name: norm.nan_to_num(0.0, 0.0, 0.0) for name, norm in norms.items()}
                    terms |= norms
                check_step(self.accelerator, self.output_dir, self.step + 1, terms, taken, self.trained)
                self.optimizer.step()
                self.optimizer.zero_grad()
            ranks = {name: terms.pop(name) for name in list(terms) if name.startswith("rank/")}
            self.progress.add_terms(terms)
            self.shown = batch if self.shown is None else self.shown
        return ranks

    def after_step(self, values: StepValues, ranks: dict[str, torch.Tensor]) -> None:
        """Guard, probe, log, draw, save and upload, each in the steps that are due for it."""
        args, step, is_main = self.args, self.step, self.accelerator.is_main_process
        done, accuracy = step == args.max_steps, None
        figures = self.measure_probe() if step % self.probe_interval == 0 or done else {}
        if self.guard is not None and (step % args.knn_guard_steps == 0 or done):
            accuracy = self.measure_knn(self.guard)
            self.bar.say(f"step {step}: kNN accuracy {accuracy:.3f}, {self.guard.start:.3f} at the start")
            figures["guard/knn"] = accuracy
        if values.is_logged:
            self.write_line(values, ranks, figures)
        else:
            self.write_figures(figures)
        if self.guard is not None and accuracy is not None:
            self.guard.check(
                self.accelerator.reduce(
                    torch.tensor(accuracy, device=self.accelerator.device), reduction="mean"
                ).item(),
                step,
            )
        if args.recon_weight > 0 and (step % args.sample_steps == 0 or done):
            self.draw_samples()
        if step % args.save_steps == 0 or done:
            self.save()
            self.write_page()
            if is_main and args.push_to_hub and not done:
                self.export(may_fail=True)

    # ------------------------------------------------------------------ what one sees
    def measure_knn(self, guard: KnnGuard) -> float:
        """kNN accuracy of the model as it is now."""
        return with_weights(
            self.trained, lambda: guard.measure(self.trained.model.eqcohvit, self.renderer.mean, self.renderer.std)
        )

    def measure_probe(self) -> dict[str, float]:
        """What the parts know of the path as the model is now, on the main process; nothing on the others and without a
        probe."""
        probe = self.probe
        if probe is None:
            return {}
        how = (self.renderer.mean, self.renderer.std, self.accelerator.gather, self.accelerator.is_main_process)
        figures = with_weights(self.trained, lambda: probe.measure(self.trained.model.eqcohvit, *how))
        if figures:
            self.shown_r2 = f"R2 equi {figures['probe/r2/equivariant']:.3f} inv {figures['probe/r2/invariant']:.3f}"
        return figures

    def write_line(self, values: StepValues, ranks: dict[str, torch.Tensor], extra: dict[str, float]) -> None:
        """The progress line, its figures in metrics.jsonl and the trackers, and warnings about them."""
        terms = self.accelerator.reduce({**self.progress.means(), **ranks}, reduction="mean")
        means = {name: value.item() for name, value in terms.items()}
        line, figures = self.progress.line(
            self.step, means, self.step - max(self.logged_step, self.first_step), self.shown_r2
        )
        self.logged_step = self.step
        self.bar.say(line)
        self.write_figures({"learning_rate": values.learning_rate, **figures, **extra})
        for warning in self.watch.warnings(self.step, means):
            self.bar.say(warning)

    def write_figures(self, figures: dict[str, float]) -> None:
        """Figures of this step for metrics.jsonl and the trackers."""
        if self.log and figures:
            self.log.write(self.step, figures)
            self.trackers.log(figures, self.step)

    def write_page(self) -> None:
        """report.html, with the history of the run until now; a run survives where it cannot be written."""
        if not self.accelerator.is_main_process:
            return
        args = self.args
        about: dict[str, Any] = {"images": self.stream.source.name, "model": describe_size(self.trained), **versions()}
        if self.probe is not None:
            about["probes"] = (
                f"fitted on {self.probe.num_fit} images, tested on {self.probe.num_test}, every {self.probe_interval} steps"
            )
        state = f"step {self.step} of {args.max_steps}, {time.strftime('%Y-%m-%d %H:%M')}, {self.output_dir}"
        try:
            write_run_page(
                self.output_dir,
                title=f"{args.objective} + {args.path}",
                state=state,
                settings=args.to_dict(),
                watch=self.make_watch(),
                about=about,
                command=self.command,
            )
        except OSError as error:
            self.bar.say(f"cannot write report.html: {error}")

    def make_watch(self) -> HealthWatch:
        """What warns of a run that learns nothing."""
        compared = self.args.per_device_train_batch_size * self.accelerator.num_processes
        return HealthWatch(
            self.trained.objective.uninformed_values(compared), self.args.head_warmup_steps + self.args.warmup_steps
        )

    @torch.no_grad()
    def draw_samples(self, num_samples: int = 6) -> None:
        """Picture of the first samples of the main process's first batch, with the model as it is now; all processes
        take part."""
        batch, model, renderer = self.shown, self.trained.model, self.renderer
        assert batch is not None  # a step has been made
        views = renderer(
            batch.canvases, batch.sizes, batch.epochs, batch.keys
        )  # all of them: of other sizes it would be compiled anew
        assert views.intermediates is not None
        first, end, intermediates = (images[:num_samples] for images in (views.first, views.end, views.intermediates))
        model.eval()
        reconstructions = with_weights(self.trained, lambda: model(first, end).reconstructions)
        model.train()
        if self.accelerator.is_main_process:
            path = self.output_dir / "samples" / f"step-{self.step}.png"
            save_samples(
                path, first, end, intermediates, reconstructions, renderer.mean, renderer.std, renderer.target_fractions
            )
            self.trackers.log_picture("samples", path, self.step)

    # ------------------------------------------------------------------ what is kept
    def save(self) -> None:
        """A checkpoint of all processes."""
        accelerator, args = self.accelerator, self.args
        state: dict[str, Any] = {
            "step": self.step,
            "logged_step": self.logged_step,
            "knn_start": self.guard.start if self.guard else None,
        }
        state |= {"shown_r2": self.shown_r2, "data": self.data}
        state |= {"image_mean": list(self.renderer.mean), "image_std": list(self.renderer.std)}
        state |= {"ranks": gather_object([{"position": self.position, "progress": self.progress.state()}])}

        def write(folder: str) -> None:
            accelerator.save_state(folder)
            if is_sharded(self.trained):
                save_whole(self.trained, Path(folder) / WEIGHTS_FILE)
            if accelerator.is_main_process:
                describe_run(Path(folder), args, self.trained.model.config, self.renderer.mean, self.renderer.std)

        check_weights(self.trained, self.step)
        keep = (args.save_total_limit, args.keep_every_steps)
        self.checkpoint = save_checkpoint(accelerator, self.output_dir, self.step, state, write, *keep)
        self.saved_step = self.step

    def export(self, may_fail: bool = False) -> None:
        """Write the Hub folder with its card, and upload it where that is asked for; with `may_fail` the run survives a
        failed upload."""
        args, folder = self.args, self.output_dir / MODEL_FOLDER
        card = render_card(read_template(), read_run(self.output_dir))
        state = list_checkpoints(self.output_dir)[-1] if args.push_training_state else None
        mean_std = {"image_mean": self.renderer.mean, "image_std": self.renderer.std}
        model = self.trained.model
        if is_sharded(self.trained):
            assert self.checkpoint is not None  # of this step, or what a finished run was resumed from
            model = build_saved_model(args, self.checkpoint)
        save_hub_folder(folder, merged(model), **mean_std, card=card, training_state=state)
        if args.push_to_hub and args.hub_model_id is not None:  # checked with the other settings
            try:
                with self.stop.interruptible():
                    print(f"pushed to {push_hub_folder(folder, args.hub_model_id)}")
            except (ConnectionError, ValueError, StopRequested) as error:
                if not may_fail:
                    raise
                print(f"not pushed, the next checkpoint tries again: {error}", file=sys.stderr)

    # ------------------------------------------------------------------ the two ends
    def end_early(self) -> NoReturn:
        """Save what the last checkpoint does not have, and leave."""
        if self.step > self.saved_step:
            self.save()
            self.write_page()
        self.bar.close()
        self.accelerator.print(self.stop.message(self.step))
        self.trackers.finish()
        raise StopRequested

    def end(self) -> None:
        """Export the model and say where everything is."""
        self.bar.close()
        if self.accelerator.is_main_process:
            self.export()
            places = f"model in {self.output_dir / 'model'}, curves and pictures in {self.output_dir / 'report.html'}"
            print(f"{places}, bad images skipped: {self.stream.num_bad}")
        self.trackers.finish()


def open_sources(args: PretrainArguments, accelerator: Accelerator) -> tuple[Source, RunProbe | None, KnnGuard | None]:
    """The images to train on, and the probe and the guard with images that are not among them, where they are asked
    for."""
    columns = (args.train_dir, args.image_column, args.label_column)
    source = open_training_source(args, columns, accelerator.num_processes, accelerator.print)
    probe = None
    if args.probe_samples:
        path = make_path(args.path, args.path_magnitude)
        how = (args.max_bad_fraction, args.dataloader_num_workers, accelerator.process_index, accelerator.num_processes)
        source, probe = open_probe(source, args.probe_samples, args.image_size, path, *how, report=accelerator.print)
    if args.knn_guard_steps == 0:
        return source, probe, None
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
    return source, probe, KnnGuard(labelled, args.knn_guard_samples, args.image_size, args.knn_guard_drop)
