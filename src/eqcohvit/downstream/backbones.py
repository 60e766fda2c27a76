"""Any supported ViT as the backbone of transformers' dense heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel

from ..files import first_line
from ..hub.configuration_eqcohvit import SUPPORTED_BACKBONES, EqCohViTConfig
from ..hub.modeling_eqcohvit import EqCohViTBackbone, start_positions
from ..loading import find_model, load_whole
from ..preprocessing import read_preprocessing


@dataclass(frozen=True)
class EncoderFolder:
    """A folder or repository with a ViT, ours or a plain one of `SUPPORTED_BACKBONES`, and what its images look like.

    image_size: side in pixels that it was trained with. mean, std: per channel, of images in [0, 1].
    """

    name: str
    config: EqCohViTConfig
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def open(cls, name_or_path: str) -> EncoderFolder:
        """
        Raises:
            ValueError: there is no model, or none that can be a backbone.
        """
        place = find_model(name_or_path)
        try:
            config = AutoConfig.from_pretrained(place)
        except (OSError, ValueError) as error:
            raise ValueError(f"no model at {name_or_path}: {first_line(error)}") from None
        if config.model_type != EqCohViTConfig.model_type:
            if config.model_type not in SUPPORTED_BACKBONES:
                known = ", ".join((EqCohViTConfig.model_type, *SUPPORTED_BACKBONES))
                raise ValueError(
                    f"{name_or_path} is a {config.model_type}, expected an encoder of one of the types {known}"
                )
            config = EqCohViTConfig(backbone_config=config)
        preprocessing = read_preprocessing(place, config)
        # (scale x - mean) / std, written without the scale
        mean, std = (
            tuple(value / preprocessing.scale for value in values) for values in (preprocessing.mean, preprocessing.std)
        )
        return cls(name_or_path, config, config.square_image_size, mean, std)

    def backbone(self, random_weights: bool = False, image_size: int | None = None, **options: Any) -> EqCohViTBackbone:
        """The encoder as a backbone.

        Args:
            random_weights: as training starts, instead of the trained ones: the control.
            image_size: where given, positions are interpolated to this size once and for all, and the configuration
                holds pairs of sizes, as VitPose expects.
            options: fields of `EqCohViTConfig` that choose and shape the feature maps (`out_indices`, `scale_factors`
                ...).
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
            weights, wanted = self._weights(), backbone.state_dict()
            backbone.load_state_dict(
                {key: value for key, value in weights.items() if key in wanted}
            )  # poolers are left behind
        return backbone if image_size is None else _with_image_size(backbone, image_size)

    def _weights(self) -> dict[str, torch.Tensor]:
        """State of the trained backbone, by the names of `EqCohViTBackbone`."""
        if AutoConfig.from_pretrained(find_model(self.name)).model_type == EqCohViTConfig.model_type:
            return load_whole(EqCohViTBackbone, self.name, dtype=torch.float32).state_dict()
        model = load_whole(AutoModel, self.name, dtype=torch.float32)
        return {f"backbone.{key}": value for key, value in model.state_dict().items()}


def _with_image_size(backbone: EqCohViTBackbone, image_size: int) -> EqCohViTBackbone:
    values = backbone.config.to_dict()
    patch_size, side = (
        backbone.config.square_patch_size,
        backbone.config.square_image_size // backbone.config.square_patch_size,
    )
    values["backbone_config"] |= {"image_size": [image_size, image_size], "patch_size": [patch_size, patch_size]}
    resized = EqCohViTBackbone(EqCohViTConfig.from_dict(values))
    state, wanted = backbone.state_dict(), resized.state_dict()
    for key, value in state.items():
        if key.endswith("position_embeddings") and value.shape != wanted[key].shape:
            cls, patches = value[:, : -(side**2)], value[:, -(side**2) :]
            new_side = image_size // patch_size
            grid = patches.transpose(1, 2).unflatten(2, (side, side))
            grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False, antialias=True)
            state[key] = torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)
    resized.load_state_dict(state)
    return resized


def find_backbone(model: torch.nn.Module) -> EqCohViTBackbone:
    """The backbone inside a head's model."""
    return next(module for module in model.modules() if isinstance(module, EqCohViTBackbone))


def spread_stages(num_layers: int, count: int = 4) -> list[int]:
    """Indices of `count` equally spaced stages, the last one included: 12 layers -> [3, 6, 9, 12].

    Raises:
        ValueError: there are fewer layers.
    """
    if num_layers < count:
        raise ValueError(f"this head reads {count} stages, and the backbone has only {num_layers} layers")
    return [num_layers * (i + 1) // count for i in range(count)]
