"""The restriction of the invariant part to the directions that both views have most in common."""

import pytest
import torch

from eqcohvit.objectives.separation import Separation

NUM = 20_000


def views(correlations, seed=0):
    """Tokens (NUM, 1, D) of both views: dimension i has variance 1 and the correlation `correlations[i]` between
    them."""
    generator = torch.Generator().manual_seed(seed)
    shared, first, end = torch.randn(3, NUM, len(correlations), generator=generator)
    rho = torch.tensor(correlations)
    own = (1 - rho).sqrt()
    return (rho.sqrt() * shared + own * first).unsqueeze(1), (rho.sqrt() * shared + own * end).unsqueeze(1)


def separated(first, end, weight, rank):
    separation = Separation(first.shape[-1], rank)
    separation.update(first, end)
    weight = weight.clone()
    separation.apply_to(weight, step=0)
    return separation, weight


def random_rows(num_rows, dim, seed=1):
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))


def test_the_most_correlated_directions_stay_and_the_others_are_removed():
    first, end = views([0.3, 0.9, 0.0, 0.7])
    separation, rows = separated(first, end, random_rows(5, 4), rank=2)
    assert rows[:, [0, 2]].abs().max() < 0.03
    assert torch.allclose(rows[:, [1, 3]].T @ rows[:, [1, 3]], torch.eye(2), atol=0.03)  # orthonormal columns
    assert separation.correlation.item() == pytest.approx(0.7, abs=0.02)


def test_features_have_variance_one_along_each_direction_whatever_the_tokens_have():
    first, end = views([0.9, 0.8, 0.1])
    scale = torch.tensor([100.0, 0.01, 3.0])
    _, rows = separated(first * scale, end * scale, random_rows(6, 3), rank=2)
    features = torch.cat([first, end]).squeeze(1) * scale @ rows.T
    spectrum = torch.linalg.eigvalsh(torch.cov(features.T)).flip(0)
    assert torch.allclose(spectrum[:2], torch.ones(2), atol=0.02) and spectrum[2:].abs().max() < 1e-3


def test_mixed_tokens_are_unmixed():
    """Of tokens that mix both kinds of directions, what is left depends on the shared direction alone."""
    first, end = views([0.9, 0.0])
    mix = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    _, rows = separated(first @ mix.T, end @ mix.T, torch.eye(2), rank=1)
    of_sources = rows @ mix  # (features, sources)
    assert of_sources[:, 1].abs().max() < 0.05 * of_sources[:, 0].abs().max()


def test_rows_of_this_form_stay_as_they_are():
    """So the rows move by what the optimizer did alone, and do not turn by themselves."""
    first, end = views([0.9, 0.1, 0.6])
    separation, once = separated(first, end, random_rows(5, 3), rank=2)
    for step in (1, 10):
        again = once.clone()
        separation.apply_to(again, step)
        assert torch.allclose(once, again, atol=1e-5)


def test_between_two_choices_the_rows_leave_the_directions_as_little():
    first, end = views([0.9, 0.1, 0.6])
    separation, rows = separated(first, end, random_rows(5, 3), rank=2)
    moved = rows + 0.1
    separation.apply_to(moved, step=1)
    assert torch.linalg.matrix_rank(moved, tol=1e-3) == 2
    assert torch.linalg.matrix_rank(torch.cat([rows, moved]), tol=1e-3) == 2  # the same two


def test_scale_and_shift_of_the_tokens_change_nothing():
    first, end = views([0.9, 0.6, 0.2])
    scale, shift = torch.tensor([100.0, 0.5, 7.0]), torch.tensor([3.0, -50.0, 0.1])
    rows = random_rows(4, 3)
    _, plain = separated(first, end, rows, rank=2)
    _, scaled = separated(
        first * scale + shift, end * scale - shift, rows / scale, rank=2
    )  # each view has its own shift
    assert torch.allclose(scaled * scale, plain, atol=1e-3)


def test_a_constant_dimension_is_removed():
    first, end = views([0.9, 0.9])
    first[..., 1] = end[..., 1] = 3.0
    _, rows = separated(first, end, torch.ones(1, 2), rank=1)
    assert rows[0, 1].abs() < 1e-3 and rows[0, 0].abs() == pytest.approx(1, abs=0.02)


def test_averages_follow_the_last_batches_and_travel_with_the_state():
    old, new = views([0.9, 0.0]), views([0.0, 0.9], seed=1)
    separation = Separation(2, 1, momentum=0.5)
    separation.update(*old)
    for _ in range(8):
        separation.update(*new)
    copy = Separation(2, 1, momentum=0.5)
    copy.load_state_dict(separation.state_dict())
    for each in (separation, copy):
        rows = torch.ones(1, 2)
        each.apply_to(rows, step=10)
        assert rows[0, 0].abs() < 0.05 and rows[0, 1] == pytest.approx(1, abs=0.02)


def test_restriction_begins_at_its_step_with_directions_of_all_batches_before():
    separation = Separation(2, 1, start=3)
    separation.update(*views([0.0, 0.9]))
    rows = torch.ones(1, 2)
    separation.apply_to(rows, step=2)
    assert torch.equal(rows, torch.ones(1, 2))
    separation.apply_to(rows, step=3)
    assert rows[0, 0].abs() < 0.05 and rows[0, 1] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("rank", [-1, 5])
def test_more_directions_than_there_are_is_refused(rank):
    expected = f"invariant_rank must lie between 1 and the width of the backbone, 4, or be 0 .off., got {rank}"
    with pytest.raises(ValueError, match=expected):
        Separation(4, rank)
