import pytest
import torch
from tests.evaluation.task_tools import Encoder, make, rings

from eqcohvit.data import FolderSource, SpritesSource
from eqcohvit.evaluation import r2_tasks, tasks
from eqcohvit.evaluation.context import short_names
from eqcohvit.evaluation.features import LAST, Feature, PixelEncoder
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.pair_regression import Head


@pytest.fixture(autouse=True)
def small_head(monkeypatch):
    """One small MLP in place of the heads to choose from, which tests/evaluation/test_pair_regression.py covers."""
    monkeypatch.setattr(r2_tasks, "MLP_HEADS", (Head("[o, g]", (32, 32)),))


def test_knn_and_linear_need_labels(photos, tmp_path):
    source = FolderSource(str(photos))
    for task in (tasks.knn, tasks.linear):
        with pytest.raises(ValueError, match="classification needs labels"):
            task(make(tmp_path, [PixelEncoder(16)], ProbeImages(source, source, 10, 4)))


def test_knn_and_linear_of_labeled_folders(photos, tmp_path):
    source = FolderSource(str(photos), labels=True)
    evaluation = make(tmp_path, [PixelEncoder(16)], ProbeImages(source, source, 16, 8))
    (nearest,), (linear,) = tasks.knn(evaluation), tasks.linear(evaluation)
    assert nearest.half >= 0 and linear.half >= 0
    assert nearest.metric == "kNN-3" and nearest.settings["temperature"] == 0.07 and 0 <= nearest.mean <= 1
    assert linear.metric == "linear" and len(linear.values) == len(linear.settings["chosen"]) == 2


def test_disentanglement_tells_what_moves_and_how(tmp_path):
    """Of two parts, the equivariant one turns with the image (its center of mass), the invariant one does not."""
    axis = ((torch.arange(16) - 7.5) / 8).expand(16, 16)

    def center(images):
        weight = 1 - images.mean(dim=1)
        return torch.stack([(weight * axis).mean(dim=(1, 2)), (weight * axis.T).mean(dim=(1, 2))], dim=1)

    class Split(Encoder):
        def __call__(self, images):
            return {
                Feature("equivariant", LAST, "mean"): center(images),
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
