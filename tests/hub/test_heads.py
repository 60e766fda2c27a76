"""EqCohViTBackbone inside the dense heads of transformers: forward, backward, save and load."""

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from tests.hub.hub_tools import seeded, tiny_config
from transformers import DetrConfig, UperNetConfig, UperNetForSemanticSegmentation

from eqcohvit import EqCohViTBackbone, EqCohViTModel


@dataclasses.dataclass(frozen=True)
class Head:
    """A model of transformers that takes a custom backbone, in a tiny size."""

    model: str
    sizes: dict[str, Any]
    backbone: dict[str, Any] = dataclasses.field(default_factory=dict)  # of our configuration
    targets: dict[str, Any] = dataclasses.field(default_factory=dict)  # in training only
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)  # in addition to the images
    output: str = "logits"


def ids(*shape):
    return torch.arange(2, 2 + torch.Size(shape).numel()).reshape(shape)


# Three maps of the strides 8, 16 and 32 or, with the patches' own stride second, four from 4 to 32; images of 64
# pixels, patches of 8.
LAYERS = {"num_hidden_layers": 4}
FOUR_MAPS = {"backbone_kwargs": LAYERS, "out_indices": [1, 2, 3, 4]}
TOKENS = {**FOUR_MAPS, "reshape_hidden_states": False}
THREE_SCALES = {"backbone_kwargs": LAYERS, "out_indices": [2, 3, 4], "scale_factors": [1, 0.5, 0.25]}
FOUR_SCALES = {**FOUR_MAPS, "scale_factors": [2, 1, 0.5, 0.25]}

BOXES = [
    {"class_labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]])}
] * 2
MASKS = {"mask_labels": [torch.ones(2, 64, 64)] * 2, "class_labels": [torch.tensor([0, 1])] * 2}
CLASSES = {"labels": torch.arange(2 * 64 * 64).reshape(2, 64, 64) % 3}

DEPTH = {"neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16, "reassemble_factors": [4, 2, 1, 0.5]}
ANYTHING = {**DEPTH, "patch_size": 8, "reassemble_hidden_size": 32, "head_hidden_size": 8}
TWO_HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
DETR = {
    "num_queries": 5,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    **TWO_HEADS,
}
RT_DETR = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [32] * 3,
    "decoder_in_channels": [32] * 3,
    "encoder_ffn_dim": 32,
    "d_model": 32,
}
RT_DETR |= {
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "num_queries": 10,
    "num_labels": 3,
    "num_denoising": 0,
    **TWO_HEADS,
}
RT_DETR |= {"freeze_backbone_batch_norms": False}
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CLIP = {
    **BERT,
    "model_type": "clip_text_model",
    "hidden_size": 16,
    "projection_dim": 16,
    "vocab_size": 50,
    "max_position_embeddings": 8,
}
GROUNDING = {**DETR, "d_model": 32, "num_feature_levels": 3, "text_config": {**BERT, "vocab_size": 1100}}
PHRASES = {"input_ids": torch.tensor([[101, 5, 1012, 7, 1012, 102]] * 2)}  # "5. 7." between BERT's marks
MASK_FORMER = {
    "num_labels": 3,
    "num_queries": 5,
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "decoder_layers": 2,
}
MASK_FORMER |= {
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "num_attention_heads": 2,
    "train_num_points": 32,
}
ONE_FORMER = {
    **MASK_FORMER,
    "conv_dim": 64,
    "mask_dim": 64,
    "hidden_dim": 64,
    "decoder_layers": 3,
    "query_dec_layers": 1,
    "dropout": 0.0,
}
ONE_FORMER |= {
    "text_encoder_width": 64,
    "text_encoder_num_layers": 1,
    "text_encoder_vocab_size": 50,
    "text_encoder_context_length": 7,
}
ONE_FORMER |= {"task_seq_len": 7, "text_encoder_n_ctx": 2, "text_encoder_proj_layers": 1, "is_training": True}
OM_DET = {
    "num_queries": 5,
    "decoder_num_layers": 2,
    "encoder_hidden_dim": 32,
    "decoder_hidden_dim": 32,
    "class_embed_dim": 16,
}
OM_DET |= {
    "text_config": CLIP,
    "text_projection_in_dim": 16,
    "text_projection_out_dim": 16,
    "task_encoder_hidden_dim": 16,
}
OM_DET |= {
    "encoder_in_channels": [32] * 3,
    "vision_features_channels": [32] * 3,
    "encoder_dim_feedforward": 32,
    "cache_size": 4,
}
OM_DET |= {"decoder_dim_feedforward": 32, "decoder_num_heads": 2, "apply_layernorm_after_vision_backbone": False}
QUERIES = {
    "classes_input_ids": ids(4, 5),
    "classes_attention_mask": torch.ones(4, 5, dtype=torch.long),
    "tasks_input_ids": ids(2, 5),
}
QUERIES |= {"tasks_attention_mask": torch.ones(2, 5, dtype=torch.long), "classes_structure": torch.tensor([2, 2])}
ZOE = {
    **DEPTH,
    "bottleneck_features": 16,
    "bin_embedding_dim": 16,
    "num_attractors": [4, 2, 2, 2],
    "num_relative_features": 8,
}
ZOE |= {
    "backbone_hidden_size": 32,
    "bin_configurations": [{"n_bins": 8, "min_depth": 0.1, "max_depth": 10.0, "name": "nyu"}],
}
MATTE = {"hidden_size": 32, "fusion_hidden_sizes": [32, 16, 8, 8], "convstream_hidden_sizes": [8, 8, 16]}
POSE = {
    "reshape_hidden_states": False,
    "include_prefix_tokens": False,
    "backbone_kwargs": {"image_size": [64, 64], "patch_size": [8, 8]},
}

UPER_NET = {"hidden_size": 16, "auxiliary_in_channels": 32, "num_labels": 3}
HEADS = [
    # segmentation and matting
    Head("UperNetForSemanticSegmentation", UPER_NET, FOUR_MAPS, CLASSES),
    Head("UperNetForSemanticSegmentation", UPER_NET, FOUR_SCALES, CLASSES),
    Head("Mask2FormerForUniversalSegmentation", MASK_FORMER, FOUR_SCALES, MASKS, output="class_queries_logits"),
    Head("MaskFormerForInstanceSegmentation", {"fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 3,
         "decoder_config": DetrConfig(**DETR, d_model=32)}, FOUR_SCALES, MASKS, output="class_queries_logits"),
    Head("OneFormerForUniversalSegmentation", ONE_FORMER, FOUR_SCALES, MASKS,
         {"task_inputs": ids(2, 7), "text_inputs": ids(2, 3, 7)}, "class_queries_logits"),
    Head("VitMatteForImageMatting", MATTE, {"backbone_kwargs": {"num_channels": 4, "patch_size": 16}}, output="alphas"),
    # depth and pose
    Head("DPTForDepthEstimation", {**DEPTH, "is_hybrid": False, "hidden_size": 32, "readout_type": "project"}, TOKENS,
         output="predicted_depth"),
    Head("DepthAnythingForDepthEstimation", ANYTHING, TOKENS, output="predicted_depth"),
    Head("PromptDepthAnythingForDepthEstimation", ANYTHING, TOKENS, output="predicted_depth"),
    Head("ZoeDepthForDepthEstimation", ZOE, TOKENS, output="predicted_depth"),
    Head("VitPoseForPoseEstimation", {"num_labels": 5}, POSE, output="heatmaps"),
    # detection
    Head("DetrForObjectDetection", {**DETR, "d_model": 32, "num_labels": 3}, {}, {"labels": BOXES}),
    Head("ConditionalDetrForObjectDetection", {**DETR, "d_model": 32, "num_labels": 3}, {}, {"labels": BOXES}),
    Head("DabDetrForObjectDetection", {**DETR, "hidden_size": 32, "num_labels": 3}, {}, {"labels": BOXES}),
    Head("TableTransformerForObjectDetection", {**DETR, "d_model": 32, "num_labels": 3}, {}, {"labels": BOXES}),
    Head("DeformableDetrForObjectDetection", {**DETR, "d_model": 32, "num_labels": 3, "num_feature_levels": 3},
         THREE_SCALES, {"labels": BOXES}),
    Head("RTDetrForObjectDetection", RT_DETR, THREE_SCALES, {"labels": BOXES}),
    Head("RTDetrV2ForObjectDetection", RT_DETR, THREE_SCALES, {"labels": BOXES}),
    Head("DFineForObjectDetection", {**RT_DETR, "lqe_hidden_dim": 8}, THREE_SCALES, {"labels": BOXES}),
    Head("Deimv2ForObjectDetection", {**RT_DETR, "lqe_hidden_dim": 8}, THREE_SCALES, {"labels": BOXES}),
    Head("PPDocLayoutV3ForObjectDetection",
         {**RT_DETR, "x4_feat_dim": 32, "mask_feature_channels": [16, 16], "num_prototypes": 8}, FOUR_SCALES),
    Head("GroundingDinoForObjectDetection", GROUNDING, THREE_SCALES, {"labels": BOXES}, PHRASES),
    Head("MMGroundingDinoForObjectDetection", GROUNDING, THREE_SCALES, {"labels": BOXES}, PHRASES),
    Head("OmDetTurboForObjectDetection", OM_DET, THREE_SCALES, inputs=QUERIES, output="decoder_class_logits"),
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.model)
def test_head_runs_trains_saves_and_loads(head, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(**{"image_size": 64, **head.backbone})
    model_class = getattr(transformers, head.model)
    model = model_class(model_class.config_class(backbone_config=config, **head.sizes))
    backbone = next(module for module in model.modules() if isinstance(module, EqCohViTBackbone))
    inputs = {"pixel_values": torch.randn(2, config.num_channels, 64, 64), **head.inputs}

    model.train()
    outputs = model(**inputs, **head.targets)
    loss = outputs.loss if head.targets else outputs[head.output].square().mean()
    loss.backward()
    assert all(parameter.grad.any() for parameter in backbone.backbone.embeddings.patch_embeddings.parameters())

    model.eval()
    with torch.no_grad():
        before = model(**inputs)[head.output]
        model.save_pretrained(tmp_path)
        after = model_class.from_pretrained(tmp_path).eval()(**inputs)[head.output]
    assert before.isfinite().any()
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_head_starts_from_pretrained_weights(folder):
    backbone = EqCohViTBackbone.from_pretrained(folder, out_indices=[1, 2])
    sizes = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone.config, **sizes)).eval()
    model.backbone.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 32, 32)
    for one, other in zip(model.backbone(x).feature_maps, backbone(x).feature_maps, strict=True):
        assert torch.equal(one, other)


# -------------------------------------------------------------------------------------------------- the maps themselves


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
    with pytest.raises(
        ValueError, match=r"scale_factors needs one number for each of \['stage1', 'stage2'\], got \[2\]"
    ):
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
