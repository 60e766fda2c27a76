"""Find and load models, and check every tensor: no weight stays random that should be trained."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

from .files import (
    CHECKPOINTS,
    CONFIG_FILE,
    FINETUNE_SETTINGS_FILE,
    MODEL_FOLDER,
    SETTINGS_FILE,
    STATE_FILE,
    first_line,
    message_of,
)
from .hub.configuration_eqcohvit import FAMILIES, EqCohViTConfig

_MODEL_TYPES = (*FAMILIES, EqCohViTConfig.model_type)
# Weights that no feature depends on, or that may start from random values.
_MAY_BE_NEW = re.compile(r"(^|\.)(pooler\..*|mask_token|position_ids)$")
_LOAD_ERRORS = (OSError, RuntimeError, ValueError, SafetensorError, StrictDataclassError)


def find_model(name: str | Path) -> str:
    """The folder or Hub id to load from.

    For the folder of a run it is the model if the run has finished, else the newest checkpoint. Any other name stays as
    it is.

    Raises:
        ValueError: the folder does not exist, the run has saved nothing yet, or the checkpoint holds adapters.
    """
    folder = Path(name).expanduser()
    if is_run(folder):
        folder = _model_of_run(folder)
    if (folder / STATE_FILE).is_file() and _settings(folder).get("peft"):
        raise ValueError(
            f"{folder} is a checkpoint of a LoRA run: start from its model folder, where the adapters are merged"
        )
    if folder.is_dir():
        return str(folder)
    if not folder.exists() and _is_path(str(name)):
        raise ValueError(f"no such folder: {name}")
    return str(name)


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, also of one that has saved nothing but its settings."""
    has_settings = any((folder / file).is_file() for file in (SETTINGS_FILE, FINETUNE_SETTINGS_FILE))
    is_model = (folder / CONFIG_FILE).is_file() and not (folder / CHECKPOINTS).is_dir()
    return has_settings and not is_model and not (folder / STATE_FILE).is_file()


def nothing_saved(run: Path) -> ValueError:
    """The error for the folder of a run without checkpoint and model."""
    return ValueError(f"{run} holds no model yet: expected {run / MODEL_FOLDER}, or a checkpoint of a pretraining run")


def _is_path(name: str) -> bool:
    """Whether a name can only be a path: the name of a repository has at most one slash."""
    is_below_a_folder = "/" in name and Path(name).parts[0] != "timm" and Path(name).parts[0] in os.listdir()
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or is_below_a_folder


def _model_of_run(run: Path) -> Path:
    settings = _settings(run)
    model = run / MODEL_FOLDER
    steps = [int(path.name[5:]) for path in (run / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    is_newest = not steps or max(steps) >= settings.get("max_steps", 0) or settings.get("peft")
    if (model / CONFIG_FILE).is_file() and is_newest:
        return model
    if not steps or not (run / SETTINGS_FILE).is_file():
        raise nothing_saved(run)
    return run / CHECKPOINTS / f"step-{max(steps)}"


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_FILE
    try:
        settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {message_of(error)}") from None
    return settings if isinstance(settings, dict) else {}


def read_config(place: str, name: str | None = None, types: Sequence[str] = _MODEL_TYPES) -> PreTrainedConfig:
    """The configuration of a folder or Hub id.

    Args:
        name: what messages call the place; by default itself.
        types: the `model_type` values to accept.

    Raises:
        ValueError: it cannot be found, or its model is of no type of these.
    """
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ValueError(f"no model at {name or place}: {first_line(error)}") from None
    if config.model_type not in types:
        raise ValueError(f"{name or place}: expected a model_type of {', '.join(types)}, found {config.model_type!r}")
    return config


def load_whole(model_class: Any, name: str | Path, **kwargs: Any) -> Any:
    """`model_class.from_pretrained` of what `find_model` finds, with a check that every weight was loaded.

    Raises:
        ValueError: the model cannot be found, or a weight is missing, has another shape, or is not expected; the
            message names the first.
    """
    place = find_model(name)
    try:
        loaded = model_class.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except _LOAD_ERRORS as error:
        raise ValueError(f"no model at {name}: {first_line(error)}") from None
    model, info = loaded
    check_loaded(model, info, str(name))
    return model


def check_loaded(model: Any, info: dict[str, Any], name: str) -> None:
    """Raise a `ValueError` unless all weights of `model` were loaded. Heads of other classes may be left over.

    Args:
        info: as `from_pretrained(..., output_loading_info=True)` returns it.
        name: the model's name in the message.
    """
    for key, found, expected in sorted(info["mismatched_keys"]):
        count = len(info["mismatched_keys"])
        raise ValueError(
            f"{name}: expected {key} of shape {tuple(expected)}, found {tuple(found)} ({count} such tensors)"
        )
    missing = {key for key in info["missing_keys"] if not _MAY_BE_NEW.search(key)} | {
        *getattr(model, "missing_encoder_keys", ())
    }
    unexpected = {key for key in info["unexpected_keys"] if _is_inside(model, key) and not _MAY_BE_NEW.search(key)}
    for keys, what in ((missing, "lacks"), (unexpected, "has more than its configuration says:")):
        if keys:
            raise ValueError(f"{name} {what} {len(keys)} weights, first {sorted(keys)[0]}")


def resize_positions(weights: dict[str, torch.Tensor], config: EqCohViTConfig) -> dict[str, torch.Tensor]:
    """The same tensors with learned positions (1, P + n^2, D) resampled to the image size of `config`.

    The result is what the backbone itself computes for an image of that size: bicubic, with antialiasing in the
    families that use it.
    """
    resized = dict(weights)
    grid_size = config.square_image_size // config.square_patch_size
    for key, positions in weights.items():
        if not key.endswith("embeddings.position_embeddings"):
            continue
        # Prefix tokens come first, too few of them to make a larger square.
        side = math.isqrt(positions.shape[1])
        if side == grid_size:
            continue
        prefix = positions[:, : -(side**2)]
        patches = positions[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side)).float()
        size = (grid_size, grid_size)
        patches = F.interpolate(patches, size, mode="bicubic", align_corners=False, antialias=config.family.antialias)
        resized[key] = torch.cat([prefix, patches.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
    return resized


def _is_inside(model: Any, key: str) -> bool:
    """Whether a tensor of this name belongs to a module that the model has."""
    children = {name for module in (model, model.base_model) for name, _ in module.named_children()}
    return key.removeprefix(f"{model.base_model_prefix}.").split(".")[0] in children
