"""Batched, differentiable image operations with explicit parameters.

Images are float (N, C, H, W) in [0, 1]. Coordinates are normalised: x to the right, y down, [-1, 1] from edge to edge. A geometric
operation is a 3 x 3 homogeneous matrix that maps output coordinates to input coordinates.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's "L"
BORDERS = ("canvas", "zeros", "reflection")


def affine(rows: list[list[torch.Tensor | float]], like: torch.Tensor) -> torch.Tensor:
    """Stack 3 rows of 3 numbers or (B,) tensors into (B, 3, 3); `like` (B,) gives batch size, device and dtype."""
    return torch.stack([torch.stack([torch.zeros_like(like) + entry for entry in row], dim=-1) for row in rows], dim=-2)


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
        moved = _map_centres(motion, size, projective)
        inside_x, inside_y = ((0.5 + size / 2 - position.abs() * (size / 2)).clamp(0, 1) for position in moved)
        coverage = (inside_x * inside_y).unsqueeze(2)
    return torch.stack(_map_centres(crop @ motion, size, projective), dim=-1), coverage


def _map_centres(matrix: torch.Tensor, size: int, projective: bool) -> tuple[torch.Tensor, ...]:
    """Images x and y of the pixel centres under matrices (..., 3, 3): each (..., size, size)."""
    centres = (torch.arange(size, device=matrix.device, dtype=matrix.dtype) * 2 + 1) / size - 1
    x, y = (_weigh(matrix[..., row, :], centres, centres[:, None]) for row in range(2))
    if projective:
        scale = _weigh(matrix[..., 2, :], centres, centres[:, None])
        x, y = x / scale, y / scale
    return x, y


def _weigh(row: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """row[0] x + row[1] y + row[2] for rows (..., 3); x along the last, y along the last but one dimension."""
    of_x, of_y, shift = row[..., None, None].unbind(dim=-3)
    return (of_x * x + shift) + of_y * y


def sample(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Read V views of each image by bilinear interpolation in one launch: (B, C, S, S), (B, V, H, W, 2) -> (B, V, C, H, W).

    Beyond the image its mirror image continues.
    """
    batch, views, height, width, _ = grid.shape
    out = F.grid_sample(
        images, grid.reshape(batch, views * height, width, 2), mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return out.unflatten(2, (views, height)).transpose(1, 2)


def luminance(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = images.unbind(dim=1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale by `factor` (N,): 0 is black, 1 the image."""
    return (images * factor[:, None, None, None]).clamp(0, 1)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor, pivot: torch.Tensor | None = None) -> torch.Tensor:
    """Stretch by `factor` (N,) about `pivot` (N,); by default about each image's mean luminance, as PIL does."""
    pivot = luminance(images).mean(dim=(1, 2, 3)) if pivot is None else pivot
    return torch.lerp(pivot[:, None, None, None], images, factor[:, None, None, None]).clamp(0, 1)


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Stretch by `factor` (N,) about the grey image: 0 is grey, 1 the image."""
    return torch.lerp(luminance(images), images, factor[:, None, None, None]).clamp(0, 1)


def adjust_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue of the HSV cone by `turns` (N,), in full turns."""
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    # 0 where that channel is the largest, else 1; a product with it is far cheaper on a CPU than a choice by `torch.where`.
    not_red, not_green = (value - red).sign(), (value - green).sign()
    slope = torch.lerp(green - blue, torch.lerp(blue - red, red - green, not_green), not_red)
    hue = slope / chroma.clamp_min(1e-12) + not_red * (2 + 2 * not_green) + 6 * turns[:, None, None, None]
    k = torch.remainder(hue + torch.tensor([5.0, 3.0, 1.0], device=images.device).to(images.dtype)[:, None, None], 6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def solarize(images: torch.Tensor, apply: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Invert the pixels above `threshold` where `apply` (N,) is true."""
    return torch.where(apply[:, None, None, None] & (images >= threshold), 1 - images, images)


def adjust_color(
    images: torch.Tensor, factors: torch.Tensor, pivot: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Brightness, contrast, saturation, hue in this order by `factors` (N, 4): three factors about 1, and turns.

    `pivot` (N,) is the luminance that contrast leaves unchanged, before the brightness; by default the images' own mean. The pivot
    after all four operations is returned too, so that further views of the same picture can share it.
    """
    brightness, contrast, saturation, hue = factors.unbind(dim=-1)
    pivot = luminance(images).mean(dim=(1, 2, 3)) if pivot is None else pivot
    pivot = (pivot * brightness).clamp(0, 1)
    images = adjust_contrast(adjust_brightness(images, brightness), contrast, pivot)
    return adjust_hue(adjust_saturation(images, saturation), hue), pivot


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, max_sigma: float | None = None) -> torch.Tensor:
    """Blur by a Gaussian of standard deviation `sigma` (N,) in pixels, mirrored at the border; 0 leaves the image as it is.

    `max_sigma` is a bound on `sigma` that fixes how far the weights reach (4 standard deviations, 6e-5 of the weight lies beyond);
    without it the largest sigma is read back from the device.
    """
    max_sigma = sigma.max().item() if max_sigma is None else max_sigma
    for dim in (-1, -2):
        images = _blur_along(images, sigma.to(images.dtype), min(math.ceil(4 * max_sigma), images.shape[dim]), dim)
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
    blurred = padded.narrow(dim, 0, length) * weights[:, 0]
    for shift in range(1, 2 * radius + 1):
        blurred = torch.addcmul(blurred, padded.narrow(dim, shift, length), weights[:, shift])
    return blurred
