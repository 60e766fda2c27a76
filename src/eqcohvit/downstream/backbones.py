"""Any supported ViT as the backbone of transformers' dense heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from ..hub.configuration_eqcohvit import EqCohViTConfig
from ..hub.modeling_eqcohvit import EqCohViTBackbone, start_positions
from ..loading import find_model, load_whole, read_config, resize_positions
from ..preprocessing import Preprocessing, read_preprocessing


@dataclass(frozen=True)
class EncoderFolder:
    """A folder or repository with a ViT: one of ours, or a plain ViT of a known family (`FAMILIES`).

    Args:
        name: the folder or repository as the user wrote it.
        config: of the model; the configuration of a plain ViT is wrapped.
        preprocessing: size and normalization of its images.
    """

    name: str
    config: EqCohViTConfig
    preprocessing: Preprocessing

    @classmethod
    def open(cls, name_or_path: str) -> EncoderFolder:
        """Find the model; its weights are read later.

        Raises:
            ValueError: the model cannot be found, or it cannot be a backbone.
        """
        place = find_model(name_or_path)
        config = read_config(place, name_or_path)
        if not isinstance(config, EqCohViTConfig):
            config = EqCohViTConfig(backbone_config=config)
        return cls(name_or_path, config, read_preprocessing(place, config))

    def backbone(self, random_weights: bool = False, image_size: int | None = None, **options: Any) -> EqCohViTBackbone:
        """The encoder as a backbone.

        Args:
            random_weights: use the weights that training starts with instead of the trained ones (the control).
            image_size: resample the positions to this size once. The configuration then holds pairs of sizes, as
                VitPose expects.
            options: fields of `EqCohViTConfig` that choose the feature maps (`out_indices`, `scale_factors` ...).
        """
        values = {**self.config.to_dict(), **options}
        for key in ("out_features", "out_indices", "stage_names", "auto_map", "custom_pipelines"):
            if key not in options:
                values.pop(key, None)
        config = EqCohViTConfig.from_dict(values)
        backbone = EqCohViTBackbone(config)
        if random_weights:
            start_positions(backbone)
        else:
            wanted = backbone.state_dict()  # without the pooler that some models have
            backbone.load_state_dict({key: value for key, value in self._weights().items() if key in wanted})
        return backbone if image_size is None else _with_image_size(backbone, image_size)

    def _weights(self) -> dict[str, torch.Tensor]:
        """The trained weights, by their names in `EqCohViTBackbone`."""
        if AutoConfig.from_pretrained(find_model(self.name)).model_type == EqCohViTConfig.model_type:
            return load_whole(EqCohViTBackbone, self.name, dtype=torch.float32).state_dict()
        model = load_whole(AutoModel, self.name, dtype=torch.float32)
        return {f"backbone.{key}": value for key, value in model.state_dict().items()}


def _with_image_size(backbone: EqCohViTBackbone, image_size: int) -> EqCohViTBackbone:
    values = backbone.config.to_dict()
    patch_size = backbone.config.square_patch_size
    values["backbone_config"] |= {"image_size": [image_size, image_size], "patch_size": [patch_size, patch_size]}
    resized = EqCohViTBackbone(EqCohViTConfig.from_dict(values))
    resized.load_state_dict(resize_positions(backbone.state_dict(), resized.config))
    return resized


def find_backbone(model: torch.nn.Module) -> EqCohViTBackbone:
    """The backbone inside a head's model."""
    return next(module for module in model.modules() if isinstance(module, EqCohViTBackbone))


def spread_stages(num_layers: int) -> list[int]:
    """Indices of four equally spaced stages, the last one included: 12 layers -> [3, 6, 9, 12].

    Raises:
        ValueError: the backbone has fewer layers.
    """
    if num_layers < 4:
        raise ValueError(f"this head reads 4 stages, and the backbone has only {num_layers} layers")
    return [num_layers * i // 4 for i in (1, 2, 3, 4)]


def pyramid(patch_size: int) -> list[float]:
    """Scales of four feature maps, so that a cell is 4, 8, 16 and 32 pixels wide with patches of 8 or 16 pixels."""
    return [2, 1, 0.5, 0.25] if patch_size <= 8 else [4, 2, 1, 0.5]
