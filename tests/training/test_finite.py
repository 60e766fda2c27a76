import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from eqcohvit.data import Batch
from eqcohvit.training.finite import check_step, check_weights, nonfinite_weights


def make_batch(first_key):
    keys = torch.arange(first_key, first_key + 3)
    canvases = torch.full((3, 3, 4, 4), first_key, dtype=torch.uint8)
    return Batch(canvases, torch.full((3, 2), 4), keys, keys * 0 + 7, keys * 0 - 1, position={})


def check(tmp_path, terms, layer, batches):
    check_step(
        Accelerator(cpu=True), tmp_path, 5, {name: torch.tensor(value) for name, value in terms.items()}, batches, layer
    )


def test_finite_step_writes_nothing(tmp_path):
    check(tmp_path, {"loss": 1.0, "grad_norm": 3.0}, nn.Linear(2, 2), [make_batch(0)])
    assert list(tmp_path.iterdir()) == []


def test_broken_step_names_the_terms_and_keeps_all_of_its_batches(tmp_path):
    layer = nn.Linear(2, 2)
    layer(torch.tensor([[1.0, float("nan")]])).sum().backward()
    with pytest.raises(
        FloatingPointError, match="ssl/contrast, grad_norm not finite at step 5; the weights were still finite"
    ):
        terms = {"loss": 1.0, "ssl/contrast": float("nan"), "grad_norm": float("inf")}
        check(tmp_path, terms, layer, [make_batch(10), make_batch(20)])
    saved = load_file(tmp_path / "nonfinite" / "step-5-rank-0.safetensors")
    assert saved["keys"].tolist() == [10, 11, 12, 20, 21, 22] and saved["canvases"][4].unique().tolist() == [20]
    report = json.loads((tmp_path / "nonfinite" / "step-5-rank-0.json").read_text())
    assert report["keys"] == [10, 11, 12, 20, 21, 22] and report["epochs"] == [7] * 6 and report["step"] == 5
    assert report["not_finite"] == ["ssl/contrast", "grad_norm"] and report["terms"]["loss"] == 1.0
    assert report["gradients_not_finite"] == ["weight"] and report["weights_not_finite"] == []


def test_broken_weights_are_named(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_weights(model, 1)
    with torch.no_grad():
        model[0].weight[0, 1] = float("inf")
    model[1].running_mean.fill_(float("nan"))
    assert nonfinite_weights(model) == ["0.weight", "1.running_mean"]
    with pytest.raises(
        FloatingPointError, match=r"weights not finite after step 9 \(0.weight, 1.running_mean\), so that no checkpoint"
    ):
        check_weights(model, 9)
    with pytest.raises(
        FloatingPointError, match=r"loss not finite at step 5; the weights were not finite before this step \(0.weight"
    ):
        check(tmp_path, {"loss": float("nan")}, model, [make_batch(0)])
