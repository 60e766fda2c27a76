"""Batched, differentiable image operations with explicit parameters.

Images are float (N, C, H, W) in [0, 1]. Coordinates are normalized: x to the right, y down, [-1, 1] from edge to edge.
A geometric operation is a 3 x 3 homogeneous matrix that maps output coordinates to input coordinates.

Blur is a product with matrices of weights, on a GPU in half precision: 11 bits of a factor, as TF32 has, and half the
memory traffic. That changes a result by up to 1e-3, a quarter of an 8-bit level. Maps of coordinates are composed
without such products.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's "L"
BORDERS = ("canvas", "zeros", "reflection")


def affine(rows: list[list[torch.Tensor | float]], like: torch.Tensor) -> torch.Tensor:
    """Stack 3 rows of 3 numbers or (B,) tensors into (B, 3, 3); `like` (B,) gives batch size, device and dtype."""
    return torch.stack([torch.stack([torch.zeros_like(like) + entry for entry in row], dim=-1) for row in rows], dim=-2)


def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """The matrix product of maps (..., 3, 3): `inner`, then `outer`.

    Not by `@`, whose factors a GPU may round to TF32: a tenth of a pixel.
    """
    return (outer.unsqueeze(-1) * inner.unsqueeze(-3)).sum(dim=-2)


def constant(values: tuple[Any, ...] | float, like: torch.Tensor) -> torch.Tensor:
    """Numbers, in nested tuples, as a tensor with the dtype and on the device of `like`.

    It is made once for each device, because a copy from the host's memory costs a GPU more than most operations here.
    Compiled code makes it from numbers in its kernels. The result is shared: do not change it in place.
    """
    if not torch.compiler.is_compiling():
        return _cached_constant(values, like.dtype, like.device)
    if isinstance(values, tuple):
        return torch.stack([constant(value, like) for value in values])
    return torch.full((), values, dtype=like.dtype, device=like.device)


@functools.cache
def _cached_constant(values: tuple[Any, ...] | float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # so that it can also serve where gradients are computed
        return torch.tensor(values, dtype=dtype).to(device)


def mapped(record: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A dataclass of tensors, also nested, with `function` applied to each of them; other values stay."""
    if isinstance(record, torch.Tensor):
        return function(record)
    if not dataclasses.is_dataclass(record):
        return record
    values = {f.name: mapped(getattr(record, f.name), function) for f in dataclasses.fields(record)}
    return type(record)(**values)  # type: ignore[operator]


def sampling_grid(
    crop: torch.Tensor, motion: torch.Tensor, size: int, border: str, projective: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where each output pixel reads the picture: crop (B, V, 3, 3) after motion (B, V, 3, 3), both output -> input.

    The motion acts on the cropped view, so `border` decides what appears outside of that view: `"canvas"` the picture
    around it, `"zeros"` nothing, `"reflection"` the mirrored view. The crop is affine. With `projective=False` the
    motion is affine too, which saves the division.

    Returns:
        The grid (B, V, size, size, 2) in the picture's coordinates, and for `"zeros"` the coverage (B, V, 1, size,
        size) in [0, 1], otherwise None.
    """
    if border not in BORDERS:
        raise ValueError(f"unknown border {border!r}; known: {', '.join(BORDERS)}")
    if border == "reflection":
        x, y = [(torch.remainder(position - 1, 4) - 2).abs() - 1 for position in _map_centers(motion, size, projective)]
        return torch.stack([_weigh(crop[..., row, :], x, y) for row in range(2)], dim=-1), None
    coverage = None
    if border == "zeros":  # linear over one pixel, as bilinear interpolation with an empty outside
        to_pixels = constant(((size / 2,), (size / 2,), (1.0,)), motion)
        x, y = _map_centers(motion * to_pixels, size, projective)
        inside_x = (0.5 + size / 2 - x.abs()).clamp(0, 1)
        inside_y = (0.5 + size / 2 - y.abs()).clamp(0, 1)
        coverage = (inside_x * inside_y).unsqueeze(2)
    return torch.stack(_map_centers(compose(crop, motion), size, projective), dim=-1), coverage


def magnification(motion: torch.Tensor) -> torch.Tensor:
    """The factor by which a motion (..., 3, 3), output -> input, enlarges the center of its view.

    It is the square root of the factor of the area.
    """
    x_row, y_row, scale_row = (motion / motion[..., 2:, 2:]).unbind(dim=-2)
    xx, xy, x0 = x_row.unbind(dim=-1)
    yx, yy, y0 = y_row.unbind(dim=-1)
    ox, oy, _ = scale_row.unbind(dim=-1)
    jacobian = (xx - x0 * ox) * (yy - y0 * oy) - (xy - x0 * oy) * (yx - y0 * ox)
    return jacobian.abs().clamp_min(1e-6).rsqrt()


def _centers(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1 - size, size, 2, device=like.device, dtype=like.dtype) / size


def _map_centers(matrix: torch.Tensor, size: int, projective: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Images x and y of the pixel centers under matrices (..., 3, 3): each (..., size, size)."""
    centers = _centers(size, matrix)
    x = _weigh(matrix[..., 0, :], centers, centers[:, None])
    y = _weigh(matrix[..., 1, :], centers, centers[:, None])
    if projective:
        scale = _weigh(matrix[..., 2, :], centers, centers[:, None])
        x = x / scale
        y = y / scale
    return x, y


def _weigh(row: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """row[0] x + row[1] y + row[2] for rows (..., 3); x along the last, y along the last but one dimension."""
    of_x, of_y, shift = row[..., None, None].unbind(dim=-3)
    return (of_x * x + shift) + of_y * y


def sample(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Read V views of each image by bilinear interpolation in one launch: (B, C, S, S), (B, V, H, W, 2) -> (B, V, C, H,
    W).

    Outside of the image its border pixels continue.
    """
    batch, views, height, width, _ = grid.shape
    out = F.grid_sample(
        images,
        grid.reshape(batch, views * height, width, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return out.unflatten(2, (views, height)).transpose(1, 2)


# ---------------------------------------------------------------------------------------------------- color and blur


def luminance(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


# On a CPU torch vectorizes operations on two tensors if one of them has one number per image, but not operations on
# three tensors such as `lerp`. Changing our own temporary tensors in place moves half the memory.


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale by `factor` (N,): 0 is black, 1 the image."""
    return (images * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor, pivot: torch.Tensor | None = None) -> torch.Tensor:
    """Stretch by `factor` (N,) about `pivot` (N,); by default about each image's mean luminance, as PIL does."""
    pivot = luminance(images).mean(dim=(1, 2, 3)) if pivot is None else pivot
    return (images * _per_image(factor)).add_(_per_image(pivot * (1 - factor))).clamp_(0, 1)


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Stretch by `factor` (N,) about the gray image: 0 is gray, 1 the image."""
    return (images * _per_image(factor)).add_(luminance(images).mul_(_per_image(1 - factor))).clamp_(0, 1)


def adjust_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue of the HSV cone by `turns` (N,), in full turns."""
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    # 0 where that channel is the largest, otherwise 1. Multiplying by it is far cheaper on a CPU than `torch.where`.
    not_red = (value - red).sign_()
    not_green = (value - green).sign_()
    of_green = (blue - red).add_(chroma, alpha=2)
    of_blue = (red - green).sub_(chroma, alpha=2)
    slope = torch.lerp(green - blue, torch.lerp(of_green, of_blue, not_green), not_red)
    hue = (slope / chroma.clamp_min(1e-12)).add_(6 * _per_image(turns))  # in sixths of a turn from red
    hue = hue.sub((hue / 6).round_(), alpha=6)  # at most half a turn
    # A channel is largest within a sixth of a turn of its own hue, smallest from two sixths on, linear in between.
    own = constant((0.0, 2.0, -2.0), images)[:, None, None]
    return (hue - own).abs_().sub_(3).abs_().clamp_(1, 2).mul_(chroma).add_(least - chroma)


def _per_image(parameter: torch.Tensor) -> torch.Tensor:
    return parameter[:, None, None, None]


def solarize(images: torch.Tensor, apply: torch.Tensor) -> torch.Tensor:
    """Invert the pixels above 1/2 where `apply` (N,) is true."""
    return images + (torch.minimum(images, 1 - images) - images) * _per_image(apply)


def adjust_color(images: torch.Tensor, factors: torch.Tensor, pivot: torch.Tensor | None = None) -> torch.Tensor:
    """Brightness, contrast, saturation, hue, always in this order, by `factors` (N, 4): three factors about 1, and
    turns.

    `pivot` (N,) is the luminance, before the change of brightness, that contrast leaves unchanged; by default the
    images' own mean.
    """
    brightness, contrast, saturation, hue = factors.unbind(dim=-1)
    pivot = luminance(images).mean(dim=(1, 2, 3)) if pivot is None else pivot
    images = adjust_contrast(adjust_brightness(images, brightness), contrast, (pivot * brightness).clamp(0, 1))
    return adjust_hue(adjust_saturation(images, saturation), hue)


_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def jitter_color(
    images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor, pivots: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Brightness, contrast, saturation and hue of each image by `factors` (N, 4), in each image's own order.

    All but the hue are blends of the image, its luminance and a number. Three blends before the hue and three after it
    cover every order; blends that an order does not use change nothing.

    Args:
        order: int64 (N, 4), a permutation: 0 for brightness, 1 for contrast, 2 for saturation, 3 for hue.
        pivots: (N, 6) luminances that the contrast leaves unchanged, one for each blend; by default the images' own
            means at that point.

    Returns:
        The images and the pivots, so that other views of the same picture can share the pivots.
    """
    place_of_hue = (order == _HUE).long().argmax(dim=1)
    used = []
    for places, after in (((0, 1, 2), False), ((1, 2, 3), True)):
        if after and not _idle(factors[:, _HUE] == 0):
            images = adjust_hue(images, factors[:, _HUE])
        for place in places:
            operation = order[:, place]
            active = place > place_of_hue if after else place < place_of_hue
            factor = torch.where(active, factors.gather(1, operation[:, None])[:, 0], 1.0)
            if _idle(factor == 1):
                used.append(torch.zeros_like(factor))
                continue
            gray = luminance(images)
            pivot = gray.mean(dim=(1, 2, 3)) if pivots is None else pivots[:, len(used)]
            used.append(pivot)
            of_gray = (1 - factor) * (operation == _SATURATION)
            constant_part = (1 - factor) * (operation == _CONTRAST) * pivot
            rest = (gray * _per_image(of_gray)).add_(_per_image(constant_part))
            images = (images * _per_image(factor)).add_(rest).clamp_(0, 1)
    return images, torch.stack(used, dim=1)


def _idle(neutral: torch.Tensor) -> bool:
    """Whether to skip an operation because it changes none of the images.

    Only on a CPU: to ask a GPU, the host would have to wait for it.
    """
    return neutral.device.type == "cpu" and not torch.compiler.is_compiling() and bool(neutral.all())


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, most: int | None = None) -> torch.Tensor:
    """Blur by a Gaussian with standard deviation `sigma` (N,) in pixels, mirrored at the border; 0 changes nothing.

    A product with a matrix along each axis has no limit on sigma, and a GPU does it in two launches. It is computed for
    the images with a sigma above 0. To count them, the host would have to wait for a GPU: there `most`, by default all,
    is the number that is computed, and images beyond it stay sharp.
    """
    sigma = sigma.to(images.dtype)
    if _idle(sigma == 0):
        return images
    if images.device.type != "cpu":
        images = images.half()
    is_blurred = sigma > 0
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        most = int(is_blurred.sum())
    if most is not None and most < len(images):
        rows = is_blurred.byte().argsort(descending=True, stable=True)[:most]
        return images.index_copy(0, rows, _blur(images[rows], sigma[rows])).to(sigma.dtype)
    return torch.where(_per_image(is_blurred), _blur(images, sigma), images).to(sigma.dtype)


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    of_rows, of_columns = (_gaussian_weights(sigma, size).to(images.dtype) for size in images.shape[-2:])
    return torch.where(_per_image(sigma) > 0, of_rows @ images @ of_columns.transpose(-1, -2), images)


def _gaussian_weights(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """(N,) -> (N, 1, size, size): how much each pixel takes of every other, directly and through two mirror images."""
    distance = torch.arange(1 - 2 * size, 2 * size, device=sigma.device, dtype=sigma.dtype)
    bell = torch.exp(-0.5 * (distance / sigma.clamp_min(1e-3)[:, None]) ** 2)
    itself = bell[:, size : 3 * size - 1].unfold(1, size, 1).flip(-1)  # of the distance i - j
    before = bell[:, 2 * size : 4 * size - 1].unfold(1, size, 1)  # i + j + 1
    after = bell[:, : 2 * size - 1].unfold(1, size, 1)  # i + j + 1 - 2 size
    weights = itself + before + after
    return (weights / weights.sum(dim=-1, keepdim=True)).unsqueeze(1)
