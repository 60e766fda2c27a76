import re

import pytest
import torch
from torch import nn

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.hub.configuration_eqcohvit import SUPPORTED_BACKBONES
from eqcohvit.training.optim import backbone_warmup, learning_rate_scales, make_optimizer, set_learning_rate, warmup_cosine


def test_warmup_cosine_by_hand():
    def lr(step):
        return warmup_cosine(step, max_steps=110, warmup_steps=10, peak=1.0, final=0.1)

    assert lr(0) == pytest.approx(0.1) and lr(4) == pytest.approx(0.5) and lr(9) == pytest.approx(1.0)
    assert lr(10) == pytest.approx(1.0)
    assert lr(60) == pytest.approx(0.55)  # half of the way: the mean of peak and final
    assert lr(110) == pytest.approx(0.1) and lr(500) == pytest.approx(0.1)


def test_backbone_warmup_by_hand():
    factors = [backbone_warmup(step, head_warmup_steps=2, warmup_steps=4) for step in range(8)]
    assert factors == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [backbone_warmup(step, 0, 4) for step in range(3)] == [1, 1, 1]
    assert [backbone_warmup(step, 2, 0) for step in range(3)] == [0, 0, 1]


def test_weight_decay_spares_biases_norms_tokens_and_positions():
    model = EqCohViTModel(EqCohViTConfig.from_preset("micro"))
    groups = make_optimizer(model, 1e-3, 0.05).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = ([p for group in groups if group["weight_decay"] == decay for p in group["params"]] for decay in (0.05, 0))
    tokens = {"backbone.embeddings.cls_token", "backbone.embeddings.position_embeddings"}
    assert tokens | {"feature_head.bias"} <= {names[id(p)] for p in spared}
    assert "feature_head.weight" in {names[id(p)] for p in decayed}
    assert all(p.ndim >= 2 for p in decayed)
    assert len(decayed) + len(spared) == len(names)


def test_optimizer_leaves_frozen_parameters_out():
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    (group,) = make_optimizer(layer, 1e-3, 0.05).param_groups
    assert group["params"] == [layer.weight]


@pytest.mark.parametrize("backbone_type", SUPPORTED_BACKBONES)
def test_layer_decay_counts_the_layers_up_to_the_heads(backbone_type):
    model = EqCohViTModel(EqCohViTConfig.from_preset("micro", backbone_type=backbone_type))  # four blocks
    scales = learning_rate_scales(model, 0.5)
    of = {}
    for name, scale in scales.items():
        block = re.search(r"layers?\.(\d)\.", name)
        of.setdefault("stem" if "embeddings" in name else block[1] if block else "top", set()).add(scale)
    assert of == {"stem": {1 / 32}, "0": {1 / 16}, "1": {1 / 8}, "2": {1 / 4}, "3": {1 / 2}, "top": {1.0}}
    assert scales["feature_head.weight"] == 1.0


def test_each_parameter_gets_its_scaled_rate():
    model = EqCohViTModel(EqCohViTConfig.from_preset("micro"))
    optimizer = make_optimizer(model, 1e-3, 0.05, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    set_learning_rate(optimizer, 0.8, backbone_factor=0.5)
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    assert rates["backbone.embeddings.cls_token"] == 0.8 / 32 * 0.5 and rates["backbone.layernorm.weight"] == 0.4
    assert rates["feature_head.weight"] == rates["feature_head.bias"] == 0.8


def test_frozen_backbone_stays_bit_by_bit_while_the_heads_learn():
    torch.manual_seed(0)
    model = EqCohViTModel(EqCohViTConfig.from_preset("micro", 16, 8, feature_dim=16, equivariant_dim=8))
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, 1e-2, 0.05)
    for step in range(3):
        set_learning_rate(optimizer, 1e-2, backbone_warmup(step, head_warmup_steps=2, warmup_steps=1))
        model(torch.randn(2, 3, 16, 16)).invariant_features.square().mean().backward()
        optimizer.step()
        changed = {name for name, p in model.named_parameters() if p.grad is not None and not torch.equal(p, before[name])}
        assert any(name.startswith("backbone.") for name in changed) == (step == 2)
        assert "feature_head.weight" in changed


def test_set_learning_rate_reaches_all_groups():
    optimizer = make_optimizer(nn.Linear(2, 2), 1e-3, 0.05)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5] * len(optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW)
