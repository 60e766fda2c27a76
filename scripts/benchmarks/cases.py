"""The settings of a benchmark's cases, and their names in its tables."""

from __future__ import annotations

from typing import Any

from eqcohvit.training.arguments import PretrainArguments, parse_arguments

# The paper's decoders, which read only the patches.
_COMMON: dict[str, Any] = {"patch_size": 16, "decoder_context": "none", "decoder_patch_dropout": 0.0, "border": "zeros"}
_VICREG: dict[str, Any] = {
    **_COMMON,
    "objective": "vicreg",
    "augmentation": "vicreg",
    "feature_dim": 512,
    "equivariant_dim": 256,
}
_DINOV2: dict[str, Any] = {
    **_COMMON, "objective": "dinov2", "augmentation": "dinov2", "feature_dim": 2048, "equivariant_dim": 512,
    "projector_dim": 2048, "local_crops_number": 8, "local_crops_size": 96,
}  # fmt: skip


def sized_settings(preset: str, batch_size: int, image_size: int = 224, **changes: Any) -> PretrainArguments:
    """VICReg, or DINOv2 if `changes` say so, with a preset of the model and the changes."""
    recipe = _DINOV2 if changes.get("objective") == "dinov2" else _VICREG
    values: dict[str, Any] = {
        **recipe,
        "model_preset": preset,
        "image_size": image_size,
        "per_device_train_batch_size": batch_size,
    }
    values |= changes
    if preset == "micro":
        values |= {"patch_size": 8}
    args = PretrainArguments(**values)
    args.check()
    return args


def recipe_settings(name: str, batch_size: int, *flags: str) -> PretrainArguments:
    """A recipe of the package with another batch size."""
    return parse_arguments(["--config", name, "--per_device_train_batch_size", str(batch_size), *flags])


def case_name(args: PretrainArguments) -> str:
    """`ViT-S/16, vicreg, 224 px, batch 2`."""
    sizes: dict[str | None, str] = {"micro": "micro", "small": "S", "base": "B", "large": "L"}
    objective = f"{args.objective} (recon_from {args.recon_from})" if args.masking() else args.objective
    model = f"ViT-{sizes[args.model_preset]}/{args.patch_size}"
    return f"{model}, {objective}, {args.image_size} px, batch {args.per_device_train_batch_size}"
