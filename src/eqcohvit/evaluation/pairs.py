"""Images and their transformed versions for the R2 probe, rendered in two protocols.

`paper`: the central square of the image, and that square after g with empty (black) pixels where it has left the frame.
`strict`: the same field of view from the middle of the square, so that after g real pixels fill the frame: no border gives g away.

Resampling leaves traces of its own, which turn and shift with g. So a strict view is read from a canvas of twice its density, which is
lightly smoothed first. What remains, as R2 from the transformed image alone, stands in scripts/guides/evaluate.md.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..data import Batch
from ..transforms import TransformationPath, ops
from ..transforms.paths import SIGMA_SIZE
from ..transforms.random import uniforms

PROTOCOLS = ("paper", "strict")
_STREAM = 64  # random stream of the probe's transformations, apart from those of the training views
_CANVAS_DENSITY = 2  # pixels of the canvas for each pixel of a strict view, along x and along y
_SMOOTHING = 0.6  # standard deviation of the Gaussian, in pixels of the canvas
_REACH = 4  # of the Gaussian, in standard deviations


@dataclass(frozen=True)
class Pair:
    """original, transformed: (B, 3, H, H) in [0, 1]; parameters: (B, P) of g; labels: (B,)."""

    original: torch.Tensor
    transformed: torch.Tensor
    parameters: torch.Tensor
    labels: torch.Tensor


def strict_crop(path: TransformationPath) -> float:
    """The fraction of a square image's side whose view stays filled under every g of the path: 1 / sqrt(2) for 45 degrees.

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
    return "sharpness tells it" if "zoom" in path.name.split("+") else ""


def smooth(images: torch.Tensor) -> torch.Tensor:
    """Canvases (B, 3, S, S), lightly blurred, so that a view of half their density shows no trace of how it was sampled."""
    batch, channels, side, _ = images.shape
    radius = min(math.ceil(_REACH * _SMOOTHING), side - 1)
    distance = torch.arange(-radius, radius + 1, dtype=images.dtype)
    weights = torch.softmax(-0.5 * (distance / _SMOOTHING) ** 2, dim=0).expand(batch * channels, 1, 1, -1)
    planes = images.reshape(1, batch * channels, side, side)
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="reflect"), weights, groups=len(weights))
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="reflect"), weights.mT, groups=len(weights))
    return planes.view_as(images)


def render_pair(batch: Batch, path: TransformationPath, protocol: str, image_size: int, seed: int = 0) -> Pair:
    """Canvases of central squares (`fit="square"`) -> views of side `image_size` pixels; g is drawn by (seed, sample key).

    Raises:
        ValueError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    strict = protocol == "strict" and moves(path)
    drawn = path.sample(uniforms(seed, torch.zeros_like(batch.keys), batch.keys, _STREAM, path.num_parameters))
    step = drawn.at(1.0)
    canvases = batch.canvases.float() / 255
    if strict:
        canvases = smooth(canvases)
    identity = torch.eye(3).expand(len(canvases), 1, 3, 3)
    motions = torch.cat([identity, identity if step.matrix is None else step.matrix.unsqueeze(1)], dim=1)
    crop = strict_crop(path) if strict else 1.0
    crops = torch.diag(torch.tensor([crop, crop, 1.0])).expand_as(motions)
    grid, coverage = ops.sampling_grid(crops, motions, image_size, "canvas" if strict else "zeros")
    original, transformed = ops.sample(canvases, grid).unbind(dim=1)
    if step.color is not None:
        transformed = ops.adjust_color(transformed, step.color)
    if step.sigma is not None:
        transformed = ops.gaussian_blur(transformed, step.sigma * (image_size / SIGMA_SIZE))
    if coverage is not None:
        transformed = transformed * coverage[:, 1]
    return Pair(original, transformed, drawn.parameters, batch.labels)


def canvas_size(image_size: int, path: TransformationPath, protocol: str) -> int:
    """Side of the canvas that views of side `image_size` are read from, in pixels."""
    if protocol == "strict" and moves(path):
        return math.ceil(_CANVAS_DENSITY * image_size / strict_crop(path))
    return image_size
