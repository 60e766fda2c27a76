"""The hidden patches of a batch as one block of fixed size, so that shapes do not depend on the random masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .base import TeacherOptions

_ROWS = 8  # of a block whose hidden patches are counted, a multiple of this, as vectorized products like it


def hidden_patches_capacity(num_views: int, num_patches: int, options: TeacherOptions) -> int:
    """Rows for the hidden patches of `num_views` views: their mean number and 6 standard deviations, at most their
    maximum.

    With probability p = `mask_probability`, a view hides up to s N of its N patches, s uniform about `mask_ratio`;
    otherwise it hides none. That has the mean p E[s] N and the variance (p E[s^2] - p^2 E[s]^2) N^2. Views are
    drawn independently. By exact convolution (tests/objectives/test_masking.py) more patches than the capacity are
    hidden with a probability below 3e-9 a batch at the default options and up to 196 patches a view, and below 1e-6 at
    p = 1/4. For smaller p and few views it may reach 1e-3.
    """
    most = math.floor((options.mask_ratio + options.mask_ratio_variance) * num_patches)
    probability = options.mask_probability
    mean = probability * options.mask_ratio
    mean_square = probability * (options.mask_ratio**2 + options.mask_ratio_variance**2 / 3)
    deviation = math.sqrt(num_views * max(0.0, mean_square - mean**2)) * num_patches
    return max(1, min(num_views * most, math.ceil(num_views * mean * num_patches + 6 * deviation)))


@dataclass(frozen=True)
class MaskedPatches:
    """Where the hidden patches of a batch are: indices (M,) into its V * B * N patches, and weights (M,).

    A weight is 1 over the number of the view's hidden patches, and 0 for rows that only fill the block. Hidden patches
    that do not fit are left out of the loss. Uncompiled, a CPU counts the hidden patches and fills few rows: to count
    them, the host would have to wait for a GPU, and compiled code would be compiled for each number.
    """

    indices: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, masks: torch.Tensor, capacity: int) -> MaskedPatches:
        """Masks (V, B, N), true where hidden, and the number M of rows, at most."""
        if masks.device.type == "cpu" and not torch.compiler.is_compiling():
            capacity = min(capacity, _ROWS * max(1, math.ceil(int(masks.sum()) / _ROWS)))
        weights = (masks / masks.sum(dim=-1, keepdim=True).clamp_min(1)).flatten()
        indices = masks.flatten().byte().argsort(descending=True, stable=True)[:capacity]
        return cls(indices, weights[indices])

    @property
    def valid(self) -> torch.Tensor:
        """(M,) booleans, false for rows that only fill the block."""
        return self.weights > 0
