import math

import numpy as np
import pytest
import torch
from tests.downstream.dense_tools import fit, make_rows

from eqcohvit.downstream.backbones import EncoderFolder
from eqcohvit.downstream.base import evaluate_task
from eqcohvit.downstream.depth import Depth, SpriteRows, scale_invariant_loss, sprite_rows
from eqcohvit.downstream.options import TaskOptions
from eqcohvit.evaluation.metrics.depth_errors.depths import depth_errors


def make_task(encoder_folder, rows, **options):
    return Depth.from_options(TaskOptions(**{"max_depth": 2, **options}), EncoderFolder.open(encoder_folder), rows)


def test_depth_errors_by_hand():
    true = np.array([[1.0, 2.0], [4.0, 0.0]])
    predicted = np.array([[1.2, 2.0], [3.0, 9.0]])
    errors = depth_errors(predicted, true)  # the pixel without depth does not count
    assert errors["RMSE"] == pytest.approx(math.sqrt((0.04 + 0 + 1) / 3))
    assert errors["AbsRel"] == pytest.approx((0.2 + 0 + 0.25) / 3)
    assert errors["delta1"] == pytest.approx(2 / 3)  # ratios 1.2, 1 and 1.33
    assert depth_errors(true, true) == {"RMSE": 0, "AbsRel": 0, "delta1": 1}
    with pytest.raises(ValueError, match="no pixel of the reference has a depth"):
        depth_errors(true, true * 0)


def test_a_negative_depth_is_no_hit():
    errors = depth_errors(np.array([[-1.0, 2.0]]), np.array([[1.0, 2.0]]))
    assert errors == pytest.approx({"RMSE": math.sqrt(2), "AbsRel": 1, "delta1": 0.5})


def test_loss_forgives_most_of_a_wrong_scale():
    true = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    assert scale_invariant_loss(true, true, valid).item() == pytest.approx(1e-4)
    assert scale_invariant_loss(true * math.e, true, valid).item() == pytest.approx(math.sqrt(0.15), rel=1e-4)
    wrong = torch.tensor([[[math.e, 2.0, 4.0, 99.0]]])
    assert scale_invariant_loss(wrong, true, valid).item() == pytest.approx(math.sqrt(1 / 3 - 0.85 / 9), rel=1e-4)
    assert torch.isfinite(scale_invariant_loss(true, true, valid & False))


def test_sprites_know_their_depth_and_test_ones_are_new():
    train, test = sprite_rows()
    row = train[3]
    assert row["image"].size == (128, 128) and row["depth_map"].shape == (128, 128)
    assert 0.3 < row["depth_map"].min() < row["depth_map"].max() < 1.5
    assert row["image"].tobytes() != test[3]["image"].tobytes()
    assert train[3]["image"].tobytes() == row["image"].tobytes()


def test_crop_and_flip_keep_image_and_depth_together(encoder_folder):
    ramp = np.broadcast_to(np.linspace(40, 200, 60), (40, 60)).astype(np.uint8)
    rows = make_rows(image=[np.stack([ramp] * 3, axis=-1)], depth_map=[ramp])
    task = make_task(encoder_folder, rows, depth_scale=100.0)
    for seed in range(6):
        sample = task.train_sample(rows[0], np.random.default_rng(seed))
        seen = np.asarray(task.to_image(sample["pixel_values"]))[:, :, 0] / 100
        assert np.abs(seen - sample["depth"].numpy()).max() < 0.05


def test_head_learns_and_is_scored_at_the_size_of_the_reference(encoder_folder):
    rows = SpriteRows(4)
    rows.size = 48
    task = make_task(encoder_folder, rows)
    torch.manual_seed(0)
    model = task.build(EncoderFolder.open(encoder_folder), random_weights=False)
    batch = task.collate([task.train_sample(rows[i], np.random.default_rng(i)) for i in range(4)])
    losses = fit(task, model, batch, torch.optim.Adam(model.parameters(), lr=1e-3), 35)
    assert losses[-1] < 0.7 * losses[0]
    values, pictures = evaluate_task(task, model, rows)
    assert set(values) == {"RMSE ↓", "AbsRel ↓", "delta1"} and 0 < values["RMSE ↓"] < 2
    assert pictures[0][2].size == (48, 48)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"depth_map": [np.zeros((4, 6), np.uint8)]},
            {},
            r"row 0: the depth map is empty: no pixel has a depth in \(0, 2\]",
        ),
        ({"depth_map": [np.full((4, 6, 3), 9, np.uint8)]}, {}, "single-channel depth images"),
        ({"depth_map": [[[1.0, 2.0], [3.0]]]}, {}, r"single-channel depth images or \(height, width\) numbers"),
        ({"heights": [np.zeros((4, 6), np.uint8)]}, {}, "no column depth_map or depth or annotation for the depth"),
        ({"depth_map": [np.ones((4, 6), np.uint8)]}, {"max_depth": 0}, "max_depth must be positive, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(encoder_folder, columns, options, message):
    rows = make_rows(image=[np.zeros((4, 6, 3), np.uint8)], **columns)
    with pytest.raises(ValueError, match=message):
        make_task(encoder_folder, rows, **options).check_rows(rows, "train")
