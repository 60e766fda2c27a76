"""Stochastic depth by leaving samples out: which are computed, how often, and what their mean is."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_model
from eqcohvit.training.stochastic_depth import add_for_some


def make_backbone(rate, backbone="dinov2", **kwargs):
    torch.manual_seed(0)
    sizes = {
        "image_size": 16,
        "patch_size": 8,
        "feature_dim": 16,
        "equivariant_dim": 8,
        "decoder_dim": 16,
        "projector_dim": 16,
    }
    return build_model(
        PretrainArguments(backbone=backbone, drop_path_rate=rate, **sizes, **kwargs)
    ).eqcohvit.backbone.train()


def layers_of(backbone):
    return [layer for layer in backbone.modules() if hasattr(layer, "norm1")]


def computed(backbone, num_samples):
    """Samples that the attention of each layer has computed."""
    seen = []
    hooks = [
        layer.norm1.register_forward_hook(lambda *parts: seen.append(len(parts[-1]))) for layer in layers_of(backbone)
    ]
    backbone(torch.randn(num_samples, 3, 16, 16))
    for hook in hooks:
        hook.remove()
    return seen


def test_a_fixed_share_of_the_samples_is_drawn_evenly_and_scaled_by_its_inverse():
    torch.manual_seed(0)
    counts = torch.zeros(10)
    for _ in range(600):
        change = add_for_some(torch.zeros(10, 1, 1), lambda states: states + 1, 0.3).flatten()
        assert change.unique().tolist() == pytest.approx([0, 10 / 7]) and (change > 0).sum() == 7
        counts += change
    assert counts / 600 == pytest.approx(torch.ones(10).tolist(), abs=0.12)  # five standard deviations of 0.027


@pytest.mark.parametrize("backbone", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_layers_compute_the_kept_samples_alone(backbone):
    module = make_backbone(0.3, backbone)
    assert computed(module, 10) == [7] * 4
    assert computed(module.eval(), 10) == [10] * 4


def test_rates_up_to_a_tenth_and_none_stay_as_they_were():
    assert computed(make_backbone(0.3, drop_path_schedule="linear"), 20) == [20, 20, 16, 14]
    assert computed(make_backbone(0.1), 10) == computed(make_backbone(0.0), 10) == [10] * 4


def test_a_single_sample_is_never_dropped():
    backbone, plain = make_backbone(0.9), make_backbone(0.0)
    images = torch.randn(1, 3, 16, 16)
    assert torch.allclose(backbone(images).last_hidden_state, plain(images).last_hidden_state, atol=1e-6)


def test_evaluation_and_parameters_are_those_of_the_library():
    backbone, plain = make_backbone(0.5).eval(), make_backbone(0.0).eval()
    images = torch.randn(5, 3, 16, 16)
    assert torch.equal(backbone(images).last_hidden_state, plain(images).last_hidden_state)
    assert backbone.state_dict().keys() == plain.state_dict().keys()


def test_a_sample_changes_as_a_layer_alone_would_change_it():
    """Each sample is as it was, or has one or both branches, scaled; and each gets a gradient through what is computed
    of it."""
    layer = layers_of(make_backbone(0.5))[0]
    states = torch.randn(6, 5, 128, requires_grad=True)
    outputs = layer(states)
    first = {False: states, True: states + 2 * layer.layer_scale1(layer.attention(layer.norm1(states))[0])}
    expected = []
    for middle in first.values():
        expected += [middle, middle + 2 * layer.layer_scale2(layer.mlp(layer.norm2(middle)))]
    matches = torch.stack([torch.isclose(outputs, each, atol=1e-5).all(dim=(1, 2)) for each in expected])
    assert matches.any(dim=0).all()
    assert (matches[0] | matches[1]).sum() == 3  # without the attention
    outputs.sum().backward()
    assert (states.grad != 0).any(dim=(1, 2)).all()


def test_activation_checkpointing_draws_the_same_samples_again():
    gradients = []
    for checkpointed in (False, True):
        backbone = make_backbone(0.5)
        if checkpointed:
            backbone.activation_checkpointing_enable()
        torch.manual_seed(1)
        backbone(torch.ones(6, 3, 16, 16)).last_hidden_state.square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert all(map(torch.allclose, *gradients))


def test_one_graph_serves_all_draws():
    torch._dynamo.reset()
    counter = CompileCounter()
    backbone = make_backbone(0.3)
    compiled = torch.compile(backbone, backend=counter, fullgraph=True)
    outputs = [compiled(torch.ones(6, 3, 16, 16)).last_hidden_state for _ in range(3)]
    assert counter.frame_count == 1 and not torch.equal(outputs[0], outputs[1])
