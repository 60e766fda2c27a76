"""What every objective is: a module with its own heads that turns the features of both views into named loss terms.

V = 2 global views (first, end), B images, N patches, L local crops.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ..cli import check_choices, did_you_mean


@dataclass(frozen=True)
class Tokens:
    """One part of the features of the global views: cls (V, B, d), patches (V, B, N, d).

    Where the backbone has no CLS token, `cls` is the mean of the patches. With `project`, `patches` are the backbone's
    tokens (V, B, N, D), and it computes the features (..., d) of those that are read.
    """

    cls: torch.Tensor
    patches: torch.Tensor
    project: Callable[[torch.Tensor], torch.Tensor] | None = None

    def every_patch(self) -> torch.Tensor:
        """Features (V, B, N, d)."""
        return self.patches if self.project is None else self.project(self.patches)

    def some_patches(self, indices: torch.Tensor) -> torch.Tensor:
        """Features (M, d) of the patches with these indices (M,) into the V * B * N."""
        rows = self.patches.flatten(0, 2)[indices]
        return rows if self.project is None else self.project(rows)


@dataclass(frozen=True)
class ObjectiveInputs:
    """Everything that an objective can read; each one takes what it needs.

    Args:
        invariant, equivariant: the student's parts, of the masked views if there are `masks`.
        images: (V, B, 3, H, H) the global views in normalized pixels, unmasked.
        parameters: (B, P) of the transformation g that leads to the end view, in its path's units.
        local: (L, B, d_inv) the student's invariant CLS features of the local crops, or None.
        masks: (V, B, N) booleans, true where a patch was hidden from the student, or None.
        teacher: invariant parts of the teacher, which saw the whole views; None without a teacher.
        teacher_temperature: of this step; in training a tensor of no dimension.
    """

    invariant: Tokens
    equivariant: Tokens
    images: torch.Tensor
    parameters: torch.Tensor
    local: torch.Tensor | None = None
    masks: torch.Tensor | None = None
    teacher: Tokens | None = None
    teacher_temperature: float | torch.Tensor = 1.0


@dataclass(frozen=True)
class ObjectiveSizes:
    """What an objective's heads are built from.

    Args:
        invariant_dim, equivariant_dim: widths of both parts.
        projector_dim: hidden width of the projection heads.
        patch_size: side of a patch in pixels.
        parameter_limits: (low, high) of each parameter of g.
    """

    invariant_dim: int
    equivariant_dim: int
    projector_dim: int
    patch_size: int
    parameter_limits: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class ObjectiveOptions:
    """Base of the options of an objective, which itself has none."""

    def check(self) -> None:
        """Raise a `ValueError` of one line for the first value that cannot work.

        Here: a negative `..._weight` or `..._steps`, or a value that is not among the choices of its field (`choice`).
        """
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name.endswith(("_weight", "_steps")) and not 0 <= value < math.inf:
                raise ValueError(f"{f.name} must be at least 0 and finite, got {value}")
        check_choices(self)


def choice(default: str, *others: str) -> Any:
    """A field of options that holds one of these strings."""
    return field(default=default, metadata={"choices": (default, *others)})


def check_positive(options: ObjectiveOptions, *names: str) -> None:
    """Raise a `ValueError` for the first of these options that is not positive and finite."""
    for name in names:
        if not 0 < getattr(options, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(options, name)}")


@dataclass(frozen=True)
class TeacherOptions(ObjectiveOptions):
    """What the objectives with an EMA teacher have in common; steps are optimizer steps.

    Args:
        teacher_momentum: of the EMA at the first step; rises to 1 along a half cosine.
        teacher_temperature: after its warm-up; `teacher_temperature_start` before, linear over
            `teacher_temperature_steps`.
        freeze_last_layer_steps: steps in which the prototypes are not trained (an epoch in the papers).
        mask_probability: of each global view to have patches hidden from the student; 0 hides none.
        mask_ratio, mask_ratio_variance: share of the patches that are hidden in such a view, uniform about the ratio.
        min_masked_patches: area of the smallest block of hidden patches; at most (g // 3)^2 of g x g patches.
    """

    teacher_momentum: float = 0.996
    teacher_temperature: float = 0.07
    teacher_temperature_start: float = 0.04
    teacher_temperature_steps: int = 0
    freeze_last_layer_steps: int = 0
    mask_probability: float = 0.5
    mask_ratio: float = 0.3
    mask_ratio_variance: float = 0.2
    min_masked_patches: int = 4

    def check(self) -> None:
        super().check()
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum must lie between 0 and 1, got {self.teacher_momentum}")
        check_positive(self, "teacher_temperature", "teacher_temperature_start", "min_masked_patches")


class Objective(nn.Module, ABC):
    """Base of the self-supervised objectives.

    A subclass takes `(sizes: ObjectiveSizes, options: Options)`, names its dataclass of options, and declares whether
    it uses an EMA teacher (of the encoder and of `self.head`) and local crops. Local crops are passed only to
    objectives with `uses_local_crops`.
    """

    Options: ClassVar[type[ObjectiveOptions]] = ObjectiveOptions
    uses_teacher: ClassVar[bool] = False
    uses_local_crops: ClassVar[bool] = False
    head: nn.Module  # of those with a teacher

    @abstractmethod
    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        """Features -> scalars `ssl/...`, already weighted; their sum is the SSL loss. Other names are only logged.

        `teacher_head` is the teacher's copy of `self.head`, if there is a teacher.
        """

    def uninformed_values(self, batch_size: int) -> dict[str, float]:
        """The values that loss terms keep in a collapsed run, whose embeddings do not depend on the image.

        `batch_size` is the number of images that are compared, over all processes. Terms without such a value are
        omitted.
        """
        return {}

    def start_values(self, batch_size: int) -> dict[str, float]:
        """The values of loss terms near which a run with new heads starts; by default `uninformed_values`."""
        return self.uninformed_values(batch_size)


def parse_options(options_class: type[ObjectiveOptions], text: str) -> ObjectiveOptions:
    """`"name=value,name=value"` -> checked options of an objective; an empty text gives the defaults.

    Raises:
        ValueError: an unknown name, or a value that is not of the field's type or cannot work.
    """
    fields = {f.name: f for f in dataclasses.fields(options_class)}
    values = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (part.strip() for part in item.partition("="))
        if name not in fields or not separator:
            known = ", ".join(fields) or "none"
            hint = did_you_mean(name, fields)
            raise ValueError(
                f"objective_options must be name=value pairs of this objective's options ({known}), got {item!r}{hint}"
            )
        values[name] = _convert(name, value, type(fields[name].default))
    options = options_class(**values)
    options.check()
    return options


def _convert(name: str, value: str, kind: type) -> bool | int | float | str:
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        allowed = "true or false" if kind is bool else f"a value of type {kind.__name__}"
        raise ValueError(f"objective option {name} must be {allowed}, got {value!r}") from None
