"""Line charts as inline SVG for HTML pages: a few milliseconds each, in the colors of the page, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

MAX_SERIES = 8  # in one chart
_WIDTH, _HEIGHT = 540, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 14, 10, 36
_MAX_POINTS = 400  # of a line; of more, evenly spread ones are drawn
_MAX_MARKED = 40  # points of a line that are marked each
_LOG_RATIO = 100  # of the largest to the smallest value, from which on a logarithmic axis is easier to read

STYLE = """
:root { --c0: #D55E00; --c1: #0072B2; --c2: #009E73; --c3: #B8509A;
  --c4: #8A6D00; --c5: #2E93D1; --c6: #6B6B6B; --c7: #7A4FC0; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #FF8A3D; --c1: #4FB0F0; --c2: #2FD0A0; --c3: #E389C6;
    --c4: #E0C341; --c5: #9AD4FA; --c6: #AAAAAA; --c7: #B79CF0; }
}
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 1.4rem 1.8rem; }
.chart { margin: 0; min-width: 0; }
.chart h3 { font-size: 1rem; margin: 0 0 .15rem; }
.chart svg { width: 100%; height: auto; display: block; }
.chart text { fill: var(--faint); font: 12px system-ui, sans-serif; }
.chart .grid { stroke: var(--line); stroke-width: .7; }
.chart .axis { stroke: var(--faint); stroke-width: 1; }
.chart polyline { fill: none; stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: 13px; margin-bottom: .2rem;
  font-variant-numeric: tabular-nums; }
.legend span::before { content: ""; display: inline-block; width: 1.1em; height: 3px; margin-right: .4em;
  vertical-align: middle; }
""" + "".join(
    f".s{i} {{ stroke: var(--c{i}); }} .d{i} {{ fill: var(--c{i}); }} "
    f".legend .l{i}::before {{ background: var(--c{i}); }}\n"
    for i in range(MAX_SERIES)
)


@dataclass(frozen=True)
class Series:
    """A line: its name, points (step, value) in the order of the steps, and the number of its color, 0 to 7."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int


def line_chart(
    title: str, unit: str, series: Sequence[Series], limits: tuple[float, float] | None = None, max_step: int = 0
) -> str:
    """A chart of values by step with its legend, which has each line's last value.

    Args:
        unit: of the values; names the vertical axis.
        series: at most `MAX_SERIES`. A value that is not finite leaves a gap, and the legend says how many do.
        limits: the least range of the vertical axis; it is widened if values lie outside.
        max_step: least end of the horizontal axis.

    Raises:
        ValueError: there are too many series.
    """
    if len(series) > MAX_SERIES:
        raise ValueError(f"a chart takes at most {MAX_SERIES} series, got {len(series)}")
    values = [y for line in series for _, y in line.points if math.isfinite(y)]
    is_log = limits is None and bool(values) and min(values) > 0 and max(values) > _LOG_RATIO * min(values)
    axis = _log_axis(values) if is_log else _linear_axis(values, limits)
    last_step = max([max_step, 1, *(x for line in series for x, _ in line.points)])
    legend = "".join(_legend(line, limits) for line in series)
    drawn = [_grid(axis, last_step, f"{unit}, logarithmic" if is_log and unit else unit)]
    drawn += [_line(line, axis, last_step) for line in series]
    label = html.escape(f"{title}: {', '.join(line.name for line in series)} by step")
    svg = f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{label}'>{''.join(drawn)}</svg>"
    return f"<figure class='chart'><h3>{html.escape(title)}</h3><div class='legend'>{legend}</div>{svg}</figure>"


@dataclass(frozen=True)
class _Axis:
    """A vertical axis: `low` and `high` are its ends on the scale, `ticks` are values."""

    low: float
    high: float
    ticks: Sequence[float]
    scale: Callable[[float], float] = float

    def y(self, value: float) -> float:
        """Place of a value in the picture."""
        height = (self.scale(value) - self.low) / (self.high - self.low)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - height)


def _linear_axis(values: Sequence[float], limits: tuple[float, float] | None) -> _Axis:
    """Shows all values, with round ticks."""
    least, most = min([*values, *(limits or ())], default=0.0), max([*values, *(limits or ())], default=1.0)
    margin = 0.05 * (most - least) or 0.05 * abs(most) or 1.0
    low = least if limits is not None and least == limits[0] else least - margin
    high = most if limits is not None and most == limits[1] else most + margin
    if least >= 0 > low:
        low = 0.0
    return _Axis(low, high, round_ticks(low, high))


def _log_axis(values: Sequence[float]) -> _Axis:
    """For positive values, with ticks at powers of ten."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = 0.05 * (high - low)
    exponents = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, math.ceil((high - low) / 5))
    return _Axis(low - margin, high + margin, [10.0**exponent for exponent in exponents], math.log10)


def round_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten between two numbers."""
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    size = next(size * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (size * factor) < most - 0.999)
    return [index * size for index in range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in at most four digits: 12.3k if it is large, 2.95e-4 if it is small."""
    if not math.isfinite(value):
        return str(value)
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            return f"{value / (1e3 if letter == 'k' else factor):.4g}{letter}"
    return f"{value:.4g}"


def _x(step: float, last_step: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last_step


def _grid(axis: _Axis, last_step: float, unit: str) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in axis.ticks:
        y = axis.y(tick)
        number = short(0.0 if abs(tick) < 1e-12 else tick)
        parts.append(f"<line class='grid' x1='{_LEFT}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{_LEFT - 7}' y='{y + 4:.1f}' text-anchor='end'>{number}</text>")
    for tick in round_ticks(0, last_step):
        x = _x(tick, last_step)
        parts.append(f"<line class='axis' x1='{x:.1f}' x2='{x:.1f}' y1='{bottom}' y2='{bottom + 4}'/>")
        parts.append(f"<text x='{x:.1f}' y='{bottom + 17}' text-anchor='middle'>{short(tick)}</text>")
    place = f"translate(12 {(_TOP + bottom) / 2:.0f}) rotate(-90)"
    parts.append(f"<line class='axis' x1='{_LEFT}' x2='{right}' y1='{bottom}' y2='{bottom}'/>")
    parts.append(f"<text x='{(_LEFT + right) / 2:.0f}' y='{_HEIGHT - 4}' text-anchor='middle'>step</text>")
    parts.append(f"<text transform='{place}' text-anchor='middle'>{html.escape(unit)}</text>")
    return "".join(parts)


def _line(line: Series, axis: _Axis, last_step: float) -> str:
    every = max(1, math.ceil(len(line.points) / _MAX_POINTS))
    chosen = [*line.points[::every], *(line.points[-1:] if (len(line.points) - 1) % every else [])]
    parts = []
    for is_finite, points in groupby(chosen, lambda point: math.isfinite(point[1])):
        piece = [(_x(step, last_step), axis.y(value)) for step, value in points] if is_finite else []
        if len(piece) > 1:
            parts.append(f"<polyline class='s{line.color}' points='{' '.join(f'{x:.1f},{y:.1f}' for x, y in piece)}'/>")
        if len(chosen) <= _MAX_MARKED or len(piece) == 1:
            parts += [f"<circle class='d{line.color}' cx='{x:.1f}' cy='{y:.1f}' r='2.6'/>" for x, y in piece]
    return "".join(parts)


def _legend(line: Series, limits: tuple[float, float] | None) -> str:
    missing = sum(not math.isfinite(value) for _, value in line.points)
    last = "no value"
    if line.points:
        value = line.points[-1][1]
        last = f"{value:.3f}" if limits == (0.0, 1.0) else short(value)
    note = f", {missing} not finite" if missing else ""
    return f"<span class='l{line.color}'>{html.escape(line.name)} <b>{last}</b>{note}</span>"
