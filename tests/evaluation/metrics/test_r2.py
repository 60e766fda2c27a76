import math
from pathlib import Path

import numpy as np
import pytest
import torch

import eqcohvit.evaluation.metrics as metrics
import evaluate
from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter

ROOT = Path(metrics.__file__).parent


def test_r2_by_hand():
    true = np.array([[1.0], [2.0], [3.0]])
    assert r2_per_parameter(true, true) == [1.0]
    assert r2_per_parameter(np.full((3, 1), 2.0), true) == [0.0]
    assert r2_per_parameter([[1.0], [2.0], [5.0]], true) == [1 - 4 / 2]  # not clipped


def test_r2_of_a_parameter_that_does_not_vary_is_unknown():
    assert math.isnan(r2_per_parameter([[1.0], [2.0]], [[1.0], [1.0]])[0])


def test_r2_of_different_shapes_is_an_error():
    """(3, 1) and (3,) would be spread to (3, 3)."""
    with pytest.raises(ValueError, match=r"expected two arrays \(N, P\) of the same shape, got \(3, 1\) and \(3,\)"):
        r2_per_parameter([[1.0], [2.0], [3.0]], [1.0, 2.0, 3.0])


def test_module_loads_offline_and_pools_parameters_of_any_scale():
    module = evaluate.load(str(ROOT / "r2"))
    true = torch.tensor([[1.0, 1000.0], [2.0, 2000.0], [3.0, 3000.0]], dtype=torch.float64)
    predicted = torch.tensor([[1.0, 1000.0], [2.0, 2000.0], [5.0, 3000.0]], dtype=torch.float64)
    result = module.compute(predictions=predicted.numpy(), references=true.numpy())
    assert result["r2_per_parameter"] == pytest.approx([-1.0, 1.0]) and result["r2"] == pytest.approx(0.0)
    module.add_batch(predictions=predicted[:2].numpy(), references=true[:2].numpy())
    module.add_batch(predictions=predicted[2:].numpy(), references=true[2:].numpy())
    assert module.compute() == result
