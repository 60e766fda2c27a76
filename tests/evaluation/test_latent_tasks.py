import numpy as np
import pytest
import torch
from tests.evaluation.latent_renders import draw_rows, write_parquet

from eqcohvit.data import DatasetSource
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.features import LAST, Feature, PixelEncoder
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.latent_tasks import latent_r2, open_latents
from eqcohvit.evaluation.metrics.r2.coefficients import pooled_r2
from eqcohvit.evaluation.settings import EvaluationSettings


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """640 renders of 16 pixels: 80 objects, 8 pictures of each."""
    rows = draw_rows(num_groups=80, per_group=8, seed=0)
    return write_parquet(tmp_path_factory.mktemp("renders") / "rows.parquet", rows)


class Moments:
    """A made encoder that sees where the light is and how it is spread out: places and double angles, and nothing of
    the hue."""

    name, image_size, fingerprint = "moments", 16, "moments"

    def __call__(self, images):
        axis = (torch.arange(16) - 7.5) / 8
        weight = images.sum(dim=1) - images.sum(dim=1).amin(dim=(1, 2), keepdim=True)
        weight = weight / weight.sum(dim=(1, 2), keepdim=True)
        x, y = axis.expand(16, 16), axis[:, None].expand(16, 16)
        mean = [(weight * v).sum(dim=(1, 2)) for v in (x, y)]
        spread = [(weight * v).sum(dim=(1, 2)) for v in (x * x, x * y, y * y)]
        return {Feature("backbone", LAST, "mean"): torch.stack([*mean, *spread], dim=1)}


def make(path, tmp_path, columns, encoders, test_path=None, num_train=240, num_test=80, **settings):
    source = DatasetSource("parquet", data_files=path)
    test = source if test_path is None else DatasetSource("parquet", data_files=test_path)
    defaults = {"pooling": ["cls_mean"], "head": ["linear"], "alone": "all", "seeds": 1, "target_columns": columns}
    samples = ProbeImages(source, test, num_train, num_test)
    evaluation = Evaluation(EvaluationSettings(cache_dir=tmp_path, **defaults | settings), lambda: samples)
    evaluation.encoders = encoders
    return evaluation


def scores(rows):
    return {
        (row.encoder, row.metric.removesuffix(", linear head")): row.mean
        for row in rows
        if row.part in ("pixels", "backbone")
    }


def test_what_is_visible_is_read_from_one_picture_and_what_is_not_is_not(path, tmp_path):
    evaluation = make(
        path, tmp_path, ["hue", "place", "noise"], [PixelEncoder(16), Moments()], num_train=480, num_test=160
    )
    found = scores(latent_r2(evaluation))
    assert found["raw pixels", "R2 hue, one picture"] > 0.9 and found["moments", "R2 hue, one picture"] < 0.2
    assert found["moments", "R2 place, one picture"] > 0.4
    for encoder in ("raw pixels", "moments"):
        assert found[encoder, "R2 noise, one picture"] < 0.1
        parts = [found[encoder, f"R2 place {index}, one picture"] for index in (0, 1)]
        assert found[encoder, "R2 place, one picture"] == pytest.approx(np.mean(parts))


def test_change_between_two_pictures_of_an_object(path, tmp_path):
    evaluation = make(path, tmp_path, ["hue", "noise"], [PixelEncoder(16)], group_column="object")
    rows = latent_r2(evaluation)
    found = scores(rows)
    assert found["raw pixels", "R2 hue, change"] > 0.95 and found["raw pixels", "R2 noise, change"] < 0.15
    # The variance of a difference is twice that of one value, of which the second picture knows all.
    alone = {row.metric: row for row in rows if row.part == "pixels, g alone"}
    assert abs(alone["R2 hue, change, linear head"].mean - 0.5) < 0.1 and not any(
        "one picture" in metric for metric in alone
    )
    change = next(row for row in rows if row.metric == "R2 hue, change, linear head")
    assert (change.settings["train"], change.settings["test"]) == (240, 80) and change.headline


def test_angles_are_circular_and_poses_rotations(path, tmp_path):
    """As a plain number the yaw jumps from 180 to -180 degrees, and a quaternion that describes the same turn may have
    either sign."""
    settings = {"circular_columns": ["yaw=360"], "quaternion_columns": ["pose"]}
    evaluation = make(path, tmp_path, ["yaw", "pose"], [PixelEncoder(16)], num_train=480, num_test=160, **settings)
    rows = latent_r2(evaluation)
    found = scores(rows)
    assert found["raw pixels", "R2 yaw, one picture"] > 0.4
    assert {row.settings["parameter"] for row in rows if row.metric.startswith("R2 pose")} == {None, "z", "w", "pooled"}
    assert found["raw pixels", "R2 pose w, one picture"] > 0.4


@pytest.mark.slow
def test_change_of_a_pose_takes_a_head_that_multiplies(tmp_path):
    """The color of a picture tells its pose. The change between two is made of products, which a linear head does not
    have."""
    rng = np.random.default_rng(0)
    half = rng.uniform(-np.pi / 4, np.pi / 4, 1200)
    colors = np.stack([np.sin(half), np.cos(half), np.zeros(1200)], axis=1) / 2 + 0.5
    images = [np.tile(np.rint(255 * color).astype(np.uint8), (8, 8, 1)) for color in colors]
    poses = [[0.0, 0.0, float(np.sin(angle)), float(np.cos(angle))] for angle in half]
    rows = {"image": images, "object": [f"{index // 2}" for index in range(1200)], "pose": poses}
    path = write_parquet(tmp_path / "rows.parquet", rows)

    class Color:
        name, image_size, fingerprint = "color", 8, "color"

        def __call__(self, images):
            return {Feature("backbone", LAST, "mean"): images.mean(dim=(2, 3))[:, :2]}

    settings = {"quaternion_columns": ["pose"], "head": ["mlp", "linear"], "group_column": "object"}
    evaluation = make(path, tmp_path, ["pose"], [Color()], num_train=480, num_test=120, **settings)
    found = {(row.part, row.metric): row.mean for row in latent_r2(evaluation)}
    assert found["backbone", "R2 pose w, change"] > 0.9 and found["backbone", "R2 pose z, change"] > 0.95
    assert found["backbone", "R2 pose w, change, linear head"] < 0.5 < 0.95 < found["backbone", "R2 pose, one picture"]
    assert found["backbone, g alone", "R2 pose w, change"] < 0.5


def test_no_object_is_both_fitted_and_tested_on(path, tmp_path):
    evaluation = make(path, tmp_path, ["yaw"], [], group_column="object")
    train, test = open_latents(evaluation)
    names = [np.array(s.source.read_columns(["object"])[1]["object"])[s.pairs] for s in (train, test)]
    assert all((pairs[:, 0] == pairs[:, 1]).all() for pairs in names)
    assert not set(names[0].ravel()) & set(names[1].ravel()) and len(set(names[1].ravel())) == 20


def test_files_that_share_objects_are_refused(path, tmp_path):
    evaluation = make(path, tmp_path, ["yaw"], [], test_path=path, group_column="object")
    with pytest.raises(
        ValueError, match="80 groups of object are both fitted and tested on, such as bar 0: give files"
    ):
        open_latents(evaluation)


def test_pooled_r2_counts_the_spread_of_the_means():
    """Predicting each component's mean is worth nothing alone, and much about their common mean. Hand-computed."""
    true = np.array([[4.0, -3.0], [2.0, -3.0], [3.0, -2.0], [3.0, -4.0]])
    assert pooled_r2(np.tile([3.0, -3.0], (4, 1)), true) == pytest.approx(1 - 4 / 76)
    assert pooled_r2(true, true) == 1 and pooled_r2(np.zeros((4, 2)), true) == 0
