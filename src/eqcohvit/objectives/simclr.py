"""SimCLR (arXiv:2002.05709): contrast of the two views of an image with all other images of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from .base import Objective, ObjectiveInputs, ObjectiveOptions, ObjectiveSizes, check_positive
from .functional import nt_xent
from .heads import projector


@dataclass(frozen=True)
class SimCLROptions(ObjectiveOptions):
    """Projector of two layers to 128 dimensions (section 4.2); temperature 0.2 as usual for ViTs (arXiv:2104.02057)."""

    temperature: float = 0.2
    out_dim: int = 128

    def check(self) -> None:
        super().check()
        check_positive(self, "temperature", "out_dim")


class SimCLR(Objective):
    """Reads the invariant CLS features."""

    Options = SimCLROptions

    def __init__(self, sizes: ObjectiveSizes, options: SimCLROptions):
        super().__init__()
        self.projector = projector(sizes.invariant_dim, sizes.projector_dim, options.out_dim, num_layers=2)
        self.temperature = options.temperature

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        first, end = self.projector(inputs.invariant.cls.flatten(0, 1)).chunk(2)
        return {"ssl/contrast": nt_xent(first, end, self.temperature)}

    def uninformed_values(self, batch_size: int) -> dict[str, float]:
        return {"ssl/contrast": math.log(2 * batch_size - 1)}
