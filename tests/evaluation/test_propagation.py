import math

import numpy as np
import pytest
import torch

from eqcohvit.evaluation import propagation
from eqcohvit.evaluation.propagation import (
    LabelPropagation,
    PropagationSettings,
    labels_to_patches,
    patches_to_labels,
)

H, W = 6, 9


@pytest.fixture
def features():
    """Patches that are nothing like each other, (H, W + 8, H * (W + 8)): a scene wider than a frame."""
    return torch.eye(H * (W + 8)).unflatten(0, (H, W + 8))


@pytest.fixture
def labels():
    """A square of class 1 and one of class 2."""
    classes = torch.zeros(H, W + 8, dtype=torch.long)
    classes[1:4, 9:12] = 1
    classes[3:6, 13:15] = 2
    return torch.nn.functional.one_hot(classes, 3).float()


def frame(scene, t):
    """The scene seen by a camera that moves one patch to the left in each frame."""
    return scene[:, 8 - t : 8 - t + W]


def test_static_video_keeps_its_labels(features, labels):
    state = LabelPropagation(frame(features, 0), frame(labels, 0))
    for _ in range(12):
        torch.testing.assert_close(state.step(frame(features, 0)), frame(labels, 0), atol=1e-2, rtol=0)


def test_labels_move_with_a_translated_video(features, labels):
    state = LabelPropagation(frame(features, 0), frame(labels, 0))
    for t in range(1, 8):
        shares = state.step(frame(features, t))
        assert torch.equal(shares.argmax(dim=-1)[:, t:], frame(labels, t).argmax(dim=-1)[:, t:])


def test_patches_beyond_the_radius_do_not_count():
    features = torch.eye(W).unflatten(0, (1, W))
    labels = torch.zeros(1, W, 2)
    labels[0, :, 0] = 1
    labels[0, 0] = torch.tensor([0.0, 1.0])
    moved = features.roll(3, dims=1)
    for radius, expected in ((3, 1), (2, 0)):
        settings = PropagationSettings(radius=radius, top_k=1)
        assert LabelPropagation(features, labels, settings).step(moved)[0, 3].argmax() == expected


def test_weights_are_a_softmax_over_the_most_similar():
    similar = math.sqrt(1 - 0.8**2)
    keys = torch.tensor([[[1.0, 0.0], [0.8, similar], [0.0, 1.0]]])  # cosines with the first: 1, 0.8, 0
    labels = torch.eye(3)[None]
    shares = LabelPropagation(keys, labels, PropagationSettings(top_k=2, temperature=0.1)).step(keys)
    weight = math.exp(10.0) / (math.exp(10.0) + math.exp(8.0))
    torch.testing.assert_close(shares[0, 0], torch.tensor([weight, 1 - weight, 0.0]))


def test_first_frame_is_kept_and_others_are_forgotten(features, labels):
    settings = PropagationSettings(num_context=2)
    state = LabelPropagation(frame(features, 0), frame(labels, 0), settings)
    for t in range(1, 6):
        state.step(frame(features, t))
    assert len(state.recent) == 2
    torch.testing.assert_close(state.step(frame(features, 0)), frame(labels, 0), atol=1e-2, rtol=0)


def test_chunks_do_not_change_the_result(features, labels, monkeypatch):
    noise = torch.randn(H, W, 7, generator=torch.Generator().manual_seed(0))
    whole = LabelPropagation(noise, frame(labels, 0)).step(noise.roll(1, 0))
    monkeypatch.setattr(propagation, "_MAX_AFFINITIES", 5 * H * W)
    torch.testing.assert_close(LabelPropagation(noise, frame(labels, 0)).step(noise.roll(1, 0)), whole)


def test_pixels_to_patches_and_back():
    labels = np.zeros((48, 64), dtype=np.int64)
    labels[:, 16:32] = 1
    labels[:, 40:64] = 2
    labels[0:8, 0:8] = 255
    shares = labels_to_patches(labels, 3, (6, 8))
    assert shares.argmax(dim=-1).tolist() == [[0, 0, 1, 1, 0, 2, 2, 2]] * 6
    assert np.array_equal(patches_to_labels(shares, (48, 64)), np.where(labels == 255, 0, labels))


def test_constant_maps_stay_what_they_are():
    shares = torch.zeros(3, 3, 2)
    shares[..., 0] = 1
    assert not patches_to_labels(shares, (12, 12)).any()
    assert patches_to_labels(shares.flip(-1), (12, 12)).all()
