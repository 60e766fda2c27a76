"""EqCohViT: a ViT whose features are split into an invariant and an equivariant part (arXiv:2503.18753, section 2).

Shapes: B images, P prefix tokens (CLS, registers), N = h * w patch tokens, D backbone width, K reconstructed states of
the path.
"""

import inspect
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, ModelOutput
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_eqcohvit import EqCohViTConfig
from .decoders_eqcohvit import DecoderConv, DecoderLinear, IntermediateDecoders, reconstruction_losses

if TYPE_CHECKING:  # named so that saving a model ships these files as well
    from .image_processing_eqcohvit import EqCohViTImageProcessorPil  # noqa: F401
    from .pipeline_eqcohvit import EqCohViTFeatureExtractionPipeline  # noqa: F401

_AUTO_MAP = {
    "AutoConfig": "configuration_eqcohvit.EqCohViTConfig",
    "AutoModel": "modeling_eqcohvit.EqCohViTModel",
    "AutoModelForPreTraining": "modeling_eqcohvit.EqCohViTForPreTraining",
    "AutoModelForImageClassification": "modeling_eqcohvit.EqCohViTForImageClassification",
    "AutoBackbone": "modeling_eqcohvit.EqCohViTBackbone",
}
_CUSTOM_PIPELINES = {
    "equivariant-feature-extraction": {
        "impl": "pipeline_eqcohvit.EqCohViTFeatureExtractionPipeline",
        "pt": ["AutoModel"],
        "type": "image",
    }
}


# Weights that features depend on. A mask token may be added to trained weights.
_ENCODER_KEYS = re.compile(r"(^|\.)(backbone|feature_head)\.(?!.*mask_token$)")
# Fields that give the weights their meaning: with another value they still fit, but compute something else.
_MEANINGS = ("equivariant_dim", "num_prefix_tokens", "decoder_context")
# A checkpoint of a run holds the objective and the teacher as well as the model.
_RUN_FILE = "run_state.json"
_NAMES_IN_RUN = {r"^model\.eqcohvit\.": "eqcohvit.", r"^model\.decoders\.": "decoders."}
# The library translates names in files to names in memory. For DINOv3 it would also change names that already are
# names in memory.
_NAMES_IN_MEMORY = {r"backbone\.model\.layer\.": "backbone.layer."}
_NOT_OF_THE_MODEL = [r"^objective\.", r"^teacher\."]
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


@dataclass
class EqCohViTModelOutput(ModelOutput):
    r"""
    last_hidden_state (`torch.FloatTensor` of shape `(B, P + N, D)`): backbone tokens after the final layer norm.
    pooler_output (`torch.FloatTensor` of shape `(B, D)`): the CLS token, or the mean of the patch tokens if the
        backbone has no CLS token.
    invariant_features (`torch.FloatTensor` of shape `(B, P + N, feature_dim - equivariant_dim)`): first part of the
        head's output.
    equivariant_features (`torch.FloatTensor` of shape `(B, P + N, equivariant_dim)`): last part of the head's output.
    hidden_states, attentions: as the backbone returns them.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    invariant_features: torch.Tensor | None = None
    equivariant_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class EqCohViTForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`): mean over the states of the mean squared error, if the states are known.
    reconstructions (`torch.FloatTensor` of shape `(B, K, C, H, W)`): estimates of the states u_1, u_2 ... in normalized
        pixels, with `config.include_final` the end view as the last one.
    intermediate_losses (`torch.FloatTensor` of shape `(B, K)`): the mean squared error of each state of each image.
    invariant_features, invariant_features_end (`(B, P + N, feature_dim - equivariant_dim)`): of the first and the end
        view.
    equivariant_features, equivariant_features_end (`(B, P + N, equivariant_dim)`): of the first and the end view.
    hidden_states, attentions: of the first view, as the backbone returns them.
    """

    loss: torch.Tensor | None = None
    reconstructions: torch.Tensor | None = None
    intermediate_losses: torch.Tensor | None = None
    invariant_features: torch.Tensor | None = None
    invariant_features_end: torch.Tensor | None = None
    equivariant_features: torch.Tensor | None = None
    equivariant_features_end: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def split_features(features: torch.Tensor, equivariant_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split (..., feature_dim) into its invariant part (first dimensions) and its equivariant part (last
    `equivariant_dim`).

    Raises:
        ValueError: `equivariant_dim` does not lie between 0 and feature_dim.
    """
    invariant_dim = features.shape[-1] - equivariant_dim
    if not 0 <= invariant_dim <= features.shape[-1]:
        raise ValueError(
            f"equivariant_dim must lie between 0 and the features' {features.shape[-1]} dimensions, "
            f"got {equivariant_dim}"
        )
    return features[..., :invariant_dim], features[..., invariant_dim:]


def pool_tokens(features: torch.Tensor, num_prefix_tokens: int, tokens: str) -> torch.Tensor:
    """Pool token features (B, P + N, d).

    `tokens`: `"cls"` (B, d), the mean of the patches if the backbone has no CLS token; `"mean"` (B, d) over the
    patch tokens; `"cls_mean"` (B, 2 d); `"patches"` (B, N, d); `"all"` (B, P + N, d).
    """
    if tokens == "all":
        return features
    patches = features[:, num_prefix_tokens:]
    if tokens == "patches":
        return patches
    if tokens == "mean" or (tokens == "cls" and num_prefix_tokens == 0):
        return patches.mean(dim=1)
    if tokens == "cls":
        return features[:, 0]
    if tokens == "cls_mean":
        cls = pool_tokens(features, num_prefix_tokens, "cls")
        return torch.cat([cls, patches.mean(dim=1)], dim=-1)
    raise ValueError(f"unknown tokens {tokens!r}; known: cls, mean, cls_mean, patches, all")


class EqCohViTPreTrainedModel(PreTrainedModel):
    """Weight initialization, loading and saving, shared by all EqCohViT models."""

    config: EqCohViTConfig
    base_model_prefix = "eqcohvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = []
    _keys_to_ignore_on_load_unexpected = [r"^decoders\.", r"^classifier\.", *_NOT_OF_THE_MODEL]
    # Encoder weights that a loaded checkpoint lacked. They are random, and the pipeline refuses such a model.
    missing_encoder_keys: tuple[str, ...] | list[str] = ()
    _random_starts: dict[str, torch.Tensor] = {}  # on the base model: the first values of each of these weights

    def __init__(self, config: EqCohViTConfig, *args, **kwargs):
        config.check()  # fields may have been set after construction, which does not check them
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (DecoderLinear, DecoderConv)):
            gain = module.gain if isinstance(module, DecoderConv) else 1.0
            init.normal_(module.weight, mean=0.0, std=gain / math.sqrt(module.weight[0].numel()))
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, ignore_mismatched_sizes=False, output_loading_info=False, **kwargs
    ) -> Any:  # with `output_loading_info` a pair
        name = pretrained_model_name_or_path
        of_run = name is not None and _is_of_run(name)
        names = {**(kwargs.pop("key_mapping", None) or {}), **(_NAMES_IN_RUN if of_run else {}), **_NAMES_IN_MEMORY}
        # The library names tensors that do not fit only in a printed table.
        hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
        model, info = super().from_pretrained(
            name, *args, ignore_mismatched_sizes=True, output_loading_info=True, key_mapping=names, **kwargs
        )
        new = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
        if name is not None and not any("feature_head." in key for key in new):
            model._check_meanings(name, cls.config_class.get_config_dict(name, **hub)[0])
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            key, found, expected = sorted(info["mismatched_keys"])[0]
            raise RuntimeError(
                f"{name}: expected {key} of shape {tuple(expected)}, found {tuple(found)} "
                f"({len(info['mismatched_keys'])} such tensors); ignore_mismatched_sizes=True makes them random"
            )
        model._remember_random(filter(_ENCODER_KEYS.search, new))
        model._freeze_unused()
        return (model, info) if output_loading_info else model

    def _check_meanings(self, name: str, saved: dict[str, Any]) -> None:
        for field in _MEANINGS:
            if field in saved and saved[field] != getattr(self.config, field):
                raise ValueError(
                    f"{name} was trained with {field}={saved[field]!r}, got {getattr(self.config, field)!r}"
                )

    def _remember_random(self, keys: Iterable[str]) -> None:
        """Remember these encoder weights, and those that the configuration names, as random until training changes
        them."""
        base = self.base_model
        prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
        parameters = dict(base.named_parameters())
        names = {key.removeprefix(prefix) for key in keys} | set(self.config.random_weights or ())
        base._random_starts = {name: _first_values(parameters[name]) for name in sorted(names & parameters.keys())}
        base.missing_encoder_keys = list(base._random_starts)
        self.missing_encoder_keys = [prefix + name for name in base.missing_encoder_keys]

    def _still_random(self) -> list[str]:
        parameters = dict(self.base_model.named_parameters())
        starts = self.base_model._random_starts.items()
        # Half precision rounds by less than this tolerance, and training changes weights by more.
        same = {
            name
            for name, start in starts
            if name in parameters and torch.allclose(_first_values(parameters[name]), start, rtol=4e-3)
        }
        return sorted(same)

    def _freeze_unused(self) -> None:
        """Freeze the parameters that the model holds but never trains; loading makes all trainable."""

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.backbone.get_input_embeddings()

    def save_pretrained(self, save_directory, **kwargs):
        # Save the names in memory, as `Trainer` expects when it resumes.
        kwargs.setdefault("save_original_format", False)
        self.config.random_weights = self._still_random() or None
        # The library writes only the class that is being saved. Every Auto class must work on the folder.
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **_AUTO_MAP}
        self.config.custom_pipelines = {**(getattr(self.config, "custom_pipelines", None) or {}), **_CUSTOM_PIPELINES}
        return super().save_pretrained(save_directory, **kwargs)


def _is_of_run(name: str | os.PathLike) -> bool:
    """Whether the weights in a folder belong to a checkpoint. The folder of a run has a link to them."""
    weights = os.path.realpath(os.path.join(name, "model.safetensors"))
    return any(os.path.isfile(os.path.join(folder, _RUN_FILE)) for folder in (name, os.path.dirname(weights)))


def _first_values(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().flatten()[:64].float().cpu().clone()


def _build_backbone(config: EqCohViTConfig) -> PreTrainedModel:
    """The ViT encoder of `config.backbone_config` in the model's own precision, without a pooling layer, which nothing
    would train."""
    backbone_class = MODEL_MAPPING[type(config.backbone_config)]
    kwargs = (
        {"add_pooling_layer": False}
        if "add_pooling_layer" in inspect.signature(backbone_class.__init__).parameters
        else {}
    )
    if "use_mask_token" in inspect.signature(backbone_class.__init__).parameters:
        kwargs["use_mask_token"] = bool(getattr(config.backbone_config, "use_mask_token", False))
    return AutoModel.from_config(config.backbone_config, dtype=torch.get_default_dtype(), **kwargs)


@torch.no_grad()
def start_positions(model: "EqCohViTModel", scale: float = 0.3) -> None:
    """Set learned position embeddings, in place, to sine and cosine waves along x and y. Training from scratch starts
    there.

    The backbones themselves start near 0, and a ViT then first has to learn where its patches are. The waves run from a
    quarter turn per patch down to a twentieth of that. `scale` is their amplitude, of the order of a patch embedding.
    They are trained like all other weights.
    """
    positions = getattr(model.backbone.embeddings, "position_embeddings", None)
    if positions is None or not positions.requires_grad:
        return
    side = model.config.square_image_size // model.config.square_patch_size
    quarter = positions.shape[-1] // 4
    frequencies = 20.0 ** (-torch.arange(quarter, dtype=torch.float32) / quarter) * math.pi / 2
    angles = (torch.arange(side, dtype=torch.float32) + 0.5)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=-1)
    waves = torch.cat([along.expand(side, -1, -1), along[:, None].expand(-1, side, -1)], dim=-1).flatten(0, 1)
    positions[0, -(side**2) :, : waves.shape[-1]] = scale * waves.to(positions)


class _SplitEncoder(EqCohViTPreTrainedModel):
    """The backbone and its call, shared by the model and the backbone wrapper, so that one checkpoint serves both."""

    def _make_backbone(self, config: EqCohViTConfig) -> None:
        self.backbone = _build_backbone(config)
        self.num_prefix_tokens = config.num_prefix_tokens or 0  # None only while a configuration is made
        parameters = inspect.signature(type(self.backbone).forward).parameters
        self._can_interpolate = "interpolate_pos_encoding" in parameters
        self._has_mask_token = getattr(self.backbone.embeddings, "mask_token", None) is not None

    def _run_backbone(self, pixel_values: torch.Tensor | None, **kwargs):
        config = self.config
        for name in ("output_hidden_states", "output_attentions"):  # the nested backbone does not see them
            if kwargs.get(name) is None and getattr(config, name):
                kwargs[name] = True
        if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
            found = pixel_values.dtype if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
            raise ValueError(
                f"pixel_values must be a float tensor of shape (batch_size, channels, height, width), got {found}"
            )
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values must have the shape (batch_size, {config.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}"
            )
        height, width = pixel_values.shape[-2:]
        patch = config.square_patch_size
        if height % patch or width % patch or not height or not width:
            raise ValueError(
                f"image height and width must be multiples of the patch size {patch}, got {height} x {width}"
            )
        if self._can_interpolate and (height != config.square_image_size or width != config.square_image_size):
            kwargs.setdefault("interpolate_pos_encoding", True)
        num_patches = (height // patch) * (width // patch)
        if config.family.drops_patches:  # and orders the others by this noise
            kwargs["noise"] = torch.arange(num_patches, device=pixel_values.device).expand(pixel_values.shape[0], -1)
        if kwargs.get("bool_masked_pos") is not None and not self._has_mask_token:
            raise ValueError(
                "bool_masked_pos needs a backbone with a mask token; "
                "for dinov2 set use_mask_token=True in backbone_config"
            )
        if self._has_mask_token and self.training and kwargs.get("bool_masked_pos") is None:
            # Masks nothing, but gives the mask token a zero gradient: in DDP every parameter needs a gradient.
            kwargs["bool_masked_pos"] = torch.zeros(
                pixel_values.shape[0], num_patches, dtype=torch.bool, device=pixel_values.device
            )
        return self.backbone(pixel_values.to(self.dtype), **kwargs)


class EqCohViTModel(_SplitEncoder):
    """ViT backbone and linear feature head; returns the invariant and the equivariant part of every token (paper,
    section 2)."""

    def __init__(self, config: EqCohViTConfig):
        super().__init__(config)
        self._make_backbone(config)
        self.feature_head = nn.Linear(config.hidden_size, config.feature_dim)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> EqCohViTModelOutput:
        """
        Args:
            pixel_values: (B, C, H, W), normalized as the image processor does; H and W multiples of the patch size.
            kwargs: for the backbone: `output_hidden_states`, `output_attentions`, `interpolate_pos_encoding`, and
                `bool_masked_pos`, (B, N) booleans that are true where the mask token replaces a patch.
        """
        outputs = self._run_backbone(pixel_values, **kwargs)
        tokens = outputs.last_hidden_state
        invariant, equivariant = split_features(self.feature_head(tokens), self.config.equivariant_dim)
        return EqCohViTModelOutput(
            last_hidden_state=tokens,
            pooler_output=pool_tokens(tokens, self.num_prefix_tokens, "cls"),
            invariant_features=invariant,
            equivariant_features=equivariant,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class EqCohViTForPreTraining(EqCohViTPreTrainedModel):
    """The model with its K decoders: reconstructs the intermediate states of the path between two views (paper, section
    3)."""

    def __init__(self, config: EqCohViTConfig):
        super().__init__(config)
        self.eqcohvit = EqCohViTModel(config)
        self.decoders = IntermediateDecoders(config)
        self.post_init()

    def reconstruct(
        self, equivariant: torch.Tensor, equivariant_end: torch.Tensor, image_size: tuple[int, int]
    ) -> torch.Tensor:
        """Equivariant features (B, P + N, d_equi) of both views, (H, W) in pixels -> (B, K, C, H, W)."""
        patch = self.config.square_patch_size
        return self.decoders(equivariant, equivariant_end, (image_size[0] // patch, image_size[1] // patch))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_end: torch.Tensor | None = None,
        intermediates: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EqCohViTForPreTrainingOutput:
        """
        Args:
            pixel_values: (B, C, H, W), the first view v1.
            pixel_values_end: (B, C, H, W), the end view v2 = g(u). Without it the path is the identity: the end view
                and all states on the path are `pixel_values`, and the loss measures how well the image itself is
                reconstructed.
            intermediates: (B, K, C, H, W), the states to reconstruct, in the order of `reconstructions`. Without them,
                two views give no loss.
            kwargs: for the encoder, with both views.
        """
        first = end = self.eqcohvit(pixel_values, return_dict=True, **kwargs)
        assert pixel_values is not None  # the encoder refuses None
        if pixel_values_end is not None:
            if pixel_values.shape != pixel_values_end.shape:
                raise ValueError(
                    f"both views must have one shape, got {tuple(pixel_values.shape)} "
                    f"and {tuple(pixel_values_end.shape)}"
                )
            end = self.eqcohvit(pixel_values_end, return_dict=True, **kwargs)
        elif intermediates is not None:
            raise ValueError(
                "intermediates are states between two views, but pixel_values_end (the end of the path) is missing"
            )
        image_size = (pixel_values.shape[-2], pixel_values.shape[-1])
        reconstructions = self.reconstruct(first.equivariant_features, end.equivariant_features, image_size)
        if pixel_values_end is None:
            intermediates = pixel_values.unsqueeze(1).expand_as(reconstructions)
        loss = losses = None
        if intermediates is not None:
            if intermediates.shape != reconstructions.shape:
                raise ValueError(
                    f"intermediates must have the shape {tuple(reconstructions.shape)}, "
                    f"got {tuple(intermediates.shape)}"
                )
            losses = reconstruction_losses(reconstructions, intermediates)
            loss = losses.mean()
        return EqCohViTForPreTrainingOutput(
            loss=loss,
            reconstructions=reconstructions,
            intermediate_losses=losses,
            invariant_features=first.invariant_features,
            invariant_features_end=end.invariant_features,
            equivariant_features=first.equivariant_features,
            equivariant_features_end=end.equivariant_features,
            hidden_states=first.hidden_states,
            attentions=first.attentions,
        )


class ClassifierHead(nn.Sequential):
    """A linear layer, or an MLP with one hidden layer, on pooled features (B, d) -> logits (B, num_labels)."""

    def __init__(self, in_dim: int, hidden_dim: int, num_labels: int):
        hidden = [nn.Linear(in_dim, hidden_dim), nn.GELU()] if hidden_dim else []
        super().__init__(*hidden, nn.Linear(hidden_dim or in_dim, num_labels))


class EqCohViTForImageClassification(EqCohViTPreTrainedModel):
    """The model with a classification head on the CLS and mean features of the part that `config.classifier_part`
    names."""

    def __init__(self, config: EqCohViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.eqcohvit = EqCohViTModel(config)
        widths = {"invariant": config.invariant_dim, "equivariant": config.equivariant_dim, "both": config.feature_dim}
        part_dim = widths.get(config.classifier_part, config.hidden_size)
        self.classifier = ClassifierHead(2 * part_dim, config.classifier_hidden_dim, config.num_labels)
        self.post_init()
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        # The saved model still has the feature head, but no gradient reaches it.
        if self.config.classifier_part == "backbone":
            self.eqcohvit.feature_head.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """pixel_values (B, C, H, W), labels (B,) class indices -> loss (), logits (B, num_labels)."""
        outputs = self.eqcohvit(pixel_values, return_dict=True, **kwargs)
        features = {
            "invariant": outputs.invariant_features,
            "equivariant": outputs.equivariant_features,
            "both": torch.cat([outputs.invariant_features, outputs.equivariant_features], dim=-1),
            "backbone": outputs.last_hidden_state,
        }[self.config.classifier_part]
        logits = self.classifier(pool_tokens(features, self.eqcohvit.num_prefix_tokens, "cls_mean"))
        loss = self.loss_function(labels, logits, self.config) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class EqCohViTBackbone(BackboneMixin, _SplitEncoder):
    """Feature maps of chosen stages for transformers' dense heads (UperNet, DPT, DETR ...)."""

    _keys_to_ignore_on_load_unexpected = [r"^decoders\.", r"^classifier\.", r"feature_head\.", *_NOT_OF_THE_MODEL]

    def __init__(self, config: EqCohViTConfig):
        super().__init__(config)
        self._make_backbone(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BackboneOutput:
        """pixel_values (B, C, H, W) -> one feature map per `config.out_features`.

        A map is (B, D, h * s, w * s), where s is the stage's entry in `config.scale_factors` (default: 1). With
        `reshape_hidden_states=False` it is a token sequence (B, P + N, D), or (B, N, D) with
        `include_prefix_tokens=False`.
        """
        outputs = self._run_backbone(pixel_values, output_hidden_states=True, **kwargs)
        norm = getattr(self.backbone, self.config.family.norm)
        patch = self.config.square_patch_size
        height, width = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
        scale_factors = self.config.scale_factors
        if scale_factors and len(scale_factors) != len(self.out_features):
            raise ValueError(f"scale_factors needs one number for each of {self.out_features}, got {scale_factors}")
        maps = []
        for stage, hidden_state in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            if self.config.apply_layernorm:
                hidden_state = norm(hidden_state)
            if self.config.reshape_hidden_states or not self.config.include_prefix_tokens:
                hidden_state = hidden_state[:, self.num_prefix_tokens :]
            if self.config.reshape_hidden_states:
                hidden_state = hidden_state.transpose(1, 2).unflatten(2, (height, width)).contiguous()
                if scale_factors and scale_factors[len(maps)] != 1:
                    hidden_state = F.interpolate(
                        hidden_state, scale_factor=float(scale_factors[len(maps)]), mode="bilinear", align_corners=False
                    )
            maps.append(hidden_state)
        return BackboneOutput(
            feature_maps=tuple(maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "EqCohViTBackbone",
    "EqCohViTForImageClassification",
    "EqCohViTForPreTraining",
    "EqCohViTForPreTrainingOutput",
    "EqCohViTModel",
    "EqCohViTModelOutput",
    "EqCohViTPreTrainedModel",
    "pool_tokens",
    "split_features",
    "start_positions",
]
