"""What a person sees of a pretraining run: progress lines, probes, the kNN guard, pictures and the page."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..data import Batch
from ..evaluation.results import versions
from ..transforms import ViewRenderer
from .arguments import PretrainArguments
from .health import HealthWatch
from .launcher import describe_launch
from .monitor import describe_size, save_samples
from .pretrain_module import PretrainModule
from .run import Run
from .run_page import write_run_page
from .schedules import StepValues
from .sharding import with_weights
from .source import Images

_NUM_SAMPLES = 6  # rows of a picture
_LEAST_R2 = 0.1  # of the equivariant part; a run that ends below it is told so
_TIMED_STEPS = 5  # after the first one, tell how long the run will take


class Observer:
    """Measures a run, and prints, logs and draws what it finds; all processes call each method."""

    def __init__(
        self,
        args: PretrainArguments,
        run: Run,
        trained: PretrainModule,
        renderer: ViewRenderer,
        images: Images,
        command: str,
    ):
        self.args = args
        self.run = run
        self.trained = trained
        self.renderer = renderer
        self.images = images
        self.command = command
        self.accelerator = run.accelerator
        self.probe_interval = args.probe_interval(run.accelerator.num_processes, self.has_few_images)
        self.shown_r2 = run.state.get("shown_r2", "")  # of a probe since the last progress line
        self.newest_r2: float | None = None  # of the equivariant part: the best-read parameter; on the main process
        self.shown: Batch | None = None  # the first batch of this process, which the pictures show
        self.watch = self.new_watch()
        self.first_step_ended = 0.0  # time of this process

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to keep."""
        return {"shown_r2": self.shown_r2, "knn_start": self.images.guard.start if self.images.guard else None}

    def new_watch(self) -> HealthWatch:
        """Warns of a run that learns nothing."""
        compared = self.args.per_device_train_batch_size * self.accelerator.num_processes
        values = self.trained.objective.uninformed_values(compared)
        return HealthWatch(values, self.args.head_warmup_steps + self.args.warmup_steps)

    # --------------------------------------------------------------------------------------------------------- start
    def begin(self) -> None:
        """Print what is about to run and on what; measure what the model knows before it has learned anything."""
        args = self.args
        run = self.run
        guard = self.images.guard
        run.open_logs(run.step or -1)
        compared = args.per_device_train_batch_size * self.accelerator.num_processes
        samples = compared * args.gradient_accumulation_steps
        steps = f"steps {run.step} to {args.max_steps}, {samples} samples a step"
        run.bar.say(f"{args.objective} + {args.path}, {steps} from {self.images.source.name}")
        run.bar.say(describe_size(self.trained))
        run.bar.say(f"on {describe_launch(args, self.accelerator)}")
        if run.step == 0:
            for name, value in self.trained.objective.start_values(compared).items():
                run.bar.say(f"the loss term {name} of untrained heads is about {value:.4g}")
        if guard is not None:
            known = run.state.get("knn_start")
            guard.start = self.knn_accuracy() if known is None else known
            drop = f"the run stops if it falls by more than {args.knn_guard_drop:g}"
            run.bar.say(f"kNN accuracy at the start: {guard.start:.3f}; {drop}")
        if run.step == 0:
            run.write(self.probe_figures())
            if self.shown_r2:
                run.bar.say(f"step 0/{args.max_steps}  {self.shown_r2}")
                self.shown_r2 = ""

    # ------------------------------------------------------------------------------------------------------ measures
    def knn_accuracy(self) -> float:
        """kNN accuracy of the model as it is now, on the guard's images."""
        guard = self.images.guard
        assert guard is not None
        mean, std = self.renderer.mean, self.renderer.std
        return with_weights(self.trained, lambda: guard.measure(self.trained.model.eqcohvit, mean, std))

    def probe_figures(self) -> dict[str, float]:
        """What the parts know of the path, on the main process; empty on the others and without a probe."""
        probe = self.images.probe
        if probe is None:
            return {}
        how = (self.renderer.mean, self.renderer.std, self.accelerator.gather, self.accelerator.is_main_process)
        figures = with_weights(self.trained, lambda: probe.measure(self.trained.model.eqcohvit, *how))
        if figures:
            of_equivariant = [figures[name] for name in figures if name.endswith("/equivariant") and "/r2_of/" in name]
            self.newest_r2 = max([figures["probe/r2/equivariant"], *of_equivariant])
            self.shown_r2 = f"R2 equi {figures['probe/r2/equivariant']:.3f} inv {figures['probe/r2/invariant']:.3f}"
        return figures

    def after_step(self, batch: Batch, values: StepValues, ranks: dict[str, torch.Tensor]) -> None:
        """Probe, guard, log and draw, each in the steps that are due for it; `batch` is one of this step.

        Raises:
            AccuracyFell: the kNN accuracy has fallen too far.
        """
        args = self.args
        run = self.run
        guard = self.images.guard
        self.shown = self.shown or batch
        self.tell_time()
        done = run.step == args.max_steps
        figures = self.probe_figures() if run.step % self.probe_interval == 0 or done else {}
        accuracy = None
        if guard is not None and (run.step % args.knn_guard_steps == 0 or done):
            accuracy = self.knn_accuracy()
            run.bar.say(f"step {run.step}: kNN accuracy {accuracy:.3f}, {guard.start:.3f} at the start")
            figures["guard/knn"] = accuracy
        if values.is_logged:
            means = run.write_line(values.learning_rate, ranks, figures, self.shown_r2)
            self.shown_r2 = ""
            for warning in self.watch.warnings(run.step, means):
                run.bar.say(warning)
        else:
            run.write(figures)
        if guard is not None and accuracy is not None:
            local = torch.tensor(accuracy, device=self.accelerator.device)
            guard.check(self.accelerator.reduce(local, reduction="mean").item(), run.step)
        if args.recon_weight > 0 and (run.step % args.sample_steps == 0 or done):
            self.draw_samples()

    def tell_time(self) -> None:
        """Say after a few steps how long the run will take."""
        run = self.run
        done = run.step - run.first_step
        if done == 1:
            self.first_step_ended = time.perf_counter()
        elif done == 1 + _TIMED_STEPS and run.step < run.max_steps:
            step = (time.perf_counter() - self.first_step_ended) / _TIMED_STEPS
            seconds = step * (run.max_steps - run.step)
            minutes = max(1, round(seconds / 60))
            run.bar.say(f"about {minutes:,} min to go; fewer --max_steps or a smaller --image_size take less")

    @property
    def has_few_images(self) -> bool:
        """Whether the probe shows each image under several draws."""
        return self.images.probe is not None and self.images.probe.num_draws > 1

    def verdict(self) -> str:
        """Says if the newest R2 is hardly above guessing; empty if it is higher, or was not measured."""
        probe = self.images.probe
        if probe is None or self.newest_r2 is None or self.args.recon_weight == 0 or self.newest_r2 >= _LEAST_R2:
            return ""
        r2 = f"R2 of the equivariant part is {self.newest_r2:.3f} (strict), where guessing has 0"
        text = f"{r2}: it hardly tells the transformation."
        if self.has_few_images:
            text += f" {len(probe.labels)} images are few for this probe; an evaluation fits on more."
        if not self.args.init_from:
            text += " A trained model (--init_from) is the better start for few images or steps."
        return text

    # ------------------------------------------------------------------------------------------------------ pictures
    @torch.no_grad()
    def draw_samples(self) -> None:
        """Picture of the first samples of the main process's first batch, with the model as it is now."""
        batch, model, renderer = self.shown, self.trained.model, self.renderer
        assert batch is not None  # at least one step is done
        # All of them, because another batch size would be compiled again.
        views = renderer(batch.canvases, sizes=batch.sizes, keys=batch.keys, epochs=batch.epochs)
        assert views.intermediates is not None
        first = views.first[:_NUM_SAMPLES]
        end = views.end[:_NUM_SAMPLES]
        intermediates = views.intermediates[:_NUM_SAMPLES]
        model.eval()
        reconstructions = with_weights(self.trained, lambda: model(first, end).reconstructions)
        model.train()
        if self.accelerator.is_main_process:
            path = self.run.output_dir / "samples" / f"step-{self.run.step}.png"
            looks = (renderer.mean, renderer.std, renderer.target_fractions)
            save_samples(path, first, end, intermediates, reconstructions, *looks)
            self.run.trackers.log_picture("samples", path, self.run.step)

    def write_page(self) -> None:
        """Write report.html with the history of the run so far; the run continues if it cannot be written."""
        if not self.accelerator.is_main_process:
            return
        args = self.args
        run = self.run
        probe = self.images.probe
        about: dict[str, Any] = {"images": self.images.source.name, "model": describe_size(self.trained), **versions()}
        if probe is not None:
            about["probes"] = f"{probe.sizes}, every {self.probe_interval} steps"
        state = f"step {run.step} of {args.max_steps}, {time.strftime('%Y-%m-%d %H:%M')}, {run.output_dir}"
        try:
            write_run_page(
                run.output_dir,
                title=f"{args.objective} + {args.path}",
                state=state,
                settings=args.to_dict(),
                watch=self.new_watch(),
                about=about,
                command=self.command,
                verdict=self.verdict() if run.step == args.max_steps else "",
            )
        except OSError as error:
            run.bar.say(f"cannot write report.html: {error}")
