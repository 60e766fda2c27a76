"""Block-wise masks of patches, drawn by the counter-based generator like everything random about a sample.

Blocks as in BEiT (arXiv:2106.08254, algorithm 1); the share of hidden patches as in iBOT (arXiv:2111.07832,
section 4.1). Each view is masked or left whole independently, so at a probability of 1/2 an image has 0, 1 or 2 masked
views in 25, 50 and 25 % of the cases, as in https://github.com/bytedance/ibot.
https://github.com/facebookresearch/dinov2 balances a batch instead: exactly half of its views are masked, and their
shares are spread evenly. A mask here depends only on its sample, so the batch cannot be balanced; each view has the
same distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .random import uniforms

_NUM_VIEWS = 2
_NUM_TRIES = 10  # places tried for a block; the first that fits is used
_DRAWS_PER_TRY = 4
_LOG_ASPECT = math.log(0.3)


@dataclass(frozen=True)
class BlockMasking:
    """How the student's global views are masked.

    Args:
        probability: that a view is masked.
        ratio, ratio_variance: a masked view hides a share of its patches, drawn uniformly from ratio - variance to
            ratio + variance.
        min_patches: area of the smallest block, while at least that many patches remain to be hidden. At most (g //
            3)^2 of g x g patches, which is iBOT's rule, so that blocks fit into small grids.
        num_blocks: largest number of blocks. On 14 x 14 patches 12 are too few for 0.3 % of the masks.

    Raises:
        ValueError: `probability` is outside of [0, 1], a share of patches outside of [0, 1), or `min_patches` is not
            positive.
    """

    probability: float = 0.5
    ratio: float = 0.3
    ratio_variance: float = 0.2
    min_patches: int = 4
    num_blocks: int = 12

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"mask_probability must lie between 0 and 1, got {self.probability}")
        if not (
            self.ratio_variance >= 0 and self.ratio - self.ratio_variance >= 0 and self.ratio + self.ratio_variance < 1
        ):
            raise ValueError(
                f"mask_ratio +- mask_ratio_variance must lie between 0 and 1, got {self.ratio} +- {self.ratio_variance}"
            )
        if self.min_patches < 1:
            raise ValueError(f"min_masked_patches must be at least 1, got {self.min_patches}")

    def sample(
        self, seed: int, *, keys: torch.Tensor, epochs: torch.Tensor, stream: int, grid_size: int
    ) -> torch.Tensor:
        """Masks (B, 2, grid_size^2) of both views of each sample, true where a patch is hidden.

        seed, keys, epochs, stream: as of `random.uniforms`.
        """
        per_block = _NUM_TRIES * _DRAWS_PER_TRY
        per_view = 2 + self.num_blocks * per_block
        draws = uniforms(seed, keys=keys, epochs=epochs, stream=stream, count=_NUM_VIEWS * per_view)
        draws = draws.unflatten(1, (_NUM_VIEWS, per_view))
        is_masked = draws[..., 0] < self.probability
        share = self.ratio + self.ratio_variance * (2 * draws[..., 1] - 1)
        most = math.floor((self.ratio + self.ratio_variance) * grid_size**2)
        target = (share * grid_size**2).floor().clamp_max(most).long() * is_masked
        blocks = draws[..., 2:].unflatten(-1, (self.num_blocks, _NUM_TRIES, _DRAWS_PER_TRY))
        min_patches = min(self.min_patches, max(1, (grid_size // 3) ** 2))
        masks = block_masks(blocks.flatten(0, 1), target.flatten(), grid_size, min_patches)
        return masks.unflatten(0, (len(keys), _NUM_VIEWS))


def block_masks(draws: torch.Tensor, target: torch.Tensor, grid_size: int, min_patches: int) -> torch.Tensor:
    """Uniform draws (B, blocks, tries, 4) and numbers of patches to hide (B,) -> masks (B, grid_size^2).

    A block has an area between `min_patches` and the number of patches that remain to be hidden, an aspect ratio
    between 0.3 and 1 / 0.3 (uniform in the logarithm), and a place. It fits if it is smaller than the grid and hides at
    least one more patch, but not more than remain. The first try that fits becomes the block. If none fits, the mask is
    finished and may hide less than its target.
    """
    position = torch.arange(grid_size, device=draws.device)
    masks = torch.zeros(len(target), grid_size, grid_size, device=draws.device)
    remaining = target[:, None].to(draws.dtype)
    is_open = torch.ones_like(remaining)
    for block in draws.unbind(dim=1):
        area_draw, aspect_draw, top_draw, left_draw = block.unbind(dim=-1)  # (B, tries) each
        area = min_patches + area_draw * (remaining - min_patches)
        aspect = torch.exp(_LOG_ASPECT * (1 - 2 * aspect_draw))
        height = (area * aspect).sqrt().round()
        width = (area / aspect).sqrt().round()
        top = (top_draw * (grid_size - height + 1)).floor()
        left = (left_draw * (grid_size - width + 1)).floor()
        rows = (position >= top[..., None]) & (position < (top + height)[..., None])
        rows = rows.to(draws.dtype)  # (B, tries, grid_size)
        columns = (position >= left[..., None]) & (position < (left + width)[..., None])
        columns = columns.to(draws.dtype)
        num_new = height * width - ((rows @ masks) * columns).sum(dim=-1)
        fits = (height < grid_size) & (width < grid_size) & (num_new > 0) & (num_new <= remaining)
        first = fits.byte().argmax(dim=1, keepdim=True)
        is_open = is_open * fits.gather(1, first)
        place = first[..., None].expand(-1, 1, grid_size)
        chosen = rows.gather(1, place).transpose(1, 2) * columns.gather(1, place)  # (B, grid_size, grid_size)
        masks = torch.maximum(masks, chosen * is_open[..., None])
        remaining = remaining - num_new.gather(1, first) * is_open
    return masks.flatten(1).bool()
