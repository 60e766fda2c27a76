"""Images and their transformed versions for the R2 probe, rendered in three protocols.

`paper`: the central square of the image, and that square after g with empty (black) pixels where it has left the frame.
`strict`: the same field of view from the middle of the square, so that after g real pixels fill the frame: no border
gives g away.
`recolored`: the views of `strict`, as if each had been taken in another light. Each gets its own random brightness,
contrast, saturation and hue, which the probe is not asked for.

A square lattice holds more detail along its diagonals than along its axes, and interpolation takes away more along the
axes: both turn with g. So strict views are read from a picture without the frequencies that only the diagonals hold.
What remains, as R2 from the transformed image alone, stands in scripts/guides/evaluate.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data import Batch
from ..transforms import Transformation, TransformationPath, ops
from ..transforms.paths import ColorJitter
from ..transforms.random import uniforms
from ..transforms.render import render, still_view

PROTOCOLS = ("paper", "strict", "recolored")
# Random streams, apart from those of the training views: of g, and of the colors of the image and of its transformed
# version.
_STREAM, _IMAGE_COLORS, _TRANSFORMED_COLORS = 64, 65, 66
_LIGHT = ColorJitter(0.8, 0.2)  # of a recolored view: the ranges of SimCLR's views (arXiv:2002.05709, appendix A)
_CANVAS_DENSITY = 2  # pixels of the canvas for each pixel of a strict view, along x and along y
_READ_DENSITY = 4  # of the picture that views are read from, so dense that bilinear interpolation leaves no trace
_PASSED = 0.9  # share of the circle's radius up to which frequencies pass


@dataclass(frozen=True)
class Pair:
    """original, transformed: (B, 3, H, H) in [0, 1]; parameters: (B, P) of g; labels: (B,)."""

    original: torch.Tensor
    transformed: torch.Tensor
    parameters: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class States:
    """original (B, 3, H, H), on_path (B, V, 3, H, H), both in [0, 1]; parameters: (B, P) of g."""

    original: torch.Tensor
    on_path: torch.Tensor
    parameters: torch.Tensor


def strict_crop(path: TransformationPath) -> float:
    """The fraction of a square image's side whose view stays filled under every g of the path: 1 / sqrt(2) for 45
    degrees.

    The parameters' extremes decide: all corners of their box are tried.
    """
    extremes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=path.num_parameters)))
    matrix = path.sample(extremes).at(1.0).matrix
    if matrix is None:
        return 1.0
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]) @ matrix.transpose(1, 2)
    return 1 / max(1.0, (corners[..., :2] / corners[..., 2:]).abs().max().item())


def moves(path: TransformationPath) -> bool:
    """Whether g moves pixels. Where nothing moves, the protocols are the same."""
    return path.sample(torch.full((1, path.num_parameters), 0.5)).at(1.0).matrix is not None


def given_away(path: TransformationPath, protocol: str) -> str:
    """What tells g without its original, in a short phrase for a table or a report; empty where nothing is known to."""
    if not moves(path):
        return ""
    if protocol == "paper":
        return "the black border tells it"
    names = [part.partition(":")[0] for part in path.name.split("+")]
    if "zoom" in names:
        return "sharpness tells it"
    return "sharpness tells a part of it" if "perspective" in names else ""


def band_limited(canvases: torch.Tensor, sides: torch.Tensor, view_side: float, size: int) -> torch.Tensor:
    """Pictures (B, C, S, S), resampled to (B, C, size, size), with the same frequencies in all directions.

    What bicubic interpolation has weakened is restored. Then those beyond a circle are taken away, which is what the
    lattice of the source holds in any direction. Those near the limit of the views and beyond it are weakened.
    Beyond its border the picture goes on as its mirror image, so the frequencies are those of the cosine transform:
    k half periods along a side, less than n of n pixels.

    Args:
        canvases: resampled by bicubic interpolation (`decode_image` with `fit="square"`).
        sides: (B,) of the pictures before that, in pixels. It is the radius of the circle.
        view_side: side of a canvas in pixels of the views. It is the frequency of which half is left.
    """
    num_pixels = canvases.shape[-1]
    num_waves = min(num_pixels, math.ceil(sides.max().item()))  # none of the others is within a circle
    waves = torch.arange(num_waves, dtype=torch.float64)
    sides = sides[:, None].double()
    frequency = torch.hypot(waves[:, None], waves)
    beyond = (frequency / sides[..., None] - _PASSED) / (1 - _PASSED)
    gain = (0.5 + 0.5 * torch.cos(math.pi * beyond.clamp(0, 1))) / (1 + (frequency / view_side) ** 4)
    kept = _bicubic_response((waves / (2 * sides.clamp_max(num_pixels))).clamp_max(0.5))
    kept = torch.where(sides == num_pixels, 1.0, kept)  # these were not resampled
    gain = gain / (kept[:, :, None] * kept[:, None, :])
    analysis = _cosines(waves, num_pixels) * (torch.where(waves == 0, 1.0, 2.0) / num_pixels)[:, None].to(canvases)
    synthesis = _cosines(waves, size).T
    amplitudes = analysis @ canvases @ analysis.T
    return synthesis @ (amplitudes * gain[:, None].to(canvases)) @ synthesis.T


def _cosines(waves: torch.Tensor, num_pixels: int) -> torch.Tensor:
    """k half periods along a side, at the centers of its pixels: (K,) -> float32 (K, num_pixels)."""
    centers = (torch.arange(num_pixels, dtype=torch.float64) + 0.5) / num_pixels
    return torch.cos(math.pi * waves[:, None] * centers).float()


def _bicubic_response(frequency: torch.Tensor) -> torch.Tensor:
    """What bicubic interpolation (a = -0.5) leaves of waves of so many periods a pixel.

    Source: doi 10.1109/TASSP.1981.1163711.
    """
    f = frequency.clamp_min(1e-4)
    one, two, four = (torch.sinc(n * f) for n in (1, 2, 4))
    return (3 * (one**2 - two) - (3 * two**2 - 2 * two - four)) / (math.pi * f) ** 2


def render_pair(batch: Batch, path: TransformationPath, protocol: str, image_size: int, seed: int = 0) -> Pair:
    """Canvases of central squares (`fit="square"`) -> views of side `image_size` pixels; g is drawn by (seed, sample
    key).

    Raises:
        ValueError: an unknown protocol.
    """
    return render_pairs(batch, path, protocol, image_size, [seed])[0]


def render_pairs(
    batch: Batch, path: TransformationPath, protocol: str, image_size: int, seeds: Sequence[int]
) -> list[Pair]:
    """`render_pair` for each of the seeds; what they share is computed once."""
    found = render_states(batch, path, protocol, image_size, seeds, [1.0])
    return [Pair(drawn.original, drawn.on_path[:, 0], drawn.parameters, batch.labels) for drawn in found]


def render_states(
    batch: Batch,
    path: TransformationPath,
    protocol: str,
    image_size: int,
    seeds: Sequence[int],
    fractions: Sequence[float],
) -> list[States]:
    """As `render_pairs`, the views at V fractions of the path, where 1 is g.

    Raises:
        ValueError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    canvases, crop, border = batch.canvases.float() / 255, 1.0, "zeros"
    if protocol != "paper" and moves(path):
        crop, border = strict_crop(path), "canvas"
        view_side = image_size / crop
        canvases = band_limited(canvases, batch.sizes[:, 0], view_side, math.ceil(_READ_DENSITY * view_side))
    found = [_read_states(canvases, batch.keys, path, crop, border, image_size, seed, fractions) for seed in seeds]
    if protocol == "recolored" and moves(path):
        found = [_recolored(states, batch.keys, seed) for states, seed in zip(found, seeds, strict=True)]
    return found


def _read_states(
    canvases: torch.Tensor,
    keys: torch.Tensor,
    path: TransformationPath,
    crop: float,
    border: str,
    image_size: int,
    seed: int,
    fractions: Sequence[float],
) -> States:
    """The views for a seed, from pictures (B, 3, S, S) in [0, 1] of which the views show the fraction `crop`."""
    draws = uniforms(seed, keys=keys, epochs=torch.zeros_like(keys), stream=_STREAM, count=path.num_parameters)
    drawn = path.sample(draws)
    states = Transformation.stack([drawn.at(fraction) for fraction in fractions])
    from_view = torch.diag(torch.tensor([crop, crop, 1.0]))
    original = still_view(canvases, from_view, image_size)
    pivot = ops.luminance(original).mean(dim=(1, 2, 3))
    picture = original if states.matrix is None else canvases
    return States(original, render(picture, from_view, states, border, image_size, pivot), drawn.parameters)


def _recolored(states: States, keys: torch.Tensor, seed: int) -> States:
    """Colors of their own for the image, the same under every seed, and for its transformed versions."""
    pivot = ops.luminance(states.original).mean(dim=(1, 2, 3))
    number = states.on_path.shape[1]
    original = ops.adjust_color(states.original, _light(keys, 0, _IMAGE_COLORS), pivot)
    colors = _light(keys, seed, _TRANSFORMED_COLORS)
    on_path = ops.adjust_color(
        states.on_path.flatten(0, 1), colors.repeat_interleave(number, dim=0), pivot.repeat_interleave(number)
    )
    return States(original, on_path.unflatten(0, (-1, number)), states.parameters)


def _light(keys: torch.Tensor, seed: int, stream: int) -> torch.Tensor:
    """Random color changes (B, 4), as `Transformation.color`."""
    draws = uniforms(seed, keys=keys, epochs=torch.zeros_like(keys), stream=stream, count=_LIGHT.num_parameters)
    color = _LIGHT.sample(draws).at(1.0).color
    assert color is not None
    return color


def canvas_size(image_size: int, path: TransformationPath, protocol: str) -> int:
    """Side of the canvas that views of side `image_size` are read from, in pixels."""
    if protocol != "paper" and moves(path):
        return math.ceil(_CANVAS_DENSITY * image_size / strict_crop(path))
    return image_size
