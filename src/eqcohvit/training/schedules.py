"""Schedules of a run, as values indexed by the step: a resumed run needs nothing but its step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..objectives import TeacherOptions
from .arguments import PretrainArguments


@dataclass(frozen=True)
class StepValues:
    """The values of one step.

    `last_layer_learning_rate` is for the prototypes of a head, 0 while they are frozen; `backbone_factor` scales the
    learning rate of the backbone, which computes no gradients at 0. `is_logged`: whether a progress line follows, so
    that costly measures are taken.
    """

    learning_rate: float
    last_layer_learning_rate: float
    weight_decay: float
    backbone_factor: float = 1.0
    teacher_momentum: float = 1.0
    teacher_temperature: float = 1.0
    is_logged: bool = False


def warmup_cosine(step: int, max_steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Linear from 0 to `peak` over `warmup_steps`, then a half cosine to `final` at `max_steps`; step counts from 0.

    The official codes of VICReg, iBOT and DINOv2 begin with a step at a rate of 0, which changes no weight. This
    warm-up leaves that step out, so it is ahead of theirs by at most `peak / warmup_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * min(1.0, progress)))


def linear_warmup(step: int, num_steps: int, start: float, end: float) -> float:
    """Linear from `start` at step 0 to `end` at step `num_steps` - 1, where it stays.

    As in https://github.com/facebookresearch/dinov2. https://github.com/bytedance/ibot takes the same values per epoch
    instead of per step.
    """
    return end if step >= num_steps else start + (end - start) * step / max(1, num_steps - 1)


def backbone_warmup(step: int, head_warmup_steps: int, warmup_steps: int) -> float:
    """Factor of the backbone's learning rate: 0 while only the heads warm up, then linear to 1 over `warmup_steps`."""
    if step < head_warmup_steps:
        return 0.0
    return min(1.0, (step - head_warmup_steps + 1) / warmup_steps) if head_warmup_steps and warmup_steps else 1.0


def step_values(step: int, args: PretrainArguments) -> StepValues:
    """All scheduled values of the step, counted from 0."""
    learning_rate = warmup_cosine(step, args.max_steps, args.warmup_steps, args.learning_rate, args.min_learning_rate)
    weight_decay_end = args.weight_decay if args.weight_decay_end is None else args.weight_decay_end
    weight_decay = warmup_cosine(step, args.max_steps, 0, args.weight_decay, weight_decay_end)
    backbone_factor = backbone_warmup(step, args.head_warmup_steps, args.warmup_steps)
    is_logged = (step + 1) % args.logging_steps == 0 or step + 1 == args.max_steps
    options = args.parsed_objective_options()
    if not isinstance(options, TeacherOptions):
        return StepValues(learning_rate, learning_rate, weight_decay, backbone_factor, is_logged=is_logged)
    return StepValues(
        learning_rate,
        0.0 if step < options.freeze_last_layer_steps else learning_rate,
        weight_decay,
        backbone_factor,
        teacher_momentum=warmup_cosine(step, args.max_steps, 0, options.teacher_momentum, 1.0),
        teacher_temperature=linear_warmup(
            step, options.teacher_temperature_steps, options.teacher_temperature_start, options.teacher_temperature
        ),
        is_logged=is_logged,
    )
