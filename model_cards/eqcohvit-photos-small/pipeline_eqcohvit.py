"""Feature pipeline that returns the invariant and the equivariant part of each image separately."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Any

from transformers import Pipeline
from transformers.pipelines.pt_utils import KeyDataset

from .image_reading_eqcohvit import read_image
from .modeling_eqcohvit import pool_tokens

_TOKENS = ("cls", "mean", "patches", "all")
_PARTS = ("both", "invariant", "equivariant")
_RETURN_TENSORS = (False, True, "pt", "np")


class EqCohViTFeatureExtractionPipeline(Pipeline):
    """`pipeline("equivariant-feature-extraction", model=...)`.

    Call it with an image, a list of them, a dataset column or a generator. An image is any of the `SOURCES` of
    `image_reading_eqcohvit`: path, URL, base64 text, bytes, file object, PIL image, array; its pixels are read by the
    `PIXELS` there, as in training.

    Args of the call:
        tokens: `"cls"` (d,), the mean of the patches if the backbone has no CLS token; `"mean"` (d,) over the patches;
            `"patches"` (h, w, d); `"all"` (P + N, d).
        part: `"both"`, `"invariant"` or `"equivariant"`.
        return_tensors: `True` or `"pt"` for torch tensors, `"np"` for numpy arrays, else nested lists.
        timeout: seconds to wait for an image from a URL.
        batch_size, num_workers: as in every pipeline.

    Returns:
        one dict per image, with the keys `"invariant"` and `"equivariant"`, or only the one that `part` names.
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
            raise ValueError(
                f"expected a checkpoint with all weights of the encoder, but {len(missing)} are missing, "
                f"first {missing[0]}"
            )

    def __call__(self, images: Any, **kwargs):
        if hasattr(images, "read"):  # a file, which would otherwise be read line by line
            return super().__call__(images, **kwargs)
        many = isinstance(images, (Sequence, KeyDataset)) and not isinstance(
            images, (str, bytes, bytearray, memoryview)
        )
        if many and len(images) == 0:
            return []
        if isinstance(images, tuple):
            images = list(images)
        elif many and not isinstance(
            images, (list, KeyDataset)
        ):  # a dataset's column, which decodes one image at a time
            return list(super().__call__((image for image in images), **kwargs))
        elif isinstance(images, Iterable) and not isinstance(images, Sized):  # a streamed dataset's column
            images = (image for image in images)
        return super().__call__(images, **kwargs)

    def _sanitize_parameters(self, tokens=None, part=None, return_tensors=None, timeout=None, **kwargs):
        choices = (
            ("tokens", tokens, _TOKENS),
            ("part", part, _PARTS),
            ("return_tensors", return_tensors, _RETURN_TENSORS),
        )
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
        return self.image_processor(images=read_image(image, timeout), return_tensors="pt").to(self.dtype)

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


__all__ = ["EqCohViTFeatureExtractionPipeline"]
