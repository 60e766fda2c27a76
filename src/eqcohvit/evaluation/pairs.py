"""Images and their transformed versions for the R2 probe, rendered in two protocols.

`paper`: the whole image, and the image after g with empty (black) pixels where it has left the frame.
`strict`: the same field of view from the middle of the image, so that after g real pixels fill the frame: no border gives g away.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from ..data import Batch
from ..transforms import TransformationPath, ops
from ..transforms.paths import SIGMA_SIZE
from ..transforms.random import uniforms

PROTOCOLS = ("paper", "strict")
_STREAM = 64  # random stream of the probe's transformations, apart from those of the training views


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


def central_crop(sizes: torch.Tensor, fraction: float) -> torch.Tensor:
    """The largest centred square of an image of (height, width), times `fraction`: sizes (B, 2) -> (B, 3, 3) on its square canvas."""
    height, width = sizes.float().unbind(dim=-1)
    side = fraction * torch.minimum(height, width)
    return ops.affine([[side / width, 0, 0], [0, side / height, 0], [0, 0, 1]], height)


def central_view(batch: Batch, image_size: int, fraction: float = 1.0) -> torch.Tensor:
    """The central square of each image, or a fraction of its side: (B, 3, H, H) in [0, 1]."""
    crop = central_crop(batch.sizes, fraction).unsqueeze(1)
    grid, _ = ops.sampling_grid(crop, torch.eye(3).expand_as(crop), image_size, "canvas")
    return ops.sample(batch.canvases.float() / 255, grid).squeeze(1)


def render_pair(batch: Batch, path: TransformationPath, protocol: str, image_size: int, seed: int = 0) -> Pair:
    """Canvases -> views of side `image_size`; g is drawn by (seed, sample key)."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    strict = protocol == "strict"
    drawn = path.sample(uniforms(seed, torch.zeros_like(batch.keys), batch.keys, _STREAM, path.num_parameters))
    step = drawn.at(1.0)
    crop = central_crop(batch.sizes, strict_crop(path) if strict else 1.0).unsqueeze(1)
    identity = torch.eye(3).expand_as(crop)
    motions = torch.cat([identity, identity if step.matrix is None else step.matrix.unsqueeze(1)], dim=1)
    grid, coverage = ops.sampling_grid(crop.expand_as(motions), motions, image_size, "canvas" if strict else "zeros")
    original, transformed = ops.sample(batch.canvases.float() / 255, grid).unbind(dim=1)
    if step.color is not None:
        transformed = ops.adjust_color(transformed, step.color)
    if step.sigma is not None:
        transformed = ops.gaussian_blur(transformed, step.sigma * (image_size / SIGMA_SIZE))
    if coverage is not None:
        transformed = transformed * coverage[:, 1]
    return Pair(original, transformed, drawn.parameters, batch.labels)


def canvas_size(image_size: int, path: TransformationPath, protocol: str) -> int:
    """Side of the canvas that shows the protocol's field of view at its full resolution."""
    return math.ceil(image_size / strict_crop(path)) if protocol == "strict" else image_size
