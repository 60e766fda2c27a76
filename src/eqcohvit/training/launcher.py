"""What a launcher says of a run, in the environment that it starts it in, and which of its settings and ours counts."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from transformers.utils import logging as transformers_logging

from .arguments import PRECISIONS, PretrainArguments
from .sharding import check_plugin, set_defaults
from .trackers import check_tracker

PRECISION, ACCUMULATION = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def launcher_settings() -> dict[str, Any]:
    """`mixed_precision` and `gradient_accumulation_steps`, where the launcher sets them.

    Raises:
        ValueError: a value is none that a run can have.
    """
    settings: dict[str, Any] = {}
    if precision := os.environ.get(PRECISION, "").lower():
        if precision not in PRECISIONS:
            raise ValueError(f"the launcher sets mixed_precision to {precision!r}; allowed: {', '.join(PRECISIONS)}")
        settings["mixed_precision"] = precision
    steps = os.environ.get(ACCUMULATION, "auto")
    if steps != "auto":  # which leaves it to the script
        if not steps.isdigit() or int(steps) < 1:
            raise ValueError(f"the launcher sets {ACCUMULATION} to {steps!r}; expected a number from 1 on")
        settings["gradient_accumulation_steps"] = int(steps)
    return settings


def with_launcher(given: set[str], completed: dict[str, Any]) -> dict[str, Any]:
    """`completed` with the launcher's settings where neither a flag or recipe (`given`) nor a resumed run (`completed`)
    has a say."""
    added = {
        name: value for name, value in launcher_settings().items() if name not in given and completed.get(name) is None
    }
    return completed | added


def agree_with_launcher(args: PretrainArguments) -> None:
    """Set the precision where no one has, and let the launcher's environment, which Accelerate prefers, say the same as
    the run."""
    args.mixed_precision = precision_of(args.mixed_precision)
    if ACCUMULATION in os.environ:
        os.environ[ACCUMULATION] = str(args.gradient_accumulation_steps)


def precision_of(mixed_precision: str | None) -> str:
    """The precision of a run: the one that is set, else bf16 on GPUs that have it, else no."""
    return mixed_precision or ("bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no")


def make_accelerator(args: PretrainArguments) -> Accelerator:
    """Precision, accumulation, trackers and data-parallel options of a run; bf16 by default on GPUs that have it.

    Raises:
        ValueError: the tracker is not installed, or the launcher asks for what a run cannot do.
    """
    check_tracker(args.report_to)
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate.utils.other").setLevel(
        logging.ERROR
    )  # lists all weights that a teacher shares with its student
    agree_with_launcher(args)
    set_defaults()
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    check_plugin(accelerator, args.peft)
    return accelerator


def describe_launch(args: PretrainArguments, accelerator: Accelerator) -> str:
    """Processes, device, precision and accumulation, and where each comes from."""
    count, device = accelerator.num_processes, accelerator.device.type
    processes = f"{count} x {device} ({'launcher' if count > 1 else 'one process'})"
    precision = f"precision {accelerator.mixed_precision} ({_origin(args, 'mixed_precision')})"
    accumulation = f"accumulation {args.gradient_accumulation_steps} ({_origin(args, 'gradient_accumulation_steps')})"
    slow = accelerator.mixed_precision == "no" and "mixed_precision" not in args.given and precision_of(None) == "bf16"
    hint = "; --mixed_precision bf16 is faster on this GPU" if slow else ""
    return f"{processes}, {precision}, {accumulation}{hint}"


def _origin(args: PretrainArguments, name: str) -> str:
    value, launched = getattr(args, name), launcher_settings()
    if name in args.given:
        return "set"
    if name in launched and launched[name] == value:
        return "launcher"
    defaults = {"mixed_precision": precision_of(None), "gradient_accumulation_steps": 1}
    return "default" if value in (None, defaults[name]) else "resumed run"
