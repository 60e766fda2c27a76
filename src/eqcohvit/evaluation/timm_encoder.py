"""Frozen encoders from timm. The library is optional and imported when the first of its models is opened."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers.utils.generic import is_timm_local_checkpoint

from ..files import first_line
from ..preprocessing import Preprocessing
from .features import LAST, ModelEncoder, TokenGrid, hash_weights, split_tokens

_HUB_OF_TIMM = "timm/"
_ANY_HUB = "hf-hub:"


def find_timm_name(name_or_path: str) -> str | None:
    """The name of a model for `timm.create_model`, or None if it is not one of timm's.

    `timm/NAME` is a model in timm's list, and `hf-hub:USER/REPO` a repository in timm's format. A folder in that format
    is recognized by the `architecture` in its config.json.
    """
    if is_timm_local_checkpoint(name_or_path):
        return f"local-dir:{name_or_path}"
    if name_or_path.startswith(_ANY_HUB):
        return name_or_path
    if name_or_path.startswith(_HUB_OF_TIMM) and not Path(name_or_path).exists():
        return name_or_path.removeprefix(_HUB_OF_TIMM)
    return None


class TimmEncoder(ModelEncoder):
    """A timm model in eval mode; the tokens of its `forward_features` are the part "backbone".

    Args:
        name: the model's name in tables.
        timm_name: the model's name for `timm.create_model`.
        model: created with `num_classes=0`.
    """

    is_split = False

    def __init__(self, name: str, timm_name: str, model: nn.Module):
        self.name = name
        self.timm_name = timm_name
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.layers = [LAST]
        self.preprocessing = _preprocessing(name, model)
        self.image_size = self.preprocessing.image_size

    @property
    def architecture(self) -> str:
        """The architecture and the version of timm."""
        config = getattr(self.model, "pretrained_cfg", None) or {}
        return f"timm {_timm().__version__} {config.get('architecture') or self.timm_name}"

    @property
    def patch_size(self) -> int | None:
        """Side of a patch in pixels; None for models without patches."""
        size = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        return size[0] if isinstance(size, (list, tuple)) else size

    @cached_property
    def fingerprint(self) -> str:
        """Weights, architecture, preprocessing."""
        return f"{hash_weights(self.model, self.architecture)} {self.preprocessing} {LAST}"

    def with_random_weights(self) -> TimmEncoder:
        """The same architecture with weights from torch's random state."""
        model = _create(self.name, self.timm_name, pretrained=False)
        return TimmEncoder(self.name, self.timm_name, model.to(self.device))

    def tokens(self, images: torch.Tensor) -> dict[tuple[str, str], TokenGrid]:
        """Images (B, 3, H, W) in [0, 1] -> tokens by (part, layer), on the model's device, float32.

        Raises:
            ValueError: the model does not accept this size, or returns neither a token sequence nor a feature map.
        """
        pixel_values = self.preprocessing.normalize(images.to(self.device))
        try:
            with torch.inference_mode():
                state = self.model.forward_features(pixel_values)
        except AssertionError as error:  # a size that the ViT was not made for
            size = tuple(images.shape[-2:])
            raise ValueError(f"{self.name} does not take images of {size} pixels: {error}") from None
        if not isinstance(state, torch.Tensor) or state.ndim not in (3, 4):
            shape = tuple(state.shape) if isinstance(state, torch.Tensor) else type(state).__name__
            raise ValueError(f"{self.name}: expected forward_features to give (B, N, d) or (B, d, h, w), got {shape}")
        if state.ndim == 4:
            channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
            feature_map = state.permute(0, 3, 1, 2) if channels_last else state
            return {("backbone", LAST): split_tokens(feature_map.float(), images.shape[-2:], None)}
        has_class_token = getattr(self.model, "cls_token", None) is not None
        num_prefix = getattr(self.model, "num_prefix_tokens", int(has_class_token))
        if state.shape[1] <= num_prefix:
            counts = f"{state.shape[1]} tokens, of which {num_prefix} precede the patches"
            raise ValueError(f"{self.name} gives no patch tokens, got {counts}")
        patches = split_tokens(state[:, num_prefix:].float(), images.shape[-2:], self.patch_size)
        # If a model has only registers, its first prefix token is not a class token.
        prefix = state[:, : num_prefix if has_class_token else 0].float()
        return {("backbone", LAST): TokenGrid(prefix, patches.grid)}


def load_timm_encoder(name: str, timm_name: str, layers: list[str], device: torch.device) -> TimmEncoder:
    """The pretrained timm model `timm_name`, with its own image size and normalization.

    Raises:
        ValueError: timm is not installed, does not know the model or has no weights for it, or `layers` names another
            layer than the last.
    """
    if layers != [LAST]:
        raise ValueError(f"layer must be 'last' for timm models, got {' '.join(layers)} for {name}")
    return TimmEncoder(name, timm_name, _create(name, timm_name, pretrained=True).to(device))


def _timm() -> ModuleType:
    try:
        timm = import_module("timm")
        import_module("timm.data")
    except ImportError as error:
        raise ValueError(f"timm models need the package timm (pip install 'eqcohvit[timm]'): {error}") from None
    return timm


def _create(name: str, timm_name: str, pretrained: bool) -> nn.Module:
    timm = _timm()
    try:
        return timm.create_model(timm_name, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # unknown name, no weights, no connection
        raise ValueError(f"no timm model {name}: {first_line(error)}") from None


def _preprocessing(name: str, model: nn.Module) -> Preprocessing:
    config = _timm().data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise ValueError(f"{name} takes images of {channels} x {height} x {width}, expected 3 channels and a square")
    return Preprocessing(height, tuple(map(float, config["mean"])), tuple(map(float, config["std"])))
