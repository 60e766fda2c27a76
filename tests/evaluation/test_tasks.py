import pytest
import torch

from eqcohvit.data import FolderSource, SpritesSource
from eqcohvit.evaluation import tasks
from eqcohvit.evaluation.context import Evaluation, short_names
from eqcohvit.evaluation.extraction import PairView
from eqcohvit.evaluation.feature_cache import Features
from eqcohvit.evaluation.features import LAST, Feature, PixelEncoder
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.pair_regression import Head
from eqcohvit.transforms import make_path


@pytest.fixture(autouse=True)
def small_head(monkeypatch):
    """One small MLP in place of those to choose from, which tests/evaluation/test_probes.py looks at."""
    monkeypatch.setattr(tasks, "MLP_HEADS", (Head("[o, g]", (32, 32)),))


class Encoder:
    """Features by a function of the images (B, 3, H, H), of one part called as the encoder."""

    image_size = 16

    def __init__(self, name, function):
        self.name, self.function, self.fingerprint = name, function, name

    def __call__(self, images):
        return {Feature(self.name, LAST, "mean"): self.function(images)}


def rings(images):
    """Means over three rings about the centre: nothing in them changes when the image turns."""
    axis = (torch.arange(16) - 7.5) / 8
    radius = torch.hypot(axis[:, None], axis[None, :])
    masks = torch.stack([(radius >= low) & (radius < low + 0.3) for low in (0.0, 0.3, 0.6)]).float().flatten(1)
    return (images.flatten(2) @ (masks / masks.sum(dim=1, keepdim=True)).T).flatten(1)


def make(tmp_path, encoders, samples=None, seeds=2, **settings):
    samples = samples or ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 300, 150)
    defaults = {
        "transform": ["rotation"], "protocol": ["strict"], "pooling": ["cls_mean"], "head": list(tasks.HEADS), "k": 3, "temperature": 0.07,
    }  # fmt: skip
    evaluation = Evaluation([], lambda: samples, seeds=seeds, cache_dir=tmp_path, settings=defaults | settings)
    evaluation.encoders = encoders
    return evaluation


def test_r2_rows_hold_every_encoder_part_and_head(tmp_path):
    constant = Encoder("constant", lambda images: torch.ones(len(images), 3))
    small = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 48, 24)
    rows = tasks.r2(make(tmp_path, [PixelEncoder(16), constant], small, transform=["se2"], protocol=["paper"]))
    names = ["R2 se2", "R2 se2 angle", "R2 se2 shift_x", "R2 se2 shift_y"]
    expected = [f"{name}, paper{head}" for head in ("", ", linear head") for name in names]
    for encoder, part in (("raw pixels", "pixels"), ("constant", "constant")):
        own = [row for row in rows if (row.encoder, row.part) == (encoder, part)]
        assert [row.metric for row in own] == expected and all(len(row.values) == 2 and row.half > 0 for row in own)
        alone = [row for row in rows if (row.encoder, row.part) == (encoder, f"{part}, g alone")]
        assert [row.metric for row in alone] == expected
        assert [row.metric for row in alone if row.headline] == (["R2 se2, paper"] if part == "pixels" else [])
        assert [row.metric for row in own if row.headline] == ["R2 se2, paper"]
        pooled, *single = own[:4]
        assert pooled.mean == pytest.approx(sum(row.mean for row in single) / 3)
        if encoder == "constant":
            assert all(row.mean <= 0 for row in own)


def test_r2_of_rotation_invariant_features_is_about_zero(tmp_path):
    rows = tasks.r2(make(tmp_path, [PixelEncoder(16), Encoder("rings", rings)], seeds=1, protocol=["paper"]))
    scores = {(row.encoder, row.settings["head"]): row.mean for row in rows if not row.part.endswith("g alone")}
    assert all(-0.2 < scores["rings", head] < 0.05 for head in tasks.HEADS)
    assert scores["raw pixels", "mlp"] > 0.2


def test_the_first_head_and_pooling_lead_the_table(tmp_path):
    small = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 64, 32)
    encoders = [PixelEncoder(16), Encoder("rings", rings)]
    pixels, pixels_grid, alone, pooled, _ = tasks.r2(
        make(tmp_path, encoders[:1], small, head=["linear"], pooling=["cls_mean", "grid"])
    ) + tasks.r2(make(tmp_path, encoders[1:], small, head=["linear"], pooling=["mean"]))
    assert pixels.headline and pooled.headline and pixels.metric == pooled.metric == "R2 rotation, strict, linear head"
    assert (
        pixels_grid.metric == "R2 rotation, strict, grid, linear head" and pixels_grid.values == pixels.values
    )  # one vector for both
    assert alone.part == "pixels, g alone" and alone.metric == pixels.metric and alone.headline


def test_knn_and_linear_need_labels(photos, tmp_path):
    source = FolderSource(str(photos))
    for task in (tasks.knn, tasks.linear):
        with pytest.raises(ValueError, match="classification needs labels"):
            task(make(tmp_path, [PixelEncoder(16)], ProbeImages(source, source, 10, 4)))


def test_knn_and_linear_of_labelled_folders(photos, tmp_path):
    source = FolderSource(str(photos), labels=True)
    evaluation = make(tmp_path, [PixelEncoder(16)], ProbeImages(source, source, 16, 8))
    (nearest,), (linear,) = tasks.knn(evaluation), tasks.linear(evaluation)
    assert nearest.half >= 0 and linear.half >= 0
    assert nearest.metric == "kNN-3" and nearest.settings["temperature"] == 0.07 and 0 <= nearest.mean <= 1
    assert linear.metric == "linear" and len(linear.values) == len(linear.settings["chosen"]) == 2


def test_disentanglement_tells_what_moves_and_how(tmp_path):
    """Of two parts, the equivariant one turns with the image (its centre of mass), the invariant one does not."""
    axis = ((torch.arange(16) - 7.5) / 8).expand(16, 16)

    def centre(images):
        weight = 1 - images.mean(dim=1)
        return torch.stack([(weight * axis).mean(dim=(1, 2)), (weight * axis.T).mean(dim=(1, 2))], dim=1)

    class Split(Encoder):
        def __call__(self, images):
            return {
                Feature("equivariant", LAST, "mean"): centre(images),
                Feature("invariant", LAST, "mean"): rings(images),
            }

    samples = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 200, 100)
    evaluation = make(tmp_path, [Split("split", None)], samples, seeds=1, protocol=["paper"])
    rows = {(row.part, row.metric): row.mean for row in tasks.disentanglement(evaluation)}
    assert rows["invariant", "change under rotation, paper"] < rows["equivariant", "change under rotation, paper"]
    assert rows["equivariant", "linearity of rotation, paper"] > 0.6
    assert -0.1 < rows["equivariant", "CKA with invariant"] < 0.5
    assert abs(rows["equivariant", "CKA with invariant, shuffled"]) < 0.1
    assert (
        rows["equivariant", "linearity of rotation, paper, shuffled"]
        < rows["equivariant", "linearity of rotation, paper"] - 0.05
    )
    assert ("equivariant", "kNN-3") in rows and ("invariant", "R2 rotation, paper") in rows


def test_each_draw_is_that_of_its_pair(tmp_path):
    """The original comes once; draw s is the transformed image and the parameters of `PairView` with seed s."""
    samples = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 4, 4)
    path = make_path("se2")
    view = tasks.DrawsView(path, "strict", 3)
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
    original, moved, targets = tasks.draws(features, "pixels", LAST, "mean", 2)
    assert torch.equal(original, images[0].flatten(1)) and torch.equal(moved[1], images[2].flatten(1))
    assert torch.equal(targets[1], parameters[:, 3:6])


def test_a_task_runs_once_however_many_build_on_it(tmp_path):
    calls = []
    evaluation = make(tmp_path, [])

    def task(context):
        calls.append(context)
        return []

    assert evaluation.run(task) == evaluation.run(task) == [] and calls == [evaluation]


def test_short_names_leave_out_model_and_stay_distinct():
    assert short_names(["runs/a/model", "runs/b/model/", "facebook/dinov2-small"]) == ["a", "b", "dinov2-small"]
    assert short_names(["x/run/model", "y/run/model"]) == ["x/run", "y/run"]
    assert len(set(short_names(["m", "m"]))) == 2
