"""The strict protocol gives g away neither by a border nor by the traces of resampling."""

import pytest
from tests.evaluation.strict_tools import read_off

from eqcohvit.evaluation import pairs
from eqcohvit.evaluation.pairs import given_away
from eqcohvit.transforms import make_path

AT_MOST = 0.1


@pytest.mark.parametrize(
    ("kind", "side", "name"),
    [("noise", 32, "rotation"), ("photograph", 64, "rotation"), ("grating", 96, "translation")],
)
def test_no_sharpness_tells_g_of_a_wide_picture(kind, side, name):
    assert max(read_off(kind, side, 3 * side // 2, 32, name, count=500)) <= AT_MOST


def test_traces_of_resampling_would_be_seen(monkeypatch):
    """So the tests here can fail: with all the frequencies of its lattice, noise of 32 pixels tells the angle."""
    monkeypatch.setattr(pairs, "band_limited", lambda canvases, *_: canvases)
    assert max(read_off("noise", 32, 48, 32, "rotation", count=500)) > 0.2


def test_zoom_is_marked_where_sharpness_tells_it():
    assert (
        given_away(make_path("zoom"), "strict")
        == given_away(make_path("rotation+zoom"), "strict")
        == "sharpness tells it"
    )
    assert given_away(make_path("perspective"), "strict") == "sharpness tells a part of it"
    assert given_away(make_path("rotation"), "strict") == ""
    assert given_away(make_path("rotation"), "paper") == "the black border tells it"
    assert given_away(make_path("color_jitter"), "paper") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rotation", "translation"])
@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize(("size", "count"), [(32, 500), (64, 300)])
@pytest.mark.parametrize("kind", ["noise", "grating", "photograph"])
def test_neither_spectrum_nor_sharpness_tells_g(kind, size, count, shape, name):
    """Pictures whose central square has 1 or 1.5 pixels for each pixel of the view along a side."""
    height, width = (factor * size // 2 for factor in shape)
    assert max(read_off(kind, height, width, size, name, count=count)) <= AT_MOST


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rotation", "translation"])
def test_neither_tells_g_at_224_pixels(name):
    assert max(read_off("noise", 224, 336, 224, name, count=150)) <= AT_MOST
