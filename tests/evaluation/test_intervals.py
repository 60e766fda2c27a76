import numpy as np
import pytest
import torch

from eqcohvit.evaluation.intervals import (
    accuracy_resampled,
    half_width,
    r2_resampled,
    resamples,
    seeds_half_width,
    student,
)
from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter
from eqcohvit.evaluation.probes import linear_regression


def test_student_by_the_table():
    assert [round(student(degrees), 3) for degrees in (1, 2, 4, 10, 20, 30)] == [
        12.706,
        4.303,
        2.776,
        2.228,
        2.086,
        2.042,
    ]


def test_half_width_of_seeds_by_hand():
    """0, 1 and 2: standard deviation 1, t of two degrees of freedom 4.303."""
    assert seeds_half_width([0.0, 1.0, 2.0]) == pytest.approx(4.3027 / 3**0.5) and seeds_half_width([1.0]) is None


def test_half_width_adds_both_variances():
    resampled = np.array([-1.0, 1.0]) / 2**0.5  # of standard deviation 1
    assert half_width([0.5], resampled) == pytest.approx(1.96, abs=1e-4)
    assert half_width([0.0, 1.0, 2.0], resampled) == pytest.approx((4.3027**2 / 3 + 1.96**2) ** 0.5, abs=1e-4)

    few = half_width([0.5], resampled, num_images=5)  # t of four degrees of freedom, and a variance of 4 / 5
    assert few == pytest.approx(2.7764 * 1.25**0.5, abs=1e-4)


def test_accuracy_moves_as_the_binomial_says():
    correct = np.arange(400)[None] % 4 > 0
    resampled = accuracy_resampled(correct)
    assert resampled.mean() == pytest.approx(0.75, abs=0.005) and resampled.std() == pytest.approx(
        (0.75 * 0.25 / 400) ** 0.5, rel=0.1
    )


def test_r2_of_a_resample_is_that_of_the_repeated_images():
    generator = np.random.default_rng(0)
    true = generator.normal(size=(2, 30, 3)) + 5
    predicted = true + 0.3 * generator.normal(size=true.shape)
    found = r2_resampled(predicted, true)
    index = np.repeat(np.arange(30), resamples(30)[7].astype(int))
    expected = np.mean([r2_per_parameter(predicted[seed, index], true[seed, index]) for seed in range(2)], axis=0)
    assert found.shape == (1000, 3) and found[7] == pytest.approx(expected)


@pytest.mark.slow
def test_the_interval_covers_the_truth():
    """200 simulated evaluations of three seeds with ridge regression: at least 93 % of the intervals hold the R2 of
    infinitely many."""

    def draw(count, generator):
        y = torch.rand(count, 1, generator=generator) * 2 - 1
        return torch.cat(
            [y + 0.5 * torch.randn(count, 1, generator=generator), torch.randn(count, 2, generator=generator)], dim=1
        ), y

    def evaluate(number, num_test):
        predictions, references = [], []
        for seed in range(3):
            generator = torch.Generator().manual_seed(1000 * number + seed)
            x, y = draw(100, generator)
            test_x, test_y = draw(num_test, generator)
            predictions.append(linear_regression(x, y, test_x, seed=seed)[0].numpy())
            references.append(test_y.numpy())
        values = [r2_per_parameter(*pair).item() for pair in zip(predictions, references, strict=True)]
        return values, np.stack(predictions), np.stack(references)

    truth = np.mean([evaluate(number, 4000)[0] for number in range(1000, 1060)])
    covered, widths = [], []
    for number in range(200):
        values, predictions, references = evaluate(number, 200)
        half = half_width(values, r2_resampled(predictions, references)[:, 0])
        covered.append(abs(np.mean(values) - truth) < half)
        widths.append(half)
    assert np.mean(covered) >= 0.93 and np.mean(widths) < 0.2
