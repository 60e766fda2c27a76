"""Batched, differentiable image operations with explicit parameters.

Images are float (N, C, H, W) in [0, 1]. Coordinates are normalised: x to the right, y down, [-1, 1] from edge to edge. A geometric
operation is a 3 x 3 homogeneous matrix that maps output coordinates to input coordinates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's "L"
BORDERS = ("canvas", "zeros", "reflection")


def affine(rows: list[list[torch.Tensor | float]], like: torch.Tensor) -> torch.Tensor:
    """Stack 3 rows of 3 numbers or (B,) tensors into (B, 3, 3); `like` (B,) gives batch size, device and dtype."""
    return torch.stack([torch.stack([torch.zeros_like(like) + entry for entry in row], dim=-1) for row in rows], dim=-2)


def sampling_grid(
    crop: torch.Tensor, motion: torch.Tensor, size: int, border: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where each output pixel reads the canvas: crop (B, V, 3, 3) after motion (B, V, 3, 3), both output -> input.

    The motion acts on the cropped view, so `border` says what lies outside of that view: `"canvas"` the canvas itself, `"zeros"` nothing,
    `"reflection"` the mirrored view.

    Returns:
        grid (B, V, size, size, 2) in canvas coordinates, and for `"zeros"` the coverage (B, V, 1, size, size) in [0, 1], else None.
    """
    if border not in BORDERS:
        raise ValueError(f"unknown border {border!r}; known: {', '.join(BORDERS)}")
    centres = (torch.arange(size, device=crop.device, dtype=crop.dtype) * 2 + 1) / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)
    moved = points @ motion.transpose(-1, -2)  # (B, V, H * W, 3)
    moved = moved[..., :2] / moved[..., 2:]
    coverage = None
    if border == "zeros":  # linear over one pixel, as bilinear interpolation with an empty outside
        inside = ((1 - moved.abs()) * (size / 2) + 0.5).clamp(0, 1)
        coverage = (inside[..., 0] * inside[..., 1]).unflatten(-1, (size, size)).unsqueeze(2)
    elif border == "reflection":
        moved = (torch.remainder(moved - 1, 4) - 2).abs() - 1
    grid = moved @ crop[..., :2, :2].transpose(-1, -2) + crop[..., None, :2, 2]
    return grid.unflatten(-2, (size, size)), coverage


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
    pivot, factor = pivot[:, None, None, None], factor[:, None, None, None]
    return (pivot + factor * (images - pivot)).clamp(0, 1)


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Stretch by `factor` (N,) about the grey image: 0 is grey, 1 the image."""
    grey = luminance(images)
    return (grey + factor[:, None, None, None] * (images - grey)).clamp(0, 1)


def adjust_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue of the HSV cone by `turns` (N,), in full turns."""
    value, _ = images.max(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    safe = chroma.clamp_min(1e-12)
    hue = torch.where(
        value == red, (green - blue) / safe, torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    hue = hue + 6 * turns[:, None, None, None]
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = torch.remainder(offset + hue, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(channels, dim=1)


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


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur by a Gaussian of standard deviation `sigma` (N,) in pixels, mirrored at the border; 0 leaves the image as it is."""
    rows, columns = (_blur_matrix(length, sigma.to(images.dtype)) for length in images.shape[-2:])
    return rows.unsqueeze(1) @ images @ columns.unsqueeze(1).transpose(-1, -2)


def _blur_matrix(length: int, sigma: torch.Tensor) -> torch.Tensor:
    """(N, length, length): row i holds the weights of all pixels for pixel i. A product of two such matrices blurs an image."""
    position = torch.arange(length, device=sigma.device, dtype=sigma.dtype)
    mirrored = torch.cat([-1 - position.flip(0), position, 2 * length - 1 - position.flip(0)])
    distance = position[:, None] - mirrored[None, :]
    weights = torch.exp(-0.5 * (distance / sigma.clamp_min(1e-4)[:, None, None]) ** 2)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    left, middle, right = weights.split(length, dim=-1)
    return left.flip(-1) + middle + right.flip(-1)
