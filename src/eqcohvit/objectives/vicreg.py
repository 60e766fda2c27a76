"""VICReg (arXiv:2105.04906): invariance, variance and covariance of an expander's embeddings."""

from __future__ import annotations

import torch

from .base import Objective
from .functional import vicreg_terms
from .heads import projector


class VICReg(Objective):
    """Expander of three layers and the weights 25, 25, 1 of the paper (section 4.2 and appendix D)."""

    def __init__(
        self,
        invariant_dim: int,
        projector_dim: int,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
    ):
        super().__init__()
        self.expander = projector(invariant_dim, projector_dim, projector_dim, num_layers=3)
        self.weights = (invariance_weight, variance_weight, covariance_weight)

    def forward(self, first: torch.Tensor, end: torch.Tensor) -> dict[str, torch.Tensor]:
        embeddings = self.expander(torch.cat([first, end]))
        return vicreg_terms(*embeddings.chunk(2), *self.weights)
