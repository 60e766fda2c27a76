"""SimCLR (arXiv:2002.05709): contrast of the two views of an image with all other images of the batch."""

from __future__ import annotations

import torch

from .base import Objective
from .functional import nt_xent
from .heads import projector


class SimCLR(Objective):
    """Projector of two layers to 128 dimensions; temperature 0.2 as usual for ViTs (arXiv:2104.02057)."""

    def __init__(self, invariant_dim: int, projector_dim: int, temperature: float = 0.2, out_dim: int = 128):
        super().__init__()
        self.projector = projector(invariant_dim, projector_dim, out_dim, num_layers=2)
        self.temperature = temperature

    def forward(self, first: torch.Tensor, end: torch.Tensor) -> dict[str, torch.Tensor]:
        embeddings = self.projector(torch.cat([first, end]))
        return {"ssl/contrast": nt_xent(*embeddings.chunk(2), self.temperature)}
