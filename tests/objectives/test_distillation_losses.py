"""The losses of DINO, iBOT and DINOv2 against references written sample by sample from the equations: values and
gradients."""

import math

import pytest
import torch

from eqcohvit.objectives.functional import (
    koleo_loss,
    masked_patch_loss,
    multi_crop_loss,
    sinkhorn_targets,
    softmax_targets,
    update_center,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def probabilities(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def assert_same_value_and_gradients(ours, reference, *leaves):
    assert torch.allclose(ours, reference, rtol=1e-5, atol=1e-6), (ours.item(), reference.item())
    for mine, theirs in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(reference, leaves), strict=True):
        assert theirs.abs().max() > 1e-4 and torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def entropy_against(target, logits, temperature):
    """-sum_k P(k) log P'(k), with the softmax written out."""
    exponentials = [torch.exp(x / temperature) for x in logits]
    total = sum(exponentials)
    return -sum(p * torch.log(e / total) for p, e in zip(target, exponentials, strict=True))


@pytest.mark.parametrize("num_local", [0, 3])
def test_multi_crop_loss_pairs_every_view_with_every_other_teacher_view(num_local):
    batch, prototypes, temperature = 3, 5, 0.3
    targets, logits = probabilities(2, batch, prototypes), randn(2, batch, prototypes, seed=1)
    local = randn(num_local, batch, prototypes, seed=2) if num_local else None
    students = [*logits, *(local if num_local else [])]
    losses = [
        sum(entropy_against(targets[t][b], students[s][b], temperature) for b in range(batch)) / batch
        for t in range(2) for s in range(len(students)) if s != t
    ]  # fmt: skip
    assert len(losses) == 2 + 2 * num_local
    leaves = (logits, local) if num_local else (logits,)
    assert_same_value_and_gradients(
        multi_crop_loss(targets, logits, local, temperature), sum(losses) / len(losses), *leaves
    )


def test_masked_patch_loss_averages_over_a_views_patches_then_over_views():
    temperature = 0.2
    targets, logits = probabilities(7, 6), randn(7, 6, seed=1)
    views = [[0, 1, 2], [3], [4], []]  # rows of the hidden patches of four views; the last two rows are padding
    losses = [
        sum(entropy_against(targets[m], logits[m], temperature) for m in rows) / max(1, len(rows))
        for rows in views
    ]  # fmt: skip
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1, 0, 0])
    ours = masked_patch_loss(targets, logits, weights, temperature, num_views=4)
    assert_same_value_and_gradients(ours, sum(losses) / 4, logits)


def test_koleo_loss_is_the_mean_log_distance_to_the_nearest_neighbor():
    features = randn(6, 4)
    unit = [f / f.norm() for f in features]
    distances = [[torch.linalg.vector_norm(a - b) for b in unit if b is not a] for a in unit]
    nearest = [min(row, key=lambda distance: distance.item()) for row in distances]
    assert_same_value_and_gradients(koleo_loss(features, eps=0.0), -sum(torch.log(d) for d in nearest) / 6, features)


def test_koleo_loss_by_hand():
    square = torch.tensor([[1.0, 0], [0, 2], [-3, 0], [0, -1]])  # on the circle, neighbors at the distance sqrt 2
    assert math.isclose(koleo_loss(square).item(), -0.5 * math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_koleo_loss_of_equal_features_stays_finite(dtype):
    features = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and features.grad.isfinite().all()


def test_softmax_targets_by_hand():
    targets = softmax_targets(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]), temperature=0.5)
    assert torch.allclose(targets, torch.tensor([1.0, math.exp(2)]) / (1 + math.exp(2)))
    assert torch.allclose(
        softmax_targets(torch.tensor([3.0, 7.0]), torch.tensor([3.0, 7.0]), 0.1), torch.tensor([0.5, 0.5])
    )


def test_update_center_moves_by_exactly_its_share_of_the_mean():
    center = torch.tensor([1.0, 0.0])
    update_center(
        center, torch.tensor([[[2.0, 1.0], [4.0, 1.0]], [[0.0, 3.0], [2.0, 3.0]]]), momentum=0.75
    )  # mean (2, 2)
    assert torch.allclose(center, torch.tensor([0.75 * 1 + 0.25 * 2, 0.25 * 2]))


def test_update_center_counts_the_valid_logits_alone():
    center = torch.tensor([1.0, 0.0])
    logits = torch.tensor([[2.0, 1.0], [8.0, 8.0], [4.0, 3.0]])
    update_center(center, logits, 0.75, torch.tensor([1, 0, 1]))  # mean (3, 2)
    assert torch.allclose(center, torch.tensor([0.75 * 1 + 0.25 * 3, 0.25 * 2]))
    before = center.clone()
    update_center(center, logits, 0.75, torch.zeros(3))
    assert torch.equal(center, before)


def test_sinkhorn_targets_by_hand():
    """One iteration on [[1, 2], [3, 4]]: columns to 1/2 each, then rows to 1."""
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    columns = scores / scores.sum(dim=0) / 2  # [[1/8, 1/6], [3/8, 1/3]]
    expected = columns / columns.sum(dim=1, keepdim=True)  # [[3/7, 4/7], [9/17, 8/17]]
    assert torch.allclose(expected, torch.tensor([[3 / 7, 4 / 7], [9 / 17, 8 / 17]]))
    assert torch.allclose(sinkhorn_targets(scores.log(), torch.ones(2), 1.0, num_iterations=1), expected)


def test_sinkhorn_targets_give_every_prototype_the_same_share():
    targets = sinkhorn_targets(randn(12, 4).detach(), torch.ones(12), temperature=0.5, num_iterations=200)
    assert torch.allclose(targets.sum(dim=1), torch.ones(12), atol=1e-5)
    assert torch.allclose(targets.sum(dim=0), torch.full((4,), 3.0), atol=1e-4)


def test_sinkhorn_targets_are_deaf_to_padding():
    logits, valid = randn(7, 4).detach(), torch.tensor([1, 1, 0, 1, 0, 1, 1])
    whole = sinkhorn_targets(logits, valid, 0.1)
    assert torch.allclose(whole[valid.bool()], sinkhorn_targets(logits[valid.bool()], torch.ones(5), 0.1), atol=1e-6)
    assert torch.equal(whole[~valid.bool()], torch.zeros(2, 4))
    assert torch.equal(sinkhorn_targets(logits, torch.zeros(7), 0.1), torch.zeros(7, 4))


def test_sinkhorn_targets_survive_sharp_temperatures_and_half_precision():
    logits = (8 * randn(6, 5).detach()).to(torch.bfloat16)
    targets = sinkhorn_targets(logits, torch.ones(6), temperature=0.1)
    assert targets.dtype == torch.float32 and targets.isfinite().all()
