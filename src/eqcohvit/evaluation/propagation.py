"""Label propagation through a video by the similarity of frozen patch features (arXiv:2006.14613; parameters of
arXiv:2104.14294, 4.2.2).

The label of a patch is a weighted mean over its most similar patches. These are searched in the first frame, whose
labels are given, and in the last few frames, whose labels were propagated. h, w: patches per column and row; C:
classes, the background included.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_MAX_AFFINITIES = 1 << 24  # held at once, float32: 64 MiB


@dataclass(frozen=True)
class PropagationSettings:
    """Settings of the propagation.

    Args:
        num_context: recent frames that labels come from, in addition to the first one.
        radius: patches farther away than this, along x or y, do not count.
        top_k: number of most similar patches that count.
        temperature: of the softmax over cosine similarities.
    """

    num_context: int = 7
    radius: int = 12
    top_k: int = 5
    temperature: float = 0.1


DINO_SETTINGS = PropagationSettings()


class LabelPropagation:
    """The state of one video.

    Args:
        features: of the first frame, (h, w, d).
        labels: of the first frame, class shares of its patches (h, w, C) that sum to 1.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, settings: PropagationSettings = DINO_SETTINGS):
        self.settings = settings
        self.grid = tuple(features.shape[:2])
        self.first = (self._unit(features), labels.flatten(0, 1).float())
        self.recent: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=settings.num_context)

    def step(self, features: torch.Tensor) -> torch.Tensor:
        """Features (h, w, d) of the next frame -> class shares of its patches (h, w, C)."""
        queries = self._unit(features)
        context = [self.first, *self.recent]
        keys, values = torch.cat([keys for keys, _ in context]), torch.cat([values for _, values in context])
        chunk = max(1, _MAX_AFFINITIES // len(keys))
        labels = torch.cat(
            [self._attend(queries, keys, values, start, chunk) for start in range(0, len(queries), chunk)]
        )
        if self.settings.num_context:
            self.recent.append((queries, labels))
        return labels.unflatten(0, self.grid)

    def _attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, count: int
    ) -> torch.Tensor:
        """Labels of the patches start .. start + count of the frame."""
        queries = queries[start : start + count]
        similarity = queries @ keys.T
        frames = len(keys) // (self.grid[0] * self.grid[1])
        similarity.unflatten(1, (frames, -1)).masked_fill_(
            ~self._near(start, len(queries), keys.device)[:, None], -torch.inf
        )
        top, index = similarity.topk(min(self.settings.top_k, similarity.shape[1]), dim=1)
        weights = (top / self.settings.temperature).softmax(dim=1)  # 0 if there are fewer neighbors than top_k
        return torch.einsum("qk,qkc->qc", weights, values[index])

    def _near(self, start: int, count: int, device: torch.device) -> torch.Tensor:
        """Which patches of a frame lie within the radius of each query: (count, h * w) booleans."""
        height, width = self.grid
        queries = torch.arange(start, start + count, device=device)[:, None]
        near_y = (queries // width - torch.arange(height, device=device)).abs() <= self.settings.radius
        near_x = (queries % width - torch.arange(width, device=device)).abs() <= self.settings.radius
        return (near_y[:, :, None] & near_x[:, None, :]).flatten(1)

    @staticmethod
    def _unit(features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features.flatten(0, 1).float(), dim=-1)


def labels_to_patches(labels: np.ndarray, num_labels: int, grid: tuple[int, int]) -> torch.Tensor:
    """Class of each pixel (H, W), ignored ones 255 -> one-hot label of each patch, float (h, w, C), by its pixel
    nearest to the center."""
    height, width = labels.shape
    y, x = (
        ((np.arange(count) + 0.5) * size / count).astype(int) for count, size in zip(grid, (height, width), strict=True)
    )
    nearest = labels[np.ix_(y, x)]
    nearest = np.where(nearest < num_labels, nearest, 0)
    return F.one_hot(torch.from_numpy(nearest.astype(np.int64)), num_labels).float()


def patches_to_labels(shares: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Class shares of patches (h, w, C) -> the most likely class of each pixel, uint8 (H, W).

    Bilinear; each class is then stretched to [0, 1] over the image, as DINO's protocol does, so that a thin object
    whose share is never large is still seen.
    """
    maps = F.interpolate(shares.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    stretched = torch.where(high > 0, (maps - low) / (high - low).clamp_min(1e-12), 0.0)
    constant = (high - low < 1e-6).expand_as(maps)  # a class that fills the image, or is not in it
    # Not argmax: over a strided dimension that takes 15 times as long on CPUs.
    return torch.where(constant, maps, stretched).max(dim=0).indices.to(torch.uint8).cpu().numpy()
