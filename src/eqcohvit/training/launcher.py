"""Settings that a launcher passes to a run through the environment, and which of its settings and ours win."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from transformers.utils import logging as transformers_logging

from .arguments import PRECISIONS, PretrainArguments
from .sharding import set_defaults

PRECISION = "ACCELERATE_MIXED_PRECISION"
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def launcher_settings() -> dict[str, Any]:
    """`mixed_precision` and `gradient_accumulation_steps`, if the launcher sets them.

    Raises:
        ValueError: a value is not allowed.
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
    """`completed` with the launcher's settings that neither a flag or recipe (`given`) nor a resumed run (`completed`)
    sets."""
    added = {
        name: value for name, value in launcher_settings().items() if name not in given and completed.get(name) is None
    }
    return completed | added


def precision_of(mixed_precision: str | None) -> str:
    """The precision of a run: the one that is set, else bf16 on GPUs that have it, else no."""
    return mixed_precision or ("bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no")


def make_accelerator(
    mixed_precision: str, num_batches: int = 1, uses_all_weights: bool = True, **options: Any
) -> Accelerator:
    """The accelerator of a run.

    Args:
        num_batches: per step of the optimizer.
        uses_all_weights: whether each step computes a gradient for all trainable weights.
        options: of `Accelerator`.
    """
    transformers_logging.disable_progress_bar()
    # At a lower level it lists all weights that a teacher shares with its student.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if ACCUMULATION in os.environ:  # which Accelerate prefers to its argument
        os.environ[ACCUMULATION] = str(num_batches)
    set_defaults()
    # Newer torch has another name for what Accelerate passes on to it.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=not uses_all_weights)
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=num_batches,
        kwargs_handlers=[parallel],
        **options,
    )


def describe_launch(args: PretrainArguments, accelerator: Accelerator) -> str:
    """Processes, device, precision and accumulation, and where each comes from."""
    count = accelerator.num_processes
    device = accelerator.device.type
    processes = f"{count} processes by the launcher" if count > 1 else "one process"
    threads = f", threads {torch.get_num_threads()}" if device == "cpu" else ""
    precision = f"precision {accelerator.mixed_precision} ({_origin(args, 'mixed_precision')})"
    accumulation = f"accumulation {args.gradient_accumulation_steps} ({_origin(args, 'gradient_accumulation_steps')})"
    slow = accelerator.mixed_precision == "no" and "mixed_precision" not in args.given and precision_of(None) == "bf16"
    hint = "; --mixed_precision bf16 is faster on this GPU" if slow else ""
    return f"{device}, {processes}{threads}, {precision}, {accumulation}{hint}"


def _origin(args: PretrainArguments, name: str) -> str:
    value = getattr(args, name)
    launched = launcher_settings()
    if name in args.given:
        return "set"
    if name in launched and launched[name] == value:
        return "launcher"
    defaults = {"mixed_precision": precision_of(None), "gradient_accumulation_steps": 1}
    return "default" if value in (None, defaults[name]) else "resumed run"
