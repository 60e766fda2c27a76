"""Batched, differentiable image operations with explicit parameters.

Images are float (N, C, H, W) in [0, 1]. Coordinates are normalised: x to the right, y down, [-1, 1] from edge to edge. A geometric
operation is a 3 x 3 homogeneous matrix that maps output coordinates to input coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's "L"
BORDERS = ("canvas", "zeros", "reflection")


def affine(rows: list[list[torch.Tensor | float]], like: torch.Tensor) -> torch.Tensor:
    """Stack 3 rows of 3 numbers or (B,) tensors into (B, 3, 3); `like` (B,) gives batch size, device and dtype."""
    return torch.stack([torch.stack([torch.zeros_like(like) + entry for entry in row], dim=-1) for row in rows], dim=-2)


def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """The matrix product of maps (..., 3, 3): `inner`, then `outer`. A GPU may round the factors of `@` to TF32, a tenth of a pixel."""
    return (outer.unsqueeze(-1) * inner.unsqueeze(-3)).sum(dim=-2)


def constant(values: Sequence[Any], like: torch.Tensor) -> torch.Tensor:
    """Numbers as a tensor of the type and on the device of `like`; `like.new_tensor` would wait for all that a GPU has still to do."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def sampling_grid(
    crop: torch.Tensor, motion: torch.Tensor, size: int, border: str, projective: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where each output pixel reads the canvas: crop (B, V, 3, 3) after motion (B, V, 3, 3), both output -> input.

    The motion acts on the cropped view, so `border` says what lies outside of that view: `"canvas"` the canvas itself, `"zeros"` nothing,
    `"reflection"` the mirrored view. The crop is affine; with `projective=False` so is the motion, which saves the division.

    Returns:
        grid (B, V, size, size, 2) in canvas coordinates, and for `"zeros"` the coverage (B, V, 1, size, size) in [0, 1], else None.
    """
    if border not in BORDERS:
        raise ValueError(f"unknown border {border!r}; known: {', '.join(BORDERS)}")
    if border == "reflection":
        moved = (torch.remainder(position - 1, 4) - 2 for position in _map_centres(motion, size, projective))
        moved = tuple(position.abs() - 1 for position in moved)
        return torch.stack([_weigh(crop[..., row, :], *moved) for row in range(2)], dim=-1), None
    coverage = None
    if border == "zeros":  # linear over one pixel, as bilinear interpolation with an empty outside
        to_pixels = constant([[size / 2], [size / 2], [1.0]], motion)
        moved = _map_centres(motion * to_pixels, size, projective)
        inside_x, inside_y = ((0.5 + size / 2 - position.abs()).clamp(0, 1) for position in moved)
        coverage = (inside_x * inside_y).unsqueeze(2)
    if projective or torch.compiler.is_compiling():
        return torch.stack(_map_centres(compose(crop, motion), size, projective), dim=-1), coverage
    return _affine_grid(compose(crop, motion), size), coverage


def _centres(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1 - size, size, 2, device=like.device, dtype=like.dtype) / size


def _affine_grid(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Images of the pixel centres under affine matrices (..., 3, 3): (..., size, size, 2).

    With x + iy as one complex number it is a single addition, a tenth of the time of joining two planes.
    """
    of_x, of_y, shift = torch.view_as_complex(matrix[..., :2, :].transpose(-1, -2).contiguous())[..., None].unbind(dim=-2)
    centres = _centres(size, matrix)
    return torch.view_as_real((of_x * centres).unsqueeze(-2) + (of_y * centres + shift).unsqueeze(-1))


def _map_centres(matrix: torch.Tensor, size: int, projective: bool) -> tuple[torch.Tensor, ...]:
    """Images x and y of the pixel centres under matrices (..., 3, 3): each (..., size, size)."""
    centres = _centres(size, matrix)
    x, y = (_weigh(matrix[..., row, :], centres, centres[:, None]) for row in range(2))
    if projective:
        scale = _weigh(matrix[..., 2, :], centres, centres[:, None])
        x, y = x / scale, y / scale
    return x, y


def _weigh(row: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """row[0] x + row[1] y + row[2] for rows (..., 3); x along the last, y along the last but one dimension."""
    of_x, of_y, shift = row[..., None, None].unbind(dim=-3)
    return (of_x * x + shift) + of_y * y


def sample(images: torch.Tensor, grid: torch.Tensor, outside: str = "reflection") -> torch.Tensor:
    """Read V views of each image by bilinear interpolation in one launch: (B, C, S, S), (B, V, H, W, 2) -> (B, V, C, H, W).

    Beyond the image its mirror image continues; with `outside="border"`, which is cheaper, the pixels of its border.
    """
    batch, views, height, width, _ = grid.shape
    out = F.grid_sample(images, grid.reshape(batch, views * height, width, 2), mode="bilinear", padding_mode=outside, align_corners=False)
    return out.unflatten(2, (views, height)).transpose(1, 2)


def luminance(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


# On a CPU torch vectorises an operation of two tensors when one of them is a number for each image, but not one of three such as `lerp`;
# and what changes a tensor of our own in place moves half the memory.


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale by `factor` (N,): 0 is black, 1 the image."""
    return (images * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor, pivot: torch.Tensor | None = None) -> torch.Tensor:
    """Stretch by `factor` (N,) about `pivot` (N,); by default about each image's mean luminance, as PIL does."""
    pivot = luminance(images).mean(dim=(1, 2, 3)) if pivot is None else pivot
    return (images * _per_image(factor)).add_(_per_image(pivot * (1 - factor))).clamp_(0, 1)


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Stretch by `factor` (N,) about the grey image: 0 is grey, 1 the image."""
    return (images * _per_image(factor)).add_(luminance(images).mul_(_per_image(1 - factor))).clamp_(0, 1)


def adjust_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue of the HSV cone by `turns` (N,), in full turns."""
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    # 0 where that channel is the largest, else 1; a product with it is far cheaper on a CPU than a choice by `torch.where`.
    not_red, not_green = (value - red).sign_(), (value - green).sign_()
    of_green, of_blue = (blue - red).add_(chroma, alpha=2), (red - green).sub_(chroma, alpha=2)
    slope = torch.lerp(green - blue, torch.lerp(of_green, of_blue, not_green), not_red)
    hue = (slope / chroma.clamp_min(1e-12)).add_(6 * _per_image(turns))  # in sixths of a turn from red
    hue = hue.sub((hue / 6).round_(), alpha=6)  # at most half a turn
    # A channel is largest within a sixth of a turn of its own hue, smallest from two sixths on, linear in between.
    own = constant([0.0, 2.0, -2.0], images)[:, None, None]
    return (hue - own).abs_().sub_(3).abs_().clamp_(1, 2).mul_(chroma).add_(least - chroma)


def _per_image(parameter: torch.Tensor) -> torch.Tensor:
    return parameter[:, None, None, None]


def solarize(images: torch.Tensor, apply: torch.Tensor) -> torch.Tensor:
    """Invert the pixels above 1/2 where `apply` (N,) is true."""
    return images + (torch.minimum(images, 1 - images) - images) * _per_image(apply)


def adjust_color(images: torch.Tensor, factors: torch.Tensor, pivot: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Brightness, contrast, saturation, hue in this order by `factors` (N, 4): three factors about 1, and turns.

    `pivot` (N,) is the luminance that contrast leaves unchanged, before the brightness; by default the images' own mean. The pivot
    after all four operations is returned too, so that further views of the same picture can share it.
    """
    brightness, contrast, saturation, hue = factors.unbind(dim=-1)
    pivot = luminance(images).mean(dim=(1, 2, 3)) if pivot is None else pivot
    pivot = (pivot * brightness).clamp(0, 1)
    images = adjust_contrast(adjust_brightness(images, brightness), contrast, pivot)
    images = adjust_saturation(images, saturation)
    return where(hue * saturation != 0, adjust_hue, images, hue), pivot


def can_choose(images: torch.Tensor) -> bool:
    """Whether what to compute may depend on values: a GPU would have to be waited for, and a compiled graph knows none."""
    return images.device.type == "cpu" and not torch.compiler.is_compiling()


def where(chosen: torch.Tensor, operation: Callable[..., torch.Tensor], images: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    """An operation on images (N, C, H, W) that leaves them as they are but where `chosen` (N,): there a CPU need not compute it."""
    if not can_choose(images) or torch.is_grad_enabled():
        return operation(images, *parameters)
    rows = chosen.nonzero()[:, 0]
    if len(rows) in (0, len(images)):
        return operation(images, *parameters) if len(rows) else images
    return images.index_copy(0, rows, operation(images[rows], *(parameter[rows] for parameter in parameters)))


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, max_sigma: float | None = None) -> torch.Tensor:
    """Blur by a Gaussian of standard deviation `sigma` in pixels, mirrored at the border; 0 leaves the image as it is.

    `sigma` is (N,), or (N, 2) along x and along y. `max_sigma` is a bound on it that fixes how far the weights reach (4 standard
    deviations, 6e-5 of the weight lies beyond); without it the largest sigma is read back from the device.
    """
    along_x, along_y = sigma.to(images.dtype).expand(2, -1) if sigma.ndim == 1 else sigma.to(images.dtype).unbind(dim=-1)
    for dim, along in ((-1, along_x), (-2, along_y)):
        reach = along.max().item() if max_sigma is None else max_sigma
        images = _blur_along(images, along, min(math.ceil(4 * reach), images.shape[dim]), dim)
    return images


def _blur_along(images: torch.Tensor, sigma: torch.Tensor, radius: int, dim: int) -> torch.Tensor:
    """A weighted sum of shifted images: less work than a product with a matrix, and one kernel when compiled."""
    if radius == 0:
        return images
    length = images.shape[dim]
    before, after = images.narrow(dim, 0, radius).flip(dim), images.narrow(dim, length - radius, radius).flip(dim)
    padded = torch.cat([before, images, after], dim=dim)
    distance = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    weights = torch.softmax(-0.5 * (distance / sigma.clamp_min(1e-4)[:, None]) ** 2, dim=-1)[:, :, None, None, None]
    blurred = images * weights[:, radius]
    numbers = weights.flatten().tolist() if len(images) == 1 and can_choose(images) and not torch.is_grad_enabled() else None
    for shift in range(radius):
        pair = padded.narrow(dim, shift, length) + padded.narrow(dim, 2 * radius - shift, length)
        blurred = blurred + pair * weights[:, shift] if numbers is None else blurred.add_(pair, alpha=numbers[shift])
    return blurred
