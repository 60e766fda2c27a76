import torch

from eqcohvit.evaluation.kernel_regression import kernel_regression
from eqcohvit.evaluation.pair_regression import PairData
from eqcohvit.evaluation.probes import linear_regression


def r2(predicted, true):
    return (1 - (predicted - true).square().sum() / (true - true.mean(dim=0)).square().sum()).item()


def make_pairs(count, seed):
    """Targets that are a product of the original and of the change, as an angle is: linear in neither."""
    generator = torch.Generator().manual_seed(seed)
    original, change = (torch.randn(count, 2, generator=generator) for _ in range(2))
    return original, original + change, (original * change).sum(dim=-1, keepdim=True)


def test_kernel_finds_a_product_that_ridge_regression_does_not():
    original, moved, targets = make_pairs(500, 0)
    test_original, test_moved, true = make_pairs(200, 1)
    assert r2(kernel_regression(PairData(original, moved, targets, test_original, test_moved)), true) > 0.95
    inputs = (
        torch.cat([original, moved - original], dim=-1),
        torch.cat([test_original, test_moved - test_original], dim=-1),
    )
    (linear,) = linear_regression(inputs[0], targets, inputs[1])
    assert r2(linear, true) < 0.1


def test_noise_gives_the_mean_and_scales_of_features_and_targets_change_nothing():
    original, moved, targets = make_pairs(200, 0)
    test_original, test_moved, true = make_pairs(100, 1)
    noise = torch.randn(200, 1, generator=torch.Generator().manual_seed(2))
    assert abs(r2(kernel_regression(PairData(original, moved, noise, test_original, test_moved)), true)) < 0.1
    plain = kernel_regression(PairData(original, moved, targets, test_original, test_moved))
    scaled = kernel_regression(
        PairData(100 * original, 100 * moved, 7 * targets + 3, 100 * test_original, 100 * test_moved)
    )
    assert torch.allclose(scaled, 7 * plain + 3, atol=1e-2)


def test_features_that_are_all_alike_give_the_mean():
    same, targets = torch.ones(40, 3), torch.arange(40.0)[:, None]
    predicted = kernel_regression(PairData(same, same, targets, same[:5], same[:5]))
    assert torch.allclose(predicted, predicted[:1].expand(5, 1)) and 10 < predicted[0] < 30


def make_turns(count, seed):
    """Two directions in the plane and the sine of the angle between them, which changes its sign in reverse order."""
    generator = torch.Generator().manual_seed(seed)
    o, g = torch.nn.functional.normalize(torch.randn(2, count, 2, generator=generator), dim=-1)
    return o, g, o[:, :1] * g[:, 1:] - o[:, 1:] * g[:, :1]


def test_pairs_in_both_orders_teach_as_much_as_twice_the_pairs():
    *pairs, targets = make_turns(20, 0)
    *new, true = make_turns(300, 1)
    one_order = r2(kernel_regression(PairData(*pairs, targets, *new)), true)
    both_orders = r2(kernel_regression(PairData(*pairs, targets, *new, reverse_targets=-targets)), true)
    assert both_orders > 0.9 and 1 - both_orders < (1 - one_order) / 2


def test_a_target_of_noise_does_not_change_what_is_found_of_another():
    *pairs, targets = make_pairs(200, 0)
    *new, _ = make_pairs(50, 1)
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    alone = kernel_regression(PairData(*pairs, targets, *new))
    beside = kernel_regression(PairData(*pairs, torch.cat([targets, noise], dim=1), *new))
    assert torch.allclose(beside[:, :1], alone, atol=1e-5)
