"""Two heads that transformers does not have: linear segmentation, and convolutional homography regression."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.backbone_utils import load_backbone
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.modeling_outputs import SemanticSegmenterOutput


@strict
class DenseHeadConfig(PreTrainedConfig):
    """A backbone with one of the heads below.

    Args:
        backbone_config: configuration of the backbone that makes the feature map.
        hidden_dim: channels of the hidden convolutions of `HomographyRegressor`.
        image_size: side of the input of `HomographyRegressor` in pixels.
    """

    model_type = "eqcohvit_dense_head"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="eqcohvit", init_kwargs={})
    }

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_dim: int = 256
    image_size: int = 128


class _DenseHeadModel(PreTrainedModel):
    config: DenseHeadConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True


class LinearSegmentation(_DenseHeadModel):
    """Batch norm and a 1 x 1 convolution on the last feature map: the linear probe of DINOv2 (arXiv:2304.07193, section
    7.4)."""

    def __init__(self, config: DenseHeadConfig):
        super().__init__(config)
        self.backbone = load_backbone(config)
        width = self.backbone.channels[-1]
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SemanticSegmenterOutput:
        """pixel_values (B, 3, H, W), labels (B, H, W) with 255 where a pixel does not count -> loss, logits (B, C, H,
        W)."""
        features = self.backbone(pixel_values).feature_maps[-1]
        logits = self.classifier(self.norm(features))
        logits = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)
        loss = None if labels is None else F.cross_entropy(logits, labels, ignore_index=255)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class HomographyRegressor(_DenseHeadModel):
    """Three convolutions on the feature maps of two patches, side by side: the displacements of the four corners.

    The last convolution covers the whole map, so that its eight outputs depend on the place of each feature.
    """

    def __init__(self, config: DenseHeadConfig):
        super().__init__(config)
        self.backbone = load_backbone(config)
        width = self.backbone.channels[-1]
        hidden = config.hidden_dim
        side = config.image_size // self.backbone.config.square_patch_size
        side = math.ceil(math.ceil(side / 2) / 2)
        self.head = nn.Sequential(
            nn.Conv2d(2 * width, hidden, kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 8, kernel_size=side),
        )
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """pixel_values (B, 6, S, S), the two patches -> displacements (B, 4, 2) as fractions of the largest
        displacement in training."""
        first, second = pixel_values.chunk(2, dim=1)
        features = self.backbone(torch.cat([first, second])).feature_maps[-1]
        return self.head(torch.cat(features.chunk(2), dim=1)).reshape(-1, 4, 2)
