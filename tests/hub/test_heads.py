"""EqCohViTBackbone inside the dense heads of transformers: forward, backward, save and load."""

import pytest
import torch
from hub_tools import seeded, tiny_config
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DetrConfig,
    DetrForObjectDetection,
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    RTDetrConfig,
    RTDetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VitMatteConfig,
    VitMatteForImageMatting,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

from eqcohvit import EqCohViTBackbone, EqCohViTModel

LAYERS = {"num_hidden_layers": 4}
FOUR_STAGES = {"backbone_kwargs": LAYERS, "out_indices": [1, 2, 3, 4]}
TOKENS = {**FOUR_STAGES, "reshape_hidden_states": False}
DETR = {"num_queries": 5, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_labels": 3}
DETR |= {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
DEPTH = {"neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16, "reassemble_factors": [4, 2, 1, 0.5]}
DETR_LABELS = [{"class_labels": torch.tensor([1, 2]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]])}] * 2
MASKS = {"mask_labels": [torch.ones(2, 32, 32)] * 2, "class_labels": [torch.tensor([0, 1])] * 2}
MASK_HEAD = {"num_labels": 3, "num_queries": 5}


def rt_detr(config):
    sizes = {"encoder_hidden_dim": 32, "encoder_in_channels": [32, 32, 32], "decoder_in_channels": [32, 32, 32], "encoder_ffn_dim": 32}
    sizes |= {"d_model": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "encoder_attention_heads": 2}
    sizes |= {"num_queries": 10, "num_labels": 3, "num_denoising": 0, "feat_strides": [8, 16, 32], "encode_proj_layers": [2]}
    return RTDetrForObjectDetection(RTDetrConfig(backbone_config=config, backbone=None, freeze_backbone_batch_norms=False, **sizes))


def mask2former(config):
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32}
    sizes |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "train_num_points": 32}
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=config, **MASK_HEAD, **sizes))


def maskformer(config):
    decoder = DetrConfig(**{key: value for key, value in DETR.items() if key != "num_labels"})
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32}
    return MaskFormerForInstanceSegmentation(MaskFormerConfig(backbone_config=config, decoder_config=decoder, num_labels=3, **sizes))


def upernet_head(config):
    sizes = {"hidden_size": 16, "auxiliary_in_channels": 32, "auxiliary_channels": 8, "num_labels": 3}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, **sizes))


def detr(model_class, config_class, **more):
    no_timm = {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False}
    return lambda config: model_class(config_class(backbone_config=config, **no_timm, **DETR, **more))


def dpt(config):
    sizes = {"is_hybrid": False, "neck_hidden_sizes": DEPTH["neck_hidden_sizes"], "fusion_hidden_size": 16, "readout_type": "project"}
    return DPTForDepthEstimation(DPTConfig(backbone_config=config, hidden_size=32, reassemble_factors=DEPTH["reassemble_factors"], **sizes))


def depth_anything(config):
    sizes = {"patch_size": 8, "reassemble_hidden_size": 32, "head_hidden_size": 8}
    return DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=config, **sizes, **DEPTH))


def zoe_depth(config):
    sizes = {"bottleneck_features": 16, "bin_embedding_dim": 16, "num_attractors": [4, 2, 2, 2], "num_relative_features": 8}
    sizes |= {"backbone_hidden_size": 32, "bin_configurations": [{"n_bins": 8, "min_depth": 0.1, "max_depth": 10.0, "name": "nyu"}]}
    return ZoeDepthForDepthEstimation(ZoeDepthConfig(backbone_config=config, **sizes, **DEPTH))


def vit_pose(config):
    return VitPoseForPoseEstimation(VitPoseConfig(backbone_config=config, num_labels=5))


def vit_matte(config):
    sizes = {"hidden_size": 32, "fusion_hidden_sizes": [32, 16, 8, 8], "convstream_hidden_sizes": [8, 8, 16]}
    return VitMatteForImageMatting(VitMatteConfig(backbone_config=config, **sizes))


PYRAMID = {"backbone_kwargs": LAYERS, "out_indices": [2, 3, 4], "scale_factors": [1, 0.5, 0.25]}
SEGMENTATION = {"labels": torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(0))}
HEADS = {
    "upernet": (upernet_head, FOUR_STAGES, SEGMENTATION, "logits"),
    "upernet-pyramid": (upernet_head, {**FOUR_STAGES, "scale_factors": [4, 2, 1, 0.5]}, SEGMENTATION, "logits"),
    "dpt": (dpt, TOKENS, {}, "predicted_depth"),
    "depth-anything": (depth_anything, TOKENS, {}, "predicted_depth"),
    "zoedepth": (zoe_depth, TOKENS, {}, "predicted_depth"),
    "detr": (detr(DetrForObjectDetection, DetrConfig), {}, {"labels": DETR_LABELS}, "logits"),
    "conditional-detr": (detr(ConditionalDetrForObjectDetection, ConditionalDetrConfig), {}, {"labels": DETR_LABELS}, "logits"),
    "deformable-detr": (
        detr(DeformableDetrForObjectDetection, DeformableDetrConfig, num_feature_levels=3),
        PYRAMID,
        {"labels": DETR_LABELS},
        "logits",
    ),
    "rt-detr": (rt_detr, PYRAMID, {"labels": DETR_LABELS}, "logits"),
    "mask2former": (mask2former, {**FOUR_STAGES, "scale_factors": [4, 2, 1, 0.5]}, MASKS, "class_queries_logits"),
    "maskformer": (maskformer, {**FOUR_STAGES, "scale_factors": [4, 2, 1, 0.5]}, MASKS, "class_queries_logits"),
    "vitmatte": (vit_matte, {"backbone_kwargs": {"num_channels": 4, "patch_size": 16}}, {}, "alphas"),
    "vitpose": (
        vit_pose,
        {"reshape_hidden_states": False, "include_prefix_tokens": False, "backbone_kwargs": {"image_size": [32, 32], "patch_size": [8, 8]}},
        {},
        "heatmaps",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_head_runs_trains_saves_and_loads(name, tmp_path):
    build, kwargs, targets, output = HEADS[name]
    torch.manual_seed(0)
    config = tiny_config(**kwargs)
    model = build(config)
    assert any(isinstance(module, EqCohViTBackbone) for module in model.modules())
    x = torch.randn(2, config.num_channels, 32, 32)

    model.train()
    outputs = model(x, **targets)
    loss = outputs.loss if targets else outputs[output].square().mean()
    loss.backward()
    backbone = next(module for module in model.modules() if isinstance(module, EqCohViTBackbone))
    assert all(parameter.grad.any() for parameter in backbone.backbone.embeddings.patch_embeddings.parameters())

    model.eval()
    with torch.no_grad():
        before = model(x)[output]
        model.save_pretrained(tmp_path)
        after = type(model).from_pretrained(tmp_path).eval()(x)[output]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_head_starts_from_pretrained_weights(folder):
    backbone = EqCohViTBackbone.from_pretrained(folder, out_indices=[1, 2])
    sizes = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone.config, **sizes)).eval()
    model.backbone.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 32, 32)
    for one, other in zip(model.backbone(x).feature_maps, backbone(x).feature_maps, strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------------------------------------------- the maps themselves


def test_maps_keep_the_grid_of_the_patches():
    config = tiny_config(out_indices=[2])
    torch.manual_seed(0)
    model, x = seeded(EqCohViTModel, config), torch.randn(2, 3, 32, 48)
    backbone = EqCohViTBackbone(config).eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    feature_map = backbone(x).feature_maps[0]
    tokens = model(x).last_hidden_state[:, 1:]
    assert feature_map.shape == (2, 32, 4, 6)
    torch.testing.assert_close(feature_map[:, :, 1, 2], tokens[:, 1 * 6 + 2])


def test_scale_factors_resize_each_map():
    model = seeded(EqCohViTBackbone, tiny_config(out_indices=[0, 1, 2], scale_factors=[2, 1, 0.5]))
    maps = model(torch.randn(1, 3, 32, 32)).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 32, 8, 8), (1, 32, 4, 4), (1, 32, 2, 2)]
    plain = seeded(EqCohViTBackbone, tiny_config(out_indices=[0, 1, 2]))
    x = torch.ones(1, 3, 32, 32)
    quarter = plain(x).feature_maps[2].unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(model(x).feature_maps[2], quarter)  # half the size is the mean of 2 x 2
    wrong = seeded(EqCohViTBackbone, tiny_config(out_indices=[1, 2], scale_factors=[2]))
    with pytest.raises(ValueError, match=r"scale_factors needs one number for each of \['stage1', 'stage2'\], got \[2\]"):
        wrong(x)


@pytest.mark.parametrize(("include", "tokens"), [(True, 17), (False, 16)])
def test_token_sequences_with_and_without_prefix(include, tokens):
    model = seeded(EqCohViTBackbone, tiny_config(reshape_hidden_states=False, include_prefix_tokens=include))
    assert model(torch.randn(1, 3, 32, 32)).feature_maps[0].shape == (1, tokens, 32)


def test_layer_norm_is_applied_only_where_asked():
    x = torch.randn(1, 3, 32, 32)
    normed = seeded(EqCohViTBackbone, tiny_config())
    raw = seeded(EqCohViTBackbone, tiny_config(apply_layernorm=False))
    tokens = raw(x).feature_maps[0].flatten(2).transpose(1, 2)
    expected = normed.backbone.layernorm(tokens).transpose(1, 2).reshape(1, 32, 4, 4)
    torch.testing.assert_close(normed(x).feature_maps[0], expected)


def test_all_stages_can_be_asked_for_as_hidden_states():
    model = seeded(EqCohViTBackbone, tiny_config(out_features=["stem", "stage2"]))
    outputs = model(torch.randn(1, 3, 32, 32), output_hidden_states=True)
    assert len(outputs.feature_maps) == 2 and len(outputs.hidden_states) == 3
    assert model(torch.randn(1, 3, 32, 32)).hidden_states is None
