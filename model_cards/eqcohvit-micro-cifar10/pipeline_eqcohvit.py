"""Feature pipeline that returns the invariant and the equivariant part of each image separately."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import Pipeline
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image
from transformers.pipelines.pt_utils import KeyDataset

from .image_processing_eqcohvit import to_8_bits
from .modeling_eqcohvit import pool_tokens

_TOKENS = ("cls", "mean", "patches", "all")
_PARTS = ("both", "invariant", "equivariant")
_RETURN_TENSORS = (False, True, "pt", "np")
_IMAGE_KINDS = "a path, a URL, a base64 string, bytes, a PIL image or an array (H, W), (H, W, C) or (C, H, W)"


class EqCohViTFeatureExtractionPipeline(Pipeline):
    """`pipeline("equivariant-feature-extraction", model=...)`.

    Call it with an image (path, URL, base64 string, bytes, PIL image, array), a list of them, a dataset column or a generator.

    Args of the call:
        tokens: `"cls"` (d,), the mean of the patches where the backbone has no CLS token; `"mean"` (d,) over the patches;
            `"patches"` (h, w, d); `"all"` (P + N, d).
        part: `"both"`, `"invariant"` or `"equivariant"`.
        return_tensors: `True` or `"pt"` for torch tensors, `"np"` for numpy arrays, else nested lists.
        timeout: seconds to wait for an image behind a URL.
        batch_size, num_workers: as in every pipeline.

    Returns:
        one dict an image with the keys `"invariant"` and `"equivariant"`, or the one that `part` names.
    """

    _load_processor = False
    _load_video_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model.base_model, "feature_head"):
            raise ValueError(f"the pipeline needs an EqCohViT model, got {type(self.model).__name__}")
        missing = getattr(self.model, "missing_encoder_keys", ())
        if missing:
            raise ValueError(f"expected a checkpoint with all weights of the encoder, but {len(missing)} are missing, first {missing[0]}")

    def __call__(self, images: Any, **kwargs):
        many = isinstance(images, (Sequence, KeyDataset)) and not isinstance(images, (str, bytes))
        if many and len(images) == 0:
            return []
        if isinstance(images, tuple):
            images = list(images)
        elif many and not isinstance(images, (list, KeyDataset)):  # a dataset's column: decodes one image after the other
            return list(super().__call__((image for image in images), **kwargs))
        elif isinstance(images, Iterable) and not isinstance(images, Sized):  # a streamed dataset's column
            images = (image for image in images)
        return super().__call__(images, **kwargs)

    def _sanitize_parameters(self, tokens=None, part=None, return_tensors=None, timeout=None, **kwargs):
        choices = (("tokens", tokens, _TOKENS), ("part", part, _PARTS), ("return_tensors", return_tensors, _RETURN_TENSORS))
        for name, value, known in choices:
            if value is not None and not (isinstance(value, (str, bool)) and value in known):
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")
        if kwargs:
            raise TypeError(f"unknown argument {sorted(kwargs)[0]!r}; known: tokens, part, return_tensors, timeout")
        forward = {"tokens": tokens, "part": part}
        return (
            {} if timeout is None else {"timeout": timeout},
            {key: value for key, value in forward.items() if value is not None},
            {} if return_tensors is None else {"return_tensors": return_tensors},
        )

    def preprocess(self, image: Any, timeout: float | None = None) -> dict:
        return self.image_processor(images=_read_image(image, timeout), return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: dict, tokens: str = "cls", part: str = "both") -> dict:
        outputs = self.model.base_model(**model_inputs)
        config = self.model.config
        height, width = (side // config.square_patch_size for side in model_inputs["pixel_values"].shape[-2:])
        features = {}
        for name in _PARTS[1:]:
            if part in ("both", name):
                pooled = pool_tokens(outputs[f"{name}_features"], config.num_prefix_tokens, tokens)
                features[name] = pooled.unflatten(1, (height, width)) if tokens == "patches" else pooled
        return features

    def postprocess(self, model_outputs: dict, return_tensors: bool | str = False) -> dict:
        features = {name: values[0] for name, values in model_outputs.items()}
        if return_tensors in (True, "pt"):
            return features
        arrays = {name: values.float().numpy() for name, values in features.items()}
        return arrays if return_tensors == "np" else {name: values.tolist() for name, values in arrays.items()}


def _read_image(image: Any, timeout: float | None) -> Image.Image:
    """One image of any of the `_IMAGE_KINDS` as RGB, turned as its EXIF data says, transparency on white (but where a text is loaded)."""
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return _image_of_array(image)
    source = os.fspath(image) if isinstance(image, os.PathLike) else image
    source_is_text = isinstance(source, str) and not os.path.isfile(source) and not source.startswith(("http://", "https://"))
    try:
        if isinstance(source, bytes):
            source = Image.open(io.BytesIO(source))
        elif isinstance(source, str) and os.path.isfile(source):
            source = Image.open(source)
        if not isinstance(source, Image.Image):
            return load_image(source, timeout=timeout)
        if 0 in source.size:
            raise ValueError(f"its width and height are {source.width} x {source.height}")
        upright = to_8_bits(ImageOps.exif_transpose(source))
        return Image.fromarray(convert_to_rgb(upright, return_numpy=True))  # `load_image` would show what is hidden by transparency
    except Exception as error:
        shown = repr(image) if len(repr(image)) <= 80 else f"{repr(image)[:77]}..."
        # Of a text the library's message repeats the whole, which may be a picture in base64.
        reason = ": neither a file nor base64 of an image" if source_is_text else f": {error}"
        raise ValueError(f"expected {_IMAGE_KINDS}, got {shown}{reason}".replace("\n", " ")) from None


def _image_of_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    """(H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, uint8 or floats in [0, 1] -> RGB image."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    pixels = np.asarray(array)
    shape = tuple(pixels.shape)
    if pixels.ndim == 3 and shape[-1] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if 0 in shape or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"expected one image of shape (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4, got an array of shape {shape}")
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"expected floats in [0, 1], got an array with values from {low:g} to {high:g}")
        pixels = np.round(pixels * 255)
    elif pixels.dtype not in (np.uint8, np.bool_):
        raise ValueError(f"expected an array of uint8, or of floats in [0, 1], got {pixels.dtype}")
    else:
        pixels = pixels * 255 if pixels.dtype == np.bool_ else pixels
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).convert("RGB")


__all__ = ["EqCohViTFeatureExtractionPipeline"]
