"""Settings that come from a checkpoint or a model instead of from defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..files import SETTINGS_FILE, STATE_FILE
from ..preprocessing import side_of
from .arguments import PretrainArguments
from .launcher import with_launcher
from .start import find_training_state, open_start

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OBJECTIVE_SETTINGS = ("objective", "objective_options", "projector_dim")
# Settings of the feature head and the decoders, which an EqCohViT model determines.
_HEAD_SETTINGS = (
    "feature_dim",
    "equivariant_dim",
    "num_intermediates",
    "include_final",
    "decoder_dim",
    "decoder_context",
)


def complete_settings(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The settings that replace defaults because a checkpoint or a model determines them (for `parse_arguments`).

    Args:
        values: all settings, defaults included.
        given: names of those that a flag or a recipe sets.

    Raises:
        ValueError: the checkpoint or model cannot be found, or a given setting contradicts it.
    """
    found = {}
    if values["resume_from_checkpoint"]:
        found = _settings_of_checkpoint(values, given)
    if not found and values["init_from"]:
        found = _settings_of_start(values, given)
    completed = {name: value for name, value in found.items() if name not in given}
    if "resume_from_checkpoint" in found:
        completed["resume_from_checkpoint"] = found["resume_from_checkpoint"]
    return with_launcher(given, completed)


def _settings_of_checkpoint(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The settings of the run to resume, empty if it has not begun, with `resume_from_checkpoint` as a folder."""
    resume = values["resume_from_checkpoint"]
    if resume == "latest":
        return PretrainArguments.of_run(values["output_dir"])
    state = Path(resume)
    if not (state / STATE_FILE).is_file() and (state.is_dir() or _REPO_ID.fullmatch(resume)):
        state = find_training_state(resume) or state
    if not (state / SETTINGS_FILE).is_file():
        return {}  # `find_checkpoint` says what is wrong with it
    saved = PretrainArguments.saved(state / SETTINGS_FILE)
    PretrainArguments(**saved | {name: values[name] for name in given}).check_resumable(saved)
    places = {"dataset_name", "data_files", "train_dir"}
    if not places <= saved.keys() and not places & given:
        raise ValueError(
            f"{resume} does not say which images it was trained on: give --dataset_name, --data_files or --train_dir"
        )
    return saved | {"resume_from_checkpoint": str(state)}


def _settings_of_start(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    name = values["init_from"]
    start = open_start(name)
    found = {"backbone": start.backbone_config.model_type, "patch_size": side_of(start.backbone_config.patch_size)}
    if start.is_split and values["init_heads"]:
        found |= {key: getattr(start.config, key) for key in _HEAD_SETTINGS}
    if "model_preset" in given:
        raise ValueError(f"model_preset cannot be set together with init_from={name}, which determines the size")
    for key, value in found.items():
        if key in given and values[key] != value:
            hint = "; --no-init_heads begins with new heads" if key in _HEAD_SETTINGS else ""
            raise ValueError(f"expected {key}={values[key]!r}, found {value!r} in init_from={name}{hint}")
    if start.state is not None and values["init_heads"]:
        saved = PretrainArguments.saved(start.state / SETTINGS_FILE)
        if "objective" not in given or saved.get("objective") == values["objective"]:
            found |= {key: saved[key] for key in _OBJECTIVE_SETTINGS if key in saved}
    defaults = {"image_size": start.preprocessing.image_size, "model_preset": None}
    if start.is_split and values["init_heads"]:
        defaults |= {key: getattr(start.config, key) for key in ("path", "border", "decoder_patch_dropout")}
    return defaults | found
