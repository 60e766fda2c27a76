"""Models as a user of transformers handles them: loading, saving, attention, memory savings, half precision, other
image sizes."""

import json

import pytest
import torch
from tests.hub.hub_tools import seeded, tiny_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForPreTraining, ViTConfig, ViTModel

from eqcohvit import (
    EqCohViTBackbone,
    EqCohViTConfig,
    EqCohViTForImageClassification,
    EqCohViTForPreTraining,
    EqCohViTModel,
)
from eqcohvit.hub.configuration_eqcohvit import FAMILIES
from eqcohvit.hub.modeling_eqcohvit import pool_tokens, split_features

ALL_CLASSES = [EqCohViTModel, EqCohViTForPreTraining, EqCohViTForImageClassification, EqCohViTBackbone]
BACKBONES = sorted(FAMILIES)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(3, 3, 32, 32)


def main_output(model, x):
    """The tensor that a class is used for."""
    with torch.no_grad():
        outputs = model(x)
    for name in ("reconstructions", "logits", "feature_maps", "equivariant_features"):
        if name in outputs:
            return outputs[name][-1] if name == "feature_maps" else outputs[name]
    raise AssertionError(f"no main output in {list(outputs)}")


# ------------------------------------------------------------------------------------------------------------- outputs


def test_output_fields_have_the_documented_order_and_shapes(x):
    outputs = seeded(EqCohViTModel, tiny_config())(x, output_hidden_states=True)
    assert list(outputs) == [
        "last_hidden_state",
        "pooler_output",
        "invariant_features",
        "equivariant_features",
        "hidden_states",
    ]
    assert [tuple(outputs[i].shape) for i in range(4)] == [(3, 17, 32), (3, 32), (3, 17, 14), (3, 17, 10)]
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, 17, 32)] * 3
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])


def test_parts_are_the_first_and_last_dimensions_of_the_linear_head(x):
    model = seeded(EqCohViTModel, tiny_config())
    outputs = model(x)
    features = outputs.last_hidden_state @ model.feature_head.weight.T + model.feature_head.bias
    torch.testing.assert_close(outputs.invariant_features, features[..., :14])
    torch.testing.assert_close(outputs.equivariant_features, features[..., 14:])
    assert all(
        torch.equal(a, b)
        for a, b in zip(split_features(features, 10), (features[..., :14], features[..., 14:]), strict=True)
    )


def test_split_takes_all_or_nothing_and_no_more():
    features = torch.arange(6.0).reshape(2, 3)
    whole, nothing = features, torch.empty(2, 0)
    assert all(torch.equal(a, b) for a, b in zip(split_features(features, 0), (whole, nothing), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(split_features(features, 3), (nothing, whole), strict=True))
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"must lie between 0 and the features' 3 dimensions, got {wrong}"):
            split_features(features, wrong)


def test_return_dict_false_gives_the_same_tensors_as_a_tuple(x):
    model = seeded(EqCohViTModel, tiny_config())
    for one, other in zip(model(x, return_dict=False), model(x).to_tuple(), strict=True):
        assert torch.equal(one, other)


def test_pool_tokens_matches_hand_computed_values():
    tokens = torch.arange(12.0).reshape(1, 4, 3)  # one prefix token, three patches
    assert pool_tokens(tokens, 1, "cls").tolist() == [[0, 1, 2]]
    assert pool_tokens(tokens, 1, "mean").tolist() == [[6, 7, 8]]
    assert pool_tokens(tokens, 0, "cls").tolist() == [[4.5, 5.5, 6.5]]
    assert pool_tokens(tokens, 1, "cls_mean").tolist() == [[0, 1, 2, 6, 7, 8]]
    assert pool_tokens(tokens, 1, "patches").shape == (1, 3, 3)
    with pytest.raises(ValueError, match="unknown tokens 'first'; known: cls, mean"):
        pool_tokens(tokens, 1, "first")


@pytest.mark.parametrize("model_type", BACKBONES)
def test_every_backbone_family_runs_and_reads_the_right_patches(model_type, x):
    """Only the tokens after the prefix change places with the image's patches."""
    config = tiny_config(model_type)
    model = seeded(EqCohViTModel, config)
    outputs = model(x)
    assert outputs.invariant_features.shape == (3, config.num_prefix_tokens + 16, 14)
    assert torch.isfinite(outputs.equivariant_features).all()
    prefix = {"deit": 2, "ijepa": 0, "dinov2_with_registers": 5}.get(model_type, 1)
    assert config.num_prefix_tokens == prefix


def test_changing_one_patch_changes_its_own_token_most(x):
    model = seeded(EqCohViTModel, tiny_config())
    y = x.clone()
    y[:, :, 8:16, 16:24] += 1.0  # patch (1, 2) of the 4 x 4 grid
    with torch.no_grad():
        change = (model(y).equivariant_features - model(x).equivariant_features)[:, 1:].norm(dim=-1)
    assert change.mean(dim=0).argmax().item() == 1 * 4 + 2


def test_split_costs_less_than_three_percent_of_the_backbone():
    """Multiply-adds of ViT-S/16 at 224 pixels; a linear layer is all that the split adds."""
    with torch.device("meta"):
        model, image = EqCohViTModel(EqCohViTConfig.from_preset("small")).eval(), torch.zeros(1, 3, 224, 224)
    counts = []
    for module in (model.backbone, model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(image)
        counts.append(counter.get_total_flops())
    assert 1 < counts[1] / counts[0] < 1.03


def test_batch_equals_single_images(x):
    for model_class in ALL_CLASSES:
        model = seeded(model_class, tiny_config())
        singles = torch.cat([main_output(model, image[None]) for image in x])
        torch.testing.assert_close(main_output(model, x), singles, rtol=0, atol=1e-5)


def test_two_calls_give_the_same_bits(x):
    model = seeded(EqCohViTForPreTraining, tiny_config())
    assert torch.equal(main_output(model, x), main_output(model, x))


# -------------------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("model_type", BACKBONES)
def test_save_and_load_are_bit_exact_for_every_backbone(model_type, x, tmp_path):
    model = seeded(EqCohViTForPreTraining, tiny_config(model_type))
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(main_output(model, x), main_output(loaded, x))
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(model.eqcohvit(x).equivariant_features, base(x).equivariant_features)


def test_one_checkpoint_serves_all_classes(folder, pretrained, x):
    for model_class in ALL_CLASSES:
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
        assert all(key.startswith("classifier.") for key in info["missing_keys"]), model_class
        assert not any(parameter.is_meta for parameter in model.parameters())
    backbone = EqCohViTBackbone.from_pretrained(folder)
    tokens = pretrained.eqcohvit(x).last_hidden_state[:, 1:]
    torch.testing.assert_close(backbone(x).feature_maps[0].flatten(2).transpose(1, 2), tokens)


def test_only_safetensors_are_written_and_shards_load(tmp_path, x):
    model = seeded(EqCohViTForPreTraining, tiny_config())
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1 and not list(tmp_path.glob("*.bin"))
    assert set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values()) == {
        s.name for s in shards
    }
    assert torch.equal(main_output(model, x), main_output(AutoModelForPreTraining.from_pretrained(tmp_path), x))


def test_device_map_auto_loads_the_same_weights(folder, x):
    model = AutoModel.from_pretrained(folder, device_map="auto")
    assert torch.equal(main_output(model.cpu(), x), main_output(AutoModel.from_pretrained(folder), x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_and_stays_near_float32(folder, dtype, x):
    model = AutoModelForPreTraining.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    half, full = main_output(model, x), main_output(AutoModelForPreTraining.from_pretrained(folder), x)
    assert half.dtype == dtype
    assert (half.float() - full).norm() / full.norm() < {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]


def test_model_is_built_on_the_meta_device_without_memory(x):
    with torch.device("meta"):
        model = EqCohViTForPreTraining(tiny_config())
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu").init_weights()
    assert torch.isfinite(main_output(model, x)).all()


def test_state_dict_of_random_weights_starts_with_the_documented_scales():
    torch.manual_seed(0)
    model = EqCohViTForPreTraining(EqCohViTConfig.from_preset("micro"))
    assert model.eqcohvit.feature_head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.eqcohvit.feature_head.bias.any()
    by_empty_checkpoint = EqCohViTForPreTraining.from_pretrained(None, config=model.config, state_dict={})
    for (name, one), other in zip(model.state_dict().items(), by_empty_checkpoint.state_dict().values(), strict=True):
        assert (
            one.float().std().item() == pytest.approx(other.float().std().item(), rel=0.3, abs=1e-3) or one.numel() < 64
        ), name


# ---------------------------------------------------------------------------------------------- attention, size, memory


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_attention_implementations_agree_with_eager(folder, implementation, x):
    model = AutoModel.from_pretrained(folder, attn_implementation="eager")
    eager = main_output(model, x)
    model.set_attn_implementation(implementation)
    assert model.backbone.config._attn_implementation == implementation
    torch.testing.assert_close(main_output(model, x), eager, rtol=1e-4, atol=1e-4)
    assert (
        AutoModel.from_pretrained(folder, attn_implementation=implementation).config._attn_implementation
        == implementation
    )


def test_output_attentions_are_distributions(folder, x):
    attentions = AutoModel.from_pretrained(folder, attn_implementation="eager")(x, output_attentions=True).attentions
    assert [tuple(layer.shape) for layer in attentions] == [(3, 4, 17, 17)] * 2
    torch.testing.assert_close(attentions[0].sum(dim=-1), torch.ones(3, 4, 17))


@pytest.mark.parametrize("model_type", BACKBONES)
def test_other_image_sizes_run_with_interpolated_positions(model_type):
    model = seeded(EqCohViTForPreTraining, tiny_config(model_type))
    outputs = model(torch.randn(2, 3, 48, 64), torch.randn(2, 3, 48, 64))
    assert outputs.reconstructions.shape == (2, 2, 3, 48, 64)
    assert outputs.invariant_features.shape[1] == model.config.num_prefix_tokens + 6 * 8


def test_checkpointed_gradients_equal_the_usual_ones(x):
    gradients = []
    for checkpointing in (False, True):
        model = seeded(EqCohViTForPreTraining, tiny_config()).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model(x).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("model_type", ["dinov2", "dinov3_vit", "vit", "ijepa"])
def test_every_parameter_gets_a_gradient(model_type, x):
    """Also the mask token of a backbone that has one, which no image uses here: DDP wants a gradient of each
    parameter."""
    kwargs = {"use_mask_token": True} if model_type == "dinov2" else {}
    config = tiny_config(model_type, backbone_kwargs=kwargs, num_labels=3)
    labels = torch.tensor([0, 1, 2])
    for model_class, inputs in [(EqCohViTForPreTraining, {}), (EqCohViTForImageClassification, {"labels": labels})]:
        model = seeded(model_class, config).train()
        model(x, **inputs).loss.backward()
        without = [
            name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
        ]
        assert not without, (model_class, without)


def test_mask_token_stands_in_for_masked_patches(x):
    model = seeded(EqCohViTModel, tiny_config(backbone_kwargs={"use_mask_token": True}))
    mask = torch.zeros(3, 16, dtype=torch.bool)
    assert torch.equal(model(x, bool_masked_pos=mask).last_hidden_state, model(x).last_hidden_state)
    mask[:, 6] = True
    y = x.clone()
    y[:, :, 8:16, 16:24] = 7.0  # patch 6, hidden by the mask
    assert torch.equal(
        model(x, bool_masked_pos=mask).last_hidden_state, model(y, bool_masked_pos=mask).last_hidden_state
    )
    with pytest.raises(ValueError, match="needs a backbone with a mask token"):
        seeded(EqCohViTModel, tiny_config())(x, bool_masked_pos=mask)


# ---------------------------------------------------------------------------------------------------------- pretraining


def test_loss_is_the_mean_squared_error_of_the_states(x):
    model = seeded(EqCohViTForPreTraining, tiny_config())
    states = torch.randn(3, 2, 3, 32, 32)
    outputs = model(x, x.flip(-1), intermediates=states)
    errors = (outputs.reconstructions - states).square().mean(dim=(2, 3, 4))
    torch.testing.assert_close(outputs.intermediate_losses, errors)
    torch.testing.assert_close(outputs.loss, errors.mean())
    assert model(x, x.flip(-1)).loss is None


def test_single_view_is_the_identity_path(x):
    model = seeded(EqCohViTForPreTraining, tiny_config())
    single, double = model(x), model(x, x, intermediates=x[:, None].expand(3, 2, 3, 32, 32))
    torch.testing.assert_close(single.loss, double.loss)
    torch.testing.assert_close(single.reconstructions, double.reconstructions)


def test_reconstruction_reads_only_the_equivariant_part(x):
    model = seeded(EqCohViTForPreTraining, tiny_config())
    model(x, x.flip(-1), intermediates=torch.randn(3, 2, 3, 32, 32)).loss.backward()
    gradient = model.eqcohvit.feature_head.weight.grad
    assert not gradient[:14].any() and gradient[14:].any(dim=1).all()


@pytest.mark.parametrize("context", ["none", "cls", "mean"])
def test_decoder_context_reaches_every_patch_only_where_asked(context, x):
    model = seeded(EqCohViTForPreTraining, tiny_config(decoder_context=context))
    features = model.eqcohvit(x).equivariant_features.detach()
    changed = features.clone()
    changed[:, 0] += 1.0  # the CLS token
    changed[:, 1] += 1.0 if context == "mean" else 0.0
    same = model.reconstruct(features, features, (32, 32))
    other = model.reconstruct(changed, changed, (32, 32))
    far_corner = (same - other).abs()[..., -8:, -8:].amax().item()
    assert (far_corner > 1e-4) == (context != "none")


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (None, "must be a float tensor of shape .*, got NoneType"),
        ("photo.jpg", "must be a float tensor of shape .*, got str"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(3, 32, 32), r"must have the shape \(batch_size, 3, height, width\), got \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), r"got \(1, 1, 32, 32\)"),
        (torch.zeros(1, 3, 30, 32), "multiples of the patch size 8, got 30 x 32"),
        (torch.zeros(1, 3, 0, 32), "multiples of the patch size 8, got 0 x 32"),
    ],
)
def test_wrong_pixel_values_are_named(pixel_values, message):
    model = EqCohViTModel(tiny_config())
    with pytest.raises(ValueError, match=message):
        model(pixel_values)


def test_wrong_views_are_named(x):
    model = EqCohViTForPreTraining(tiny_config())
    with pytest.raises(ValueError, match=r"one shape, got \(3, 3, 32, 32\) and \(2, 3, 32, 32\)"):
        model(x, x[:2])
    with pytest.raises(ValueError, match=r"must have the shape \(3, 2, 3, 32, 32\), got \(3, 1, 3, 32, 32\)"):
        model(x, x, intermediates=torch.zeros(3, 1, 3, 32, 32))
    with pytest.raises(ValueError, match="pixel_values_end .* is missing"):
        model(x, intermediates=torch.zeros(3, 2, 3, 32, 32))


def test_wrong_checkpoints_are_named(tmp_path, folder):
    vit = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(
        ValueError, match="expected a checkpoint of model_type 'eqcohvit', found 'vit'; scripts/convert_checkpoint.py"
    ):
        EqCohViTModel.from_pretrained(tmp_path / "vit")
    tiny_config().save_pretrained(tmp_path / "empty")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        AutoModel.from_pretrained(tmp_path / "empty")
    with pytest.raises(
        RuntimeError, match=r"expected feature_head.bias of shape \(30,\), found \(24,\) \(2 such tensors\)"
    ):
        AutoModel.from_pretrained(folder, feature_dim=30)
    assert (
        AutoModel.from_pretrained(folder, feature_dim=30, ignore_mismatched_sizes=True).feature_head.out_features == 30
    )
