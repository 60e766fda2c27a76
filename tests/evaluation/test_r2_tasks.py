import math

import numpy as np
import pytest
import torch
from tests.evaluation.task_tools import Encoder, make, rings

from eqcohvit.data import SpritesSource
from eqcohvit.evaluation import r2_tasks
from eqcohvit.evaluation.extraction import PairView
from eqcohvit.evaluation.feature_cache import Features
from eqcohvit.evaluation.features import LAST, Feature, PixelEncoder
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.pair_regression import Head
from eqcohvit.transforms import make_path

UNITS = {"angle": "degrees", "shift_x": "fraction of the side", "shift_y": "fraction of the side"}


@pytest.fixture(autouse=True)
def small_head(monkeypatch):
    """One small MLP in place of the heads to choose from, which tests/evaluation/test_pair_regression.py covers."""
    monkeypatch.setattr(r2_tasks, "MLP_HEADS", (Head("[o, g]", (32, 32)),))


def test_r2_rows_hold_every_encoder_part_and_head(tmp_path):
    constant = Encoder("constant", lambda images: torch.ones(len(images), 3))
    small = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 48, 24)
    rows = r2_tasks.r2(
        make(tmp_path, [PixelEncoder(16), constant], small, transform=["se2"], protocol=["paper"], alone="all")
    )
    names = ["R2 se2", "R2 se2 angle", "R2 se2 shift_x", "R2 se2 shift_y"]
    expected = [f"{name}, paper{head}" for head in ("", ", linear head") for name in names]
    errors = [f"median error of {name}, se2, paper ({unit})" for name, unit in UNITS.items()]
    for encoder, part in (("raw pixels", "pixels"), ("constant", "constant")):
        own = [row for row in rows if (row.encoder, row.part) == (encoder, part)]
        assert [row.metric for row in own] == expected + errors
        assert all(len(row.values) == 2 and row.half > 0 for row in own[: len(expected)])
        alone = [row for row in rows if (row.encoder, row.part) == (encoder, f"{part}, g alone")]
        assert [row.metric for row in alone] == expected
        assert [row.metric for row in alone if row.headline] == (["R2 se2, paper"] if part == "pixels" else [])
        assert [row.metric for row in own if row.headline] == ["R2 se2, paper"]
        pooled, *single = own[:4]
        assert pooled.mean == pytest.approx(sum(row.mean for row in single) / 3)
        if encoder == "constant":
            assert all(row.mean <= 0 for row in own[: len(expected)])


def test_median_errors_are_in_degrees_and_in_the_path_s_units():
    true = np.zeros((2, 3, 2))
    predictions = np.array([[[0.1, 3.0], [-0.2, -1.0], [0.9, 2.0]], [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])
    job = r2_tasks.ProbeJob("model", "backbone", LAST, "mean")
    settings = {"transform": "made", "protocol": "strict"}
    angle, shift = r2_tasks.error_rows(job, predictions, true, {"angle": "radians", "shift": "pixels"}, settings)
    assert angle.metric == "median error of angle, made, strict (degrees)" and not angle.headline
    assert angle.values == pytest.approx([math.degrees(0.2), 0]) and shift.values == [2, 0]
    assert (shift.encoder, shift.part, shift.settings["parameter"]) == ("model", "backbone", "shift")


def test_r2_of_rotation_invariant_features_is_about_zero(tmp_path):
    rows = r2_tasks.r2(make(tmp_path, [PixelEncoder(16), Encoder("rings", rings)], seeds=1, protocol=["paper"]))
    kept = [row for row in rows if row.metric.startswith("R2") and not row.part.endswith("g alone")]
    scores = {(row.encoder, row.settings["head"]): row.mean for row in kept}
    assert all(-0.2 < scores["rings", head] < 0.05 for head in r2_tasks.FITTED_HEADS)
    assert scores["raw pixels", "mlp"] > 0.2


def test_the_first_head_and_pooling_lead_the_table(tmp_path):
    small = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 64, 32)
    encoders = [PixelEncoder(16), Encoder("rings", rings)]
    found = r2_tasks.r2(
        make(tmp_path, encoders[:1], small, head=["linear"], pooling=["cls_mean", "grid"])
    ) + r2_tasks.r2(make(tmp_path, encoders[1:], small, head=["linear"], pooling=["mean"], alone="all"))
    pixels, pixels_grid, alone, pooled, _ = [row for row in found if row.metric.startswith("R2")]
    assert pixels.headline and pooled.headline and pixels.metric == pooled.metric == "R2 rotation, strict, linear head"
    assert (
        pixels_grid.metric == "R2 rotation, strict, grid, linear head" and pixels_grid.values == pixels.values
    )  # one vector for both
    assert alone.part == "pixels, g alone" and alone.metric == pixels.metric and alone.headline


def test_each_draw_is_that_of_its_pair(tmp_path):
    """The original comes once; draw s is the transformed image and the parameters of `PairView` with seed s."""
    samples = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 4, 4)
    path = make_path("se2")
    view = r2_tasks.DrawsView(path, "strict", 3)
    batch, _ = next(samples.blocks("train", view.canvas_size(16)))
    images, parameters = view(batch, 16)
    assert images.shape == (4, 4, 3, 16, 16) and parameters.shape == (4, 9)
    for seed in range(3):
        pair, own = PairView(path, "strict", seed)(batch, 16)
        assert torch.equal(images[0], pair[0]) and torch.equal(images[1 + seed], pair[1])
        assert torch.equal(parameters[:, 3 * seed : 3 * seed + 3], own)
    features = Features(
        {Feature("pixels", LAST, "vector"): images.flatten(2).transpose(0, 1)}, parameters, batch.labels, batch.keys
    )
    original, moved, targets = r2_tasks.draws(features, "pixels", LAST, "mean", 2)
    assert torch.equal(original, images[0].flatten(1)) and torch.equal(moved[1], images[2].flatten(1))
    assert torch.equal(targets[1], parameters[:, 3:6])


def test_strict_pairs_in_both_orders_read_more(tmp_path, monkeypatch):
    samples = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 400, 100)
    settings = {"seeds": 1, "head": ["mlp"], "transform": ["rotation"], "protocol": ["strict", "paper"]}
    evaluation = make(tmp_path, [PixelEncoder(16)], samples, **settings)
    evaluation.num_draws = lambda part: 1

    def measure():
        rows = [row for row in r2_tasks.r2(evaluation) if row.metric.startswith("R2") and "g alone" not in row.part]
        return {row.settings["protocol"]: row.mean for row in rows}

    both = measure()
    monkeypatch.setattr(type(make_path("rotation")), "inverse", lambda self, parameters: None)
    one = measure()
    assert both["strict"] > one["strict"] + 0.2
    assert both["paper"] == one["paper"]  # black corners have no reverse


def test_each_row_names_what_its_own_head_has_chosen(tmp_path):
    samples = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 400, 100)
    settings = {"seeds": 1, "head": ["mlp", "kernel"], "transform": ["rotation"], "protocol": ["strict"]}
    evaluation = make(tmp_path, [PixelEncoder(16)], samples, **settings)
    evaluation.num_draws = lambda part: 1
    rows = [row for row in r2_tasks.r2(evaluation) if row.part == "pixels" and row.metric.startswith("R2")]
    chosen = {row.settings["head"]: row.settings["chosen"] for row in rows}
    assert chosen == {"kernel": ["kernel ridge"], "mlp": ["MLP 32-32 of [o, g]"]}
