"""What training loops share: where a run stands, how it stops, and what it logs and saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .checkpoint import load_checkpoint, save_checkpoint
from .finite import check_weights
from .monitor import MetricsLog, Progress, StepBar
from .signals import StopRequested, StopSignals
from .trackers import Trackers

_Item = TypeVar("_Item")


class Run:
    """One process of a run: the steps that are done, logged and saved.

    Args:
        max_steps: the step at which the run ends.
        samples_per_step: over all processes.
        model: the module whose weights are checked before they are saved.
        checkpoint: to continue from; its state is loaded into what the accelerator has prepared.
        keeps: how many of the newest checkpoints to keep, and the interval of steps whose checkpoints are kept as well
            (0 for none).
    """

    def __init__(
        self,
        accelerator: Accelerator,
        stop: StopSignals,
        output_dir: Path,
        max_steps: int,
        samples_per_step: int,
        model: torch.nn.Module,
        checkpoint: Path | None,
        keeps: tuple[int, int],
    ):
        self.accelerator = accelerator
        self.stop = stop
        self.output_dir = output_dir
        self.max_steps = max_steps
        self.model = model
        self.checkpoint = checkpoint
        self.keeps = keeps
        self.state: dict[str, Any] = {"step": 0, "logged_step": 0}
        if checkpoint is not None:
            self.state = load_checkpoint(accelerator, checkpoint)
            accelerator.print(f"resuming from {checkpoint}")
        self.first_step = self.step = self.saved_step = self.state["step"]
        self.logged_step = self.state["logged_step"]
        self.progress = Progress(max_steps, samples_per_step, self.of_this_process("progress"), accelerator.device)

    def of_this_process(self, name: str) -> Any:
        """A value of this process in the checkpoint that the run continues from; None at the beginning."""
        ranks = self.state.get("ranks")
        return ranks[self.accelerator.process_index].get(name) if ranks else None

    def open_logs(self, resume_step: int) -> None:
        """Open metrics.jsonl, without its lines after `resume_step`, the trackers and the progress bar."""
        is_main = self.accelerator.is_main_process
        self.log = MetricsLog(self.output_dir / "metrics.jsonl", resume_step) if is_main else None
        self.bar = StepBar(self.max_steps, self.step, is_main)
        self.trackers = Trackers(self.accelerator, self.bar.say)

    # --------------------------------------------------------------------------------------------------------- steps
    def next_batches(self, batches: Iterator[_Item], count: int) -> list[_Item] | None:
        """The next batches, all for one step; None if a signal asks the processes to stop."""
        waiting = time.perf_counter()
        taken = self.stop.next_batches(batches, count)
        self.progress.add_wait(time.perf_counter() - waiting)
        return taken

    def advance(self) -> None:
        """Count one finished step."""
        self.step += 1
        self.bar.advance()

    def stopped(self) -> NoReturn:
        """Print after which step a signal ended the run, and raise `StopRequested`."""
        self.bar.close()
        self.accelerator.print(self.stop.message(self.step))
        self.trackers.finish()
        raise StopRequested

    # --------------------------------------------------------------------------------------------------------- logs
    def write(self, figures: dict[str, float]) -> None:
        """Write figures of this step to metrics.jsonl and the trackers, from the main process."""
        if self.log and figures:
            self.log.write(self.step, figures)
            self.trackers.log(figures, self.step)

    def write_line(
        self, learning_rate: float, extra_terms: dict[str, torch.Tensor], figures: dict[str, float], shown: str = ""
    ) -> dict[str, float]:
        """Print the progress line and write its figures; returns the means of the terms over all processes.

        Args:
            extra_terms: terms of this step only, averaged over the processes.
            figures: more figures for metrics.jsonl.
            shown: more text for the line.
        """
        terms = self.accelerator.reduce({**self.progress.means(), **extra_terms}, reduction="mean")
        means = {name: value.item() for name, value in terms.items()}
        num_steps = self.step - max(self.logged_step, self.first_step)
        line, measured = self.progress.line(self.step, means, num_steps, shown)
        self.logged_step = self.step
        self.bar.say(line)
        self.write({"learning_rate": learning_rate, **measured, **figures})
        return means

    # --------------------------------------------------------------------------------------------------------- saved
    def save(
        self, state: dict[str, Any], of_this_process: dict[str, Any], write: Callable[[str], None] | None = None
    ) -> None:
        """Write a checkpoint of all processes.

        Args:
            state: values that are the same on all processes.
            of_this_process: values that differ between them.
            write: fills the checkpoint's folder; by default with the accelerator's state.
        """
        check_weights(self.model, self.step)
        own = {**of_this_process, "progress": self.progress.state()}
        common = {"step": self.step, "logged_step": self.logged_step, **state, "ranks": gather_object([own])}
        self.checkpoint = save_checkpoint(
            self.accelerator, self.output_dir, self.step, common, write or self.accelerator.save_state, *self.keeps
        )
        self.saved_step = self.step
