import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter
from eqcohvit.evaluation.probes import (
    change_under,
    knn_accuracy,
    linear_cka,
    linear_classification,
    linear_regression,
    mlp_regression,
    nearest_neighbours,
    predictability,
    standardize,
)


def make(num=1200, seed=0, dim=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, 2, generator=generator) * 2 - 1, torch.randn(num, dim, generator=generator)


def scores(x, y, num_train, num_seeds=1):
    """R2 (S, P) of the MLPs and of their linear paths."""
    heads = mlp_regression(x[:num_train], y[:num_train], x[num_train:], num_seeds)
    return [np.stack([r2_per_parameter(p.numpy(), y[num_train:].numpy()) for p in predictions]) for predictions in heads]


@pytest.mark.parametrize("dim", [0, 12, 300])
def test_heads_find_parameters_that_the_features_contain(dim):
    y, noise = make(dim=dim)
    for score in scores(torch.cat([3 * y, 0.1 * noise], dim=1), y, 1000):
        assert (score > 0.999).all()


def test_mlp_finds_what_a_linear_head_cannot():
    y, noise = make(2400)
    mlp, linear = scores(torch.cat([y.square(), y[:, :1] * y[:, 1:], 0.1 * noise[:, :2]], dim=1), y.square() * 2 - y.pow(4), 2000)
    assert (mlp > 0.99).all() and (linear < 0.98).all()


def test_heads_find_nothing_in_independent_features():
    y, noise = make(4000)
    for score in scores(noise, y, 2000, num_seeds=3):
        assert score.shape == (3, 2) and (score <= 0.02).all()


def test_mlp_is_deterministic_and_leaves_the_global_generator_alone():
    y, noise = make(300)
    x, state = torch.cat([y.sin(), noise], dim=1), torch.get_rng_state()
    first, linear = mlp_regression(x[:200], y[:200], x[200:], num_seeds=2, num_steps=9)
    again, _ = mlp_regression(x[:200], y[:200], x[200:], num_seeds=2, num_steps=9)
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(linear[1], linear_regression(x[:200], y[:200], x[200:], seed=1)[0])
    assert not torch.equal(first[0], first[1])


def test_standardize_uses_the_training_statistics():
    train, test = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[1.0, 5.0]])
    a, b = standardize(train, test)
    assert torch.allclose(a[:, 0], torch.tensor([-1.0, 1.0]) / math.sqrt(2)) and torch.equal(b, torch.zeros(1, 2))


def test_knn_by_hand():
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    test = torch.tensor([[5.0, 0.1], [0.0, 0.2], [1.0, 1.2]])
    assert knn_accuracy(train, labels, test, torch.tensor([0, 1, 1]), k=1) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([1, 1, 1]), k=1) == pytest.approx(2 / 3)


def test_temperature_weighs_the_neighbours():
    train = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.6], [1.0, -0.6]]), dim=-1)
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    nearest = 1 / math.sqrt(1.36)  # similarity of the two others; one vote of weight 1 against two of exp((s - 1) / T)
    for temperature, expected in ((0.1, 0), (0.5, 1)):
        assert (2 * math.exp((nearest - 1) / temperature) > 1) == bool(expected)
        assert knn_accuracy(train, labels, test, torch.tensor([expected]), k=3, temperature=temperature) == 1.0


def test_a_low_temperature_takes_the_nearest_neighbour():
    """Similarities of 0.6 and 0: exp((0.6 - 1) / 0.001) is 0 in float32, and yet the first one has all the weight."""
    train, labels = torch.tensor([[0.6, 0.8], [0.0, 1.0]]), torch.tensor([1, 0])
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), k=2, temperature=0.001) == 1.0


def test_nearest_neighbours_do_not_depend_on_the_chunks():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(200, 8, generator=generator), torch.randn(50, 8, generator=generator)
    similarity = torch.nn.functional.normalize(test, dim=-1) @ torch.nn.functional.normalize(train, dim=-1).T
    expected = similarity.argsort(dim=-1, descending=True)[:, :5]
    for chunks in ({}, {"test_chunk": 7}, {"train_chunk": 30}, {"test_chunk": 11, "train_chunk": 3}):
        assert torch.equal(nearest_neighbours(train, test, 5, **chunks)[1], expected)


def blobs(num, dim=6, classes=3, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (num,), generator=generator)
    return torch.eye(dim)[labels] + noise * torch.randn(num, dim, generator=generator), labels


def test_linear_classification_separates_classes_and_not_noise():
    x, y = blobs(900)
    accuracy, rate = linear_classification(x[:600], y[:600], x[600:], y[600:])
    assert accuracy > 0.97 and rate > 0
    noise = torch.randn(900, 6, generator=torch.Generator().manual_seed(1))
    assert linear_classification(noise[:600], y[:600], noise[600:], y[600:])[0] < 0.45


def test_linear_classification_chooses_the_learning_rate_by_validation():
    x, y = blobs(900, noise=0.6)
    accuracy, rate = linear_classification(x[:600], y[:600], x[600:], y[600:], learning_rates=(0.0, 0.1), epochs=5)
    assert rate == 0.1
    alone = linear_classification(x[:600], y[:600], x[600:], y[600:], learning_rates=(0.1,), epochs=5)
    assert accuracy == alone[0]  # the rates of a sweep do not disturb each other


def test_cka_is_one_for_rotated_features_and_small_for_others():
    x, y = (torch.randn(2000, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2))).Q
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, y) < 0.05


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
    """In a process of its own, so that its peak is its own: the size of CIFAR-10 with 384-dimensional features."""
    code = """
import resource, time, torch
from eqcohvit.evaluation.probes import knn_accuracy
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
train, test = (torch.randn(count, 384, generator=generator) for count in (50_000, 10_000))
labels, test_labels = (torch.randint(10, (count,), generator=generator) for count in (50_000, 10_000))
started = time.monotonic()
accuracy = knn_accuracy(train, labels, test, test_labels, k=20)
print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, accuracy)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, gibibytes, accuracy = map(float, printed.split())
    assert seconds < 60 and gibibytes < 2 and accuracy == pytest.approx(0.1, abs=0.02)
