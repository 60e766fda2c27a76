import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from eqcohvit.training.line_chart import Series, line_chart, round_ticks, short


def draw(*args, **options):
    """The chart, which must be well-formed, and the points of its lines."""
    text = line_chart(*args, **options)
    figure = ElementTree.fromstring(text)
    lines = [[tuple(map(float, p.split(","))) for p in e.get("points").split()] for e in figure.iter("polyline")]
    return text, lines


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 700, [0, 200, 400, 600]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
        (0.021, 0.023, [0.021, 0.0215, 0.022, 0.0225, 0.023]),
    ],
)
def test_ticks_are_round_numbers(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.12346, "0.1235"), (1234, "1234"), (12345, "12.35k"), (2e6, "2M"), (-0.5, "-0.5"), (math.nan, "nan")),
        *((2.95e-4, "2.95e-4"), (-3e-5, "-3e-5"), (0.001, "0.001"), (0.0, "0")),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_points_lie_where_the_axes_say():
    _, (line,) = draw("R2", "R2", [Series("a", [(0, 0.0), (50, 0.5), (100, 1.0)], 0)], (0.0, 1.0), 100)
    assert line == [(68, 214), (297, 112), (526, 10)]  # 68 to 526 across, 214 to 10 upwards


def test_values_that_are_not_finite_leave_a_gap():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, math.inf), (4, 2.0), (5, 1.0)]
    text, lines = draw("loss", "loss", [Series("loss", points, 0)])
    assert (
        [len(line) for line in lines] == [2, 2]
        and "2 not finite" in text
        and "nan" not in re.sub("<div.*</div>", "", text)
    )


@pytest.mark.parametrize(
    "points", [[], [(3, 0.5)], [(0, math.nan)], [(0, 2.0), (1, 2.0)], [(7, 0.0)], [(1, 1e-300), (2, 1e300)]]
)
def test_degenerate_series_are_drawn(points):
    text, lines = draw("a < b", "R2 & more", [Series("<c>", points, 7)])
    assert all(math.isfinite(value) for line in lines for point in line for value in point)
    assert "a &lt; b" in text and "&lt;c&gt;" in text


def test_large_ratios_are_drawn_on_a_logarithmic_axis():
    text, (line,) = draw("loss", "loss", [Series("loss", [(0, 1000.0), (1, 100.0), (2, 10.0), (3, 1.0)], 0)])
    steps = [b[1] - a[1] for a, b in zip(line, line[1:], strict=False)]
    assert "loss, logarithmic" in text and steps == pytest.approx([steps[0]] * 3, abs=0.11)


def test_long_series_are_thinned_out_and_end_at_their_last_value():
    points = [(step, float(step)) for step in range(10_001)]
    text, (line,) = draw("loss", "loss", [Series("loss", points, 0)])
    assert len(line) <= 402 and line[-1][0] == 526 and len(text) < 15_000


def test_too_many_series_are_refused():
    with pytest.raises(ValueError, match="at most 8 series, got 9"):
        line_chart("a", "b", [Series(str(i), [], 0) for i in range(9)])
