"""What a visitor can do to a picture: the sliders, and how their values become the parameters of a transformation
path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from eqcohvit.transforms import PATHS, TransformationPath, make_path


@dataclass(frozen=True)
class Control:
    """One slider, in the visitor's units.

    Args:
        name: key in the URL and in the API.
        low, high, step: range of the slider; `neutral` changes nothing, `start` shows something at once.
        to_parameters: value -> the path's parameters that it sets; `from_parameters` is its inverse.
    """

    name: str
    label: str
    unit: str
    low: float
    high: float
    step: float
    neutral: float
    start: float
    to_parameters: Callable[[float], tuple[float, ...]]
    from_parameters: Callable[[tuple[float, ...]], float]


def _scaled(
    name: str, label: str, unit: str, limit: tuple[float, float], scale: float, step: float, start: float
) -> Control:
    """A slider whose value is `scale` times the one parameter that it sets."""
    low, high = (
        math.trunc(edge * scale / step + math.copysign(1e-6, edge)) * step for edge in limit
    )  # whole steps within the range
    return Control(name, label, unit, low, high, step, 0.0, start, lambda v: (v / scale,), lambda p: p[0] * scale)


_LIMITS = {name: path().limits for name, path in PATHS.items()}
_PERCENT, _DEGREES = 100.0, math.degrees(1)
_MAX_ZOOM = round(math.exp(_LIMITS["zoom"][0][1]), 3)
_KEYSTONE = (1, 0, -1, 0, 1, 0, -1, 0)  # the top narrows, the bottom widens

# The sliders of each elementary transformation, in the order of its parameters.
CONTROLS: dict[str, tuple[Control, ...]] = {
    "rotation": (_scaled("angle", "Turn", "°", _LIMITS["rotation"][0], _DEGREES, 1, 40),),
    "translation": (
        _scaled("shift_x", "Shift right", "% of the side", _LIMITS["translation"][0], _PERCENT, 0.1, 3),
        _scaled("shift_y", "Shift down", "% of the side", _LIMITS["translation"][1], _PERCENT, 0.1, -3),
    ),
    "zoom": (
        Control(
            "zoom", "Zoom", "×", round(1 / _MAX_ZOOM, 2), _MAX_ZOOM, 0.01, 1.0, 1.4, lambda v: (math.log(v),), lambda p: math.exp(p[0])
        ),
    ),
    "perspective": (
        Control(
            "tilt", "Tilt backwards", "% of the side", -10, 10, 0.5, 0.0, 9,
            lambda v: tuple(v / _PERCENT * sign for sign in _KEYSTONE),
            lambda p: _PERCENT * sum(a * sign for a, sign in zip(p, _KEYSTONE, strict=True)) / 4,
        ),
    ),
    "color_jitter": (
        _scaled("brightness", "Brightness", "%", _LIMITS["color_jitter"][0], _PERCENT, 1, -35),
        _scaled("contrast", "Contrast", "%", _LIMITS["color_jitter"][1], _PERCENT, 1, 0),
        _scaled("saturation", "Saturation", "%", _LIMITS["color_jitter"][2], _PERCENT, 1, 0),
        _scaled("hue", "Hue", "°", _LIMITS["color_jitter"][3], 360.0, 1, 30),
    ),
    "gaussian_blur": (_scaled("blur", "Blur", "pixels of a 224-pixel image", (0.0, _LIMITS["gaussian_blur"][0][1]), 1.0, 0.1, 1.8),),
}  # fmt: skip
_LABELS = {
    "rotation": "Turn",
    "translation": "Shift",
    "zoom": "Zoom",
    "perspective": "Tilt",
    "color_jitter": "Colours",
    "gaussian_blur": "Blur",
}
ALL_CONTROLS = tuple(control for controls in CONTROLS.values() for control in controls)


@dataclass(frozen=True)
class Choice:
    """A transformation that can be chosen: the elementary ones it walks, and the path whose parameters they set.

    `trained`: whether the model's decoders learnt this path.
    """

    key: str
    label: str
    elements: tuple[str, ...]
    path: TransformationPath
    trained: bool

    @property
    def controls(self) -> tuple[Control, ...]:
        return tuple(control for element in self.elements for control in CONTROLS[element])

    def parameters(self, values: dict[str, float]) -> torch.Tensor:
        """Values of sliders by name -> parameters (1, P) of the path; what this transformation does not move stays
        neutral.

        Raises:
            ValueError: a value is no number, or lies outside of its slider.
        """
        parameters = []
        for control in path_controls(self.path):
            value = values.get(control.name, control.neutral) if control in self.controls else control.neutral
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not control.low <= value <= control.high
            ):
                raise ValueError(
                    f"{control.name} must be a number from {control.low:g} to {control.high:g}, got {value!r}"
                )
            parameters += control.to_parameters(value)
        return torch.tensor([parameters])

    def spans(self) -> dict[str, slice]:
        """Which of the path's parameters each slider of this transformation sets."""
        spans, start = {}, 0
        for control in path_controls(self.path):
            stop = start + len(control.to_parameters(control.neutral))
            if control in self.controls:
                spans[control.name] = slice(start, stop)
            start = stop
        return spans


def elements_of(path_name: str) -> tuple[str, ...]:
    """The elementary transformations of a path, in the order of its parameters: se2 is a rotation, then a
    translation."""
    return tuple(
        element
        for part in path_name.split("+")
        for element in (("rotation", "translation") if part == "se2" else (part,))
    )


def path_controls(path: TransformationPath) -> tuple[Control, ...]:
    """The sliders of a path, in the order of its parameters."""
    return tuple(control for element in elements_of(path.name) for control in CONTROLS[element])


def list_choices(trained_path: str) -> dict[str, Choice]:
    """The choices by key for a model trained on `trained_path`: its parts, all of them together, then what it never
    saw.

    Raises:
        ValueError: the path is none of this package.
    """
    whole, elements = make_path(trained_path), elements_of(trained_path)
    choices = [Choice(element, _LABELS[element], (element,), whole, True) for element in elements]
    if len(elements) > 1:
        together = " + ".join(_LABELS[element].lower() for element in elements)
        choices.append(Choice(trained_path, f"Together: {together}", elements, whole, True))
    choices += [
        Choice(element, f"{_LABELS[element]} (never trained on)", (element,), make_path(element), False)
        for element in CONTROLS
        if element not in elements
    ]
    return {choice.key: choice for choice in choices}
