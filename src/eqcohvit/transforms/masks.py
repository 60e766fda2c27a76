"""Block-wise masks of patches, drawn by the counter-based generator like everything else of a sample.

Blocks as in BEiT (arXiv:2106.08254, algorithm 1) with the random ratio of iBOT (arXiv:2111.07832, section 4.1): of the views to mask, each
has its own share of masked patches, uniform about `ratio`. Which views are masked is balanced within a sample: with a probability of 1/2 it
is one of the two, never both or none, as DINOv2 balances it within a batch. So the number of hidden patches has a small bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .random import uniforms

_NUM_VIEWS = 2
_DRAWS_PER_BLOCK = 4
_MIN_BLOCK = 4  # patches
_LOG_ASPECT = math.log(0.3)


@dataclass(frozen=True)
class BlockMasking:
    """How the student's global views are masked.

    Args:
        probability: share of the views that are masked at all.
        ratio, ratio_variance: a masked view hides a share of its patches that is uniform in ratio - variance to ratio + variance.
        num_blocks: blocks drawn at most; later ones fill up what the earlier ones left.

    Raises:
        ValueError: `probability` does not lie in [0, 1], or a share of patches not in [0, 1).
    """

    probability: float = 0.5
    ratio: float = 0.3
    ratio_variance: float = 0.2
    num_blocks: int = 12

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"mask_probability must lie between 0 and 1, got {self.probability}")
        if not (self.ratio_variance >= 0 and self.ratio - self.ratio_variance >= 0 and self.ratio + self.ratio_variance < 1):
            raise ValueError(f"mask_ratio +- mask_ratio_variance must lie between 0 and 1, got {self.ratio} +- {self.ratio_variance}")

    @property
    def max_masked_views(self) -> int:
        """The most views of an image that are masked: one up to a probability of 1/2, and two above."""
        return math.ceil(_NUM_VIEWS * self.probability)

    def max_masked(self, num_patches: int) -> int:
        """The most patches that are hidden in both views of an image together."""
        return self.max_masked_views * self._max_in_view(num_patches)

    def _max_in_view(self, num_patches: int) -> int:
        return max(1, round((self.ratio + self.ratio_variance) * num_patches))

    def sample(self, seed: int, epochs: torch.Tensor, keys: torch.Tensor, stream: int, grid_size: int) -> torch.Tensor:
        """Masks (B, 2, grid_size^2) of both views of each sample, true where a patch is hidden; keys, epochs int64 (B,)."""
        per_view = 1 + _DRAWS_PER_BLOCK * self.num_blocks
        draws = uniforms(seed, epochs, keys, stream, 2 + _NUM_VIEWS * per_view)
        number, order = draws[:, 0], draws[:, 1]
        draws = draws[:, 2:].unflatten(1, (_NUM_VIEWS, per_view))
        share = self.ratio + self.ratio_variance * (2 * draws[..., 0] - 1)
        target = (share * grid_size**2).round().clamp_max(self._max_in_view(grid_size**2)).long()
        # 2 p on average; a draw next to 1 may be rounded up.
        num_masked = (_NUM_VIEWS * self.probability + number).floor().clamp_max(self.max_masked_views)
        rank = torch.stack([order < 0.5, order >= 0.5], dim=1)  # 0 for the view that is masked first
        target = target * (rank < num_masked[:, None])
        blocks = draws[..., 1:].unflatten(-1, (self.num_blocks, _DRAWS_PER_BLOCK))
        return block_masks(blocks.flatten(0, 1), target.flatten(), grid_size).unflatten(0, (len(keys), _NUM_VIEWS))


def block_masks(draws: torch.Tensor, target: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Uniform draws (B, blocks, 4) and numbers of patches to hide (B,) -> masks (B, grid_size^2).

    Each block has an area between 4 patches and what is still to hide, an aspect ratio between 0.3 and 1 / 0.3 (uniform in the logarithm),
    and a place. The block that would hide too much is cut off in reading order, so that the number is met.
    """
    batch = len(target)
    position = torch.arange(grid_size, device=draws.device)
    masks = torch.zeros(batch, grid_size**2, dtype=torch.bool, device=draws.device)
    for block in draws.unbind(dim=1):
        area_draw, aspect_draw, top_draw, left_draw = block.unbind(dim=-1)
        remaining = target - masks.sum(dim=1)
        area = _MIN_BLOCK + area_draw * (remaining - _MIN_BLOCK).clamp_min(0)
        aspect = torch.exp(_LOG_ASPECT * (1 - 2 * aspect_draw))
        height = (area * aspect).sqrt().round().clamp(1, grid_size)
        width = (area / aspect).sqrt().round().clamp(1, grid_size)
        top = (top_draw * (grid_size - height + 1)).floor()
        left = (left_draw * (grid_size - width + 1)).floor()
        rows = (position >= top[:, None]) & (position < (top + height)[:, None])
        columns = (position >= left[:, None]) & (position < (left + width)[:, None])
        new = (rows[:, :, None] & columns[:, None, :]).flatten(1) & ~masks
        masks = masks | (new & (new.cumsum(dim=1) <= remaining[:, None]))
    return masks
