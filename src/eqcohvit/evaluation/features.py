"""The one feature extractor: any encoder, its parts, and the controls that every table holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ..hub.configuration_eqcohvit import EqCohViTConfig
from ..hub.modeling_eqcohvit import pool_tokens, start_positions

PIXELS_SIDE = 16


class Encoder(Protocol):
    """Frozen features by part. `image_size` is the side of the images it takes, in pixels."""

    name: str
    image_size: int

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, 3, H, H) in [0, 1] -> pooled features (B, d) of each part."""


@dataclass
class PixelEncoder:
    """Control: the image itself, averaged down to 16 x 16 pixels."""

    image_size: int
    name: str = "raw pixels"

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        side = min(PIXELS_SIDE, images.shape[-1])
        return {"pixels": F.interpolate(images, size=(side, side), mode="area").flatten(1)}


class ModelEncoder:
    """A split model, or a transformers ViT whose tokens are CLS, registers if any, patches; eval mode, no gradients.

    Args:
        pooling: how tokens become one vector: `"cls_mean"` (CLS and the mean of the patches side by side), `"cls"` or `"mean"`.
    """

    def __init__(self, name: str, model: torch.nn.Module, mean: list[float], std: list[float], pooling: str = "cls_mean"):
        self.name, self.model, self.pooling = name, model.eval(), pooling
        self.is_split = isinstance(model.config, EqCohViTConfig)
        size = model.config.image_size
        self.image_size = size if isinstance(size, int) else size[0]
        self.num_prefix_tokens = model.config.num_prefix_tokens if self.is_split else 1 + getattr(model.config, "num_register_tokens", 0)
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        device = next(self.model.parameters()).device
        pixel_values = ((images.to(device) - self.mean.to(device)) / self.std.to(device)).contiguous()
        outputs = self.model(pixel_values)
        tokens = {"backbone": outputs.last_hidden_state}
        if self.is_split:
            tokens = {"equivariant": outputs.equivariant_features, "invariant": outputs.invariant_features, **tokens}
        return {part: pool_tokens(features, self.num_prefix_tokens, self.pooling).float().cpu() for part, features in tokens.items()}


def load_encoder(name_or_path: str, pooling: str = "cls_mean", name: str | None = None) -> ModelEncoder:
    """The model of a folder or repository, with the normalisation of its image processor.

    Raises:
        ValueError: there is no model under this name.
    """
    try:
        model = AutoModel.from_pretrained(name_or_path)
        processor = AutoImageProcessor.from_pretrained(name_or_path)
    except OSError as error:
        raise ValueError(f"no model at {name_or_path}: {str(error).splitlines()[0]}") from None
    return ModelEncoder(name or str(name_or_path), model, processor.image_mean, processor.image_std, pooling)


def random_encoder(like: str, seed: int = 0, pooling: str = "cls_mean") -> ModelEncoder:
    """Control: the model of a folder or repository with fresh random weights."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(like)
    model = AutoModel.from_config(config)
    if isinstance(config, EqCohViTConfig):
        start_positions(model)  # as training starts
    processor = AutoImageProcessor.from_pretrained(like)
    return ModelEncoder("random weights", model, processor.image_mean, processor.image_std, pooling)
