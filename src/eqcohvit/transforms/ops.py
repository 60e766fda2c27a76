"""Batched, differentiable image operations with explicit parameters.

Images are float (N, C, H, W) in [0, 1]. Coordinates are normalised: x to the right, y down, [-1, 1] from edge to edge.
A geometric operation is a 3 x 3 homogeneous matrix that maps output coordinates to input coordinates.

Resampling along the axes and blur are products with matrices of weights. Where a GPU may round their factors to TF32,
as training allows it to, a result differs by up to 1e-3, a quarter of an 8-bit level; maps of coordinates are composed
without such products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's "L"
BORDERS = ("canvas", "zeros", "reflection")
_GROUP = 16  # outputs of a filter that a CPU computes together


def affine(rows: list[list[torch.Tensor | float]], like: torch.Tensor) -> torch.Tensor:
    """Stack 3 rows of 3 numbers or (B,) tensors into (B, 3, 3); `like` (B,) gives batch size, device and dtype."""
    return torch.stack([torch.stack([torch.zeros_like(like) + entry for entry in row], dim=-1) for row in rows], dim=-2)


def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """The matrix product of maps (..., 3, 3): `inner`, then `outer`. A GPU may round the factors of `@` to TF32, a
    tenth of a pixel."""
    return (outer.unsqueeze(-1) * inner.unsqueeze(-3)).sum(dim=-2)


def constant(values: Sequence[Any], like: torch.Tensor) -> torch.Tensor:
    """Numbers as a tensor of the type and on the device of `like`; `like.new_tensor` would wait for all that a GPU has
    still to do."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def sampling_grid(
    crop: torch.Tensor, motion: torch.Tensor, size: int, border: str, projective: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where each output pixel reads the canvas: crop (B, V, 3, 3) after motion (B, V, 3, 3), both output -> input.

    The motion acts on the cropped view, so `border` says what lies outside of that view: `"canvas"` the canvas itself,
    `"zeros"` nothing, `"reflection"` the mirrored view. The crop is affine; with `projective=False` so is the motion,
    which saves the division.

    Returns:
        grid (B, V, size, size, 2) in canvas coordinates, and for `"zeros"` the coverage (B, V, 1, size, size) in [0,
        1], else None.
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
    return torch.stack(_map_centres(compose(crop, motion), size, projective), dim=-1), coverage


def magnification(motion: torch.Tensor) -> torch.Tensor:
    """By how much a motion (..., 3, 3), output -> input, enlarges what is in the middle of its view: the root of the
    area's factor."""
    (xx, xy, x0), (yx, yy, y0), (ox, oy, _) = (
        row.unbind(dim=-1) for row in (motion / motion[..., 2:, 2:]).unbind(dim=-2)
    )
    jacobian = (xx - x0 * ox) * (yy - y0 * oy) - (xy - x0 * oy) * (yx - y0 * ox)
    return jacobian.abs().clamp_min(1e-6).rsqrt()


def _centres(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1 - size, size, 2, device=like.device, dtype=like.dtype) / size


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
    """Read V views of each image by bilinear interpolation in one launch: (B, C, S, S), (B, V, H, W, 2) -> (B, V, C, H,
    W).

    Beyond the image its mirror image continues; with `outside="border"`, which is cheaper, the pixels of its border.
    """
    batch, views, height, width, _ = grid.shape
    out = F.grid_sample(
        images,
        grid.reshape(batch, views * height, width, 2),
        mode="bilinear",
        padding_mode=outside,
        align_corners=False,
    )
    return out.unflatten(2, (views, height)).transpose(1, 2)


# ---------------------------------------------------------------------------------------------------------- resampling along the axes


class Filter(NamedTuple):
    """What the outputs along one axis are made of, in groups: those of a group are weighted sums of neighbouring input
    pixels.

    first: int64 (B, G), index of the first pixel that a group reads. weights: (B, G, outputs of a group, pixels that it
        reads).
    """

    first: torch.Tensor
    weights: torch.Tensor


def bicubic_filter(
    centers: torch.Tensor,
    width: torch.Tensor,
    limits: tuple[torch.Tensor, torch.Tensor],
    num_pixels: int,
    bounds: tuple[float, float],
    sharpening: tuple[torch.Tensor, torch.Tensor],
) -> Filter:
    """Weights of bicubic interpolation (a = -0.5), antialiased as Pillow's and torch's are, at any places along an
    axis.

    Where pixels outside of the limits would have a weight, the others share it. Sharpening (a, d) takes a times the
    second difference at the distance d away, which undoes what another interpolation takes from the finest details.

    Args:
        centers: (B, n) where the outputs lie, in pixels from the edge of the axis.
        width: (B,) factor on the width of the filter: how many pixels are between two pixels of the result, at least 1.
        limits: two of (B,), between which pixels are read.
        num_pixels: of the axis.
        bounds: on the distance of neighbouring centers, and on the width.
        sharpening: two of (B,), amount and distance in pixels, the latter at most the width.
    """
    number = centers.shape[1]
    # A GPU is faster with one large product; a CPU leaves out pixels that cannot have a weight.
    group = _GROUP if centers.device.type == "cpu" else number
    groups = math.ceil(number / group)
    reads = num_pixels
    if groups > 1:
        max_step, max_width = bounds
        reads = min(num_pixels, math.ceil((group - 1) * max_step + 6 * max_width) + 2)
    index = torch.arange(groups * group, device=centers.device).clamp_max(number - 1)
    centers = centers[:, index].unflatten(1, (groups, group))
    amount, distance, scale, low, high = (t[:, None, None, None] for t in (*sharpening, width, *limits))
    lowest = centers.amin(dim=-1) - 2 * width[:, None] - sharpening[1][:, None]
    first = lowest.floor().clamp(0, num_pixels - reads)
    pixels = first[:, :, None, None] + torch.arange(reads, device=centers.device) + 0.5
    offset = (pixels - centers[..., None]) / scale
    shift = distance / scale
    weights = (1 + 2 * amount) * _cubic(offset) - amount * (_cubic(offset - shift) + _cubic(offset + shift))
    weights = weights * ((pixels > low) & (pixels < high))
    return Filter(first.long(), weights / weights.sum(dim=-1, keepdim=True))


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (doi 10.1109/TASSP.1981.1163711)."""
    x = x.abs()
    to_two = (2 - x).clamp_min(0)
    to_one = (1 - x).clamp_min(0)
    return 0.5 * to_two**2 * (to_two - 1) + to_one**2 * (1 - 2 * to_one)


def apply_filter(images: torch.Tensor, axis_filter: Filter, number: int) -> torch.Tensor:
    """Filter images (B, S, ...) of any type along S, by the filters (B * L, ...) of L views of each: float (B * L,
    number, ...)."""
    batch, num_pixels = images.shape[:2]
    first, weights = axis_filter
    views, groups, group, reads = len(weights) // batch, *weights.shape[1:]
    lines = images.reshape(batch, num_pixels, -1)
    if reads == num_pixels:
        out = weights.reshape(batch, -1, reads) @ lines.float()
    else:
        start = first + num_pixels * torch.arange(batch, device=images.device).repeat_interleave(views)[:, None]
        index = start[..., None] + torch.arange(reads, device=images.device)
        read = lines.flatten(0, 1).index_select(0, index.flatten()).float()
        out = weights.flatten(0, 1) @ read.unflatten(0, (-1, reads))
    return out.reshape(batch * views, groups * group, *images.shape[2:])[:, :number]


# ------------------------------------------------------------------------------------------------------------------ colour and blur


def luminance(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


# On a CPU torch vectorises an operation of two tensors when one of them is a number for each image, but not one of
# three such as `lerp`; and what changes a tensor of our own in place moves half the memory.


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
    # 0 where that channel is the largest, else 1; a product with it is far cheaper on a CPU than a choice by
    # `torch.where`.
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


def adjust_color(images: torch.Tensor, factors: torch.Tensor, pivot: torch.Tensor | None = None) -> torch.Tensor:
    """Brightness, contrast, saturation, hue, always in this order, by `factors` (N, 4): three factors about 1, and
    turns.

    `pivot` (N,) is the luminance that contrast leaves unchanged, before the brightness; by default the images' own
    mean.
    """
    brightness, contrast, saturation, hue = factors.unbind(dim=-1)
    pivot = luminance(images).mean(dim=(1, 2, 3)) if pivot is None else pivot
    images = adjust_contrast(adjust_brightness(images, brightness), contrast, (pivot * brightness).clamp(0, 1))
    return adjust_hue(adjust_saturation(images, saturation), hue)


_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def jitter_color(
    images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor, pivots: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Brightness, contrast, saturation and hue of each image by `factors` (N, 4), in an order of its own.

    All but the hue are blends of the image, its luminance and a number. Three of them before the hue and three after it
    serve every order; those which an order does not use change nothing.

    Args:
        order: int64 (N, 4), a permutation: 0 for brightness, 1 for contrast, 2 for saturation, 3 for hue.
        pivots: (N, 6) luminances that the contrast leaves unchanged, one for each blend; by default the images' own
            means at that point.

    Returns:
        The images and the pivots, so that further views of the same picture can share these.
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
            grey = luminance(images)
            pivot = grey.mean(dim=(1, 2, 3)) if pivots is None else pivots[:, len(used)]
            used.append(pivot)
            of_grey = (1 - factor) * (operation == _SATURATION)
            constant_part = (1 - factor) * (operation == _CONTRAST) * pivot
            rest = (grey * _per_image(of_grey)).add_(_per_image(constant_part))
            images = (images * _per_image(factor)).add_(rest).clamp_(0, 1)
    return images, torch.stack(used, dim=1)


def _idle(neutral: torch.Tensor) -> bool:
    """Whether a CPU may leave out an operation that is neutral for all images; a GPU would have to be waited for to
    know."""
    return neutral.device.type == "cpu" and not torch.compiler.is_compiling() and bool(neutral.all())


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur by a Gaussian of standard deviation `sigma` (N,) in pixels, mirrored at the border; 0 leaves the image as it
    is."""
    sigma = sigma.to(images.dtype)
    if _idle(sigma == 0):
        return images
    blurred = (
        _gaussian_weights(sigma, images.shape[-2])
        @ images
        @ _gaussian_weights(sigma, images.shape[-1]).transpose(-1, -2)
    )
    return torch.where(_per_image(sigma) > 0, blurred, images)


def _gaussian_weights(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """(N,) -> (N, 1, size, size): how much each pixel takes of each one, by itself and by its two mirror images."""
    distance = torch.arange(1 - 2 * size, 2 * size, device=sigma.device, dtype=sigma.dtype)
    bell = torch.exp(-0.5 * (distance / sigma.clamp_min(1e-3)[:, None]) ** 2)
    itself = bell[:, size : 3 * size - 1].unfold(1, size, 1).flip(-1)  # of the distance i - j
    before = bell[:, 2 * size : 4 * size - 1].unfold(1, size, 1)  # i + j + 1
    after = bell[:, : 2 * size - 1].unfold(1, size, 1)  # i + j + 1 - 2 size
    weights = itself + before + after
    return (weights / weights.sum(dim=-1, keepdim=True)).unsqueeze(1)
