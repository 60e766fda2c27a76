"""What a run may start from: a transformers ViT, an EqCohViT folder, or a run's checkpoint.

The backbone's weights, its sizes and the normalisation of its pixels come from there; the feature head, the decoders and the objective's
heads come from there too where it has them, and are new where it has not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..hub.configuration_eqcohvit import SUPPORTED_BACKBONES, EqCohViTConfig
from ..hub.modeling_eqcohvit import EqCohViTForPreTraining
from .arguments import PretrainArguments, check_resumable, load_recipe
from .checkpoint import STATE_FILE, list_checkpoints, read_state

Weights = dict[str, torch.Tensor]
STATE_FOLDER = "training_state"  # in a model folder: the checkpoint that it was exported at
SETTINGS_FILE, WEIGHTS_FILE = "config.yaml", "model.safetensors"
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Settings that describe the split head and the decoders, which an EqCohViT model brings along.
_OBJECTIVE_SETTINGS = ("objective", "objective_options", "projector_dim")
_HEAD_SETTINGS = ("feature_dim", "equivariant_dim", "num_intermediates", "include_final", "decoder_dim", "decoder_context")


@dataclass(frozen=True)
class Entry:
    """What became of one key of the source, or where one key of the target came from."""

    action: str  # "copied", "split", "dropped" or "new"
    source: str | None
    targets: tuple[str, ...]
    shape: tuple[int, ...]


# --------------------------------------------------------------------------------------------------- transformers models


def read_config(source: str) -> PreTrainedConfig:
    """The configuration of a folder or Hub id.

    Raises:
        ValueError: there is none, or it is of no supported model.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"no model at {source}: {str(error).strip().splitlines()[0]}") from None
    allowed = (*SUPPORTED_BACKBONES, EqCohViTConfig.model_type)
    if config.model_type not in allowed:
        raise ValueError(f"{source}: expected a model_type of {', '.join(allowed)}, found {config.model_type!r}")
    return config


def read_processor(source: str) -> dict[str, Any]:
    """The numbers of a model's image processor (its class may need torchvision); an empty dictionary where it has none."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError:
        return {}


def normalisation(processor: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, of images in [0, 1]; ImageNet's where the processor names none."""
    return (
        list(processor.get("image_mean") or IMAGENET_DEFAULT_MEAN),
        list(processor.get("image_std") or IMAGENET_DEFAULT_STD),
    )


def read_transformers(source: str) -> tuple[dict, Weights, list[Entry], list[float], list[float]]:
    """Configuration, tensors and report of a transformers ViT, and the normalisation of its image processor."""
    config = read_config(source)
    if config.model_type not in SUPPORTED_BACKBONES:
        raise ValueError(f"{source}: expected a model_type of {', '.join(SUPPORTED_BACKBONES)}, found {config.model_type!r}")
    try:
        model, info = AutoModel.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"no weights at {source}: {str(error).splitlines()[0]}") from None
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{source}: expected all weights of {type(model).__name__}, but {len(missing)} are missing, first {missing[0]}")
    weights, report = {}, [Entry("dropped", key, (), ()) for key in sorted(info["unexpected_keys"])]
    for key, tensor in model.state_dict().items():
        kept = not key.startswith("pooler.")
        report.append(Entry("copied" if kept else "dropped", key, (key,) if kept else (), tuple(tensor.shape)))
        if kept:
            weights[key] = tensor
    return config.to_dict(), weights, report, *normalisation(read_processor(source))


def fill(module: nn.Module, weights: Weights, source: str, report: list[Entry] | None = None) -> None:
    """Load the tensors; each must have its place and its shape, and no place may stay empty but that of a mask token.

    Raises:
        ValueError: names the first tensor that does not fit, with the expected and the found shape.
    """
    weights, report = dict(weights), [] if report is None else report
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    for key in [key for key in weights if key not in expected and key.endswith("mask_token")]:
        weights.pop(key)  # a backbone that was made without masking
        for index, entry in enumerate(report):
            if key in entry.targets:
                report[index] = dataclasses.replace(entry, action="dropped", targets=())
    for key in [key for key in expected if key not in weights and key.endswith("mask_token")]:
        report.append(Entry("new", None, (key,), expected.pop(key)))
    problems: list[tuple[set[str], Callable[[str], str]]] = [
        (expected.keys() - weights.keys(), lambda key: f"expected {key} of shape {expected[key]}, found nothing of that name"),
        (weights.keys() - expected.keys(), lambda key: f"found {key} of shape {tuple(weights[key].shape)}, which has no place"),
        (
            {key for key in expected if key in weights and tuple(weights[key].shape) != expected[key]},
            lambda key: f"expected {key} of shape {expected[key]}, found {tuple(weights[key].shape)}",
        ),
    ]
    for keys, describe in problems:
        if keys:
            raise ValueError(f"{source}: {describe(sorted(keys)[0])} ({len(keys)} such tensors)")
    module.load_state_dict(weights, strict=False)


def resize_positions(weights: Weights, grid_size: int, model_type: str) -> Weights:
    """The same tensors with learned position embeddings (1, P + n^2, D) resampled to a grid of (grid_size, grid_size) patches.

    Bicubic, as the backbones of that `model_type` themselves do for an image of another size than their own.
    """
    resized, antialias = dict(weights), model_type == "dinov2_with_registers"
    for key, positions in weights.items():
        if not key.endswith("embeddings.position_embeddings"):
            continue
        side = int((positions.shape[1]) ** 0.5)  # up to two prefix tokens come first, fewer than would make a larger square
        if side == grid_size:
            continue
        prefix, patches = positions[:, : -(side**2)], positions[:, -(side**2) :]
        patches = patches.transpose(1, 2).unflatten(2, (side, side)).float()
        patches = F.interpolate(patches, size=(grid_size, grid_size), mode="bicubic", align_corners=False, antialias=antialias)
        resized[key] = torch.cat([prefix, patches.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
    return resized


# ------------------------------------------------------------------------------------------------------------------ start


@dataclass(frozen=True)
class Start:
    """What there is at a source; its weights have not been read.

    Args:
        source: folder or Hub id of the model, or folder of the checkpoint; `name` is what the user called it.
        config: an EqCohViT configuration, or that of a ViT.
        image_size: side of the images that it was made for, in pixels: its image processor's, else its configuration's.
        image_mean, image_std: normalisation of its pixels.
        state: folder of the checkpoint with the objective's heads and the teacher, where there is one.
    """

    name: str
    source: str
    config: PreTrainedConfig
    image_size: int
    image_mean: list[float]
    image_std: list[float]
    state: Path | None = None

    @property
    def is_split(self) -> bool:
        """Whether it has a feature head and decoders."""
        return self.config.model_type == EqCohViTConfig.model_type

    @property
    def backbone_config(self) -> PreTrainedConfig:
        """The configuration of the ViT, inside of a split model or alone."""
        return self.config.backbone_config if self.is_split else self.config

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint of a run, not a model folder."""
        return self.state is not None and str(self.state) == self.source

    @property
    def objective(self) -> str | None:
        """Name of the objective whose heads are in the training state, where there is one."""
        return None if self.state is None else load_recipe(self.state / SETTINGS_FILE).get("objective")

    def state_weights(self, prefix: str) -> Weights:
        """The tensors of the training state whose names begin with `prefix`, without it."""
        assert self.state is not None
        try:
            return _part(load_file(self.state / WEIGHTS_FILE), prefix)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {self.state / WEIGHTS_FILE}: {str(error).strip().splitlines()[0]}") from None


def open_start(name: str) -> Start:
    """Look at a transformers ViT, an EqCohViT model (folder or Hub id), a run's folder, or a run's checkpoint.

    Raises:
        ValueError: there is nothing of this kind.
    """
    folder = Path(name)
    if (folder / SETTINGS_FILE).is_file() and (folder / "checkpoints").is_dir():
        folder = _newest_of_run(folder)
    source = str(folder) if folder.is_dir() else name
    if (folder / STATE_FILE).is_file():
        config, processor, state = read_checkpoint_config(folder), read_state(folder), folder
    else:
        config, processor, state = read_config(source), read_processor(source), None
        if config.model_type == EqCohViTConfig.model_type:
            state = find_training_state(source, files="[cmr]*")  # config, model, run_state; not the optimizer's, which is twice as large
    backbone = getattr(config, "backbone_config", config)
    return Start(name, source, config, _image_size(processor, backbone), *normalisation(processor), state)


def _newest_of_run(run: Path) -> Path:
    """Its newest checkpoint, which has the objective's heads too; of a LoRA run the model, where the adapters are merged."""
    checkpoints = list_checkpoints(run)
    is_lora = load_recipe(run / SETTINGS_FILE).get("peft") is not None
    return checkpoints[-1] if checkpoints and not is_lora else run / "model"


def read_checkpoint_config(checkpoint: Path) -> EqCohViTConfig:
    """The configuration of the model in a checkpoint."""
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} does not say of which model it is: expected config.json beside {STATE_FILE}")
    return EqCohViTConfig.from_pretrained(checkpoint)


def _image_size(processor: dict[str, Any], backbone: PreTrainedConfig) -> int:
    for entry in (processor.get("crop_size"), processor.get("size"), backbone.image_size):
        sides = list(entry.values()) if isinstance(entry, dict) else entry if isinstance(entry, (list, tuple)) else [entry]
        if sides and isinstance(sides[0], int) and len(set(sides)) == 1 and not sides[0] % _side(backbone.patch_size):
            return sides[0]
    raise ValueError(f"expected a square image size that is a multiple of the patch size, found {backbone.image_size}")


def _side(size: Any) -> int:
    return size if isinstance(size, int) else size[0]


def find_training_state(source: str, files: str = "*") -> Path | None:
    """The `training_state/` of a model folder or Hub repository, None where it has none; of a repository only `files` are downloaded."""
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, allow_patterns=f"{STATE_FOLDER}/{files}"))
        except (OSError, HTTPError, ValueError) as error:
            raise ValueError(f"cannot look for {STATE_FOLDER}/ in {source}: {str(error).strip().splitlines()[0]}") from None
    state = folder / STATE_FOLDER
    return state if (state / STATE_FILE).is_file() else None


def describe_run(folder: Path, args: PretrainArguments, config: EqCohViTConfig) -> None:
    """Write into a checkpoint what another run needs to begin from it: the model's configuration and the settings without local paths."""
    config.to_json_file(folder / "config.json")
    (folder / SETTINGS_FILE).write_text(yaml.safe_dump(args.shareable(), sort_keys=False))


# --------------------------------------------------------------------------------------------------------------- settings


def complete_settings(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Settings that a checkpoint or a model brings to a run, in place of defaults (`parse_arguments`).

    Args:
        values: all settings, defaults included.
        given: names of those that a flag or a recipe sets.

    Raises:
        ValueError: there is no such checkpoint or model, or a given setting does not fit it.
    """
    found = {}
    if values["resume_from_checkpoint"]:
        found = _settings_of_checkpoint(values, given)
    if not found and values["init_from"]:
        found = _settings_of_start(values, given)
    completed = {name: value for name, value in found.items() if name not in given}
    if "resume_from_checkpoint" in found:
        completed["resume_from_checkpoint"] = found["resume_from_checkpoint"]
    return completed


def _settings_of_checkpoint(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Those of the run to go on with; nothing where it has not begun. `resume_from_checkpoint` becomes the folder that it means."""
    resume = values["resume_from_checkpoint"]
    if resume == "latest":
        own = Path(values["output_dir"]) / SETTINGS_FILE
        saved = load_recipe(own) if own.is_file() else {}
        return {name: value for name, value in saved.items() if name not in ("output_dir", "resume_from_checkpoint")}
    state = Path(resume)
    if not (state / STATE_FILE).is_file() and (state.is_dir() or _REPO_ID.fullmatch(resume)):
        state = find_training_state(resume) or state
    if not (state / SETTINGS_FILE).is_file():
        return {}  # for `find_checkpoint` to say what is wrong with it
    saved = load_recipe(state / SETTINGS_FILE)
    check_resumable(PretrainArguments(**saved | {name: values[name] for name in given}), saved)
    places = {"dataset_name", "data_files", "train_dir"}
    if not places <= saved.keys() and not places & given:
        raise ValueError(f"{resume} does not say which images it was trained on: give --dataset_name, --data_files or --train_dir")
    return saved | {"resume_from_checkpoint": str(state)}


def _settings_of_start(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    name = values["init_from"]
    start = open_start(name)
    found = {"backbone": start.backbone_config.model_type, "patch_size": _side(start.backbone_config.patch_size)}
    if start.is_split and values["init_heads"]:
        found |= {key: getattr(start.config, key) for key in _HEAD_SETTINGS}
    if "model_preset" in given:
        raise ValueError(f"model_preset cannot be chosen together with init_from={name}, which has a size of its own")
    for key, value in found.items():
        if key in given and values[key] != value:
            hint = "; --no-init_heads begins with new heads" if key in _HEAD_SETTINGS else ""
            raise ValueError(f"expected {key}={values[key]!r}, found {value!r} in init_from={name}{hint}")
    if start.state is not None and values["init_heads"]:
        saved = load_recipe(start.state / SETTINGS_FILE)
        if "objective" not in given or saved.get("objective") == values["objective"]:
            found |= {key: saved[key] for key in _OBJECTIVE_SETTINGS if key in saved}
    defaults = {"image_size": start.image_size, "model_preset": None}
    if start.is_split and values["init_heads"]:
        defaults |= {key: getattr(start.config, key) for key in ("path", "border", "decoder_patch_dropout")}
    return defaults | found


# ---------------------------------------------------------------------------------------------------------------- weights


def fill_model(model: EqCohViTForPreTraining, start: Start, heads: bool) -> None:
    """Load the backbone's weights, and with `heads` the feature head and the decoders too where the source has them."""
    weights = _split_weights(start) if start.is_split else read_transformers(start.source)[1]
    weights = resize_positions(weights, *grid_of(model.config))
    if start.is_split and heads:
        fill(model, weights, start.name)
    else:
        fill(model.eqcohvit.backbone, _part(weights, "eqcohvit.backbone.") if start.is_split else weights, start.name)


def grid_of(config: EqCohViTConfig) -> tuple[int, str]:
    """What `resize_positions` needs to know of a model: patches along a side, and the family of its backbone."""
    return config.square_image_size // config.square_patch_size, config.backbone_type


def _split_weights(start: Start) -> Weights:
    if start.is_checkpoint:
        weights = start.state_weights("model.")
        if any(".lora_A." in key for key in weights):
            raise ValueError(f"{start.name} is a checkpoint of a LoRA run: start from its model folder, where the adapters are merged")
        return weights
    try:
        model = EqCohViTForPreTraining.from_pretrained(start.source)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"no weights at {start.name}: {str(error).strip().splitlines()[0]}") from None
    if model.missing_encoder_keys:
        missing = model.missing_encoder_keys
        raise ValueError(f"{start.name} lacks {len(missing)} weights of the encoder, first {missing[0]}")
    return model.state_dict()


def _part(weights: Weights, prefix: str) -> Weights:
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
