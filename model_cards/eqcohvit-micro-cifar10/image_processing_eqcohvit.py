"""Image processor of EqCohViT on numpy and PIL alone: torchvision is never needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


def to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled by its full range, as in training; Pillow's conversion to RGB would make all above 255 white.

    Raises:
        ValueError: the pixels are numbers without a known range (Pillow's modes I and F).
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"expected an image of 8 or 16 bits, got one of mode {image.mode}; scale it to 8 bits first")
    return image


class EqCohViTImageProcessorPil(PilBackend):
    """Convert to RGB (transparency on white), resize to `size`, scale to [0, 1] and normalise: images -> pixel_values (B, 3, H, W)."""

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def process_image(self, image: Any, *args, **kwargs) -> np.ndarray:
        # The library resizes an image without pixels to a picture of nothing.
        shape = image.size if isinstance(image, Image.Image) else tuple(getattr(image, "shape", ()))
        if 0 in shape:
            raise ValueError(f"expected an image with pixels, got one of size {' x '.join(map(str, shape))}")
        return super().process_image(to_8_bits(image) if isinstance(image, Image.Image) else image, *args, **kwargs)


__all__ = ["EqCohViTImageProcessorPil", "to_8_bits"]
