"""Figures that belong to a protocol version. Whoever changes them raises the version."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.evaluation.latent_renders import draw, draw_rows, write_parquet

from eqcohvit.data import DatasetSource, FolderSource
from eqcohvit.evaluation import r2_tasks
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.extraction import PairView
from eqcohvit.evaluation.features import LAST, Feature, select
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.latent_tasks import latent_r2
from eqcohvit.evaluation.settings import EvaluationSettings
from eqcohvit.evaluation.suite import PROTOCOL_VERSION, SUITES
from eqcohvit.transforms import make_path

KEPT = Path(__file__).with_name("protocol_figures.json")


class Blocks:
    """Means of 4 x 4 blocks of each color, and their squares: 96 numbers."""

    name, image_size, fingerprint = "blocks", 16, "blocks"

    def __call__(self, images):
        means = F.adaptive_avg_pool2d(images, 4).flatten(1)
        return {Feature("backbone", LAST, "mean"): torch.cat([means, means.square()], dim=1)}


def evaluation_of(samples, cache_dir, **settings):
    settings = EvaluationSettings(**{**settings, "seeds": 1, "cache_dir": cache_dir, "alone": "all"})
    evaluation = Evaluation(settings, lambda: samples)
    evaluation.encoders = [Blocks()]
    evaluation.num_draws = lambda part: 1  # as with 500 images or more
    return evaluation


@pytest.fixture
def photos(tmp_path):
    """200 pictures of 36 x 24 pixels: an almost upright bar in the middle, and noise on both sides that the central
    square cuts off."""
    rng = np.random.default_rng(0)
    for index in range(200):
        bar = draw(
            rng.uniform(-0.2, 0.2),
            rng.uniform(0, 1),
            rng.uniform(-0.1, 0.1, 2),
            rng.uniform(0.5, 0.8),
            rng.uniform(0.15, 0.3),
            24,
        )
        left, right = rng.integers(0, 256, (2, 24, 6, 3), dtype=np.uint8)
        Image.fromarray(np.concatenate([left, bar, right], axis=1)).save(tmp_path / f"{index:03}.png")
    return FolderSource(str(tmp_path))


def measure(photos, folder):
    """What decides a figure, from the settings of the suite to the probes."""
    suite = SUITES["r2"]
    samples = ProbeImages(photos, photos, 150, 50)
    settings = suite.fixed() | {"transform": ["rotation"]}
    evaluation = evaluation_of(samples, folder / "cache", **settings)
    views = {}
    for transform in ("rotation", "zoom", "color_jitter", "rotation+color_jitter"):
        for protocol in suite.protocol:
            features = evaluation.features("test", PairView(make_path(transform), protocol))["blocks"]
            vectors = select(features.vectors, "backbone", LAST, "mean")
            views[f"{transform}, {protocol}"] = (
                vectors.mean(dim=(0, 2)).tolist() + features.parameters.mean(dim=0).tolist()
            )
    rows = r2_tasks.r2(evaluation)
    source = DatasetSource(
        "parquet", data_files=write_parquet(folder / "rows.parquet", draw_rows(num_groups=60, per_group=2))
    )
    settings = {"target_columns": ["hue"], "group_column": "object"}
    settings |= {"pooling": list(suite.pooling), "head": ["linear"]}
    rows += latent_r2(evaluation_of(ProbeImages(source, source, 45, 15), folder / "cache", **settings))
    found = {"suites": {name: dataclasses.asdict(suite) for name, suite in SUITES.items()}, "views": views}
    rows = [row for row in rows if row.metric.startswith("R2")]  # errors in degrees follow from the same predictions
    return found | {"r2": {f"{row.part}: {row.metric}": row.mean for row in rows}}


def test_figures_are_those_of_the_protocol_version(photos, tmp_path_factory):
    found = json.loads(json.dumps(measure(photos, tmp_path_factory.mktemp("figures"))))
    kept = json.loads(KEPT.read_text())
    new = json.dumps({"version": PROTOCOL_VERSION, **found})
    advice = f"raise PROTOCOL_VERSION in suite.py and write into {KEPT.name}: {new}"
    assert kept["version"] == PROTOCOL_VERSION, f"{KEPT.name} is of version {kept['version']}: {advice}"
    assert found["suites"] == kept["suites"], f"the suite's settings changed: {advice}"
    for name, values in kept["views"].items():
        assert found["views"][name] == pytest.approx(values, abs=1e-4), f"views of {name} changed: {advice}"
    assert found["r2"] == pytest.approx(kept["r2"], abs=5e-3), f"figures changed: {advice}"
