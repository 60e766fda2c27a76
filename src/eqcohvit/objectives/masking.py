"""The hidden patches of a batch as a block of fixed size, so that shapes do not depend on the draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MaskedPatches:
    """Where the hidden patches of each image are, in both of its views: indices (B, M) into V * N patches, and weights (B, M).

    M is the most that an image may hide. A weight is 1 over the number of the view's hidden patches, and 0 for what fills the block up.
    """

    indices: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, masks: torch.Tensor, max_masked: int) -> MaskedPatches:
        """Masks (V, B, N), true where hidden."""
        weights = (masks / masks.sum(dim=-1, keepdim=True).clamp_min(1)).transpose(0, 1).flatten(1)
        hidden = masks.transpose(0, 1).flatten(1)
        indices = hidden.byte().argsort(dim=1, descending=True, stable=True)[:, :max_masked]
        return cls(indices, weights.gather(1, indices))

    @property
    def valid(self) -> torch.Tensor:
        """(B, M) booleans, false for what fills the block up."""
        return self.weights > 0

    def take(self, patches: torch.Tensor) -> torch.Tensor:
        """Patch features (V, B, N, d) -> (B, M, d)."""
        patches = patches.transpose(0, 1).flatten(1, 2)
        return patches.gather(1, self.indices.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
