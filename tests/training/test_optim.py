import re

import pytest
import torch
from tests.training.test_pretrain_module import VALUES, make_module, views_for
from torch import nn

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.hub.configuration_eqcohvit import FAMILIES
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.objectives.heads import DINOHead
from eqcohvit.training.optim import clip_gradients, learning_rate_scales, make_optimizer, set_step
from eqcohvit.training.schedules import StepValues, backbone_warmup


def values(learning_rate, backbone_factor=1.0, weight_decay=0.05):
    return StepValues(learning_rate, learning_rate, weight_decay, backbone_factor)


def test_weight_decay_spares_vectors_but_neither_tokens_nor_positions():
    model = EqCohViTModel(EqCohViTConfig.from_preset("micro", backbone_kwargs={"use_mask_token": True}))
    groups = make_optimizer(model, 1e-3, 0.05).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = (
        {names[id(p)] for g in groups if g["weight_decay"] == decay for p in g["params"]} for decay in (0.05, 0)
    )
    tokens = {f"backbone.embeddings.{name}" for name in ("cls_token", "position_embeddings", "mask_token")}
    assert tokens | {"feature_head.weight"} <= decayed
    first = "backbone.encoder.layer.0"
    assert {
        "feature_head.bias",
        "backbone.layernorm.weight",
        f"{first}.norm1.weight",
        f"{first}.layer_scale1.lambda1",
    } <= spared
    assert decayed | spared == set(names.values()) and not decayed & spared


def test_optimizer_leaves_frozen_parameters_out():
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    (group,) = make_optimizer(layer, 1e-3, 0.05).param_groups
    assert group["params"] == [layer.weight]


@pytest.mark.parametrize("backbone_type", FAMILIES)
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
        changed = {
            name for name, p in model.named_parameters() if p.grad is not None and not torch.equal(p, before[name])
        }
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


def parts_with_gradients(**gradients):
    """A part for each name, whose parameters have the given gradients."""
    parts = {}
    for name, values in gradients.items():
        parts[name] = nn.ParameterList([nn.Parameter(torch.zeros(len(value))) for value in values])
        for parameter, value in zip(parts[name], values, strict=True):
            parameter.grad = torch.tensor(value)
    return parts


def gradients_of(part):
    return [p.grad.tolist() for p in part.parameters()]


# Parts of the norms 5 (parameters of 3 and 4), 13 (5 and 12) and 0.5.
@pytest.mark.parametrize(
    ("clipping", "encoder", "decoders"),
    [
        ("none", [[3.0], [0.0, 4.0]], [[5.0], [12.0]]),
        ("module", [[1.2], [0.0, 1.6]], [[10 / 13], [24 / 13]]),
        ("parameter", [[2.0], [0.0, 2.0]], [[2.0], [2.0]]),
    ],
)
def test_each_part_is_clipped_by_its_own_norm_or_by_that_of_each_parameter(clipping, encoder, decoders):
    parts = parts_with_gradients(encoder=[[3.0], [0.0, 4.0]], objective=[[0.3, 0.4]], decoders=[[5.0], [12.0]])
    norms = clip_gradients(parts, clipping, max_norm=2.0)
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(
        {"grad_norm/encoder": 5.0, "grad_norm/objective": 0.5, "grad_norm/decoders": 13.0}
    )
    for name, expected in (("encoder", encoder), ("objective", [[0.3, 0.4]]), ("decoders", decoders)):
        for found, value in zip(gradients_of(parts[name]), expected, strict=True):
            assert found == pytest.approx(value, rel=1e-5)


def test_parts_without_gradients_are_left_out_and_norms_that_are_not_finite_are_told():
    parts = parts_with_gradients(encoder=[[float("inf"), 1.0]], objective=[[1.0]]) | {"decoders": nn.Linear(2, 2)}
    norms = clip_gradients(parts, "module", 1.0)
    assert list(norms) == ["grad_norm/encoder", "grad_norm/objective"] and not norms["grad_norm/encoder"].isfinite()
    with pytest.raises(ValueError, match="clipping must be one of none, module, parameter, got 'whole'"):
        clip_gradients(parts, "whole", 1.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_parts_hold_each_trained_parameter_once(objective):
    module = make_module(objective)
    held = [id(p) for part in module.parts().values() for p in part.parameters()]
    trained = [id(p) for p in module.parameters() if p.requires_grad]
    assert len(held) == len(set(held)) and set(trained) <= set(held)


@pytest.mark.parametrize(("clipping", "max_norm"), [("module", 1e-3), ("parameter", 1e-4)])
def test_the_weight_of_the_reconstruction_leaves_the_clipped_gradient_of_the_heads_as_it_is(clipping, max_norm):
    clipped = {}
    for weight in (1.0, 100.0):
        module = make_module("vicreg", recon_weight=weight)
        module(views_for(module), VALUES)["loss"].backward()
        norms = clip_gradients(module.parts(), clipping, max_norm)
        assert all(norm > max_norm for norm in norms.values())  # all of them are clipped
        clipped[weight] = [p.grad for p in module.objective.parameters()], norms["grad_norm/decoders"]
    assert clipped[100.0][1] > 50 * clipped[1.0][1]
    for one, other in zip(clipped[1.0][0], clipped[100.0][0], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("clipping", ["module", "parameter"])
def test_the_decoders_own_gradient_does_not_scale_that_of_the_encoder(clipping):
    clipped = []
    for factor in (1.0, 1000.0):
        module = make_module("vicreg")
        module(views_for(module), VALUES)["loss"].backward()
        for p in module.model.decoders.parameters():
            p.grad *= factor
        clip_gradients(module.parts(), clipping, 1e-3)
        clipped.append([p.grad for p in module.model.eqcohvit.parameters() if p.grad is not None])
    assert len(clipped[0]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*clipped, strict=True))
