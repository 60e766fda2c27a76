"""Image processor of EqCohViT on numpy and PIL alone: torchvision is never needed."""

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .image_reading_eqcohvit import read_image


class EqCohViTImageProcessorKwargs(ImagesKwargs, total=False):
    """`fit`: what is done with a picture that is not square: its central square, or the whole picture stretched."""

    fit: Literal["square", "stretch"]


class EqCohViTImageProcessorPil(PilBackend):
    """Convert to RGB (transparency on white), fit to `size`, scale to [0, 1] and normalize: images -> pixel_values
    (B, 3, H, W).

    `fit="square"`, the default, cuts out the largest central part that has the shape of `size` (for all our models a
    square) and resizes that. `fit="stretch"` resizes the whole picture. Cutting loses the ends of a wide photograph,
    but it keeps angles: in a stretched picture a rotation is no longer a rotation, and the equivariant features would
    describe a motion that was never trained. Evaluation encodes the same central square, so its figures hold for what
    this processor gives. To encode all of a wide photograph, cut it into squares, or pass `fit="stretch"`.
    """

    valid_kwargs = EqCohViTImageProcessorKwargs
    fit = "square"
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

    def _preprocess(self, images: list[np.ndarray], do_resize: bool, size: Any, fit: str, **kwargs) -> Any:
        if fit not in ("square", "stretch"):
            raise ValueError(f"fit must be 'square' or 'stretch', got {fit!r}")
        if do_resize and fit == "square" and size.height and size.width:
            images = [_central_part(image, size.height, size.width) for image in images]
        return super()._preprocess(images, do_resize=do_resize, size=size, **kwargs)

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


def _central_part(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest central part of (C, H, W) that has the shape height : width; an odd margin is one pixel wider on the
    right or at the bottom."""
    scale = min(image.shape[-2] / height, image.shape[-1] / width)
    rows = max(1, round(scale * height))
    columns = max(1, round(scale * width))
    top = (image.shape[-2] - rows) // 2
    left = (image.shape[-1] - columns) // 2
    return image[..., top : top + rows, left : left + columns]


__all__ = ["EqCohViTImageProcessorPil"]
