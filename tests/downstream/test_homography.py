import numpy as np
import pytest
import torch
from PIL import Image
from tests.downstream.dense_tools import fit, make_rows

from eqcohvit.downstream.backbones import EncoderFolder
from eqcohvit.downstream.base import evaluate_task
from eqcohvit.downstream.homography import (
    CORNERS,
    MAX_DISPLACEMENT,
    Homography,
    cut_pair,
    homography_from_corners,
)
from eqcohvit.downstream.options import TaskOptions
from eqcohvit.evaluation.metrics.corner_error.corners import corner_error


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    return make_rows(image=[generator.integers(0, 255, (50, 60, 3), dtype=np.uint8) for _ in range(4)])


@pytest.fixture
def task(encoder_folder, rows):
    return Homography.from_options(TaskOptions(), EncoderFolder.open(encoder_folder), rows)


def test_corner_error_by_hand():
    true = np.zeros((2, 4, 2))
    predicted = true.copy()
    predicted[0, 0] = (3, 4)
    predicted[1, 2] = (0, -3)
    assert corner_error(predicted, true) == pytest.approx((5 + 3) / 8) and corner_error(true, true) == 0
    with pytest.raises(ValueError, match="expected two arrays of corners"):
        corner_error(true[..., :1], true[..., :1])


def test_homography_maps_the_corners():
    target = CORNERS + np.array([[3, -5], [-20, 10], [7, 7], [0, 31]])
    matrix = homography_from_corners(CORNERS, target)
    mapped = np.column_stack([CORNERS, np.ones(4)]) @ matrix.T
    np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:], target, atol=1e-9)


def test_patches_show_what_the_displacements_say():
    """On an image whose colors are its coordinates, the second patch reads the coordinates of the displaced
    corners."""
    y, x = np.mgrid[0:240, 0:320]
    image = Image.fromarray(np.stack([x * 0.75, y, np.zeros_like(x)], axis=-1).astype(np.uint8))
    place, displacements = np.array([100, 60]), np.array([[-30.0, -20], [25, -32], [10, 30], [-5, 12]])
    first, second = (np.asarray(patch).astype(float) for patch in cut_pair(image, place, displacements))
    for patch, moved in ((first, np.zeros((4, 2))), (second, displacements)):
        for (column, row), target in zip(
            ((0, 0), (127, 0), (127, 127), (0, 127)), CORNERS + place + moved, strict=True
        ):
            seen = patch[row, column, :2] / (0.75, 1)
            np.testing.assert_allclose(seen, target, atol=2.5)  # centers of the corner pixels, and rounded colors
    np.testing.assert_array_equal(first, np.asarray(image)[60:188, 100:228])


def test_pure_translation_is_the_image_moved():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8))
    _, second = cut_pair(image, np.array([80, 50]), np.tile([12.0, -7.0], (4, 1)))
    np.testing.assert_array_equal(np.asarray(second), np.asarray(image)[43:171, 92:220])


def test_true_displacements_have_no_error(task, rows):
    score = task.start_score()
    for index in range(len(rows)):
        sample = task.test_sample(rows[index], index)
        score.add(sample["displacements"], sample)
    values = score.result()
    assert values["mean corner error (px) ↓"] == 0
    assert 15 < values["the same of no motion (px) ↓"] < 35  # the mean length of a uniform displacement is 24.5


def test_test_pairs_are_fixed_and_training_pairs_are_not(task, rows):
    one, again = (task.test_sample(rows[1], 1) for _ in range(2))
    assert (
        torch.equal(one["pixel_values"], again["pixel_values"])
        and (one["displacements"] == again["displacements"]).all()
    )
    first, other = (task.train_sample(rows[1], np.random.default_rng(seed)) for seed in (0, 1))
    assert not torch.equal(first["targets"], other["targets"])
    assert np.abs(one["displacements"]).max() <= MAX_DISPLACEMENT and first["targets"].abs().max() <= 1


def test_head_learns_and_is_scored_in_pixels(task, rows, encoder_folder):
    torch.manual_seed(0)
    model = task.build(EncoderFolder.open(encoder_folder), random_weights=False)
    batch = task.collate([task.train_sample(rows[i], np.random.default_rng(i)) for i in range(4)])
    losses = fit(task, model, batch, torch.optim.Adam(model.parameters(), lr=3e-3), 60)
    assert losses[-1] < 0.2 * losses[0]
    values, pictures = evaluate_task(task, model, rows)
    assert values["mean corner error (px) ↓"] > 0 and len(pictures[0]) == 3
