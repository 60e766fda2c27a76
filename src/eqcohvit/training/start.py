"""What a run may start from: a transformers ViT, an EqCohViT folder, a run's folder, or a run's checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..files import (
    CHECKPOINTS,
    CONFIG_FILE,
    MODEL_FOLDER,
    PROCESSOR_FILE,
    SETTINGS_FILE,
    STATE_FILE,
    STATE_FOLDER,
    WEIGHTS_FILE,
    first_line,
)
from ..hub.configuration_eqcohvit import SUPPORTED_BACKBONES, EqCohViTConfig
from ..hub.image_processing_eqcohvit import EqCohViTImageProcessorPil
from .arguments import PretrainArguments, load_recipe
from .checkpoint import list_checkpoints, read_state

Weights = dict[str, torch.Tensor]


def read_config(source: str) -> PreTrainedConfig:
    """The configuration of a folder or Hub id.

    Raises:
        ValueError: there is none, or it is of no supported model.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"no model at {source}: {first_line(error)}") from None
    allowed = (*SUPPORTED_BACKBONES, EqCohViTConfig.model_type)
    if config.model_type not in allowed:
        raise ValueError(f"{source}: expected a model_type of {', '.join(allowed)}, found {config.model_type!r}")
    return config


def read_processor(source: str) -> dict[str, Any]:
    """The numbers of a model's image processor (its class may need torchvision); an empty dictionary where it has
    none."""
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


def part_of(weights: Weights, prefix: str) -> Weights:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


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
            return part_of(load_file(self.state / WEIGHTS_FILE), prefix)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {self.state / WEIGHTS_FILE}: {first_line(error)}") from None


def open_start(name: str) -> Start:
    """Look at a transformers ViT, an EqCohViT model (folder or Hub id), a run's folder, or a run's checkpoint.

    Raises:
        ValueError: there is nothing of this kind.
    """
    folder = Path(name)
    if (folder / SETTINGS_FILE).is_file() and (folder / CHECKPOINTS).is_dir():
        folder = _newest_of_run(folder)
    source = str(folder) if folder.is_dir() else name
    if (folder / STATE_FILE).is_file():
        config, processor, state = read_checkpoint_config(folder), read_state(folder), folder
    else:
        config, processor, state = read_config(source), read_processor(source), None
        if config.model_type == EqCohViTConfig.model_type:
            state = find_training_state(
                source, files="[cmr]*"
            )  # config, model, run_state; not the optimizer's, which is twice as large
    backbone = getattr(config, "backbone_config", config)
    return Start(name, source, config, _image_size(processor, backbone), *normalisation(processor), state)


def _newest_of_run(run: Path) -> Path:
    """Its newest checkpoint, which has the objective's heads too; of a LoRA run the model, where the adapters are
    merged."""
    checkpoints = list_checkpoints(run)
    is_lora = load_recipe(run / SETTINGS_FILE).get("peft") is not None
    return checkpoints[-1] if checkpoints and not is_lora else run / MODEL_FOLDER


def read_checkpoint_config(checkpoint: Path) -> EqCohViTConfig:
    """The configuration of the model in a checkpoint."""
    if not (checkpoint / CONFIG_FILE).is_file():
        raise ValueError(f"{checkpoint} does not say of which model it is: expected config.json beside {STATE_FILE}")
    return EqCohViTConfig.from_pretrained(checkpoint)


def _image_size(processor: dict[str, Any], backbone: PreTrainedConfig) -> int:
    for entry in (processor.get("crop_size"), processor.get("size"), backbone.image_size):
        sides = (
            list(entry.values()) if isinstance(entry, dict) else entry if isinstance(entry, (list, tuple)) else [entry]
        )
        if sides and isinstance(sides[0], int) and len(set(sides)) == 1 and not sides[0] % side_of(backbone.patch_size):
            return sides[0]
    raise ValueError(f"expected a square image size that is a multiple of the patch size, found {backbone.image_size}")


def side_of(size: Any) -> int:
    """Side of a square that a configuration gives as a number or as two."""
    return size if isinstance(size, int) else size[0]


def find_training_state(source: str, files: str = "*") -> Path | None:
    """The `training_state/` of a model folder or Hub repository, None where it has none; of a repository only `files`
    are downloaded."""
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, allow_patterns=f"{STATE_FOLDER}/{files}"))
        except (OSError, HTTPError, ValueError) as error:
            raise ValueError(f"cannot look for {STATE_FOLDER}/ in {source}: {first_line(error)}") from None
    state = folder / STATE_FOLDER
    return state if (state / STATE_FILE).is_file() else None


def describe_run(
    folder: Path,
    args: PretrainArguments,
    config: EqCohViTConfig,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> None:
    """Write into a checkpoint what its model is loaded with: its configuration, image processor, and the settings
    without local paths."""
    size = {"height": args.image_size, "width": args.image_size}
    processor = EqCohViTImageProcessorPil(size=size, image_mean=list(image_mean), image_std=list(image_std))
    processor.to_json_file(folder / PROCESSOR_FILE)
    config.to_json_file(folder / CONFIG_FILE)
    (folder / SETTINGS_FILE).write_text(yaml.safe_dump(args.shareable(), sort_keys=False))
