"""Scores beside those that official code gave once for the same seeded inputs; `numbers.json` names repository, commit
and function."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.official import inputs

from eqcohvit.downstream.coco import average_precision
from eqcohvit.evaluation.metrics.davis_j_and_f.masks import contour_accuracy, region_similarity
from eqcohvit.evaluation.probes import knn_accuracy
from eqcohvit.evaluation.propagation import LabelPropagation, PropagationSettings, patches_to_labels
from eqcohvit.evaluation.video import ObjectScore, Video

NUMBERS = json.loads((Path(__file__).parent / "numbers.json").read_text())


def test_region_and_contour_of_masks_are_those_of_davis():
    pairs = inputs.mask_pairs()
    assert [region_similarity(*pair) for pair in pairs] == pytest.approx(NUMBERS["masks"]["j"], abs=1e-12)
    assert [contour_accuracy(*pair) for pair in pairs] == pytest.approx(NUMBERS["masks"]["f"], abs=1e-12)


def test_a_video_with_void_and_a_missing_object_number_is_scored_as_by_davis():
    true, predicted = inputs.video_masks()
    score, video = ObjectScore(), Video("v", lambda: iter(()), len(true))
    for frame in range(1, len(true)):
        score.add(video, frame, predicted[frame], true[frame], [1, 2, 3])
    values = score.result()
    for name in ("J", "F", "J recall", "F recall"):
        assert values[name] == pytest.approx(NUMBERS["video"][name], abs=1e-12), name


@pytest.mark.parametrize("setting", NUMBERS["knn"]["top1"])
def test_nearest_neighbors_vote_as_in_dino(setting):
    k, temperature = setting.split()
    accuracy = knn_accuracy(*inputs.labeled_features(), k=int(k), temperature=float(temperature))
    assert 100 * accuracy == pytest.approx(NUMBERS["knn"]["top1"][setting], abs=1e-4)


def test_labels_are_propagated_as_in_dino():
    numbers = NUMBERS["propagation"]
    frames, labels = inputs.frame_features()
    settings = PropagationSettings(numbers["num_context"], numbers["radius"], numbers["top_k"])
    state = LabelPropagation(frames[0], torch.nn.functional.one_hot(labels, 3).float(), settings)
    shares = torch.stack([state.step(frame) for frame in frames[1:]])
    torch.testing.assert_close(shares, torch.tensor(numbers["shares"]), atol=1e-6, rtol=0)
    predicted = patches_to_labels(shares[-1], (28, 36))
    assert np.array_equal(predicted, [[int(label) for label in row] for row in numbers["labels"]])


def test_average_precision_is_that_of_coco():
    found = average_precision(*inputs.detections(), num_labels=3)
    assert found == pytest.approx({name: NUMBERS["boxes"][name] for name in ("AP", "AP50", "AP75")}, abs=1e-6)
