"""Reconstruction of one view by cross-attention between both (arXiv:2412.03314), a baseline: with VICReg on the
invariant part.

From the paper's abstract: cross-attention blends the features of two augmented views, and one of the views is
reconstructed from them, as an auxiliary task of an augmentation-based method. That is VICReg here, as in
arXiv:2503.18753, which compares with it. Our own choices are which view is reconstructed and asks, the decoder behind
the attention, the number of heads, and the weight. The equivariant part is trained by this reconstruction; for that
comparison leave the reconstruction of the intermediate states out (`recon_weight` 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .base import Objective, ObjectiveInputs, ObjectiveSizes, check_positive
from .vicreg import VICReg, VICRegOptions


@dataclass(frozen=True)
class CrossAttentionOptions(VICRegOptions):
    """VICReg's weights, and the reconstruction's weight, as large as the invariance's; `num_heads` of the attention."""

    reconstruction_weight: float = 25.0
    num_heads: int = 4

    def check(self) -> None:
        super().check()
        check_positive(self, "num_heads")


class CrossAttentionDecoder(nn.Module):
    """Patches of the end view, rebuilt from the first view's features. The end view's features are the queries.

    Queries are the end view's equivariant patch features, keys and values the first view's. There is no way past the
    attention, so that the content comes from the first view and its place from the relation of the two. Then a layer
    norm, an MLP and a linear layer to the pixels of the patch.
    """

    def __init__(self, equivariant_dim: int, width: int, num_heads: int, patch_size: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads must divide projector_dim = {width}, got {num_heads}")
        self.num_heads, self.patch_size = num_heads, patch_size
        self.query, self.key, self.value = (nn.Linear(equivariant_dim, width) for _ in range(3))
        self.to_pixels = nn.Sequential(
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, 3 * patch_size**2),
        )

    def forward(self, first: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Equivariant patch features (B, N, d_equi) of both views -> pixels (B, N, 3 p^2) of the end view's patches."""
        query, key, value = (
            layer(features).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, features in ((self.query, end), (self.key, first), (self.value, first))
        )
        blended = F.scaled_dot_product_attention(query, key, value)
        return self.to_pixels(blended.transpose(1, 2).flatten(2))


class CrossAttention(Objective):
    """Reads the invariant CLS features, the equivariant patch features and the pixels of the end view."""

    Options = CrossAttentionOptions

    def __init__(self, sizes: ObjectiveSizes, options: CrossAttentionOptions):
        super().__init__()
        self.vicreg = VICReg(sizes, options)
        self.decoder = CrossAttentionDecoder(
            sizes.equivariant_dim, sizes.projector_dim, options.num_heads, sizes.patch_size
        )
        self.reconstruction_weight = options.reconstruction_weight

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        pixels = self.decoder(*inputs.equivariant.every_patch())
        target = F.pixel_unshuffle(inputs.images[1], self.decoder.patch_size).flatten(2).transpose(1, 2)
        return {
            **self.vicreg(inputs),
            "ssl/reconstruction": self.reconstruction_weight * F.mse_loss(pixels.float(), target.float()),
        }
