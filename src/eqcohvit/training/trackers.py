"""Accelerate's experiment trackers: a run hands them its figures and pictures, and continues if one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from ..files import message_of


def check_tracker(name: str) -> None:
    """Raise a `ValueError` unless it is `"none"`, `"all"`, or a tracker of Accelerate whose library is installed."""
    known = list(map(str, LoggerType.list()))
    installed = list(map(str, get_available_trackers()))
    if name in ("none", "all") or name in installed:
        return
    problem = "is not installed" if name in known else "is unknown"
    raise ValueError(
        f"report_to: the tracker {name!r} {problem}; installed: {', '.join(installed) or 'none'}; "
        f"known: {', '.join(known)}"
    )


def open_trackers(accelerator: Accelerator, settings: dict[str, Any], in_folder: bool) -> None:
    """Open the trackers at one of two points of a run: before its folder exists if none of them writes into it, so that
    a failure leaves nothing behind; otherwise once the folder exists.

    Args:
        in_folder: whether the folder exists.
        settings: of the run, for its page; those that are None are left out.

    Raises:
        ValueError: a tracker cannot be opened, for example because the key of an account is missing.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    trackers: list[Any] = []
    for tracker in accelerator.log_with:
        trackers.append(tracker if isinstance(tracker, GeneralTracker) else LOGGER_TYPE_TO_CLASS[str(tracker)])
    if any(tracker.requires_logging_directory for tracker in trackers) != in_folder:
        return
    try:
        accelerator.init_trackers("eqcohvit", config=settings)
    except Exception as error:  # each library raises different errors
        accelerator.trackers = []
        names = ", ".join(str(tracker.name) for tracker in trackers)
        raise ValueError(f"cannot open the tracker {names}: {message_of(error, 300)}") from None


class Trackers:
    """The trackers of an accelerator; `say` reports only the first failure of each.

    Args:
        say: prints a line.
    """

    def __init__(self, accelerator: Accelerator, say: Callable[[str], None]):
        self.accelerator = accelerator
        self.say = say
        self._failed: set[str] = set()

    def log(self, figures: dict[str, float], step: int) -> None:
        """Figures by name."""
        self._each(lambda tracker: tracker.log(figures, step=step))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """A picture file, for the trackers that take images."""
        if not self.accelerator.trackers:
            return
        pixels = np.asarray(Image.open(path).convert("RGB"))[None]  # (1, height, width, 3)

        def send(tracker: Any) -> None:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: pixels}, step=step, **options)

        self._each(send)

    def finish(self) -> None:
        """Close the trackers and end the training of the accelerator."""
        self._each(lambda tracker: tracker.finish())
        self.accelerator.trackers = []  # or it would close them again
        self.accelerator.end_training()

    def _each(self, send: Callable[[Any], None]) -> None:
        if not self.accelerator.is_main_process:
            return
        for tracker in self.accelerator.trackers:
            try:
                send(tracker)
            except Exception as error:  # from a library or a network; metrics.jsonl has the figures anyway
                if tracker.name not in self._failed:
                    reason = f"{type(error).__name__}: {message_of(error, 200)}"
                    self.say(f"the tracker {tracker.name} failed, the run goes on without it ({reason})")
                self._failed.add(tracker.name)
