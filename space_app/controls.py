"""What a visitor can do to a picture: the transformations of `PATHS`, with a slider for each of their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from eqcohvit.transforms import PATHS, TransformationPath, make_path

_SIGNS = (1, -1, -1, 1, -1, 1, 1, -1)  # sliders of one path start in different directions, so that they do not cancel
_START = 2 / 3  # share of a slider's range where it starts


@dataclass(frozen=True)
class Unit:
    """How a parameter is shown: its sign, the slider's step, and the conversion in both directions."""

    sign: str
    step: float
    show: Callable[[float], float]
    parameter: Callable[[float], float]


def _scaled(sign: str, step: float, scale: float) -> Unit:
    return Unit(sign, step, lambda parameter: parameter * scale, lambda shown: shown / scale)


# By the units that paths state. A path without units gets sliders of plain numbers.
UNITS = {
    "radians": _scaled("°", 1, math.degrees(1)),
    "turns": _scaled("°", 1, 360),
    "fraction of the side": _scaled("%", 0.1, 100),
    "factor minus 1": _scaled("%", 1, 100),
    "logarithm": Unit("×", 0.01, math.exp, math.log),
    "pixels": _scaled("px", 0.1, 1),
}


@dataclass(frozen=True)
class Control:
    """A slider, in the visitor's units.

    Args:
        name: key in the URL and in the API.
        low, high, step: range of the slider; it starts at `start`.
        neutral: the value that changes nothing.
    """

    name: str
    label: str
    unit: Unit
    low: float
    high: float
    start: float

    @property
    def neutral(self) -> float:
        return self.unit.show(0.0)

    @property
    def digits(self) -> int:
        """Decimals that the slider's step needs."""
        return max(0, -math.floor(math.log10(self.unit.step) + 1e-9))

    def text(self, value: float) -> str:
        """A value with its unit: -12°, 1.20×, 4.0 %."""
        shown = f"{round(value, self.digits) + 0.0:.{self.digits}f}".replace("-", "−")
        return f"{shown}{' ' if self.unit.sign in ('%', 'px') else ''}{self.unit.sign}"

    def share(self, value: float) -> float:
        """Where a value lies in the slider's range: 0 at its low end, 1 at its high end."""
        return (value - self.low) / (self.high - self.low)


def _control(name: str, limit: tuple[float, float], unit: str, index: int) -> Control:
    shown = UNITS.get(unit) or _scaled("", (limit[1] - limit[0]) / 100, 1)
    ends = [shown.show(edge) for edge in limit]
    low = math.ceil(ends[0] / shown.step - 1e-6) * shown.step
    high = math.floor(ends[1] / shown.step + 1e-6) * shown.step
    neutral = shown.show(0.0)
    edge = high if _SIGNS[index % len(_SIGNS)] > 0 or low >= neutral else low
    start = round((neutral + _START * (edge - neutral)) / shown.step) * shown.step
    key = name.removeprefix("log_")
    label = key.replace("_", " ").capitalize()
    return Control(key, label, shown, round(low, 6), round(high, 6), round(min(max(start, low), high), 6))


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Choice:
    """A transformation in the page's list: a path, and the parameters of it that move.

    Args:
        controls: the sliders by the index of the parameter that each one sets; the other parameters stay 0.
        trained: whether the model was trained on this path.
    """

    key: str
    label: str
    path: TransformationPath
    controls: dict[int, Control]
    trained: bool

    def parameters(self, values: dict[str, float]) -> torch.Tensor:
        """Values of sliders by name -> parameters (1, P) of the path. A slider without a value changes nothing.

        Raises:
            ValueError: a value is not a number, or is outside of its slider's range.
        """
        parameters = torch.zeros(1, self.path.num_parameters)
        for index, control in self.controls.items():
            if control.name not in values:
                continue
            value = values[control.name]
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not control.low <= value <= control.high:
                raise ValueError(
                    f"{control.name} must be a number from {control.low:g} to {control.high:g}, got {value!r}"
                )
            parameters[0, index] = control.unit.parameter(value)
        return parameters

    def values(self, parameters: torch.Tensor) -> dict[str, float]:
        """Parameters (P,) -> values of the sliders by name."""
        return {control.name: control.unit.show(parameters[index].item()) for index, control in self.controls.items()}


def list_choices(trained_path: str) -> dict[str, Choice]:
    """The choices by key for a model trained on `trained_path`: its parts, all of them together, then the other paths.

    Raises:
        ValueError: a path is unknown.
    """
    whole = make_path(trained_path)
    everything = {name: make_path(name) for name in PATHS}
    simple = {name: path for name, path in everything.items() if not _parts(path, everything)}
    parts = _parts(whole, simple) or {trained_path: list(range(whole.num_parameters))}
    known: dict[str, Control] = {}
    choices = [
        _choice(name, _label(name), whole, indices, known, trained=True)
        for name, indices in parts.items()
        if len(indices) < whole.num_parameters
    ]
    names = " + ".join(_label(name).lower() for name in parts)
    label = f"Together: {names}" if len(parts) > 1 else _label(trained_path)
    choices.append(_choice(trained_path, label, whole, list(range(whole.num_parameters)), known, trained=True))
    for name, path in simple.items():
        if name not in parts:
            label = f"Not trained on: {_label(name).lower()}"
            choices.append(_choice(name, label, path, list(range(path.num_parameters)), known, trained=False))
    return {choice.key: choice for choice in choices}


def _choice(
    key: str, label: str, path: TransformationPath, indices: list[int], known: dict[str, Control], trained: bool
) -> Choice:
    """`known` collects the controls by name. A name that is taken by another control gets the path's name in front."""
    units = path.units or ("",) * path.num_parameters
    plain = [name.rsplit(".", 1)[-1] for name in path.parameter_names]
    controls = {}
    for index in indices:
        full = path.parameter_names[index].replace(".", "_")
        name = plain[index] if plain.count(plain[index]) == 1 else full
        control = _control(name, path.limits[index], units[index], index)
        if known.get(control.name, control) != control:
            control = _control(f"{path.name}_{name}", path.limits[index], units[index], index)
        controls[index] = known.setdefault(control.name, control)
    return Choice(key, label, path, controls, trained)


def _parts(whole: TransformationPath, paths: dict[str, TransformationPath]) -> dict[str, list[int]]:
    """The paths whose parameters all occur in `whole`, with the indices of these parameters in `whole`.

    `whole` itself is left out.
    """
    signature = list(zip((name.rsplit(".", 1)[-1] for name in whole.parameter_names), whole.limits, strict=True))
    found = {}
    for name, path in paths.items():
        own = list(zip(path.parameter_names, path.limits, strict=True))
        if name != whole.name and all(parameter in signature for parameter in own):
            found[name] = [signature.index(parameter) for parameter in own]
    return found


def _label(name: str) -> str:
    return name.replace("_", " ").replace("+", " + ").replace(":", " × ").capitalize()


def all_controls(choices: dict[str, Choice]) -> list[Control]:
    """The controls of all choices, each once."""
    return list({control.name: control for choice in choices.values() for control in choice.controls.values()}.values())
