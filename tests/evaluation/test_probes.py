import math
import subprocess
import sys

import pytest
import torch

from eqcohvit.evaluation.probes import (
    change_under,
    knn_accuracy,
    knn_correct,
    linear_cka,
    linear_classification,
    linear_regression,
    nearest_neighbors,
    predictability,
    split_rows,
    standardize,
)


def test_wide_features_give_the_same_ridge_regression():
    """More dimensions than samples are solved in the space of the samples: the same as with the Gram matrix of the
    dimensions."""
    x = torch.randn(60, 50, generator=torch.Generator().manual_seed(0))
    y = x[:, :2] + 0.1 * x[:, 2:4]
    (narrow,) = linear_regression(x[:40], y[:40], x[40:])  # 30 are fitted on
    padded = torch.cat([x, torch.zeros(60, 1)], dim=1)
    (wide,) = linear_regression(padded[:40], y[:40], padded[40:])
    assert torch.allclose(narrow, wide, atol=1e-5)
    fit, val = split_rows(40, 0)
    z, test = (values.double() for values in standardize(x[:40], x[40:]))
    centered = z[fit] - z[fit].mean(dim=0)
    target = (y[fit] - y[fit].mean(dim=0)).double()
    errors, predictions = [], []
    for penalty in (10.0**exponent for exponent in range(-4, 3)):
        weight = torch.linalg.solve(
            centered.T @ centered + penalty * len(fit) * torch.eye(50, dtype=torch.float64), centered.T @ target
        )
        predicted = (torch.cat([z[val], test]) - z[fit].mean(dim=0)) @ weight + y[fit].mean(dim=0)
        errors.append(((predicted[: len(val)] - y[val]) / y[fit].std(dim=0)).square().mean())
        predictions.append(predicted[len(val) :])
    assert torch.allclose(predictions[int(torch.stack(errors).argmin())].float(), narrow, atol=1e-4)


def test_standardize_uses_the_training_statistics():
    train, test = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[1.0, 5.0]])
    a, b = standardize(train, test)
    assert torch.allclose(a[:, 0], torch.tensor([-1.0, 1.0]) / math.sqrt(2)) and torch.equal(b, torch.zeros(1, 2))


def test_standardize_holds_samples_within_thrice_the_range():
    train, test = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [100.0], [-100.0]])
    _, found = standardize(train, test)
    assert torch.allclose(found[:, 0] * math.sqrt(2) + 1, torch.tensor([3.0, 4.0, -2.0]))


def test_knn_by_hand():
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    test = torch.tensor([[5.0, 0.1], [0.0, 0.2], [1.0, 1.2]])
    assert knn_accuracy(train, labels, test, torch.tensor([0, 1, 1]), k=1) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([1, 1, 1]), k=1) == pytest.approx(2 / 3)


def test_temperature_weighs_the_neighbors():
    train = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.6], [1.0, -0.6]]), dim=-1)
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    nearest = 1 / math.sqrt(1.36)  # similarity of the two others; one vote of weight 1 against two of exp((s - 1) / T)
    for temperature, expected in ((0.1, 0), (0.5, 1)):
        assert (2 * math.exp((nearest - 1) / temperature) > 1) == bool(expected)
        assert knn_accuracy(train, labels, test, torch.tensor([expected]), k=3, temperature=temperature) == 1.0


def test_a_low_temperature_takes_the_nearest_neighbor():
    """Similarities of 0.6 and 0: exp((0.6 - 1) / 0.001) is 0 in float32, and yet the first one has all the weight."""
    train, labels = torch.tensor([[0.6, 0.8], [0.0, 1.0]]), torch.tensor([1, 0])
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), k=2, temperature=0.001) == 1.0


def test_nearest_neighbors_do_not_depend_on_the_chunks():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(200, 8, generator=generator), torch.randn(50, 8, generator=generator)
    similarity = torch.nn.functional.normalize(test, dim=-1) @ torch.nn.functional.normalize(train, dim=-1).T
    expected = similarity.argsort(dim=-1, descending=True)[:, :5]
    for chunks in ({}, {"test_chunk": 7}, {"train_chunk": 30}, {"test_chunk": 11, "train_chunk": 3}):
        assert torch.equal(nearest_neighbors(train, test, 5, **chunks)[1], expected)


def blobs(num, dim=6, classes=3, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (num,), generator=generator)
    return torch.eye(dim)[labels] + noise * torch.randn(num, dim, generator=generator), labels


def accuracy(x, y, num_train, **settings):
    classes, rate = linear_classification(x[:num_train], y[:num_train], x[num_train:], **settings)
    return (classes == y[num_train:]).float().mean().item(), rate


def test_linear_classification_separates_classes_and_not_noise():
    x, y = blobs(900)
    found, rate = accuracy(x, y, 600)
    assert found > 0.97 and rate > 0
    noise = torch.randn(900, 6, generator=torch.Generator().manual_seed(1))
    assert accuracy(noise, y, 600)[0] < 0.45


def test_linear_classification_chooses_the_learning_rate_by_validation():
    x, y = blobs(900, noise=0.6)
    found, rate = accuracy(x, y, 600, learning_rates=(0.0, 0.1), epochs=5)
    assert rate == 0.1
    assert (
        found == accuracy(x, y, 600, learning_rates=(0.1,), epochs=5)[0]
    )  # the rates of a sweep do not disturb each other


def test_linear_classification_is_fitted_on_all_samples_in_the_end():
    """A class that is in the held-out samples alone is known nevertheless."""
    x, y = blobs(40, dim=8, classes=2, noise=0.1)
    _, val = split_rows(40, 0)
    x[val], y[val] = torch.eye(8)[7] + 0.1 * x[val], torch.tensor(2)
    classes, _ = linear_classification(x, y, torch.eye(8)[7:], learning_rates=(0.1, 0.3))
    assert classes.tolist() == [2]


IDS = torch.tensor([20_000_000_000_007, 3, 20_000_000_000_001])  # of products, of people


def test_knn_and_linear_probe_take_labels_that_are_ids():
    """A table with a column for each number up to the largest would be of 647 GB."""
    x, y = blobs(300, classes=3)
    train, test = slice(0, 200), slice(200, None)
    plain, by_id = (knn_correct(x[train], labels[train], x[test], labels[test], k=5) for labels in (y, IDS[y]))
    assert torch.equal(plain, by_id) and plain.float().mean() > 0.9
    plain, by_id = (linear_classification(x[train], labels[train], x[test], epochs=3)[0] for labels in (y, IDS[y]))
    assert torch.equal(IDS[plain], by_id)


def test_cka_is_one_for_rotated_features():
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2))).Q
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)


@pytest.mark.parametrize("num, dim", [(1024, 256), (300, 384)])
def test_cka_of_independent_features_is_about_zero(num, dim):
    """The biased estimator gives 0.20 and 0.56 there."""
    x, y = (torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert abs(linear_cka(x, y)) < 0.02


def test_cka_is_the_unbiased_estimator_of_its_definition():
    """From the kernels with empty diagonals, as the paper writes it."""
    x, y = (torch.randn(7, dim, generator=torch.Generator().manual_seed(dim)).double() + 2 for dim in (3, 2))
    y = y + x[:, :2]

    def hsic(a, b):
        k, m, one, n = (a @ a.T).fill_diagonal_(0), (b @ b.T).fill_diagonal_(0), torch.ones(7, dtype=torch.float64), 7
        cross = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (torch.trace(k @ m) + cross - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    assert linear_cka(x, y) == pytest.approx((hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item())


def test_change_under_is_zero_for_the_same_and_one_for_other_images():
    x, y = (torch.randn(4000, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert change_under(x, x) == 0
    assert change_under(x, y) == pytest.approx(1, abs=0.05)


def test_predictability_tells_a_linear_action_from_an_arbitrary_one():
    generator = torch.Generator().manual_seed(0)
    z, angle = torch.randn(1500, 4, generator=generator), torch.rand(1500, 1, generator=generator) - 0.5
    cos, sin = angle.cos(), angle.sin()
    turned = torch.cat([cos * z[:, :1] - sin * z[:, 1:2], sin * z[:, :1] + cos * z[:, 1:2], z[:, 2:]], dim=1)
    other = z + torch.randn(1500, 4, generator=generator)

    def score(moved):
        return predictability((z[:1000], moved[:1000], angle[:1000]), (z[1000:], moved[1000:], angle[1000:]))

    assert score(turned) > 0.99 and abs(score(other)) < 0.1


@pytest.mark.slow
def test_knn_of_50000_by_10000_features_stays_below_2_gib_and_60_seconds():
    """In its own process, so that no other raises its peak: the size of CIFAR-10 with 384-dimensional features."""
    code = """
import resource, time, torch
from eqcohvit.evaluation.probes import knn_accuracy
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
train, test = (torch.randn(count, 384, generator=generator) for count in (50_000, 10_000))
labels, test_labels = (torch.randint(10, (count,), generator=generator) for count in (50_000, 10_000))
started = time.process_time()
accuracy = knn_accuracy(train, labels, test, test_labels, k=20)
print((time.process_time() - started) / 2, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, accuracy)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, gibibytes, accuracy = map(float, printed.split())
    assert seconds < 60 and gibibytes < 2 and accuracy == pytest.approx(0.1, abs=0.02)
