"""The projection that keeps the invariant part in the directions that both views share."""

import pytest
import torch

from eqcohvit.objectives.separation import Separation

NUM = 20_000


def views(correlations, seed=0):
    """Tokens (NUM, 1, D) of both views: dimension i has variance 1 and the correlation `correlations[i]` between them."""
    generator = torch.Generator().manual_seed(seed)
    shared, first, end = torch.randn(3, NUM, len(correlations), generator=generator)
    rho = torch.tensor(correlations)
    own = (1 - rho).sqrt()
    return (rho.sqrt() * shared + own * first).unsqueeze(1), (rho.sqrt() * shared + own * end).unsqueeze(1)


def separated(first, end, weight, min_correlation=0.5):
    separation = Separation(first.shape[-1], min_correlation)
    separation.update(first, end)
    weight = weight.clone()
    separation.apply_to(weight, step=0)
    return separation, weight


def test_directions_below_the_correlation_are_removed_and_the_others_stay():
    first, end = views([0.9, 0.7, 0.3, 0.0])
    weight = torch.arange(8.0).unflatten(0, (2, 4)) + 1
    separation, projected = separated(first, end, weight)
    assert separation.num_kept == 2
    scale = weight.norm() / weight[:, :2].norm()  # the norm stays as it was
    assert torch.allclose(projected[:, :2], scale * weight[:, :2], rtol=0.05) and projected[:, 2:].abs().max() < 0.02 * projected.norm()
    assert projected.norm() == pytest.approx(weight.norm().item(), rel=1e-5)


def test_mixed_tokens_are_unmixed():
    """Of tokens that mix both kinds of directions, what is left depends on the shared direction alone."""
    first, end = views([0.9, 0.0])
    mix = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    weight = torch.eye(2)
    _, projected = separated(first @ mix.T, end @ mix.T, weight)
    of_sources = projected @ mix  # (features, sources)
    assert of_sources[:, 1].abs().max() < 0.05 * of_sources[:, 0].abs().max()


def test_scale_and_shift_of_the_tokens_change_nothing():
    first, end = views([0.9, 0.6, 0.2])
    scale, shift = torch.tensor([100.0, 0.5, 7.0]), torch.tensor([3.0, -50.0, 0.1])
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    plain, kept = separated(first, end, weight)
    scaled, kept_scaled = separated(first * scale + shift, end * scale - shift, weight)  # a shift of each view of its own
    assert plain.num_kept == scaled.num_kept == 2
    for projected in (kept, kept_scaled):
        assert projected[:, 2].abs().max() < 0.05 * projected.abs().max()


def test_a_second_projection_changes_nothing():
    first, end = views([0.9, 0.1, 0.6])
    separation, once = separated(first, end, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    twice = once.clone()
    separation.apply_to(twice, step=1)
    assert torch.allclose(once, twice, atol=1e-6)


def test_a_constant_dimension_is_removed():
    first, end = views([0.9, 0.9])
    first[..., 1] = end[..., 1] = 3.0
    separation, projected = separated(first, end, torch.ones(1, 2))
    assert separation.num_kept == 1 and projected[0, 1].abs() < 1e-3


def test_averages_follow_the_last_batches_and_travel_with_the_state():
    old, new = views([0.9, 0.0]), views([0.0, 0.9], seed=1)
    separation = Separation(2, 0.5, momentum=0.5)
    separation.update(*old)
    for _ in range(8):
        separation.update(*new)
    copy = Separation(2, 0.5, momentum=0.5)
    copy.load_state_dict(separation.state_dict())
    for each in (separation, copy):
        weight = torch.ones(1, 2)
        each.apply_to(weight, step=10)
        assert weight[0, 0].abs() < 0.05 and weight[0, 1] > 1.3  # of norm sqrt(2)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_a_correlation_outside_of_0_and_1_is_refused(value):
    with pytest.raises(ValueError, match=f"separation must lie between 0 .off. and 1, got {value}"):
        Separation(4, value)
