"""What every objective is: a module with its own heads that turns the invariant parts of two views into named loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class Objective(nn.Module, ABC):
    """Base of the self-supervised objectives.

    A subclass takes `(invariant_dim, projector_dim)` and returns scalars named `ssl/...`, already weighted: their sum is the SSL loss.
    """

    @abstractmethod
    def forward(self, first: torch.Tensor, end: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pooled invariant features (B, invariant_dim) of the first and the end view -> named terms."""
