from dataclasses import replace

import numpy as np
import pytest
import torch

from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter
from eqcohvit.evaluation.pair_regression import BASES, Head, PairData, _is_lower, regress_pair


def make(num=1200, seed=0, dim=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, 2, generator=generator) * 2 - 1, torch.randn(num, dim, generator=generator)


def scores(x, y, num_train, num_seeds=1):
    """R2 (S, P) of the chosen heads and of ridge regression, of features of one picture."""
    found = regress_pair(PairData(x[:num_train], None, y[:num_train], x[num_train:], None), num_seeds)
    true = y[num_train:].numpy()
    return [np.stack([r2_per_parameter(p.numpy(), true) for p in found[head]]) for head in ("mlp", "linear")]


def pair_scores(o, g, y, num_train, num_seeds=1):
    """R2 (S,) pooled over the targets, of the chosen heads and of ridge regression."""
    found = regress_pair(PairData(o[:num_train], g[:num_train], y[:num_train], o[num_train:], g[num_train:]), num_seeds)
    return [
        [r2_per_parameter(p.numpy(), y[num_train:].numpy()).mean() for p in found[head]] for head in ("mlp", "linear")
    ]


@pytest.mark.parametrize("dim", [0, 12, 100])
def test_heads_find_parameters_that_the_features_contain(dim):
    y, noise = make(500, dim=dim)
    for score in scores(torch.cat([3 * y, 0.1 * noise], dim=1), y, 400):
        assert (score > 0.999).all()


def test_a_target_linear_in_both_features_is_found_by_ridge():
    o, g = torch.randn(2, 700, 5, generator=torch.Generator().manual_seed(0))
    y = (2 * o[:, :1] - 3 * g[:, 1:2]) / 4
    mlp, linear = pair_scores(o, g, y, 500)
    assert linear[0] > 0.9999 and mlp[0] > 0.9999


def test_a_target_that_needs_a_product_is_found_by_the_mlp_alone():
    """y = o1 g1: every linear function of o and g has R2 0."""
    o, g = torch.randn(2, 2000, 2, generator=torch.Generator().manual_seed(0))
    mlp, linear = pair_scores(o, g, o[:, :1] * g[:, :1], 1700)
    assert mlp[0] > 0.9 and abs(linear[0]) < 0.05


def test_the_angle_between_two_pictures_is_found_and_a_shuffled_one_is_not():
    """g is o turned by the angle in two of its planes."""
    generator = torch.Generator().manual_seed(0)
    o, angle = torch.randn(1500, 4, generator=generator), torch.rand(1500, 1, generator=generator) - 0.5
    x, y = o[:, :2], o[:, 2:]
    g = torch.cat([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=1)
    assert pair_scores(o, g, angle, 1000)[0][0] > 0.9
    mlp, linear = pair_scores(o, g, angle[torch.randperm(1500, generator=generator)], 1000)
    assert -0.1 < mlp[0] < 0.05 and -0.1 < linear[0] < 0.05


def test_heads_find_nothing_in_independent_features():
    y, noise = make(1500)
    for score in scores(noise, y, 1000, num_seeds=2):
        assert score.shape == (2, 2) and (score <= 0.02).all()


def test_probes_are_deterministic_and_leave_the_global_generator_alone():
    y, noise = make(300)
    x, state = torch.cat([y.sin(), noise], dim=1), torch.get_rng_state()
    data = PairData(x[:200], x[:200].sin(), y[:200], x[200:], x[200:].sin())
    heads = [Head(basis, (32, 32)) for basis in BASES]
    first, again = (regress_pair(data, 2, heads) for _ in range(2))
    assert torch.equal(first["mlp"], again["mlp"]) and torch.equal(torch.get_rng_state(), state)
    assert first["chosen"] == again["chosen"] and len(first["chosen"]) == 2
    assert not torch.equal(first["mlp"][0], first["mlp"][1])


def test_each_seed_has_the_draw_of_its_index():
    """The moved features and the targets of the second seed are others."""
    y, o = make(400, dim=2)
    targets, moved = torch.stack([y, -y]), torch.stack([o + y, o - 3 * y])
    found = regress_pair(PairData(o[:300], moved[:, :300], targets[:, :300], o[300:], moved[:, 300:]), 2, heads=())
    for seed in range(2):
        assert (r2_per_parameter(found["linear"][seed].numpy(), targets[seed, 300:].numpy()) > 0.999).all()


def test_all_seeds_choose_the_head():
    """The targets of the first seed are noise, of which no head learns anything. Those of the others are o1 g1."""
    generator = torch.Generator().manual_seed(0)
    o, g = torch.randn(2, 1000, 2, generator=generator)
    product = o[:, :1] * g[:, :1]
    targets = torch.stack([torch.randn(1000, 1, generator=generator), product, product])
    data = PairData(o, g, targets, o[:2], g[:2])
    slow, fast = Head("[o, g]", (64, 64), learning_rate=1e-5), Head("[o, g]", (128, 128, 128))
    assert str(fast) not in regress_pair(data, 1, (slow, fast))["chosen"]
    assert regress_pair(data, 3, (slow, fast))["chosen"][1:] == [str(fast)] * 2


@pytest.mark.parametrize("num, dim, targets", [(10, 1, 1), (12, 40, 8), (60, 700, 3)])
def test_few_samples_and_many_dimensions(num, dim, targets):
    x = torch.randn(num + 5, dim, generator=torch.Generator().manual_seed(0))
    y = x[:, :1] * torch.arange(1.0, targets + 1)
    moved = x + y[:, :1]
    found = regress_pair(PairData(x[:num], moved[:num], y[:num], x[num:], moved[num:]), 2)
    assert found["mlp"].shape == found["linear"].shape == (2, 5, targets) and found["mlp"].isfinite().all()


def test_both_moved_or_neither():
    x = torch.zeros(12, 2)
    with pytest.raises(ValueError, match="expected moved and test_moved, or neither"):
        PairData(x, x, x, x, None)


def test_a_dead_dimension_does_not_explode():
    """A dimension that is 0 in all samples to fit on, and 0.05 in one to test on: no prediction may move much."""
    y, noise = make(700)
    x = torch.cat([y.sin(), noise, torch.zeros(700, 1)], dim=1)
    alive = scores(x, y, 500)
    x[600, -1] = 0.05
    for score, before in zip(scores(x, y, 500), alive, strict=True):
        assert (score > 0.9).all() and np.array_equal(score, before)


@pytest.mark.parametrize(("num_draws", "lower"), [(1, [True, True, False]), (2, [True, False, False])])
def test_of_few_images_an_error_is_lower_by_more_than_chance_among_them(num_draws, lower):
    others = torch.tensor([[2.0, 2, 4, 4], [3.0, 3, 1, 1], [1.0, 1, 1, 1]])
    errors = torch.tensor([[1.0, 1, 1, 1], [0.0, 0, 3, 3], [1.0, 1, 1, 1]])
    # gains by image: 1, 3 (mean 2, standard error 1); 3, -2 (mean 0.5, standard error 2.5); 0, 0
    assert _is_lower(errors, others, num_draws).tolist() == lower


def test_pairs_in_both_orders_stand_next_to_each_other():
    o = torch.tensor([[1.0], [2.0]])
    g = torch.tensor([[[10.0], [20.0]], [[30.0], [40.0]]])  # of two seeds, which share o
    y = torch.tensor([[[0.1], [0.2]], [[0.3], [0.4]]])
    both = PairData(o, g, y, o, g, reverse_targets=-y).in_both_orders()
    assert both.original.squeeze(-1).tolist() == [[1, 10, 2, 20], [1, 30, 2, 40]]
    assert both.moved.squeeze(-1).tolist() == [[10, 1, 20, 2], [30, 1, 40, 2]]
    assert torch.allclose(both.targets.squeeze(-1), torch.tensor([[0.1, -0.1, 0.2, -0.2], [0.3, -0.3, 0.4, -0.4]]))
    assert both.num_draws == 2 and both.reverse_targets is None
    assert torch.equal(both.test_original, o) and torch.equal(both.test_moved, g)


def test_a_known_reverse_is_fitted_too():
    """Of twenty pairs, the reverse ones show what the others hide: that the target is the difference."""
    generator = torch.Generator().manual_seed(0)
    o, g, test_o, test_g = torch.randn(4, 20, 12, generator=generator)
    y = g[:, :1] - o[:, :1]
    true = (test_g[:, :1] - test_o[:, :1]).numpy()
    data = PairData(o, g, y, test_o, test_g, reverse_targets=-y)
    both = regress_pair(data, heads=())["linear"][0].numpy()
    one = regress_pair(replace(data, reverse_targets=None), heads=())["linear"][0].numpy()
    assert r2_per_parameter(both, true)[0] > r2_per_parameter(one, true)[0] + 0.1


def test_one_picture_or_unknown_reverse_targets_have_no_second_order():
    o = torch.ones(2, 1)
    for moved, reverse in ((None, o), (o, None)):
        with pytest.raises(ValueError, match="reverse_targets"):
            PairData(o, moved, o, o, moved, reverse_targets=reverse).in_both_orders()
