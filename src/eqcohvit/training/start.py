"""Sources to start a run from: a transformers ViT, an EqCohViT model, the folder of a run, or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from ..files import (
    CONFIG_FILE,
    MODEL_FOLDER,
    PROCESSOR_FILE,
    SETTINGS_FILE,
    STATE_FILE,
    STATE_FOLDER,
    WEIGHTS_FILE,
    first_line,
)
from ..hub.configuration_eqcohvit import EqCohViTConfig
from ..loading import is_run, nothing_saved, read_config
from ..preprocessing import Preprocessing, read_preprocessing, side_of
from .arguments import PretrainArguments
from .checkpoint import list_checkpoints

Weights = dict[str, torch.Tensor]


def part_of(weights: Weights, prefix: str) -> Weights:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Start:
    """A source to start from; its weights have not been read yet.

    Args:
        name: the source as the user wrote it.
        source: folder or Hub id of the model, or folder of the checkpoint.
        config: configuration of an EqCohViT model or of a ViT.
        preprocessing: size and normalization of its images.
        state: folder of the checkpoint with the objective's heads and the teacher; None without one.
    """

    name: str
    source: str
    config: PreTrainedConfig
    preprocessing: Preprocessing
    state: Path | None = None

    @property
    def is_split(self) -> bool:
        """Whether it has a feature head and decoders."""
        return self.config.model_type == EqCohViTConfig.model_type

    @property
    def backbone_config(self) -> PreTrainedConfig:
        """The configuration of the ViT: part of a split model's configuration, or the whole one."""
        return self.config.backbone_config if self.is_split else self.config

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint of a run instead of a model folder."""
        return self.state is not None and str(self.state) == self.source

    @property
    def objective(self) -> str | None:
        """Name of the objective whose heads are in the training state; None without a training state."""
        return None if self.state is None else PretrainArguments.saved(self.state / SETTINGS_FILE).get("objective")

    def state_weights(self, prefix: str) -> Weights:
        """The tensors of the training state whose names begin with `prefix`, without it."""
        assert self.state is not None
        try:
            return part_of(load_file(self.state / WEIGHTS_FILE), prefix)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {self.state / WEIGHTS_FILE}: {first_line(error)}") from None


def open_start(name: str) -> Start:
    """Find a transformers ViT, an EqCohViT model (folder or Hub id), the newest state of a run, or a checkpoint.

    Raises:
        ValueError: nothing of this kind was found, or its image size does not fit its patches.
    """
    folder = Path(name)
    if is_run(folder):
        folder = _newest_of_run(folder)
    source = str(folder) if folder.is_dir() else name
    if (folder / STATE_FILE).is_file():
        config = read_checkpoint_config(folder)
        state = folder
    else:
        config = read_config(source)
        is_split = config.model_type == EqCohViTConfig.model_type
        # config, model and run_state, without the optimizer's file, which is twice as large
        state = find_training_state(source, files="[cmr]*") if is_split else None
    preprocessing = read_preprocessing(source, config)
    if preprocessing.image_size % (side_of(config.patch_size) or 1):
        raise ValueError(
            f"{name}: expected an image size that is a multiple of its patch size {config.patch_size}, "
            f"found {preprocessing.image_size}"
        )
    return Start(name, source, config, preprocessing, state)


def _newest_of_run(run: Path) -> Path:
    """The newest checkpoint of a run, which has the objective's heads; the model of a LoRA run, with merged
    adapters, and of a fine-tuning run.

    Raises:
        ValueError: the run has saved neither.
    """
    if (run / SETTINGS_FILE).is_file() and PretrainArguments.saved(run / SETTINGS_FILE).get("peft") is None:
        checkpoints = list_checkpoints(run)
        if checkpoints:
            return checkpoints[-1]
    if not (run / MODEL_FOLDER / CONFIG_FILE).is_file():
        raise nothing_saved(run)
    return run / MODEL_FOLDER


def read_checkpoint_config(checkpoint: Path) -> EqCohViTConfig:
    """The configuration of the model in a checkpoint."""
    if not (checkpoint / CONFIG_FILE).is_file():
        raise ValueError(f"{checkpoint} has no model configuration: expected {CONFIG_FILE} next to {STATE_FILE}")
    return EqCohViTConfig.from_pretrained(checkpoint)


def find_training_state(source: str, files: str = "*") -> Path | None:
    """The `training_state/` of a model folder or Hub repository, or None; only `files` of a repository are fetched."""
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, allow_patterns=f"{STATE_FOLDER}/{files}"))
        except (OSError, HTTPError, ValueError) as error:
            raise ValueError(f"cannot look for {STATE_FOLDER}/ in {source}: {first_line(error)}") from None
    state = folder / STATE_FOLDER
    return state if (state / STATE_FILE).is_file() else None


def write_model_files(
    folder: Path,
    args: PretrainArguments,
    config: EqCohViTConfig,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> None:
    """Write into a checkpoint what is needed to load its model: configuration, image processor, and the settings
    without local paths."""
    processor = Preprocessing(args.image_size, tuple(image_mean), tuple(image_std)).processor()
    processor.to_json_file(folder / PROCESSOR_FILE)
    config.to_json_file(folder / CONFIG_FILE)
    (folder / SETTINGS_FILE).write_text(yaml.safe_dump(args.shareable(), sort_keys=False))
