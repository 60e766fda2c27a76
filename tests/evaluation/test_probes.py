import math

import torch

from eqcohvit.evaluation.probes import knn_accuracy, mlp_regression, r2_score, standardize


def test_r2_by_hand():
    true = torch.tensor([[1.0], [2.0], [3.0]])
    assert r2_score(true, true).item() == 1.0
    assert r2_score(torch.full((3, 1), 2.0), true).item() == 0.0
    assert math.isclose(r2_score(torch.tensor([[1.0], [2.0], [5.0]]), true).item(), 1 - 4 / 2)  # not clipped


def make(num=1200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, 2, generator=generator) * 2 - 1, torch.randn(num, 12, generator=generator)


def test_mlp_finds_a_parameter_that_the_features_contain():
    y, noise = make()
    x = torch.cat([3 * y, 0.1 * noise], dim=1)
    score = r2_score(mlp_regression(x[:1000], y[:1000], x[1000:]), y[1000:])
    assert (score > 0.99).all()


def test_mlp_finds_nothing_in_independent_features():
    y, noise = make()
    assert (r2_score(mlp_regression(noise[:1000], y[:1000], noise[1000:]), y[1000:]) < 0.02).all()


def test_mlp_is_deterministic_and_leaves_the_global_generator_alone():
    y, noise = make(300)
    state = torch.get_rng_state()
    first = mlp_regression(noise[:200], y[:200], noise[200:], seed=3, num_steps=3)
    assert torch.equal(first, mlp_regression(noise[:200], y[:200], noise[200:], seed=3, num_steps=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, mlp_regression(noise[:200], y[:200], noise[200:], seed=4, num_steps=3))


def test_standardize_uses_the_training_statistics():
    train, test = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[1.0, 5.0]])
    a, b = standardize(train, test)
    assert torch.allclose(a[:, 0], torch.tensor([-1.0, 1.0]) / math.sqrt(2)) and torch.equal(b, torch.zeros(1, 2))


def test_knn_by_hand():
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    test = torch.tensor([[5.0, 0.1], [0.0, 0.2], [1.0, 1.2]])
    assert knn_accuracy(train, labels, test, torch.tensor([0, 1, 1]), k=1) == 1.0
    assert knn_accuracy(train, labels, test, torch.tensor([1, 1, 1]), k=1) == 2 / 3


def test_knn_does_not_depend_on_the_chunks():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 8, generator=generator), torch.randint(0, 4, (200,), generator=generator)
    scores = {knn_accuracy(x[:150], y[:150], x[150:], y[150:], chunk_size=size) for size in (7, 50, 1000)}
    assert len(scores) == 1
