"""VICReg (arXiv:2105.04906): invariance, variance and covariance of an expander's embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from .base import Objective, ObjectiveInputs, ObjectiveOptions, ObjectiveSizes
from .functional import vicreg_terms
from .heads import projector


@dataclass(frozen=True)
class VICRegOptions(ObjectiveOptions):
    """The weights of the paper (section 4.2 and appendix D) and of https://github.com/facebookresearch/vicreg.

    They belong to the variance term of that code, which has half the hinge of each view; the paper's equation 6 has the
    whole hinges (`functional.variance_penalty`). The weights that https://github.com/facebookresearch/SIE uses for
    VICReg, the "SIE setting" of arXiv:2503.18753, are `invariance_weight=10,variance_weight=10,covariance_weight=1`.
    """

    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0


class VICReg(Objective):
    """An expander of three layers on the invariant CLS features."""

    Options = VICRegOptions

    def __init__(self, sizes: ObjectiveSizes, options: VICRegOptions):
        super().__init__()
        self.expander = projector(sizes.invariant_dim, sizes.projector_dim, sizes.projector_dim, num_layers=3)
        self.weights = (options.invariance_weight, options.variance_weight, options.covariance_weight)

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        first, end = self.expander(inputs.invariant.cls.flatten(0, 1)).chunk(2)
        return vicreg_terms(first, end, *self.weights)

    def uninformed_values(self, batch_size: int) -> dict[str, float]:
        return {"ssl/variance": self._variance_value(0.0)}

    def start_values(self, batch_size: int) -> dict[str, float]:
        # A normalized Gaussian after ReLU has the variance 1/2 - 1/(2 pi); the last layer's weights begin with 1/3 over
        # their number.
        return {"ssl/variance": self._variance_value((1 / 2 - 1 / (2 * math.pi)) / 3)}

    def _variance_value(self, variance: float) -> float:
        """The variance term, half of each view, for embeddings whose dimensions have this variance."""
        return self.weights[1] * max(0.0, 1 - math.sqrt(variance + 1e-4))
