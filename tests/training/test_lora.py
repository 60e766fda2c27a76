import pytest
import torch
from peft.tuners.lora import LoraLayer

from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining
from eqcohvit.hub.configuration_eqcohvit import FAMILIES
from eqcohvit.training.lora import add_lora, merged


def make_model(backbone_type="dinov2", **backbone_kwargs):
    torch.manual_seed(0)
    backbone = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **backbone_kwargs}
    config = EqCohViTConfig.from_preset(
        "micro",
        16,
        8,
        backbone_type=backbone_type,
        backbone_kwargs=backbone,
        feature_dim=12,
        equivariant_dim=4,
        decoder_dim=16,
    )
    return EqCohViTForPreTraining(config).eval()


def shake_adapters(model):
    """Adapters start at 0: at that a mix-up would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("backbone_type", FAMILIES)
def test_adapters_change_nothing_at_first_and_are_all_that_is_trained_in_the_backbone(backbone_type):
    model, x = make_model(backbone_type), torch.randn(2, 3, 16, 16)
    before = model.eqcohvit(x).invariant_features
    add_lora(model.eqcohvit.backbone, rank=2)
    torch.testing.assert_close(model.eqcohvit(x).invariant_features, before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if ".lora_" not in n and not n.endswith("mask_token")} == {
        name for name, _ in model.named_parameters() if not name.startswith("eqcohvit.backbone.")
    }
    adapted = [name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    assert len(adapted) == 12 and all(
        name.startswith("eqcohvit.backbone.") for name in adapted
    )  # q, k, v, o and two of the MLP, twice


def test_masked_patches_get_a_trained_token():
    model = make_model(use_mask_token=True)
    add_lora(model.eqcohvit.backbone, rank=2)
    assert model.eqcohvit.backbone.embeddings.mask_token.requires_grad
    assert not model.eqcohvit.backbone.embeddings.cls_token.requires_grad


@pytest.mark.parametrize("backbone_type", ["dinov2", "vit", "dinov3_vit"])
def test_merged_model_is_a_plain_one_that_computes_the_same(backbone_type, tmp_path):
    model, x = make_model(backbone_type), torch.randn(2, 3, 16, 16)
    names, plain = set(model.state_dict()), model.eqcohvit(x).invariant_features
    add_lora(model.eqcohvit.backbone, rank=2)
    shake_adapters(model)
    expected = model.eqcohvit(x)
    assert (expected.invariant_features - plain).abs().max() > 1e-2
    result = merged(model)
    assert set(result.state_dict()) == names and all(p.requires_grad for p in result.eqcohvit.parameters())
    result.save_pretrained(tmp_path)
    loaded = EqCohViTForPreTraining.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.eqcohvit(x).invariant_features, expected.invariant_features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        loaded.eqcohvit(x).equivariant_features, expected.equivariant_features, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        model.eqcohvit(x).invariant_features, expected.invariant_features
    )  # the run goes on with its adapters


def test_model_without_adapters_is_its_own_merged_model():
    model = make_model()
    assert merged(model) is model
