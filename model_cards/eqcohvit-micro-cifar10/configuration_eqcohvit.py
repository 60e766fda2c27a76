"""Configuration of an EqCohViT model: a transformers ViT backbone, a split feature head and K decoders
(arXiv:2503.18753)."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@dataclass(frozen=True)
class Family:
    """What has to be known about the ViTs of one transformers `model_type`.

    Args:
        prefix_tokens: number of tokens before the patch tokens, from the backbone's configuration: CLS, then registers
            or a distillation token.
        has_mask_token: whether the encoder can replace patches by a mask token.
        drops_patches: whether the encoder drops the share `mask_ratio` of its patches, and orders them by an argument
            `noise` (masked autoencoders).
        antialias: whether learned positions are resampled with antialiasing for images of another size.
        norm: name of the layer norm after the last block.
    """

    prefix_tokens: Callable[[Any], int]
    has_mask_token: bool = True
    drops_patches: bool = False
    antialias: bool = False
    norm: str = "layernorm"


# The supported backbones by `model_type`. This is the only place that has to change for a new one.
FAMILIES: dict[str, Family] = {
    "dinov2": Family(lambda config: 1),
    "dinov2_with_registers": Family(lambda config: 1 + config.num_register_tokens, antialias=True),
    "dinov3_vit": Family(lambda config: 1 + config.num_register_tokens, norm="norm"),
    "vit": Family(lambda config: 1),
    "vit_mae": Family(lambda config: 1, has_mask_token=False, drops_patches=True),
    "vit_msn": Family(lambda config: 1),
    "deit": Family(lambda config: 2),
    "ijepa": Family(lambda config: 0),
}


def drops_patches(config: Any) -> bool:
    """Whether the model of any transformers configuration drops patches (`Family.drops_patches`)."""
    return config.model_type in FAMILIES and FAMILIES[config.model_type].drops_patches


def families_with(field: str) -> list[str]:
    """The `FAMILIES` whose configurations have a field of this name."""
    return [model_type for model_type in FAMILIES if hasattr(CONFIG_MAPPING[model_type], field)]


# The usual ViT sizes (arXiv:2010.11929, arXiv:2012.12877), with their usual image and patch sizes.
PRESETS: dict[str, dict[str, int]] = {
    "micro": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "mlp_ratio": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    "tiny": {
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "mlp_ratio": 4,
        "image_size": 224,
        "patch_size": 16,
    },
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "mlp_ratio": 4,
        "image_size": 224,
        "patch_size": 16,
    },
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "mlp_ratio": 4,
        "image_size": 224,
        "patch_size": 16,
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "mlp_ratio": 4,
        "image_size": 224,
        "patch_size": 16,
    },
}


def _as_int(size: Any, name: str) -> int:
    """A square size given as an int or as an equal pair."""
    if isinstance(size, (list, tuple)):
        if len(size) != 2 or size[0] != size[1]:
            raise ValueError(f"backbone {name} must be square, got {tuple(size)}")
        return int(size[0])
    return int(size)


@strict
class EqCohViTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Args:
        backbone_config (`dict` or `PreTrainedConfig`): configuration of the ViT encoder; its `model_type` is one of
            `FAMILIES`. Default: a DINOv2-style ViT-S/16 for 224 pixels.
        feature_dim (`int`): width d_patch of the linear feature head's output (section 2 of the paper).
        equivariant_dim (`int`): d_equi, the width of the equivariant part: the last dimensions of `feature_dim`. The
            first `feature_dim - equivariant_dim` are the invariant part.
        num_intermediates (`int`): K, the number of intermediate states on the transformation path and of decoders.
        include_final (`bool`): whether one more decoder reconstructs the end view, after the K intermediate states.
        decoder_dim (`int`): channels before the first convolution of each decoder, halved at each 2x upsampling, but at
            least 16.
        decoder_context (`"none"`, `"cls"` or `"mean"`): what the decoders read in addition to each patch's own
            equivariant feature. `"none"` is the paper. `"cls"` and `"mean"` add the global equivariant feature of both
            views to every patch, as a smooth pattern over the image (weights of the lowest 4 x 4 cosine waves), so that
            pooled features learn the pose too.
        decoder_patch_dropout (`float`): share of the training samples whose decoders read only the global feature.
        num_prefix_tokens (`int`, *optional*): tokens before the patch tokens; derived from the backbone if not given.
        path (`str`): the transformation path that the decoders were trained on, for example `"rotation"` or `"se2"`.
        border (`str`): what fills the area outside a moved image in training: `"canvas"`, `"zeros"`, `"reflection"` or
            `"mixed"`.
        classifier_part (`"invariant"`, `"equivariant"`, `"both"` or `"backbone"`): features that the classification
            head reads. With `"backbone"` the feature head is frozen, because nothing trains it.
        classifier_hidden_dim (`int`): hidden width of the classification head's MLP; 0 means a linear head.
        initializer_range (`float`): standard deviation of the feature head's initial weights.
        random_weights (`list[str]`, *optional*): encoder weights that have not been trained; set when a model is saved.
        out_features, out_indices: stages (`"stem"`, `"stage1"` ...) whose feature maps `EqCohViTBackbone` returns;
            default: the last.
        apply_layernorm (`bool`): whether the backbone's final layer norm is applied to every feature map.
        reshape_hidden_states (`bool`): return feature maps as (B, D, h, w) instead of as token sequences.
        include_prefix_tokens (`bool`): whether token sequences keep the CLS and register tokens.
        scale_factors (`list[float]`, *optional*): bilinear scale of each feature map. `[4, 2, 1, 0.5]` is the pyramid
            that detection heads expect of a plain ViT (arXiv:2203.16527).

    Raises:
        ValueError: a value or a combination of values is not allowed; the message names the expected and the given
            ones.
    """

    model_type = "eqcohvit"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="dinov2",
            init_kwargs={**PRESETS["small"], "use_mask_token": False},
        )
    }

    backbone_config: dict | PreTrainedConfig | None = None
    feature_dim: int = 512
    equivariant_dim: int = 256
    num_intermediates: int = 2
    include_final: bool = False
    decoder_dim: int = 128
    decoder_context: Literal["none", "cls", "mean"] = "none"
    decoder_patch_dropout: float | int = 0.0
    num_prefix_tokens: int | None = None
    path: str = "rotation"
    border: Literal["canvas", "zeros", "reflection", "mixed"] = "canvas"
    classifier_part: Literal["invariant", "equivariant", "both", "backbone"] = "both"
    classifier_hidden_dim: int = 0
    initializer_range: float = 0.02
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    include_prefix_tokens: bool = True
    scale_factors: list[int | float] | None = None
    random_weights: list[str] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        kwargs.pop("stage_names", None)
        if not type(self).__module__.startswith("transformers_modules"):
            # The installed package registers the task itself, so that no trust flag is needed.
            kwargs.pop("custom_pipelines", None)
        self._reject_misspelled(kwargs)
        if isinstance(self.backbone_config, dict):
            self._check_model_type(self.backbone_config.get("model_type"))
        super().__post_init__(**kwargs)
        self._check_model_type(self.backbone_type)
        if self.family.drops_patches:
            self._vit.mask_ratio = 0.0  # an encoder of whole images
        if self.num_prefix_tokens is None:
            self.num_prefix_tokens = self.family.prefix_tokens(self._vit)
        self.check()
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(out_indices=out_indices, out_features=out_features)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        # For another model type the library only warns, and continues with default sizes and random weights.
        found = config_dict.get("model_type")
        if found not in (None, "", cls.model_type):
            hint = "; scripts/convert_checkpoint.py converts it" if found in FAMILIES else ""
            raise ValueError(f"expected a checkpoint of model_type {cls.model_type!r}, found {found!r}{hint}")
        cls._reject_misspelled(kwargs)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_preset(
        cls,
        preset: str,
        image_size: int | None = None,
        patch_size: int | None = None,
        backbone_type: str = "dinov2",
        backbone_kwargs: dict | None = None,
        **kwargs,
    ) -> "EqCohViTConfig":
        """A configuration of one of the usual sizes (`PRESETS`), on a backbone of any of the `FAMILIES`.

        `image_size` and `patch_size` are in pixels.
        """
        if preset not in PRESETS:
            raise ValueError(f"unknown model preset {preset!r}; known: {', '.join(PRESETS)}")
        cls._check_model_type(backbone_type)
        backbone: dict[str, Any] = {"model_type": backbone_type, **PRESETS[preset]}
        config_class = CONFIG_MAPPING[backbone_type]
        if not hasattr(config_class, "mlp_ratio"):
            backbone["intermediate_size"] = backbone["hidden_size"] * backbone.pop("mlp_ratio")
        if hasattr(config_class, "use_mask_token"):
            backbone["use_mask_token"] = False  # objectives that mask patches set it
        for key, size in (("image_size", image_size), ("patch_size", patch_size)):
            if size is not None:
                backbone[key] = size
        return cls(backbone_config={**backbone, **(backbone_kwargs or {})}, **kwargs)

    def check(self) -> None:
        """Raise a `ValueError` of one line if the values do not fit together."""
        if self.feature_dim < 2:
            raise ValueError(f"feature_dim must be at least 2, got {self.feature_dim}")
        if not 0 < self.equivariant_dim < self.feature_dim:
            raise ValueError(
                f"equivariant_dim must lie between 1 and feature_dim - 1 = {self.feature_dim - 1}, "
                f"got {self.equivariant_dim}"
            )
        for name in ("num_intermediates", "decoder_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.classifier_hidden_dim < 0:
            raise ValueError(f"classifier_hidden_dim must be at least 0, got {self.classifier_hidden_dim}")
        if not 0 <= self.decoder_patch_dropout < 1:
            raise ValueError(f"decoder_patch_dropout must lie in [0, 1), got {self.decoder_patch_dropout}")
        if self.decoder_patch_dropout > 0 and self.decoder_context == "none":
            raise ValueError(
                "decoder_patch_dropout needs a decoder_context, 'cls' or 'mean': the decoders would see nothing"
            )
        if self.num_prefix_tokens is None or self.num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens must not be negative, got {self.num_prefix_tokens}")
        if self.decoder_context == "cls" and self.num_prefix_tokens == 0:
            raise ValueError(
                "decoder_context='cls' needs a backbone with a CLS token; this one has none, use 'mean' or 'none'"
            )
        if self.scale_factors is not None and not all(factor > 0 for factor in self.scale_factors):
            raise ValueError(f"scale_factors must be positive, got {self.scale_factors}")
        image_size, patch_size = self.square_image_size, self.square_patch_size
        if patch_size < 1 or image_size < patch_size:
            raise ValueError(f"image_size must be at least patch_size = {patch_size}, got {image_size}")
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size: {image_size} is not a multiple of {patch_size}")

    @staticmethod
    def _check_model_type(model_type: str | None) -> None:
        if model_type not in CONFIG_MAPPING or model_type not in FAMILIES:
            raise ValueError(f"unknown backbone model_type {model_type!r}; known: {', '.join(FAMILIES)}")

    @classmethod
    def _reject_misspelled(cls, kwargs: dict) -> None:
        # Transformers stores unknown keywords silently. One that resembles a field of ours is surely a typo.
        own = [name for name in cls.__annotations__ if not name.startswith("_")]
        for key in kwargs:
            if isinstance(vars(cls).get(key), property):
                raise ValueError(
                    f"{key!r} belongs to the backbone: expected backbone_config={{{key!r}: ...}}, "
                    f"got {key}={kwargs[key]!r}"
                )
            near = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
            if near and key not in own and not hasattr(PreTrainedConfig, key):
                raise ValueError(f"unknown configuration field {key!r}; did you mean {near[0]!r}?")

    @property
    def _vit(self) -> PreTrainedConfig:
        return cast(PreTrainedConfig, self.backbone_config)  # a dict only while this configuration is made

    @property
    def backbone_type(self) -> str:
        """Model type of the backbone, such as `dinov2`."""
        return self._vit.model_type

    @property
    def family(self) -> Family:
        """What has to be known about backbones of this type."""
        return FAMILIES[self.backbone_type]

    # For heads and tools that expect a plain vision configuration.
    @property
    def hidden_size(self) -> int:
        """D, the width of the backbone."""
        return self._vit.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the backbone."""
        return self._vit.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """Heads of the backbone's attention."""
        return self._vit.num_attention_heads

    @property
    def num_channels(self) -> int:
        """C, the number of channels of an image."""
        return self._vit.num_channels

    @property
    def image_size(self) -> int | list[int] | tuple[int, int]:
        """Size of the input image in pixels, in the form that the backbone's configuration has."""
        return self._vit.image_size

    @property
    def patch_size(self) -> int | list[int] | tuple[int, int]:
        """Size of a patch in pixels, in the form that the backbone's configuration has."""
        return self._vit.patch_size

    @property
    def square_image_size(self) -> int:
        """Side of the input image in pixels."""
        return _as_int(self._vit.image_size, "image_size")

    @property
    def square_patch_size(self) -> int:
        """Side of a patch in pixels."""
        return _as_int(self._vit.patch_size, "patch_size")

    @property
    def num_decoders(self) -> int:
        """Number of reconstructed states: K, plus one with `include_final`."""
        return self.num_intermediates + self.include_final

    @property
    def invariant_dim(self) -> int:
        """Width of the invariant part: `feature_dim - equivariant_dim`."""
        return self.feature_dim - self.equivariant_dim


__all__ = ["FAMILIES", "PRESETS", "EqCohViTConfig", "Family", "drops_patches", "families_with"]
