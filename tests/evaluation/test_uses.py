"""What the split is good for (scripts/guides/uses.md): with the released model, and in the figures of the guide."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tests.tiny import SCRIPTS

from eqcohvit.data import FolderSource
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.draws import DrawsView, pairs_of
from eqcohvit.evaluation.features import RANDOM, select
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter
from eqcohvit.evaluation.pair_regression import PairData
from eqcohvit.evaluation.r2_tasks import regress
from eqcohvit.evaluation.retrieval import found_itself
from eqcohvit.evaluation.settings import EvaluationSettings
from eqcohvit.transforms import make_path

ROOT = SCRIPTS.parent
NAME = "eqcohvit-micro-cifar10"
NUM_FITTED, NUM_TESTED = 125, 200
NUM_DRAWS = 4  # of each image to fit on


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Of the released model, on parts of the demo's paintings: other places and scales, half of them mirrored."""
    folder = tmp_path_factory.mktemp("uses")
    paintings = [Image.open(path).convert("RGB") for path in sorted((ROOT / "space_app" / "examples").glob("*.jpg"))]
    draw = np.random.default_rng(0)
    for index in range(NUM_FITTED + NUM_TESTED):
        painting = paintings[index % len(paintings)]
        side = draw.uniform(0.3, 0.9) * painting.width
        left, top = draw.uniform(0, painting.width - side, 2)
        part = painting.resize((91, 91), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else part
        part.save(folder / f"{index:04}.png")
    source = FolderSource(folder)
    samples = ProbeImages(source, source, NUM_FITTED, NUM_TESTED)
    settings = EvaluationSettings(model=[ROOT / "model_cards" / NAME], seeds=1, cache_dir=folder / "cache")
    return Evaluation(settings, lambda: samples)


def pairs(evaluation, images, transform, num_draws=1):
    """encoder, part -> features of the images (N, d), of their transformed versions (N, d), parameters (N, P)."""
    found = evaluation.features(images, DrawsView(make_path(transform), "strict", num_draws))
    which = [(NAME, "invariant"), (NAME, "equivariant"), (RANDOM, "backbone"), ("raw pixels", "pixels")]
    drawn = {}
    for encoder, part in which:
        vectors = select(found[encoder].vectors, part, "last", "cls_mean")
        original, (moved,), (parameters,) = pairs_of(vectors, found[encoder].parameters)
        drawn[encoder, part] = (original, moved, parameters)
    return drawn


def test_the_invariant_part_finds_a_turned_and_shifted_picture(evaluation):
    found = pairs(evaluation, "test", "se2")
    recall = {key: found_itself(*vectors[:2]).float().mean().item() for key, vectors in found.items()}
    del recall[NAME, "equivariant"]  # which finds as many of these
    invariant = recall.pop((NAME, "invariant"))
    assert invariant > max(recall.values()) + 0.05, (invariant, recall)


def test_the_equivariant_part_reads_the_angle_and_the_invariant_part_does_not(evaluation):
    fitted, tested = pairs(evaluation, "train", "rotation", NUM_DRAWS), pairs(evaluation, "test", "rotation")
    r2 = {}
    for key in ((NAME, "invariant"), (NAME, "equivariant"), (RANDOM, "backbone")):
        x, y, angles = fitted[key]
        test_x, test_y, test_angles = tested[key]
        read = regress(PairData(x, y[None], angles[None], test_x, test_y[None], NUM_DRAWS), num_seeds=1)["mlp"][0]
        r2[key] = r2_per_parameter(read, test_angles.numpy())[0]
    equivariant = r2.pop((NAME, "equivariant"))
    assert equivariant > 0.4 and max(r2.values()) < equivariant - 0.25, (equivariant, r2)


# ------------------------------------------------------------------------------------------------------------ the guide


def table(title):
    """Line -> the numbers in its cells, of the first table below a title of the guide."""
    text = (ROOT / "scripts" / "guides" / "uses.md").read_text().split(f"## {title}")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {cells[0].strip("*"): [float(re.search(r"-?\d+\.\d+", cell)[0]) for cell in cells[1:]] for cells in lines}


def others(rows, column, *names):
    """The numbers in a column of all lines but these, and but those that end before it."""
    return [values[column] for name, values in rows.items() if name not in names and len(values) > column]


def test_the_invariant_part_finds_turned_pictures_as_the_guide_says():
    recall = table("Find the same picture after it was turned or shifted: the invariant part")
    assert len(recall) == 5
    invariant = recall["invariant part"]
    for column in (0, 1):  # "nearly all, as the backbone does"
        assert min(invariant[column], recall["backbone"][column]) > 0.95
        assert invariant[column] > max(others(recall, column, "invariant part", "backbone")) + 0.02
    for column in (2, 3):  # "more than the backbone"
        assert invariant[column] > max(others(recall, column, "invariant part")) + 0.05


def test_the_model_without_the_task_finds_what_the_guide_says():
    text = " ".join((ROOT / "scripts" / "guides" / "uses.md").read_text().split())
    measured = {}
    for name in ("results.json", "turned.json"):
        results = json.loads((ROOT / "scripts" / "reproduction" / "photos-none" / name).read_text())
        own = [row for row in results["rows"] if row["encoder"] == "photos-none"]
        measured |= {(row["part"], row["metric"]): sum(row["values"]) / len(row["values"]) for row in own}
    paths = ("rotation", "se2", "rotation:2", "rotation:4")
    for part in ("backbone", "invariant"):
        found = [f"{measured[part, f'recall@1 {path}, strict']:.3f}" for path in paths]
        assert f"{', '.join(found[:3])} and {found[3]}" in text
    assert f"an R2 of {measured['equivariant', 'R2 rotation, strict']:.3f}" in text
    error = measured["equivariant", "median error of angle, rotation, strict (degrees)"]
    assert f"a median error of {error:.1f} degrees" in text


def test_the_equivariant_part_reads_the_pose_as_the_guide_says():
    pose = table("Read the pose: the equivariant part")
    assert len(pose) == 5
    equivariant, invariant = pose["equivariant part"], pose["invariant part"]
    for column in (0, 2, 4):  # R2: "the invariant part does not know the angle"
        assert equivariant[column] > pose["backbone"][column] + 0.02 and invariant[column] < 0.05
        assert abs(equivariant[column] - pose["raw pixels"][column]) < 0.05  # "about as well as the equivariant part"
    for column in (1, 3):  # median errors
        assert equivariant[column] < invariant[column] - 10


def test_another_light_and_a_single_photograph_are_as_the_guide_says():
    rows = table("Read the pose in another light, or from a single photograph: the equivariant part")
    single, another, error, recall = range(4)
    equivariant, invariant = rows["equivariant part"], rows["invariant part"]
    assert abs(equivariant[single] - rows["backbone"][single]) < 0.02
    assert equivariant[single] > max(others(rows, single, "equivariant part", "backbone")) + 0.15
    assert max(abs(invariant[single]), abs(invariant[another]), rows["raw pixels"][single]) < 0.05
    assert equivariant[another] > max(others(rows, another, "equivariant part")) + 0.02
    assert equivariant[error] < rows["raw pixels"][error] - 1
    assert rows["without the task: backbone"][recall] == max(others(rows, recall))
    assert equivariant[single] > 2 * rows["the start: backbone"][single]


def test_small_pictures_are_as_the_guide_says():
    rows = table("Small pictures")
    assert len(rows) == 5
    for column in (0, 1):  # recall@1: "finds as much"
        invariant = rows["invariant part"][column]
        assert abs(rows["backbone"][column] - invariant) < 0.005
        assert invariant > max(others(rows, column, "invariant part", "backbone")) + 0.05
    for column, margin in ((2, 0.01), (3, 0.05)):  # R2: better than the backbone, pixels better still
        equivariant = rows["equivariant part"][column]
        assert equivariant > rows["invariant part"][column] + 0.2
        assert rows["backbone"][column] + margin < equivariant < rows["raw pixels"][column] - margin


@pytest.mark.parametrize(
    ("title", "column", "metric", "run", "model"),
    [
        ("Find the same picture", 0, "recall@1 rotation, strict", "photos", "eqcohvit-photos-small"),
        ("Read the pose", 0, "R2 rotation, strict", "photos", "eqcohvit-photos-small"),
        ("Small pictures", 2, "R2 rotation, strict", "released", NAME),
    ],
)
def test_the_guide_s_figures_are_those_of_the_released_results(title, column, metric, run, model):
    results = json.loads((ROOT / "scripts" / "reproduction" / run / "results.json").read_text())
    rows = [row for row in results["rows"] if row["metric"] == metric and row["encoder"] == model]
    measured = {row["part"]: round(sum(row["values"]) / len(row["values"]), 3) for row in rows}
    written = table(title)
    for name, part in (("equivariant part", "equivariant"), ("invariant part", "invariant"), ("backbone", "backbone")):
        assert written[name][column] == measured[part]
