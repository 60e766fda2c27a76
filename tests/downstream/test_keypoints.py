import numpy as np
import pytest
import torch
from PIL import Image
from tests.downstream.dense_tools import fit, make_rows

from eqcohvit.downstream.backbones import EncoderFolder
from eqcohvit.downstream.base import evaluate_task
from eqcohvit.downstream.coco import average_precision
from eqcohvit.downstream.keypoints import Crop, Keypoints, draw_heatmaps, find_peaks
from eqcohvit.downstream.options import TaskOptions
from eqcohvit.evaluation.metrics.pck.distances import correct_keypoints

POINTS = [[10.0, 8.0], [30.0, 12.0], [20.0, 33.0]]


def dots(points, size=40):
    """A white square round each point, each in another color."""
    image = np.zeros((size, size, 3), dtype=np.uint8)
    for channel, (x, y) in enumerate(points):
        image[int(y) - 2 : int(y) + 2, int(x) - 2 : int(x) + 2, channel] = 255
    return image


@pytest.fixture
def rows():
    moved = [[[x + dx, y + dy] for x, y in POINTS] for dx, dy in ((0, 0), (3, -2), (-2, 4))]
    return make_rows(image=[dots(points) for points in moved], keypoints=moved)


def make_task(encoder_folder, rows, **options):
    return Keypoints.from_options(TaskOptions(**options), EncoderFolder.open(encoder_folder), rows)


def test_pck_by_hand():
    true = np.array([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    predicted = true + np.array([[0.5, 0], [0, 1.1], [3, 4], [9, 9]])
    visible = np.array([True, True, True, False])
    assert correct_keypoints(predicted, true, visible, size=10, threshold=0.1).tolist() == [True, False, False]
    assert correct_keypoints(predicted, true, visible, size=10, threshold=0.5).tolist() == [True, True, True]


def test_oks_precision_by_hand():
    """One keypoint, area 400, sigma 0.025: OKS = exp(-d^2 / (2 * 400 * 0.05^2)) = exp(-d^2 / 2)."""
    images = [{"id": i, "width": 100, "height": 100} for i in (1, 2)]
    box = {"bbox": [40, 40, 20, 20], "area": 400.0, "num_keypoints": 1, "category_id": 0}
    truth = [{**box, "image_id": i, "keypoints": [50.0, 50.0, 2]} for i in (1, 2)]

    def precision(*distances):
        found = [
            {"image_id": i + 1, "category_id": 0, "keypoints": [50.0 + d, 50.0, 1], "score": 1.0 - i / 2}
            for i, d in enumerate(distances)
        ]
        return average_precision(images, truth, found, 1, "keypoints")

    assert precision(0.0, 0.0) == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
    distance = np.sqrt(-2 * np.log(0.72))  # OKS 0.72: right at the thresholds .50 to .70, five of ten
    assert precision(distance, distance) == pytest.approx({"AP": 0.5, "AP50": 1, "AP75": 0})
    # The first one is right at each threshold, the second at none: precision 1 up to recall 0.5, which is 51 of 101
    # points.
    assert precision(0.0, 50.0) == pytest.approx({"AP": 51 / 101, "AP50": 51 / 101, "AP75": 51 / 101})


def test_score_of_a_prediction_does_not_know_what_is_labeled(encoder_folder, rows):
    """Two boxes of area 400 and one of two points labeled in each; the heights of the others make the wrong prediction
    the surer one.

    Ranked by the labeled points alone the right one would come first, with a precision of 1 up to a recall of one
        half: 51 of 101 points.
    """
    score = make_task(encoder_folder, rows).start_score()
    fixed = {"visible": np.array([True, False]), "box": np.array([40.0, 40, 20, 20]), "width": 99, "height": 99}
    for true, heights in ((50.0, [0.9, 0.1]), (90.0, [0.8, 0.8])):
        sample = {"points": np.full((2, 2), true), **fixed}
        score.add((np.full((2, 2), 50.0), np.array(heights)), sample)
    assert score.result()["AP (OKS)"] == pytest.approx(0.5 * 51 / 101)  # right at the second place: precision 1/2


def test_crop_moves_points_as_it_moves_pixels():
    crop = Crop(center=np.array([22.0, 19.0]), side=36.0, angle=0.4, size=72)
    points = np.array(POINTS)
    turned = np.asarray(crop.apply(Image.fromarray(dots(points)))).astype(float)
    for channel, (x, y) in enumerate(crop.to_crop(points)):
        rows, columns = np.nonzero(turned[:, :, channel] > 128)
        np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], [x, y], atol=0.6)
    np.testing.assert_allclose(crop.to_image(crop.to_crop(points)), points, atol=1e-9)


def test_large_images_are_averaged_before_they_are_cropped():
    checks = (np.indices((80, 80)).sum(axis=0) % 2 * 255).astype(np.uint8)
    crop = Crop(np.array([40.0, 40.0]), 80.0, 0.0, 10)
    assert np.abs(np.asarray(crop.apply(Image.fromarray(checks)))[2:8, 2:8].astype(float) - 127.5).max() < 2


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_peaks_of_heatmaps_are_the_points(sigma):
    points = np.array([[3.3, 10.8], [12.5, 4.0], [0.5, 15.5]])
    found, heights = find_peaks(draw_heatmaps(points, 16, sigma))
    np.testing.assert_allclose(found, points, atol=0.05)
    assert (heights > 0.8).all()


def test_head_finds_the_points_it_was_trained_on(encoder_folder, rows):
    task = make_task(encoder_folder, rows, image_size=40)
    torch.manual_seed(0)
    model = task.build(EncoderFolder.open(encoder_folder), random_weights=False)
    samples = [task.test_sample(row, i) for i, row in enumerate(rows)]
    maps = [draw_heatmaps(s["points"] / 2, 20, 1.0) for s in samples]
    batch = {
        "pixel_values": torch.stack([s["pixel_values"] for s in samples]),
        "heatmaps": torch.stack(maps),
        "visible": torch.ones(3, 3),
    }
    fit(task, model, batch, torch.optim.Adam(model.parameters(), lr=1e-3), 120)
    values, pictures = evaluate_task(task, model, rows)
    assert values["PCK@0.1"] > 0.4 and set(values) == {"PCK@0.05", "PCK@0.1", "AP (OKS)", "AP50 (OKS)", "AP75 (OKS)"}
    assert len(pictures) == 3 and pictures[0][2].size == (240, 240)


def test_training_crops_hide_points_that_leave_them(encoder_folder, rows):
    task = make_task(encoder_folder, rows)
    samples = [task.train_sample(rows[0], np.random.default_rng(seed)) for seed in range(12)]
    assert {sample["heatmaps"].shape for sample in samples} == {(3, 16, 16)}
    visible = torch.stack([sample["visible"] for sample in samples])
    assert 0 < visible.mean() <= 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"keypoints": [POINTS, POINTS[:2]]}, "row 1: expected 3 keypoints, as in the first row, got 2"),
        (
            {"keypoints": [[[*p, 1.0] for p in POINTS], [[*p, 0.0] for p in POINTS]]},
            "row 1: the annotation is empty: no keypoint is labeled",
        ),
        (
            {"keypoints": [POINTS] * 2, "bbox": [[1.0, 1, 5, 5], [1.0, 1, 0, 5]]},
            r"row 1: the box \[1.0, 1.0, 0.0, 5.0\] has no area",
        ),
        ({"keypoints": [[[5.0, 9.0]]] * 2}, "row 0: the labeled keypoints have no extent, .* add a column bbox"),
        ({"keypoints": [[1.0, 2.0]] * 2}, r"must hold keypoints as \(K, 2\), \(K, 3\) or 3 K numbers"),
        ({"points": [POINTS] * 2}, "no column keypoints for the keypoints; its columns: image, points"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(encoder_folder, columns, message):
    rows = make_rows(image=[dots(POINTS)] * 2, **columns)
    with pytest.raises(ValueError, match=message):
        make_task(encoder_folder, rows).check_rows(rows, "train")


def test_box_chooses_the_instance(encoder_folder):
    rows = make_rows(image=[dots(POINTS, 60)], keypoints=[POINTS], bbox=[[4.0, 4, 32, 34]])
    sample = make_task(encoder_folder, rows).test_sample(rows[0], 0)
    assert sample["crop"].center.tolist() == [20, 21] and sample["crop"].side == 1.25 * 34
