"""Feature pipeline that returns the invariant and the equivariant part of each image separately."""

from __future__ import annotations

from typing import Any

from transformers import Pipeline
from transformers.image_utils import load_image

_TOKENS = ("cls", "mean", "patches", "all")
_PARTS = ("both", "invariant", "equivariant")


class EqCohViTFeatureExtractionPipeline(Pipeline):
    """`pipeline("equivariant-feature-extraction", model=...)`.

    Call it with an image (path, URL, base64 string, PIL image, array), a list of them, a dataset column or a generator.

    Args of the call:
        tokens: `"cls"` (d,), `"mean"` (d,) over patches, `"patches"` (h, w, d), or `"all"` (P + N, d).
        part: `"both"`, `"invariant"` or `"equivariant"`.
        return_tensors: true for torch tensors, else nested lists.
        timeout: seconds to wait for an image behind a URL.

    Returns:
        one dict an image with the keys `"invariant"` and `"equivariant"`, or the one that `part` names.
    """

    _load_processor = False
    _load_video_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, tokens=None, part=None, return_tensors=None, timeout=None, **kwargs):
        for name, value, known in (("tokens", tokens, _TOKENS), ("part", part, _PARTS)):
            if value is not None and value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        if kwargs:
            raise TypeError(f"unknown argument {sorted(kwargs)[0]!r}; known: tokens, part, return_tensors, timeout")
        given = {"tokens": tokens, "part": part, "return_tensors": return_tensors}
        return (
            {} if timeout is None else {"timeout": timeout},
            {},
            {key: value for key, value in given.items() if value is not None},
        )

    def preprocess(self, image: Any, timeout: float | None = None) -> dict:
        if hasattr(image, "__array_interface__") and not hasattr(image, "mode"):
            inputs = self.image_processor(images=image, return_tensors="pt")
        else:
            inputs = self.image_processor(images=load_image(image, timeout=timeout), return_tensors="pt")
        return inputs.to(self.dtype)

    def _forward(self, model_inputs: dict):
        outputs = self.model(**model_inputs)
        batch_size, _, height, width = model_inputs["pixel_values"].shape
        patch = self.model.config.square_patch_size
        grid_size = outputs.last_hidden_state.new_tensor([height // patch, width // patch]).expand(batch_size, 2)
        return {"invariant": outputs.invariant_features, "equivariant": outputs.equivariant_features, "grid_size": grid_size}

    def postprocess(self, model_outputs: dict, tokens: str = "cls", part: str = "both", return_tensors: bool = False) -> dict:
        height, width = (int(side) for side in model_outputs["grid_size"][0])
        prefix = self.model.config.num_prefix_tokens
        features = {}
        for name in _PARTS[1:]:
            if part not in ("both", name):
                continue
            part_tokens = model_outputs[name][0]
            if tokens == "cls" and prefix:
                pooled = part_tokens[0]
            elif tokens in ("cls", "mean"):
                pooled = part_tokens[prefix:].mean(dim=0)
            elif tokens == "patches":
                pooled = part_tokens[prefix:].reshape(height, width, -1)
            else:
                pooled = part_tokens
            features[name] = pooled if return_tensors else pooled.float().tolist()
        return features


__all__ = ["EqCohViTFeatureExtractionPipeline"]
