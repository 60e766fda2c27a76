"""Image processor of EqCohViT on numpy and PIL alone: torchvision is never needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class EqCohViTImageProcessorPil(PilBackend):
    """Convert to RGB, resize to `size`, scale to [0, 1] and normalise: images -> pixel_values (B, 3, H, W)."""

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
        return super().process_image(image, *args, **kwargs)


__all__ = ["EqCohViTImageProcessorPil"]
