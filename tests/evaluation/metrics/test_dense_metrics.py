from pathlib import Path

import numpy as np
import pytest

import eqcohvit
import evaluate
from eqcohvit.evaluation.metrics.corner_error.corners import corner_error
from eqcohvit.evaluation.metrics.davis_j_and_f.masks import contour_accuracy, mask_boundary, region_similarity
from eqcohvit.evaluation.metrics.depth_errors.depths import depth_errors
from eqcohvit.evaluation.metrics.mean_iou.confusion import confusion_matrix, iou_scores
from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter


def test_confusion_matrix_and_iou_by_hand():
    true = np.array([[0, 0, 1], [1, 1, 255]])
    predicted = np.array([[0, 1, 1], [1, 0, 2]])
    confusion = confusion_matrix(predicted, true, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = iou_scores(confusion)
    assert scores["per_class_iou"][:2] == pytest.approx([1 / 3, 2 / 4]) and np.isnan(scores["per_class_iou"][2:]).all()
    assert scores["mean_iou"] == pytest.approx((1 / 3 + 1 / 2) / 2) and scores["overall_accuracy"] == pytest.approx(
        3 / 5
    )


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([[3]], [[0]], "prediction has the value 3, expected 0 .. 2"),
        ([[0]], [[7]], "reference has the value 7"),
        ([[0]], [[0, 1]], r"same shape, got \(1, 1\) and \(1, 2\)"),
    ],
)
def test_confusion_matrix_refuses_what_is_no_class(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(predicted), np.array(true), 3)


def test_region_similarity_by_hand():
    one, other = np.zeros((2, 8, 8), dtype=bool)
    one[2:6, 0:4] = True
    other[2:6, 2:6] = True
    assert region_similarity(one, other) == pytest.approx(8 / 24)
    assert region_similarity(one, one) == 1 and region_similarity(one, one & False) == 0
    assert region_similarity(one & False, one & False) == 1


def test_boundary_is_one_pixel_inside_or_outside():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 2:4] = True
    assert mask_boundary(mask).astype(int).tolist() == [
        [0, 1, 1, 1, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(("shift", "expected"), [(0, 1), (2, 1), (3, 0)])
def test_contour_within_the_tolerance_counts(shift, expected):
    true = np.zeros((100, 100), dtype=bool)
    true[:, :50] = True
    predicted = np.zeros_like(true)
    predicted[:, : 50 + shift] = True  # 0.8 % of the diagonal of 141.4 pixels, rounded up, are 2
    assert contour_accuracy(predicted, true) == expected


def test_contour_accuracy_by_hand():
    true = np.zeros((100, 100), dtype=bool)
    true[:, :50] = True
    predicted = true.copy()
    predicted[50:, :70] = True
    # Predicted boundary: 50 pixels on the true edge, 20 along row 49 of which two are near it, 50 far away; true
    # boundary: 100 pixels, of which rows 0 to 51 have a predicted one within 2 pixels.
    precision, recall = 52 / 120, 52 / 100
    assert contour_accuracy(predicted, true) == pytest.approx(2 * precision * recall / (precision + recall))


def test_contour_accuracy_of_empty_masks():
    empty, square = np.zeros((2, 20, 20), dtype=bool)
    square[5:9, 5:9] = True
    assert contour_accuracy(empty, empty) == 1
    assert contour_accuracy(square, empty) == 0 and contour_accuracy(empty, square) == 0


def test_pck_without_a_labeled_keypoint_is_an_error():
    metric = evaluate.load(str(Path(eqcohvit.__file__).parent / "evaluation" / "metrics" / "pck"))
    with pytest.raises(ValueError, match="expected a labeled keypoint in the references, got none"):
        metric.compute(predictions=[[[0, 0]]], references=[[[0, 0, 0]]], sizes=[10])


SQUARE = [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
LOADED = {
    "mean_iou": (
        {"predictions": [[[0, 1]], [[1], [0]]], "references": [[[0, 0]], [[1], [255]]], "num_labels": 3},
        {"mean_iou": 0.5, "overall_accuracy": 2 / 3},
    ),
    "davis_j_and_f": (
        {"predictions": [SQUARE, SQUARE], "references": [SQUARE, [[0] * 4] * 3]},
        {"j": 0.5, "f": 0.5, "j_and_f": 0.5},
    ),
    "pck": (
        {
            "predictions": [[[0, 0], [5, 5]], [[9, 9], [0, 2]]],
            "references": [[[0, 1, 1], [5, 5, 0]], [[0, 0, 1], [0, 2, 2]]],
            "sizes": [10, 10],
        },
        {"pck": 2 / 3},
    ),
    "corner_error": (
        {"predictions": [[[0, 0], [9, 0], [9, 9], [0, 9]]], "references": [[[0, 0], [9, 2], [9, 9], [4, 12]]]},
        {"mean_corner_error": 7 / 4},
    ),
    "depth_errors": (
        {"predictions": [[[1.0, 3.0]], [[2.0], [7.0]]], "references": [[[1.0, 2.0]], [[2.0], [0.0]]]},
        {"RMSE": 0.5**0.5 / 2, "AbsRel": 0.125, "delta1": 0.75},
    ),
}


@pytest.mark.parametrize("name", LOADED)
def test_module_is_loaded_by_evaluate_and_computes(name):
    folder = Path(eqcohvit.__file__).parent / "evaluation" / "metrics" / name
    inputs, expected = LOADED[name]
    values = evaluate.load(str(folder)).compute(**inputs)
    assert {key: values[key] for key in expected} == pytest.approx(expected)


EMPTY = {
    "mean_iou": ({"num_labels": 3}, "expected at least one label map, got none"),
    "davis_j_and_f": ({}, "expected at least one mask, got none"),
    "pck": ({"sizes": []}, "expected a labeled keypoint in the references, got none"),
    "corner_error": ({}, r"expected two arrays of corners \(..., 4, 2\) of the same shape, got \(0,\) and \(0,\)"),
    "depth_errors": ({}, "expected at least one depth map, got none"),
    "r2": ({}, r"expected two arrays \(N, P\) of the same shape, got \(0,\) and \(0,\)"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_module_refuses_empty_inputs_in_one_line(name):
    folder = Path(eqcohvit.__file__).parent / "evaluation" / "metrics" / name
    extra, message = EMPTY[name]
    module = evaluate.load(str(folder))
    with pytest.raises(ValueError, match=message) as error:
        module._compute(predictions=[], references=[], **extra)
    assert "\n" not in str(error.value)


def test_metrics_refuse_arrays_without_content():
    for score in (region_similarity, contour_accuracy):
        with pytest.raises(ValueError, match=r"expected masks of at least one pixel, got the shape \(0, 4\)"):
            score(np.zeros((0, 4)), np.zeros((0, 4)))
    with pytest.raises(ValueError, match="expected at least one homography, got none"):
        corner_error(np.zeros((0, 4, 2)), np.zeros((0, 4, 2)))
    with pytest.raises(ValueError, match="no pixel of the reference has a depth"):
        depth_errors(np.zeros((0, 4)), np.zeros((0, 4)))
    with pytest.raises(
        ValueError, match=r"expected at least one sample and one parameter, got arrays of shape \(0, 3\)"
    ):
        r2_per_parameter(np.zeros((0, 3)), np.zeros((0, 3)))
