import math

import pytest
import torch

from eqcohvit.training.health import HealthWatch, rankme


def test_rankme_of_orthonormal_rows_is_their_number():
    rows = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(rows[:5]) == pytest.approx(5, abs=1e-4)
    assert rankme(100 * rows) == pytest.approx(16, abs=1e-3)


def test_rankme_of_identical_rows_is_one():
    assert rankme(torch.tensor([[3.0, -1.0, 2.0]]).expand(8, 3)) == pytest.approx(1, abs=1e-4)


def test_rankme_by_hand():
    # Singular values 3 and 1: p = (3/4, 1/4), entropy = 2 ln 2 - 3/4 ln 3.
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(2 * math.log(2) - 0.75 * math.log(3)))


def test_rankme_of_nothing_is_zero_and_not_nan():
    assert rankme(torch.zeros(4, 3)) == 0


def test_rankme_of_broken_features_is_not_a_number_and_no_error():
    assert rankme(torch.tensor([[1.0, float("inf")], [0.0, 1.0]])).isnan()


def healthy(**changes):
    return {
        "ssl/cls": 5.0,
        "std/invariant": 0.3,
        "rank/invariant": 9.0,
        "rank/equivariant": 8.0,
        "teacher/entropy": 2.0,
    } | changes


def test_healthy_run_gets_no_warning():
    assert HealthWatch({"ssl/cls": math.log(4096)}, first_step=10).warnings(20, healthy()) == []


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"ssl/cls": math.log(4096) - 0.05}, ("ssl/cls sits at 8.268", "8.318", "learning_rate")),
        (
            {"std/invariant": 1e-5},
            ("invariant part has collapsed", "the same for all images (std 1e-05)", "learning_rate"),
        ),
        (
            {"rank/equivariant": 1.02},
            ("equivariant part has collapsed onto one direction (rank 1.02)", "raise recon_weight"),
        ),
        ({"teacher/entropy": 0.001}, ("all images on one prototype", "teacher_temperature")),
    ],
)
def test_each_trouble_is_named_with_its_cure(changes, texts):
    (line,) = HealthWatch({"ssl/cls": math.log(4096)}, first_step=10).warnings(20, healthy(**changes))
    assert line.startswith("warning at step 20: ") and all(text in line for text in texts)


def test_warning_comes_once_as_long_as_it_lasts_and_again_when_it_comes_back():
    watch = HealthWatch({}, first_step=0)
    bad, good = healthy(**{"rank/invariant": 1.0}), healthy()
    assert [len(watch.warnings(step, means)) for step, means in enumerate((bad, bad, good, bad))] == [1, 0, 0, 1]


def test_start_of_a_run_is_no_trouble():
    watch = HealthWatch({"ssl/cls": 8.0}, first_step=10)
    assert watch.warnings(9, healthy(**{"ssl/cls": 8.0})) == []
    assert len(watch.warnings(10, healthy(**{"ssl/cls": 8.0}))) == 1
