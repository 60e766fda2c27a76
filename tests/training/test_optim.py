import pytest
import torch
from torch import nn

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.training.optim import make_optimizer, set_learning_rate, warmup_cosine


def test_warmup_cosine_by_hand():
    def lr(step):
        return warmup_cosine(step, max_steps=110, warmup_steps=10, peak=1.0, final=0.1)

    assert lr(0) == pytest.approx(0.1) and lr(4) == pytest.approx(0.5) and lr(9) == pytest.approx(1.0)
    assert lr(10) == pytest.approx(1.0)
    assert lr(60) == pytest.approx(0.55)  # half of the way: the mean of peak and final
    assert lr(110) == pytest.approx(0.1) and lr(500) == pytest.approx(0.1)


def test_weight_decay_spares_biases_norms_tokens_and_positions():
    model = EqCohViTModel(EqCohViTConfig.from_preset("micro"))
    decayed, plain = make_optimizer(model, 1e-3, 0.05).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0
    spared = {names[id(p)] for p in plain["params"]}
    assert {"backbone.embeddings.cls_token", "backbone.embeddings.position_embeddings", "feature_head.bias"} <= spared
    assert "feature_head.weight" in {names[id(p)] for p in decayed["params"]}
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_optimizer_leaves_frozen_parameters_out():
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    decayed, plain = make_optimizer(layer, 1e-3, 0.05).param_groups
    assert len(decayed["params"]) == 1 and plain["params"] == []


def test_set_learning_rate_reaches_all_groups():
    optimizer = make_optimizer(nn.Linear(2, 2), 1e-3, 0.05)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert isinstance(optimizer, torch.optim.AdamW)
