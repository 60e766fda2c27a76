"""Image processor of EqCohViT on numpy and PIL alone: torchvision is never needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .image_reading_eqcohvit import read_image


class EqCohViTImageProcessorPil(PilBackend):
    """Convert to RGB (transparency on white), resize to `size`, scale to [0, 1] and normalise: images -> pixel_values
    (B, 3, H, W)."""

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """A flat list of images; a batch (B, ...) in one array is taken apart."""
        if isinstance(images, (list, tuple)):
            return [image for item in images for image in self._prepare_images_structure(item)]
        return list(images) if getattr(images, "ndim", 0) == expected_ndims + 1 else [images]

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, **kwargs
    ) -> np.ndarray:
        """Any of the `SOURCES` of `image_reading_eqcohvit` -> RGB (3, H, W), uint8; in [0, 1] for floats with
        `do_rescale=False`.

        Without `do_convert_rgb` pixels are left as they are, as transformers does.
        """
        shape = image.size if isinstance(image, Image.Image) else tuple(getattr(image, "shape", ()))
        if 0 in shape:  # which the library would resize to a picture of nothing
            raise ValueError(f"expected an image with pixels, got one of size {' x '.join(map(str, shape))}")
        if not do_convert_rgb:
            return super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format, **kwargs)
        channels = None if input_data_format is None else getattr(input_data_format, "value", input_data_format)
        pixels = np.moveaxis(np.asarray(read_image(image, channels=channels)), -1, 0)
        floats = (
            image.is_floating_point()
            if isinstance(image, torch.Tensor)
            else getattr(image, "dtype", np.dtype(np.uint8)).kind == "f"
        )
        return pixels / np.float32(255) if floats and kwargs.get("do_rescale") is False else pixels


__all__ = ["EqCohViTImageProcessorPil"]
