"""Crops of canvases, resized along y and then along x by antialiased bicubic filters.

A canvas is the image at its own resolution, or reduced to fit (`eqcohvit.data.decode`). A view that does not move is
its crop, resized as torchvision's `RandomResizedCrop` does it. For views that move, the crop and its surroundings are
resized in the same way to twice as many points along each axis; each state reads these points by one interpolation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from .augmentations import ViewParameters

# The resized region has this many points per pixel of a view, along each axis. Bilinear reading between the points
# dampens the finest details by (1 + 2 a) - 2 a cos(w) on average, where w is their frequency; sharpening by a undoes
# it. With pixels 0.21 points off the points' centers, a view that does not turn is dampened as much as views whose
# pixels lie anywhere between the points: p (1 - p) = 1 / 6.
DENSITY = 2
OFF_CENTER = 0.5 - 0.2113
_READING_LOSS = 0.1
# The same for a canvas that is smaller than the image: its details are dampened twice, which matters least for the
# largest crops.
_CANVAS_LOSS = 0.07
_GROUP = 16  # outputs of a filter that a CPU computes together


class Filter(NamedTuple):
    """Outputs along one axis as weighted sums of input pixels, in G groups of neighboring outputs.

    first: int64 (B, G), index of the first pixel that a group reads. weights: (B, G, outputs of a group, pixels that
    the group reads).
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
    """Weights of bicubic interpolation (a = -0.5) at any places along an axis, antialiased as in Pillow and torch.

    Pixels outside of the limits have no weight; the other pixels share it. Sharpening (a, d) subtracts a times the
    second difference at distance d, which restores what another interpolation takes from the finest details.

    Args:
        centers: (B, n), places of the outputs in pixels from the edge of the axis.
        width: (B,), factor on the width of the filter: pixels between two outputs, at least 1.
        limits: low and high, (B,) each; only pixels between them are read.
        num_pixels: of the axis.
        bounds: upper bounds on the distance between neighboring centers, and on the width.
        sharpening: amount and distance in pixels, (B,) each; the distance is at most the width.
    """
    number = centers.shape[1]
    # A GPU is faster with one large product. A CPU skips the pixels that cannot have a weight.
    group = _GROUP if centers.device.type == "cpu" else number
    groups = math.ceil(number / group)
    reads = num_pixels
    if groups > 1:
        max_step, max_width = bounds
        reads = min(num_pixels, math.ceil((group - 1) * max_step + 6 * max_width) + 2)
    if groups * group > number:
        centers = torch.cat([centers, centers[:, -1:].expand(-1, groups * group - number)], dim=1)
    centers = centers.unflatten(1, (groups, group))
    amount, distance = [values[:, None, None, None] for values in sharpening]
    low, high = [values[:, None, None, None] for values in limits]
    scale = width[:, None, None, None]
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
    """Filter images (B, S, ...) of any dtype along S by the filters (B * L, ...) of their L views: float (B * L,
    number, ...)."""
    batch, num_pixels = images.shape[:2]
    first, weights = axis_filter
    views = len(weights) // batch
    groups, group, reads = weights.shape[1:]
    lines = images.reshape(batch, num_pixels, -1)
    if reads == num_pixels:
        lines = lines if lines.dtype == torch.float16 else lines.float()
        out = weights.reshape(batch, -1, reads).to(lines.dtype) @ lines
    else:
        start = first + num_pixels * torch.arange(batch, device=images.device).repeat_interleave(views)[:, None]
        index = start[..., None] + torch.arange(reads, device=images.device)
        read = lines.flatten(0, 1).index_select(0, index.flatten()).float()
        out = weights.flatten(0, 1) @ read.unflatten(0, (-1, reads))
    return out.reshape(batch * views, groups * group, *images.shape[2:])[:, :number]


def by_lines(canvases: torch.Tensor) -> torch.Tensor:
    """Canvases (B, 3, S, S) -> (B, S, 3, S), one image line after the other, as the filters read them.

    A GPU converts them here, once for all crops, to half precision. That holds 0 to 255 exactly, takes half the memory
    traffic of float32, and its products are as precise as those in TF32: views differ by less than a level of 8 bits.
    A CPU converts only the lines that a filter reads, to float32.
    """
    lines = canvases.transpose(1, 2).contiguous()
    return lines if canvases.device.type == "cpu" else lines.half()


def resized_crop(lines: torch.Tensor, sizes: torch.Tensor, drawn: ViewParameters, size: int) -> torch.Tensor:
    """Canvases (B, S, 3, S) from `by_lines`, sizes (B * L, 2) and L views of each -> crops (B * L, 3, size, size) in
    [0, 1]."""
    filters = []
    for num_pixels, begin, length, content, is_reduced, sign in _axes(sizes, drawn, lines):
        centers = _on_axis(begin, length, sign, _pixel_centers(size, lines.device))
        # Only pixels of the crop count. The edges of a crop in a reduced canvas may lie within pixels; those count too.
        limits = (begin + 1e-3).floor(), torch.minimum((begin + length - 1e-3).ceil(), content)
        width = (length / size).clamp_min(1)
        sharpening = (_CANVAS_LOSS / width**2 * is_reduced, width)
        bound = max(num_pixels / size, 1)
        filters.append(bicubic_filter(centers, width, limits, num_pixels, (num_pixels / size, bound), sharpening))
    return _filtered(lines, filters, size).contiguous()


def resized_region(
    lines: torch.Tensor, sizes: torch.Tensor, drawn: ViewParameters, size: int, num_points: int
) -> torch.Tensor:
    """Canvases (B, S, 3, S) from `by_lines` -> the crops with their surroundings, (B, 3, n, n) in [0, 1].

    The region has the detail of views of `size` pixels. Point i has the coordinate (2 i + 1 - n) / n of the region.
    Beyond the image its mirror image continues.
    """
    points = torch.arange(num_points, device=lines.device)
    places = (points + (0.5 - num_points / 2 + OFF_CENTER)) * (2 / (size * DENSITY))
    filters = []
    for num_pixels, begin, length, content, is_reduced, sign in _axes(sizes, drawn, lines):
        centers = torch.remainder(_on_axis(begin, length, sign, places), 2 * content[:, None])
        centers = content[:, None] - (centers - content[:, None]).abs()
        width = (length / size).clamp_min(1)
        # 3 times the loss: the second difference at half the distance is a quarter as large for coarse details and half
        # as large for the finest.
        sharpening = (_READING_LOSS + 3 * _CANVAS_LOSS / width**2 * is_reduced, length / (size * DENSITY))
        bounds = (num_pixels / (size * DENSITY), max(num_pixels / size, 1))
        limits = torch.zeros_like(content), content
        filters.append(bicubic_filter(centers, width, limits, num_pixels, bounds, sharpening))
    return _filtered(lines, filters, num_points)


def _axes(sizes: torch.Tensor, drawn: ViewParameters, lines: torch.Tensor) -> list[tuple[Any, ...]]:
    """For y and x of canvases (B, S, 3, S): number of pixels; begin and length of the crops and length of the content,
    in pixels; whether the content is reduced; the sign of the flip."""
    original = sizes.to(drawn.box.dtype)
    num_pixels = lines.shape[1], lines.shape[3]
    content = torch.stack([original[:, axis].clamp_max(num_pixels[axis]) for axis in range(2)], dim=-1)
    box = drawn.box * (content / original)[:, [1, 0, 1, 0]]
    sign = 1 - 2 * drawn.flip.to(box.dtype)
    left, top, width, height = box.unbind(dim=-1)
    is_reduced = content < original
    return [
        (num_pixels[0], top, height, content[:, 0], is_reduced[:, 0], torch.ones_like(sign)),
        (num_pixels[1], left, width, content[:, 1], is_reduced[:, 1], sign),
    ]


def _pixel_centers(size: int, device: torch.device) -> torch.Tensor:
    return torch.arange(1 - size, size, 2, device=device) / size


def _on_axis(begin: torch.Tensor, length: torch.Tensor, sign: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Places (n,) in a view, from -1 to 1, as pixels of the canvas: (B, n)."""
    half = (length / 2)[:, None]
    return begin[:, None] + half + half * sign[:, None] * places


def _filtered(lines: torch.Tensor, filters: list[Filter], size: int) -> torch.Tensor:
    """Canvases (B, S, 3, S), filters along y and x for N views -> (N, 3, size, size), in [0, 1] except for
    overshoots."""
    along_y = apply_filter(lines, filters[0], size)  # (N, size, 3, S)
    if along_y.dtype == torch.float16:  # on a GPU, where each output is a sum over the whole axis
        weights = filters[1].weights.flatten(1, 2)[:, :size].half()
        both = along_y.flatten(1, 2) @ weights.transpose(1, 2)  # (N, size of y * 3, size of x)
        return both.unflatten(1, (size, 3)).transpose(1, 2).float() / 255
    both = apply_filter(along_y.permute(0, 3, 2, 1), filters[1], size)  # (N, size of x, 3, size of y)
    return both.permute(0, 2, 3, 1) / 255
