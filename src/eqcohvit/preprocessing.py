"""How an image becomes pixel values, read from a model folder in one place.

Training from a checkpoint, the kNN guard, the probes, the dense tasks and the exported folders all use it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .hub.image_processing_eqcohvit import EqCohViTImageProcessorPil

# What is encoded of a photograph that is not square: the central square. `EqCohViTImageProcessorPil` says why.
FIT = "square"


@dataclass(frozen=True)
class Preprocessing:
    """The size and the normalization of a model's images.

    Args:
        image_size: side of the square images, in pixels.
        mean, std: per channel, of images in [0, 1]. A processor that scales pixels differently is expressed by these.
    """

    image_size: int
    mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1] -> pixel values."""
        mean = images.new_tensor(self.mean)[:, None, None]
        std = images.new_tensor(self.std)[:, None, None]
        return ((images - mean) / std).contiguous()

    def processor(self, fit: str = FIT) -> EqCohViTImageProcessorPil:
        """The image processor that an exported folder holds."""
        size = {"height": self.image_size, "width": self.image_size}
        mean = [float(value) for value in self.mean]
        std = [float(value) for value in self.std]
        return EqCohViTImageProcessorPil(size=size, image_mean=mean, image_std=std, fit=fit)


def read_preprocessing(name_or_path: str, config: Any, trust_remote_code: bool = False) -> Preprocessing:
    """The preprocessing of a model folder, a checkpoint or a Hub repository.

    The size is what the model receives in the end: the crop size if the processor crops, else the size. If that is not
    a multiple of the patch size, or there is no image processor, it is the image size of `config`. Without an image
    processor, mean and standard deviation are ImageNet's.

    Raises:
        ValueError: neither the image processor nor the configuration has an image size.
    """
    fields = _processor_fields(name_or_path, trust_remote_code)
    if fields is None:
        warnings.warn(
            f"{name_or_path} has no image processor: using its configuration's image size and ImageNet's mean and std",
            stacklevel=2,
        )
        fields = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    return Preprocessing(_image_size(name_or_path, fields, config), *_mean_and_std(fields))


def side_of(size: Any) -> int | None:
    """The side in pixels of a size in any form that configurations use; the shorter side if it is not a square.

    The forms are int, pair, `{"height", "width"}`, `{"shortest_edge"}` and `{"longest_edge"}`.
    """
    if size is None or isinstance(size, (int, float)):
        return None if size is None else int(size)
    if isinstance(size, (list, tuple)):
        return int(min(size))
    for keys in (("height", "width"), ("shortest_edge",), ("longest_edge",)):
        if all(size.get(key) is not None for key in keys):
            return int(min(size[key] for key in keys))
    return None


def _image_size(name: str, fields: dict[str, Any], config: Any) -> int:
    crops = fields.get("do_center_crop") and fields.get("crop_size") is not None
    patch_size = side_of(getattr(config, "patch_size", None)) or 1
    known = (side_of(fields.get("crop_size" if crops else "size")), side_of(getattr(config, "image_size", None)))
    sides = [side for side in known if side is not None]
    if not sides:
        raise ValueError(f"{name} has no image size: expected size or crop_size in its image processor")
    return next((side for side in sides if side % patch_size == 0), sides[0])


def _mean_and_std(fields: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images in [0, 1]: (scale * x - mean) / std, written without the scale."""
    normalizes = fields.get("do_normalize", True) and fields.get("image_mean") is not None
    mean = _per_channel(fields["image_mean"] if normalizes else 0.0)
    std = _per_channel(fields["image_std"] if normalizes else 1.0)
    scale = 255 * fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 255.0
    scale = float(round(scale, 6))
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _processor_fields(name_or_path: str, trust_remote_code: bool) -> dict[str, Any] | None:
    try:
        return AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=trust_remote_code).to_dict()
    except (OSError, ValueError, ImportError):
        pass
    try:  # some processors exist only for torchvision; their settings are all that is needed
        fields, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
    except OSError:
        return None
    return fields if "image_mean" in fields or "size" in fields else None


def _per_channel(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, (int, float)) else tuple(map(float, values))
