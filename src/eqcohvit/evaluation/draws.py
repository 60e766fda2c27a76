"""Several draws of the transformation for each image, and pairs of features from them.

Where images are few, each is shown under several draws, so that there are about `ENOUGH_PAIRS` pairs to fit a probe on
and to test it on. The pairs of one image are not independent samples. So whatever holds samples out
(`probes.split_rows`, `kernel_regression`) or resamples them (`intervals.r2_resampled`) takes all pairs of an image
together. For that they are adjacent.
"""

from __future__ import annotations

import torch

from ..data import Batch
from ..transforms import TransformationPath
from .extraction import PairView
from .pairs import render_pairs

ENOUGH_PAIRS = 500  # with so many images each is shown once


def draws_for(num_images: int, num_pairs: int) -> int:
    """How many draws each of `num_images` images needs, so that there are at least `num_pairs` pairs.

    One image alone gets one: its pairs would say nothing about other images.
    """
    return max(1, -(-num_pairs // num_images)) if num_images > 1 else 1


class DrawsView:
    """The image, and its transformed versions by V draws of g.

    Images (1 + V, B, 3, H, H), parameters (B, V P) draw by draw.
    """

    def __init__(self, path: TransformationPath, protocol: str, num_draws: int):
        self.pair = PairView(path, protocol)
        self.num_draws = num_draws
        self.name = self.pair.name if num_draws == 1 else f"{self.pair.name}, {num_draws} draws"

    def canvas_size(self, image_size: int) -> int:
        """What the protocol needs."""
        return self.pair.canvas_size(image_size)

    def __call__(self, batch: Batch, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = render_pairs(batch, self.pair.path, self.pair.protocol, image_size, range(self.num_draws))
        images = torch.stack([found[0].original, *(pair.transformed for pair in found)])
        return images, torch.cat([pair.parameters for pair in found], dim=-1)


def pairs_of(
    vectors: torch.Tensor, parameters: torch.Tensor, num_seeds: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a `DrawsView` has given, as pairs for each of S seeds: D of each of N images, next to each other.

    Draw number k S + s is the draw k of seed s, so that the first draw of a seed does not depend on D.

    Args:
        vectors: features (N, 1 + S D, d).
        parameters: (N, S D P).

    Returns:
        Features of the images (N D, d), of their transformed versions (S, N D, d), and the parameters (S, N D, P).
    """
    num_draws = (vectors.shape[1] - 1) // num_seeds
    original = vectors[:, :1].expand(-1, num_draws, -1).flatten(0, 1)
    parameters = parameters.unflatten(-1, (num_draws * num_seeds, -1))
    moved, targets = (
        values.unflatten(1, (num_draws, num_seeds)).permute(2, 0, 1, 3).flatten(1, 2)
        for values in (vectors[:, 1:], parameters)
    )
    return original, moved, targets
