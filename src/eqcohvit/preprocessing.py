"""What a checkpoint's image processor says: the side of the images and their normalisation."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .files import STATE_FILE


@dataclass(frozen=True)
class Preprocessing:
    """image_size: side of the square images in pixels. scale: factor of images in [0, 1], before mean and std per
    channel are applied."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1] -> pixel values."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((images * self.scale - mean) / std).contiguous()


def read_preprocessing(name_or_path: str, config: Any, trust_remote_code: bool = False) -> Preprocessing:
    """The preprocessing of a folder or repository; without an image processor there, the model's own size and
    ImageNet's mean and std.

    The side is what the model is fed in the end: the crop size where the processor crops, else the size, in any of the
    forms int, `{"height", "width"}`, `{"shortest_edge"}`.
    """
    fields = _processor_fields(name_or_path, trust_remote_code)
    if fields is None:
        warnings.warn(
            f"{name_or_path} has no image processor: its configuration's image size and ImageNet's mean and standard deviation are taken",
            stacklevel=2,
        )
        fields = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    crops = fields.get("do_center_crop") and fields.get("crop_size") is not None
    side = _side(fields["crop_size"] if crops else fields.get("size"))
    if side is None:
        side = _side(getattr(config, "image_size", None))
    if side is None:
        raise ValueError(f"{name_or_path} names no image size: expected size or crop_size in its image processor")
    normalizes = fields.get("do_normalize", True) and fields.get("image_mean") is not None
    mean, std = (fields["image_mean"], fields["image_std"]) if normalizes else ([0.0] * 3, [1.0] * 3)
    scale = 255 * fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 255.0
    return Preprocessing(side, _triple(mean), _triple(std), float(round(scale, 6)))


def _processor_fields(name_or_path: str, trust_remote_code: bool) -> dict[str, Any] | None:
    if (Path(name_or_path) / STATE_FILE).is_file():  # a checkpoint of a run
        state = json.loads((Path(name_or_path) / STATE_FILE).read_text())
        return {name: state[name] for name in ("image_mean", "image_std") if name in state} or None
    try:
        return AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=trust_remote_code).to_dict()
    except (OSError, ValueError, ImportError):
        pass
    try:  # some processors exist for torchvision only; their settings are all that is needed
        fields, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
    except OSError:
        return None
    return fields if "image_mean" in fields or "size" in fields else None


def _side(size: Any) -> int | None:
    if size is None:
        return None
    if isinstance(size, (int, float)):
        return int(size)
    if isinstance(size, (list, tuple)):
        return int(min(size))
    for keys in (("height", "width"), ("shortest_edge",), ("longest_edge",)):
        if all(size.get(key) is not None for key in keys):
            return int(min(size[key] for key in keys))
    return None


def _triple(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, (int, float)) else tuple(map(float, values))
