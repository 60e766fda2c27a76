"""Transformation paths: what g is, drawn at random, and its state at the fraction t of the way (paper, section 3.2 and
table of ranges).

A `TransformationPath` is a distribution: which transformation, which ranges. `sample` draws one g per image from
uniform numbers. `at(t)` is g with all parameters scaled by t: the identity at t = 0, g itself at t = 1, differentiable
in t and in the parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from .ops import affine, compose, constant, luminance, mapped
from .render import render

_PARTS = ("matrix", "color", "sigma")
_MAX_REACH = 3.0  # of a path, in halves of the side of the view


@dataclass(frozen=True)
class Transformation:
    """A geometric motion, then a color change, then a blur, of B images. A part that is None is the identity.

    Args:
        matrix: (B, 3, 3), output -> input in normalized coordinates.
        color: (B, 4), factors of brightness, contrast and saturation, and the hue in turns.
        sigma: (B,), standard deviation of the blur in pixels of a 224-pixel image; an image with H pixels a side is
            blurred by H / 224 times that.
        projective: whether the last row of the matrix can differ from (0, 0, 1).
    """

    matrix: torch.Tensor | None = None
    color: torch.Tensor | None = None
    sigma: torch.Tensor | None = None
    projective: bool = False

    def __getitem__(self, rows: slice) -> Transformation:
        return mapped(self, lambda values: values[rows])

    @staticmethod
    def stack(steps: list[Transformation]) -> Transformation:
        """V transformations of the same kind as one with tensors (B, V, ...)."""
        parts = {name: [getattr(step, name) for step in steps] for name in _PARTS}
        stacked = {name: None if part[0] is None else torch.stack(part, dim=1) for name, part in parts.items()}
        return Transformation(**stacked, projective=steps[0].projective)

    @property
    def num_states(self) -> int:
        """V of a stack."""
        return next(part.shape[1] for part in (self.matrix, self.color, self.sigma) if part is not None)

    def then(self, other: Transformation) -> Transformation:
        """This transformation followed by `other`. Factors multiply, hues add, variances add."""
        merged = {}
        for name in _PARTS:
            own = getattr(self, name)
            merged[name] = getattr(other, name) if own is None else own
        if self.matrix is not None and other.matrix is not None:
            merged["matrix"] = compose(self.matrix, other.matrix)
        if self.color is not None and other.color is not None:
            merged["color"] = torch.cat(
                [self.color[:, :3] * other.color[:, :3], self.color[:, 3:] + other.color[:, 3:]], dim=-1
            )
        if self.sigma is not None and other.sigma is not None:
            merged["sigma"] = torch.hypot(self.sigma, other.sigma)
        return Transformation(**merged, projective=self.projective or other.projective)

    def __call__(self, images: torch.Tensor, border: str = "zeros") -> torch.Tensor:
        """Apply to images (B, 3, H, H) in [0, 1], as in the training views.

        `border` is what appears outside of them: `"zeros"` for black, whatever the colors become, or `"reflection"`.
        """
        pivot = None if self.color is None else luminance(images).mean(dim=(1, 2, 3))
        return render(images, None, Transformation.stack([self]), border, images.shape[-1], pivot).squeeze(1)


class TransformationPath(ABC):
    """A family of transformations with uniformly distributed parameters.

    A subclass defines `at`, and `parameter_names` and `limits` (low, high), both of length P. `units` are the units of
    the parameters, for display; without units the parameters are shown as plain numbers.
    """

    name: str
    parameter_names: tuple[str, ...]
    limits: tuple[tuple[float, float], ...]
    units: tuple[str, ...] = ()

    @property
    def num_parameters(self) -> int:
        """P."""
        return len(self.parameter_names)

    def sample(self, uniforms: torch.Tensor) -> SampledPath:
        """Uniform numbers in [0, 1) of shape (B, P) -> one g per image."""
        low, high = constant(self.limits, uniforms).unbind(dim=-1)
        return SampledPath(self, low + uniforms * (high - low))

    @abstractmethod
    def at(self, parameters: torch.Tensor, t: float | torch.Tensor) -> Transformation:
        """g with parameters (B, P) at the fraction t, a number or (B,)."""

    def inverse(self, parameters: torch.Tensor) -> torch.Tensor | None:
        """Parameters (B, P) of the transformation that takes g with `parameters` back; None if the family has none."""
        return None


@dataclass(frozen=True)
class SampledPath:
    """One g per image: a path with drawn parameters (B, P), in the units of `path.parameter_names`."""

    path: TransformationPath
    parameters: torch.Tensor

    def __getitem__(self, rows: slice) -> SampledPath:
        return SampledPath(self.path, self.parameters[rows])

    def at(self, t: float | torch.Tensor) -> Transformation:
        """The transformation at the fraction t in [0, 1] of the way, a number or (B,)."""
        return self.path.at(self.parameters, t)


def intermediate_fractions(num_intermediates: int) -> list[float]:
    """The equidistant t_k = k / (K + 1), k = 1 .. K (paper, section 3.2): [1/3, 2/3] for K = 2."""
    return [k / (num_intermediates + 1) for k in range(1, num_intermediates + 1)]


class Rotation(TransformationPath):
    """Counter-clockwise rotation about the center, in radians."""

    name = "rotation"
    parameter_names = ("angle",)
    units = ("radians",)

    def __init__(self, max_degrees: float = 45.0):
        self.limits = (_symmetric(math.radians(max_degrees)),)

    def at(self, parameters, t):
        angle = parameters[:, 0] * t
        cos = angle.cos()
        sin = angle.sin()
        return Transformation(matrix=affine([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], angle))

    def inverse(self, parameters):
        return -parameters


class Translation(TransformationPath):
    """Shift to the right and down, as a fraction of the side (10 of 224 pixels)."""

    name = "translation"
    parameter_names = ("shift_x", "shift_y")
    units = ("fraction of the side",) * 2

    def __init__(self, max_shift: float = 10 / 224):
        self.limits = (_symmetric(max_shift),) * 2

    def at(self, parameters, t):
        shift = 2 * parameters * (t[:, None] if isinstance(t, torch.Tensor) else t)
        x, y = shift.unbind(dim=-1)
        return Transformation(matrix=affine([[1, 0, -x], [0, 1, -y], [0, 0, 1]], x))

    def inverse(self, parameters):
        return -parameters


class SE2(TransformationPath):
    """Rotation (radians), then translation (fraction of the side)."""

    name = "se2"
    parameter_names = ("angle", "shift_x", "shift_y")
    units = ("radians", *Translation.units)

    def __init__(self, max_degrees: float = 45.0, max_shift: float = 10 / 224):
        self.rotation = Rotation(max_degrees)
        self.translation = Translation(max_shift)
        self.limits = self.rotation.limits + self.translation.limits

    def at(self, parameters, t):
        return self.rotation.at(parameters[:, :1], t).then(self.translation.at(parameters[:, 1:], t))

    def inverse(self, parameters):
        angle, x, y = parameters.unbind(dim=-1)
        cos = angle.cos()
        sin = angle.sin()
        return -torch.stack([angle, cos * x - sin * y, sin * x + cos * y], dim=-1)


class Zoom(TransformationPath):
    """Magnification about the center, by its natural logarithm: 0 keeps the size."""

    name = "zoom"
    parameter_names = ("log_scale",)
    units = ("logarithm",)

    def __init__(self, max_scale: float = 1.5):
        self.limits = (_symmetric(math.log(max_scale)),)

    def at(self, parameters, t):
        inverse = torch.exp(-parameters[:, 0] * t)
        return Transformation(matrix=affine([[inverse, 0, 0], [0, inverse, 0], [0, 0, 1]], inverse))

    def inverse(self, parameters):
        return -parameters


class Perspective(TransformationPath):
    """Each of the four corners moves by its own shift, up to `max_shift` of the side in x and in y; not a group."""

    name = "perspective"
    _corners = ("top_left", "top_right", "bottom_right", "bottom_left")
    parameter_names = tuple(f"{corner}_{axis}" for corner in _corners for axis in "xy")
    units = ("fraction of the side",) * 8

    def __init__(self, max_shift: float = 0.1):
        self.limits = (_symmetric(max_shift),) * 8

    def at(self, parameters, t):
        fraction = t[:, None] if isinstance(t, torch.Tensor) else t
        corners = constant(((-1, -1), (1, -1), (1, 1), (-1, 1)), parameters)
        moved = corners + (2 * parameters * fraction).unflatten(-1, (4, 2))
        return Transformation(matrix=homography(moved, corners.expand_as(moved)), projective=True)


def homography(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The projective maps (B, 3, 3) that take four points `source` to `target`, both (B, 4, 2); last entry 1.

    If three of the points lie on a line, there is no such map, and the result is not finite.
    """
    x, y = source.unbind(dim=-1)
    u, v = target.unbind(dim=-1)
    one = torch.ones_like(x)
    zero = torch.zeros_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    # `solve` would wait for a GPU to check that the points form a quadrangle.
    solution, _ = torch.linalg.solve_ex(torch.cat([rows_u, rows_v], dim=-2), torch.cat([u, v], dim=-1))
    return torch.cat([solution, torch.ones_like(solution[:, :1])], dim=-1).unflatten(-1, (3, 3))


class ColorJitter(TransformationPath):
    """Brightness, contrast and saturation by their factors minus 1, and hue in full turns; always in this order."""

    name = "color_jitter"
    parameter_names = ("brightness", "contrast", "saturation", "hue")
    units = ("factor minus 1",) * 3 + ("turns",)

    def __init__(self, max_change: float = 0.4, max_hue: float = 0.1):
        self.limits = (_symmetric(max_change),) * 3 + (_symmetric(max_hue),)

    def at(self, parameters, t):
        change = parameters * (t[:, None] if isinstance(t, torch.Tensor) else t)
        return Transformation(color=torch.cat([1 + change[:, :3], change[:, 3:]], dim=-1))


class GaussianBlur(TransformationPath):
    """Blur by a standard deviation in pixels of a 224-pixel image; with H pixels a side it is H / 224 times that.

    So the paper's range (arXiv:2503.18753, section 4), given for 224 pixels, applies at any image size.
    """

    name = "gaussian_blur"
    parameter_names = ("sigma",)
    units = ("pixels",)

    def __init__(self, min_sigma: float = 0.1, max_sigma: float = 2.0):
        self.limits = ((min_sigma, max_sigma),)

    def at(self, parameters, t):
        return Transformation(sigma=parameters[:, 0] * t)


class Composition(TransformationPath):
    """Several paths walked at the same time and applied in their order; their parameters are concatenated."""

    def __init__(self, paths: list[TransformationPath]):
        self.paths = paths
        self.name = "+".join(path.name for path in paths)
        self.parameter_names = tuple(f"{path.name}.{name}" for path in paths for name in path.parameter_names)
        self.limits = tuple(limit for path in paths for limit in path.limits)
        self.units = tuple(unit for path in paths for unit in path.units or ("",) * path.num_parameters)

    def at(self, parameters, t):
        widths = [path.num_parameters for path in self.paths]
        steps = [path.at(part, t) for path, part in zip(self.paths, parameters.split(widths, dim=-1), strict=True)]
        whole = steps[0]
        for step in steps[1:]:
            whole = whole.then(step)
        return whole


PATHS: dict[str, type[TransformationPath]] = {
    "rotation": Rotation,
    "translation": Translation,
    "se2": SE2,
    "color_jitter": ColorJitter,
    "gaussian_blur": GaussianBlur,
    "perspective": Perspective,
    "zoom": Zoom,
}


def make_path(name: str) -> TransformationPath:
    """The path called `name`, or a composition such as `"rotation+color_jitter"`.

    A factor scales all ranges of a path: `"rotation:2"` turns by up to 90 degrees instead of 45.

    Raises:
        ValueError: a name is not one of `PATHS`, or a factor is not a positive number.
    """
    parts = name.split("+")
    kinds = [part.partition(":")[0] for part in parts]
    for kind in kinds:
        if kind not in PATHS:
            raise ValueError(f"unknown path {kind!r}; known: {', '.join(PATHS)}, or several joined by '+'")
    if len(set(kinds)) != len(kinds):
        raise ValueError(f"path {name!r} names the same transformation twice")
    paths = [_scaled(PATHS[kind](), part) for kind, part in zip(kinds, parts, strict=True)]
    return paths[0] if len(paths) == 1 else Composition(paths)


def _scaled(path: TransformationPath, part: str) -> TransformationPath:
    """The path, called `part`, with its ranges times the factor that stands in `part` after a colon, if one does."""
    _, colon, text = part.partition(":")
    if not colon:
        return path
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ValueError(f"the factor of a path must be a positive number, as in rotation:2, got {part!r}")
    path.name = part
    path.limits = tuple((low * factor, high * factor) for low, high in path.limits)
    return path


def path_reach(path: TransformationPath) -> float:
    """How far from the center of u the views of a path read, in halves of the side of u: 1 if nothing moves, at most 3.

    Checked at extreme parameters and at any fraction of the way. A path with many parameters has too many combinations
    of extremes to try all of them.
    """
    extremes = torch.rand(4096, path.num_parameters, generator=torch.Generator().manual_seed(0)).round()
    drawn = path.sample(extremes)
    view = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]])
    reach = torch.tensor(1.0)
    for step in range(1, 9):
        matrix = drawn.at(step / 8).matrix
        if matrix is None:
            return 1.0
        moved = view @ matrix.transpose(1, 2)
        behind = moved[..., 2:] <= 0  # the horizon lies within the view
        places = (moved[..., :2] / moved[..., 2:]).abs().masked_fill(behind, _MAX_REACH).nan_to_num(_MAX_REACH)
        reach = torch.maximum(reach, places.max())
    return min(reach.item(), _MAX_REACH)


def _symmetric(limit: float) -> tuple[float, float]:
    return -limit, limit
