"""From the settings of a run to the configuration of its model."""

from __future__ import annotations

from typing import Any

from ..hub.configuration_eqcohvit import FAMILIES, PRESETS, EqCohViTConfig, families_with
from .arguments import PretrainArguments


def model_config(args: PretrainArguments, backbone: dict[str, Any] | None = None) -> EqCohViTConfig:
    """The configuration of the model that the settings describe, with the backbone's own configuration if given.

    Raises:
        ValueError: the settings do not fit each other or the backbone.
    """
    backbone_kwargs = _backbone_kwargs(args, backbone["model_type"] if backbone else args.backbone)
    head = {
        "feature_dim": args.feature_dim,
        "equivariant_dim": args.equivariant_dim,
        "num_intermediates": args.num_intermediates,
        "include_final": args.include_final,
        "decoder_dim": args.decoder_dim,
        "decoder_context": args.decoder_context,
        "decoder_patch_dropout": args.decoder_patch_dropout,
        "path": args.path,
        "border": args.border,
    }
    if backbone is not None:
        return EqCohViTConfig(backbone_config={**backbone, **backbone_kwargs, "image_size": args.image_size}, **head)
    if args.model_preset is None:
        raise ValueError(f"model_preset must be one of {', '.join(PRESETS)} unless init_from gives the size")
    return EqCohViTConfig.from_preset(
        args.model_preset,
        args.image_size,
        args.patch_size,
        backbone_type=args.backbone,
        backbone_kwargs=backbone_kwargs,
        **head,
    )


def _backbone_kwargs(args: PretrainArguments, family: str) -> dict[str, Any]:
    """Fields of the backbone's configuration that the settings change, for a backbone of this model type."""
    kwargs: dict[str, Any] = {}
    if args.masking() is not None:
        if not FAMILIES[family].has_mask_token:
            raise ValueError(
                f"objective {args.objective} hides patches behind a mask token, which {family} does not have: "
                "choose another backbone, or --objective_options mask_probability=0"
            )
        kwargs["use_mask_token"] = True
    for name, neutral in (("drop_path_rate", (0.0,)), ("layerscale_value", (0.0, 1.0))):
        if getattr(args, name) not in neutral:
            allowed = families_with(name)
            if family not in allowed:
                raise ValueError(f"{name} needs one of the backbones {', '.join(allowed)}, got {family}")
            kwargs[name] = getattr(args, name)
    return kwargs
