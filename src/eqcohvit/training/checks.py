"""Which settings of a pretraining run work, each and together."""

from __future__ import annotations

from collections.abc import Iterable

from ..cli import check_choices, check_numbers
from ..evaluation.run_probe import LEAST_PROBE_SAMPLES
from ..hub.configuration_eqcohvit import FAMILIES, PRESETS
from ..objectives import OBJECTIVES
from ..transforms import AUGMENTATIONS, make_path
from ..transforms.views import VIEW_BORDERS
from .arguments import PretrainArguments

_POSITIVE = (
    "max_steps per_device_train_batch_size gradient_accumulation_steps learning_rate max_grad_norm projector_dim "
    "patch_embed_lr_scale lora_rank knn_guard_samples logging_steps save_steps save_total_limit sample_steps"
)
_NOT_NEGATIVE = (
    "recon_weight layerscale_value warmup_steps head_warmup_steps weight_decay min_learning_rate "
    "dataloader_num_workers keep_every_steps knn_guard_steps probe_samples local_crops_number weight_decay_end"
)
_SHARES = "max_bad_fraction drop_path_rate knn_guard_drop invariant_rank_start"
_REGISTRIES: dict[str, Iterable[str]] = {
    "objective": OBJECTIVES,
    "backbone": FAMILIES,
    "model_preset": PRESETS,
    "augmentation": AUGMENTATIONS,
    "border": VIEW_BORDERS,
}


def check(args: PretrainArguments) -> None:
    """Raise a one-line `ValueError` for the first setting that cannot work."""
    check_choices(args, _REGISTRIES)
    if args.model_preset is not None or (args.init_from is None and args.resume_from_checkpoint is None):
        args.model_config()
    make_path(args.path)
    _check_numbers(args)
    _check_local_crops(args)
    _check_probes(args)
    if args.keep_every_steps % args.save_steps:
        raise ValueError(
            f"keep_every_steps must be a multiple of save_steps={args.save_steps}, got {args.keep_every_steps}"
        )
    if args.peft and not args.init_from and not args.resume_from_checkpoint:
        raise ValueError(f"peft={args.peft} needs init_from: adapters on random weights learn little")
    if args.freeze_backbone and args.peft:
        raise ValueError(f"expected freeze_backbone or peft={args.peft}, got both: adapters train in the backbone")
    if args.freeze_backbone and not args.init_from and not args.resume_from_checkpoint:
        raise ValueError("freeze_backbone needs init_from: random weights would stay random")
    if args.resident and not (args.train_dir or args.dataset_name or args.data_files):
        raise ValueError("resident needs train_dir, dataset_name or data_files: embedded sprites never repeat")
    if args.push_to_hub and not args.hub_model_id:
        raise ValueError("push_to_hub needs hub_model_id, for example user/name")


def _check_numbers(args: PretrainArguments) -> None:
    check_numbers(args, _POSITIVE.split(), _NOT_NEGATIVE.split())
    for name in _SHARES.split():
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {getattr(args, name)}")
    if args.invariant_rank is not None and args.invariant_rank < 0:
        raise ValueError(f"invariant_rank must not be negative, got {args.invariant_rank}; 0 turns the separation off")
    if not 0 < args.layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {args.layer_decay}")
    if args.per_device_train_batch_size < 2:
        size = args.per_device_train_batch_size
        raise ValueError(f"per_device_train_batch_size must be at least 2: objectives compare images, got {size}")


def _check_local_crops(args: PretrainArguments) -> None:
    number = args.local_crops_number
    size = args.local_crops_size
    if number and not OBJECTIVES[args.objective].uses_local_crops:
        users = ", ".join(name for name, objective in OBJECTIVES.items() if objective.uses_local_crops)
        raise ValueError(
            f"local_crops_number must be 0 for the objective {args.objective}; local crops are used by {users}"
        )
    if number and (size < args.patch_size or size % args.patch_size):
        raise ValueError(f"local_crops_size must be a multiple of patch_size = {args.patch_size}, got {size}")


def _check_probes(args: PretrainArguments) -> None:
    if 0 < args.probe_samples < LEAST_PROBE_SAMPLES:
        raise ValueError(f"probe_samples must be 0 or at least {LEAST_PROBE_SAMPLES}, got {args.probe_samples}")
    if args.probe_steps is not None and args.probe_steps < 1:
        raise ValueError(f"probe_steps must be positive, got {args.probe_steps}; probe_samples 0 turns the probes off")
    if (args.knn_guard_split or args.knn_guard_data_files) and not args.knn_guard_steps:
        raise ValueError("knn_guard_split and knn_guard_data_files need knn_guard_steps, the steps between two checks")
