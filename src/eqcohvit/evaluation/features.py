"""Frozen encoders: any transformers vision model, its parts and layers as token grids and pooled vectors, and the
controls."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from transformers import AutoModel, PreTrainedModel

from ..hub.configuration_eqcohvit import EqCohViTConfig, drops_patches
from ..hub.modeling_eqcohvit import start_positions
from ..loading import find_model, load_whole
from ..preprocessing import Preprocessing, read_preprocessing
from .results import PIXELS, RANDOM

PIXELS_SIDE = 16
GRID_SIDE, GRID_CHANNELS = 8, 12
POOLINGS = ("cls_mean", "cls", "mean", "grid")
PARTS = ("equivariant", "invariant", "both", "backbone", "pixels")
LAST = "last"


class Feature(NamedTuple):
    """Name of one kind of vector: a part, its layer (`"last"` or the index of a hidden state), and how tokens became a
    vector."""

    part: str
    layer: str
    pooling: str

    def __str__(self) -> str:
        return "/".join(self)


class TokenGrid(NamedTuple):
    """prefix: (B, P, d), CLS first, then registers; P may be 0. grid: (B, h, w, d), one token per patch or per cell of
    a feature map."""

    prefix: torch.Tensor
    grid: torch.Tensor


class Encoder(Protocol):
    """Frozen features. `image_size`: side of the images it takes, in pixels. `fingerprint`: changes whenever a feature
    could change."""

    name: str
    image_size: int

    @property
    def fingerprint(self) -> str:
        """Name of all that its features depend on."""

    def __call__(self, images: torch.Tensor) -> dict[Feature, torch.Tensor]:
        """Images (B, 3, H, H) in [0, 1] -> vectors (B, d)."""


@dataclass
class PixelEncoder:
    """Control: the image itself, averaged down to 16 x 16 pixels. The same vector stands for every pooling."""

    image_size: int
    name: str = PIXELS

    @property
    def fingerprint(self) -> str:
        """Name of all that its features depend on."""
        return f"pixels {PIXELS_SIDE} {self.image_size}"

    def __call__(self, images: torch.Tensor) -> dict[Feature, torch.Tensor]:
        side = min(PIXELS_SIDE, images.shape[-1])
        return {Feature("pixels", LAST, "vector"): F.interpolate(images, size=(side, side), mode="area").flatten(1)}


class ModelEncoder:
    """A transformers vision model in eval mode: a split model (equivariant, invariant, both, backbone), or any other
    (backbone).

    Args:
        model: its `last_hidden_state` is a token sequence, patches last (ViT-like), or a feature map (B, C, h, w).
        preprocessing: side and normalization of the images.
        layers: `"last"`, and indices of hidden states (0 is the embedding, -1 the last block); `"all"` is every hidden
            state.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, preprocessing: Preprocessing, layers: Iterable[str] = (LAST,)
    ):
        self.name = name
        self.preprocessing = preprocessing
        self.image_size = preprocessing.image_size
        self.is_split = isinstance(model.config, EqCohViTConfig)
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.layers = resolve_layers(layers, self._num_hidden_states() if tuple(layers) != (LAST,) else 0)

    @property
    def architecture(self) -> str:
        """Class and configuration, without names and places."""
        return f"{type(self.model).__name__} {_architecture(self.model.config)}"

    @property
    def patch_size(self) -> int | None:
        """Side of a patch in pixels; None for models without patches."""
        return square_side(getattr(self.model.config, "patch_size", None))

    def with_random_weights(self) -> ModelEncoder:
        """The same model as torch's random state draws it."""
        model = type(self.model)(self.model.config)
        if self.is_split:
            start_positions(model)  # as training starts
        return ModelEncoder(self.name, model.to(self.device), self.preprocessing, self.layers)

    @cached_property
    def fingerprint(self) -> str:
        """Weights, preprocessing and layers."""
        return f"{weights_hash(self.model)} {self.preprocessing} {' '.join(self.layers)}"

    def tokens(self, images: torch.Tensor) -> dict[tuple[str, str], TokenGrid]:
        """Images (B, 3, H, W) in [0, 1] -> tokens by (part, layer), on the model's device, float32. H, W may differ
        from `image_size`."""
        with torch.no_grad():  # no inference mode: sharded training would go on with weights that were gathered in it
            outputs = self._run(images, output_hidden_states=self.layers != [LAST])
        states = {("backbone", layer): outputs.hidden_states[int(layer)] for layer in self.layers if layer != LAST}
        if LAST in self.layers:
            if self.is_split:
                equivariant, invariant = outputs.equivariant_features, outputs.invariant_features
                states |= {("equivariant", LAST): equivariant, ("invariant", LAST): invariant}
                states["both", LAST] = torch.cat([invariant, equivariant], dim=-1)
            states["backbone", LAST] = outputs.last_hidden_state
        return {key: split_tokens(state.float(), images.shape[-2:], self.patch_size) for key, state in states.items()}

    def __call__(self, images: torch.Tensor) -> dict[Feature, torch.Tensor]:
        vectors = {}
        for (part, layer), tokens in self.tokens(images).items():
            if tokens.prefix.shape[1]:
                vectors[Feature(part, layer, "cls")] = tokens.prefix[:, 0]
            vectors[Feature(part, layer, "mean")] = tokens.grid.mean(dim=(1, 2))
            vectors[Feature(part, layer, "grid")] = project_grid(tokens.grid)
        return vectors

    def _run(self, images: torch.Tensor, **kwargs: Any) -> Any:
        if drops_patches(self.model.config):  # and orders the others by this noise
            assert self.patch_size is not None
            patches = math.prod(side // self.patch_size for side in images.shape[-2:])
            kwargs["noise"] = torch.arange(patches, device=self.device, dtype=torch.float32).expand(len(images), -1)
        pixel_values = self.preprocessing.normalize(images.to(self.device)).to(self.model.dtype)
        return self.model(pixel_values, **self._interpolation(images.shape[-2:]), **kwargs)

    def _interpolation(self, image_size: Sequence[int]) -> dict[str, bool]:
        """ViTs of another native size need a word before they interpolate their positions; most other models have no
        such argument."""
        native = square_side(getattr(self.model.config, "image_size", None))
        takes = "interpolate_pos_encoding" in inspect.signature(type(self.model).forward).parameters
        return (
            {"interpolate_pos_encoding": True}
            if takes and native is not None and tuple(image_size) != (native, native)
            else {}
        )

    def _num_hidden_states(self) -> int:
        with torch.inference_mode():
            return len(
                self._run(torch.zeros(1, 3, self.image_size, self.image_size), output_hidden_states=True).hidden_states
            )


def resolve_layers(layers: Iterable[str], count: int) -> list[str]:
    """Layers as the user names them -> `"last"` and indices from 0, each once, for a model of `count` hidden states."""
    found = []
    for layer in layers:
        if layer == "all":
            found += [str(index) for index in range(count)]
        elif layer == LAST:
            found.append(LAST)
        else:
            index = int(layer) if layer.lstrip("-").isdigit() else None
            if index is None or not -count <= index < count:
                raise ValueError(
                    f"layer must be 'last', 'all' or an index from {-count} to {count - 1} for this model, "
                    f"got {layer!r}"
                )
            found.append(str(index % count))
    return list(dict.fromkeys(found))


def split_tokens(state: torch.Tensor, image_size: Sequence[int], patch_size: int | None) -> TokenGrid:
    """A hidden state -> prefix tokens and the grid of the others.

    `state` is a feature map (B, d, h, w), or a sequence (B, P + h * w, d) of an image of (height, width) pixels. h and
    w follow from the patch size; a sequence that is shorter than that (Swin's, which merges patches) has no prefix and
    the aspect ratio of the image.
    """
    if state.ndim == 4:
        return TokenGrid(state.new_zeros(len(state), 0, state.shape[1]), state.permute(0, 2, 3, 1))
    length = state.shape[1]
    height, width = image_size
    if patch_size is not None and (height // patch_size) * (width // patch_size) <= length:
        rows, columns = height // patch_size, width // patch_size
    else:
        rows = math.isqrt(length * height // width)
        columns = length // max(rows, 1)
        if rows * columns != length:
            raise ValueError(f"cannot find the patch grid in {length} tokens of an image of {height} x {width} pixels")
    prefix = length - rows * columns
    return TokenGrid(state[:, :prefix], state[:, prefix:].unflatten(1, (rows, columns)))


def project_grid(grid: torch.Tensor) -> torch.Tensor:
    """Tokens (B, h, w, d) -> (B, 12 h w): each by one fixed random projection to 12 numbers; grids above 8 x 8 are
    averaged down to it."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(grid.shape[-1], GRID_CHANNELS, generator=generator) / math.sqrt(grid.shape[-1])
    projected = (grid @ matrix.to(grid)).permute(0, 3, 1, 2)
    height, width = projected.shape[-2:]
    return F.adaptive_avg_pool2d(projected, (min(GRID_SIDE, height), min(GRID_SIDE, width))).flatten(1)


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 of the weights and of the configuration, without names and places."""
    return hash_weights(model, f"{type(model).__name__} {_architecture(model.config)}")


def hash_weights(model: torch.nn.Module, architecture: str) -> str:
    """SHA-256 of the weights and of what names the architecture."""
    digest = hashlib.sha256(architecture.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _architecture(config: Any) -> str:
    if isinstance(config, EqCohViTConfig):  # what the decoders were trained on is of no matter here
        return f"{config.feature_dim} {config.equivariant_dim} {_architecture(config.backbone_config)}"
    shown = {key: value for key, value in config.to_dict().items() if key not in _NAMES}
    return repr(sorted(shown.items(), key=lambda item: item[0]))


_NAMES = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "custom_pipelines",
    "transformers_version",
    "dtype",
    "torch_dtype",
}


def load_encoder(
    name_or_path: str, layers: Iterable[str] = (LAST,), name: str | None = None, trust_remote_code: bool = False
) -> ModelEncoder:
    """The model of a folder (also of a run, or a checkpoint of one) or repository, with its image processor's size and
    normalization.

    `timm/NAME`, `hf-hub:USER/REPO` and folders in timm's format are models of timm (see `timm_encoder`).

    Raises:
        ValueError: there is no model under this name, it lacks weights, or it is not a vision model.
    """
    from .timm_encoder import find_timm_name, load_timm_encoder

    timm_name = find_timm_name(str(name_or_path))
    if timm_name is not None:
        return load_timm_encoder(name or str(name_or_path), timm_name, list(layers), _device())
    # Torch's default dtype would follow the checkpoint; probes compare encoders in one precision.
    model = load_whole(AutoModel, name_or_path, dtype=torch.float32, trust_remote_code=trust_remote_code)
    model = _vision_tower(model, name_or_path)
    preprocessing = read_preprocessing(find_model(name_or_path), model.config, trust_remote_code)
    return ModelEncoder(name or str(name_or_path), model.to(_device()), preprocessing, layers)


def random_encoder(like: ModelEncoder) -> ModelEncoder:
    """Control: the model of `like` with fresh random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        control = like.with_random_weights()
    control.name = RANDOM
    return control


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_controls(encoders: list[ModelEncoder]) -> list[ModelEncoder]:
    """One control per architecture and preprocessing among the encoders; named after a model where there are
    several."""
    distinct: dict[str, ModelEncoder] = {}
    for encoder in encoders:
        distinct.setdefault(f"{encoder.architecture} {encoder.preprocessing}", encoder)
    controls = [random_encoder(encoder) for encoder in distinct.values()]
    if len(controls) > 1:
        for control, like in zip(controls, distinct.values(), strict=True):
            control.name = f"{RANDOM} ({like.name})"
    return controls


def _vision_tower(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The vision model itself, or the vision tower of a model of images and text."""
    if getattr(model.config, "vision_config", None) is not None and hasattr(model, "vision_model"):
        model = model.vision_model
    if drops_patches(model.config):
        model.config.mask_ratio = 0.0  # an encoder of whole images
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise ValueError(
            f"{name} is not a vision model: expected one that takes pixel_values, got {type(model).__name__}"
        )
    if getattr(model.config, "num_channels", 3) != 3:
        raise ValueError(f"{name} takes images of {model.config.num_channels} channels, expected 3")
    return model


def square_side(size: Any) -> int | None:
    """A side given as an int or as a pair, whose first counts."""
    return size[0] if isinstance(size, (list, tuple)) else size


def select(vectors: dict[Feature, torch.Tensor], part: str, layer: str, pooling: str) -> torch.Tensor:
    """The vectors of a part by a pooling of `POOLINGS`: `"cls_mean"` is both side by side; without a CLS token the mean
    stands for it."""
    have = {
        feature.pooling: values for feature, values in vectors.items() if (feature.part, feature.layer) == (part, layer)
    }
    if "vector" in have:
        return have["vector"]
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}; known: {', '.join(POOLINGS)}")
    if pooling == "cls_mean" and "cls" in have:
        return torch.cat([have["cls"], have["mean"]], dim=-1)
    return have["mean"] if pooling.startswith("cls") and "cls" not in have else have[pooling]


def part_name(part: str, layer: str) -> str:
    """A part of a layer, as tables name it."""
    return part if layer == LAST else f"{part}, layer {layer}"


def parts_of(vectors: dict[Feature, torch.Tensor]) -> list[tuple[str, str]]:
    """(part, layer) of all vectors, each once: parts as in `PARTS`, the last layer first, then by index."""
    return sorted({(feature.part, feature.layer) for feature in vectors}, key=part_order)


def part_order(key: tuple[str, str]) -> tuple:
    """What (part, layer) are sorted by."""
    part, layer = key
    return layer != LAST, PARTS.index(part) if part in PARTS else len(PARTS), layer.zfill(3), part
