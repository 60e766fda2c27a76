"""The strict protocol gives g away neither by a border nor by the traces of resampling."""

import pytest
from tests.evaluation.strict_tools import read_off

from eqcohvit.evaluation import pairs
from eqcohvit.evaluation.pairs import given_away
from eqcohvit.transforms import make_path

AT_MOST = 0.1


@pytest.mark.parametrize("kind", ["noise", "photograph"])
def test_no_sharpness_tells_the_angle_of_a_wide_picture(kind):
    assert max(read_off(kind, 64, 96, 32, "rotation", count=500)) <= AT_MOST


def test_traces_of_resampling_would_be_seen(monkeypatch):
    """So the test above can fail: read from a canvas of the view's own density, without smoothing, noise of 32 pixels tells the angle."""
    monkeypatch.setattr(pairs, "_CANVAS_DENSITY", 1)
    monkeypatch.setattr(pairs, "smooth", lambda images: images)
    assert max(read_off("noise", 32, 48, 32, "rotation", count=500)) > 0.2


def test_zoom_is_marked_where_sharpness_tells_it():
    assert given_away(make_path("zoom"), "strict") == given_away(make_path("rotation+zoom"), "strict") == "sharpness tells it"
    assert given_away(make_path("rotation"), "strict") == ""
    assert given_away(make_path("rotation"), "paper") == "the black border tells it"
    assert given_away(make_path("color_jitter"), "paper") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rotation", "translation"])
@pytest.mark.parametrize("ratio", [(1, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize(("size", "count"), [(32, 700), (64, 500)])
@pytest.mark.parametrize("kind", ["noise", "grating", "photograph"])
def test_neither_spectrum_nor_sharpness_tells_g(kind, size, count, ratio, name):
    """Pictures of 1.5 pixels or more for each pixel of the view. White noise still tells the angle at 224 pixels."""
    side = 3 * size // 2
    assert max(read_off(kind, side * ratio[0], side * ratio[1], size, name, count=count)) <= AT_MOST
