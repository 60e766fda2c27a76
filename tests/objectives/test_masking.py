import math

import numpy as np
import pytest
import torch

from eqcohvit.objectives import TeacherOptions, Tokens
from eqcohvit.objectives.masking import MaskedPatches, hidden_patches_capacity


def test_masked_patches_are_listed_and_weighted_by_hand():
    """Two images of two views of three patches: the first hides 2 + 1 patches, the second 0 + 1."""
    masks = torch.tensor([[[0, 1, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, 1]]]).bool()  # view, image, patch
    masked = MaskedPatches.of(masks, capacity=6)
    assert masked.indices[:4].tolist() == [1, 2, 6, 11]
    assert torch.equal(masked.weights, torch.tensor([0.5, 0.5, 1.0, 1.0, 0.0, 0.0]))
    assert torch.equal(masked.valid, masked.weights > 0)
    patches = torch.arange(12.0).reshape(2, 2, 3, 1)
    for tokens, scale in (
        (Tokens(patches[:, :, 0], patches), 1),
        (Tokens(patches[:, :, 0], patches, lambda p: 2 * p), 2),
    ):
        taken = tokens.some_patches(masked.indices)
        assert taken.shape == (6, 1)
        assert taken[:4, 0].tolist() == [scale * value for value in (1.0, 2.0, 6.0, 11.0)]
        assert torch.equal(tokens.every_patch(), scale * patches)


def test_a_cpu_fills_the_block_to_the_next_multiple_of_eight_unless_compiled():
    masks = torch.zeros(2, 3, 16, dtype=torch.bool)
    masks[0, :, :3] = True  # nine patches
    masked = MaskedPatches.of(masks, capacity=40)
    compiled = torch.compile(lambda masks: MaskedPatches.of(masks, capacity=40), backend="eager", fullgraph=True)(masks)
    assert masked.weights.tolist() == [pytest.approx(1 / 3)] * 9 + [0.0] * 7
    assert len(compiled.weights) == 40 and not compiled.weights[9:].any()
    assert torch.equal(compiled.indices[:16], masked.indices) and torch.equal(compiled.weights[:16], masked.weights)
    assert MaskedPatches.of(torch.zeros_like(masks), capacity=40).weights.tolist() == [0.0] * 8


def test_hidden_patches_beyond_the_capacity_are_left_out():
    masks = torch.tensor([[[0, 1, 1]], [[1, 1, 0]]]).bool()
    masked = MaskedPatches.of(masks, capacity=3)
    assert masked.indices.tolist() == [1, 2, 3] and masked.weights.tolist() == [0.5, 0.5, 0.5]


def test_capacity_by_hand():
    """Of a view of 196 patches: mean 0.15 x 196 = 29.4, variance (0.5 x (0.09 + 0.04 / 3) - 0.0225) x 196^2 =
    1120.467."""
    assert (
        hidden_patches_capacity(128, 196, TeacherOptions())
        == math.ceil(128 * 29.4 + 6 * math.sqrt(128 * 1120.467))
        == 6036
    )
    assert hidden_patches_capacity(4, 196, TeacherOptions()) == 4 * 98  # all that four views can hide
    fixed = TeacherOptions(mask_probability=1.0, mask_ratio=0.4, mask_ratio_variance=0.0)
    assert hidden_patches_capacity(10, 100, fixed) == 400
    assert hidden_patches_capacity(10, 4, TeacherOptions(mask_ratio=0.1, mask_ratio_variance=0.0)) == 1


def overflow_probability(num_views, num_patches, options):
    """Of more hidden patches than the capacity, by convolution of the views' distributions."""
    low, high = options.mask_ratio - options.mask_ratio_variance, options.mask_ratio + options.mask_ratio_variance
    shares = np.linspace(low, high, 20001)[:-1]
    view = (
        np.bincount((shares * num_patches).astype(int), minlength=num_patches + 1)
        / len(shares)
        * options.mask_probability
    )
    view[0] += 1 - options.mask_probability
    total = np.ones(1)
    for _ in range(num_views):
        total = np.convolve(total, view)
    assert math.isclose(total.sum(), 1, rel_tol=1e-9)
    return total[hidden_patches_capacity(num_views, num_patches, options) + 1 :].sum()


@pytest.mark.parametrize(
    ("num_views", "probability", "bound"), [(8, 0.5, 0), (48, 0.5, 3e-9), (128, 0.5, 3e-9), (48, 0.25, 1e-6)]
)
def test_capacity_is_practically_never_exceeded(num_views, probability, bound):
    assert overflow_probability(num_views, 196, TeacherOptions(mask_probability=probability)) <= bound
