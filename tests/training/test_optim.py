import re

import pytest
import torch
from torch import nn

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.hub.configuration_eqcohvit import SUPPORTED_BACKBONES
from eqcohvit.objectives.heads import DINOHead
from eqcohvit.training.optim import learning_rate_scales, make_optimizer, set_step
from eqcohvit.training.schedules import StepValues, backbone_warmup


def values(learning_rate, backbone_factor=1.0, weight_decay=0.05):
    return StepValues(learning_rate, learning_rate, weight_decay, backbone_factor)


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


def test_patch_embedding_has_a_factor_of_its_own():
    model = EqCohViTModel(EqCohViTConfig.from_preset("micro"))
    scales = learning_rate_scales(model, 0.5, patch_embed_lr_scale=0.2)
    assert scales["backbone.embeddings.patch_embeddings.projection.weight"] == pytest.approx(0.2 / 32)
    assert scales["backbone.embeddings.cls_token"] == 1 / 32


def test_each_parameter_gets_its_scaled_rate():
    model = EqCohViTModel(EqCohViTConfig.from_preset("micro"))
    optimizer = make_optimizer(model, 1e-3, 0.05, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    set_step(optimizer, values(0.8, backbone_factor=0.5))
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
        set_step(optimizer, values(1e-2, backbone_warmup(step, head_warmup_steps=2, warmup_steps=1)))
        model(torch.randn(2, 3, 16, 16)).invariant_features.square().mean().backward()
        optimizer.step()
        changed = {name for name, p in model.named_parameters() if p.grad is not None and not torch.equal(p, before[name])}
        assert any(name.startswith("backbone.") for name in changed) == (step == 2)
        assert "feature_head.weight" in changed


def test_set_step_reaches_all_groups_and_can_freeze_the_prototypes():
    head = DINOHead(4, 8, 4, 6, norm_last_layer=False)
    optimizer = make_optimizer(head, 1e-3, 0.05)
    set_step(optimizer, StepValues(learning_rate=0.5, last_layer_learning_rate=0.0, weight_decay=0.3))
    names = {id(p): name for name, p in head.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert groups["prototypes.weight"]["lr"] == groups["prototypes.gain"]["lr"] == 0
    assert groups["mlp.0.weight"]["lr"] == groups["mlp.0.bias"]["lr"] == 0.5
    assert groups["mlp.0.weight"]["weight_decay"] == 0.3 and groups["mlp.0.bias"]["weight_decay"] == 0
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    head(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    changed = {name for name, p in head.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(before) - {"prototypes.weight", "prototypes.gain"}
