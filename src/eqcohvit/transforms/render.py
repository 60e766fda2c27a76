"""The states of a view on the way of a transformation, read from a picture.

Training views, evaluation pairs and `Transformation.__call__` all come from `render`, so they agree on the order of the
operations and on what a contrast leaves unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from . import ops

if TYPE_CHECKING:
    from .paths import Transformation

SIGMA_SIZE = 224  # blurs are stated in pixels of images with this side


def render(
    picture: torch.Tensor,
    crop: torch.Tensor | None,
    states: Transformation,
    border: str,
    size: int,
    pivot: torch.Tensor | None = None,
    recolor: Callable[[torch.Tensor], torch.Tensor] | None = None,
    black: torch.Tensor | None = None,
) -> torch.Tensor:
    """Motion, base colors, the path's colors, the path's blur, border, in this order.

    Args:
        picture: (B, 3, S, S), the view and its surroundings. Where nothing moves it is the view itself, S = `size`.
        crop: (3, 3), from the view's coordinates to the picture's; None if the picture is the view.
        states: V transformations of each view (`Transformation.stack`).
        border: what appears where a state reads outside of the view (`ops.sampling_grid`). Black stays black, whatever
            the colors become.
        size: side of the states in pixels.
        pivot: (B,) mean luminance of the view before the motion. The path's contrast leaves it unchanged in every
            state; a pivot measured on the moved state would show how much of the view has left the frame. Needed if the
            states have colors.
        recolor: base colors of the moved states (B * V, 3, size, size).
        black: (B,) booleans. With the border `"zeros"`, only these views are black outside, and the others show the
            picture.

    Returns:
        (B, V, 3, size, size).
    """
    number = states.num_states
    coverage = None
    if states.matrix is None:
        images = picture[:, None].expand(-1, number, -1, -1, -1)
    else:
        crop = torch.eye(3, device=picture.device) if crop is None else crop
        matrix = states.matrix.to(picture.dtype)
        crops = crop.to(picture.dtype).expand_as(matrix)
        grid, coverage = ops.sampling_grid(crops, matrix, size, border, states.projective)
        images = ops.sample(picture, grid).clamp(0, 1)
    images = images.flatten(0, 1)
    if recolor is not None:
        images = recolor(images)
    if states.color is not None:
        assert pivot is not None
        images = ops.adjust_color(images, states.color.flatten(0, 1), pivot.repeat_interleave(number))
    if states.sigma is not None:
        images = ops.gaussian_blur(images, states.sigma.flatten() * (size / SIGMA_SIZE))
    if coverage is not None:
        if black is not None:
            coverage = torch.where(black[:, None, None, None, None], coverage, 1.0)
        images = images * coverage.flatten(0, 1)
    return images.unflatten(0, (-1, number))


def still_view(picture: torch.Tensor, crop: torch.Tensor, size: int) -> torch.Tensor:
    """The view without any motion: picture (B, 3, S, S), crop (3, 3) as in `render` -> (B, 3, size, size)."""
    identity = torch.eye(3, device=picture.device, dtype=picture.dtype).expand(len(picture), 1, 3, 3)
    grid, _ = ops.sampling_grid(crop.to(picture.dtype).expand_as(identity), identity, size, "canvas", projective=False)
    return ops.sample(picture, grid).squeeze(1).clamp(0, 1)
