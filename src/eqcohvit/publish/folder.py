"""Write a Hub folder, and check one before it is uploaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..files import CARD_FILE, CONFIG_FILE, STATE_FILE, STATE_FOLDER, write_folder_whole
from ..hub import modeling_eqcohvit
from ..loading import find_model, load_whole
from ..preprocessing import Preprocessing, read_preprocessing
from .license import hub_id


def save_hub_folder(
    folder: str | Path,
    model: PreTrainedModel,
    *,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
    image_size: int | None = None,
    card: str | None = None,
    training_state: Path | None = None,
) -> Path:
    """Write a complete Hub folder: weights, configuration, image processor, the model's code, and a card if given.

    It is written under a temporary name and then renamed, so that a reader never sees half of it. It replaces an older
    Hub folder of that name.

    Args:
        model: any of the EqCohViT models.
        image_mean, image_std: per channel, of images in [0, 1], as in training.
        image_size: side in pixels to which images are resized; default: the image size of the configuration.
        card: text of the model card.
        training_state: folder of a checkpoint, copied to `training_state/`; others can continue exactly from it.

    Raises:
        ValueError: the model is not an EqCohViT, mean or std do not fit it, or the folder holds something else.
    """
    folder = Path(os.path.abspath(folder))
    if not isinstance(model, PreTrainedModel) or model.config.model_type != "eqcohvit":
        raise ValueError(f"expected an EqCohViT model, got {type(model).__name__}")
    channels = model.config.num_channels
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if len(values) != channels:
            raise ValueError(f"{name} needs {channels} numbers, one for each channel of the model, got {len(values)}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file()):
        raise ValueError(f"{folder} exists but is not a model folder: choose another path")
    backbone = model.config.backbone_config
    if not hub_id(backbone._name_or_path):
        backbone._name_or_path = ""  # a folder of this machine
    side = image_size or model.config.square_image_size
    processor = Preprocessing(side, tuple(image_mean), tuple(image_std)).processor()
    with write_folder_whole(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        if card is not None:
            (new / CARD_FILE).write_text(card, encoding="utf-8")
        if training_state is not None:
            shutil.copytree(training_state, new / STATE_FOLDER)
    return folder


def model_folder_of(name: str | Path, new: Path) -> Path:
    """The model folder that `find_model` finds. The model of a checkpoint is first written as a Hub folder to `new`.

    Raises:
        ValueError: as `find_model`, and for a checkpoint as `load_whole`.
    """
    place = Path(find_model(name))
    if not (place / STATE_FILE).is_file():
        return place
    model = load_whole(modeling_eqcohvit.EqCohViTForPreTraining, place)
    preprocessing = read_preprocessing(str(place), model.config)
    return save_hub_folder(new, model, image_mean=preprocessing.mean, image_std=preprocessing.std)


def check_model_folder(folder: Path) -> None:
    """Raise a `ValueError` unless it is a model folder; an EqCohViT must have all weights of its configuration."""
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} is not a model folder: expected config.json and *.safetensors in it")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no weights: expected *.safetensors next to config.json")
    if (folder / STATE_FILE).is_file():
        raise ValueError(f"{folder} is a checkpoint of a run, not a model folder: expected OUTPUT_DIR/model")
    config = json.loads((folder / CONFIG_FILE).read_text())
    if config.get("model_type") == "eqcohvit":
        architecture = (config.get("architectures") or ["EqCohViTModel"])[0]
        load_whole(getattr(modeling_eqcohvit, architecture, modeling_eqcohvit.EqCohViTModel), folder)


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in a repository, without hidden files and caches."""
    files = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        name.as_posix(): path
        for name, path in files
        if not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }
