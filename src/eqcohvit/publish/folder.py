"""Hub folders: write one whole, and check one before it is uploaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..files import CARD_FILE, STATE_FILE, STATE_FOLDER, write_folder_whole
from ..hub import modeling_eqcohvit
from ..hub.image_processing_eqcohvit import EqCohViTImageProcessorPil
from ..loading import find_model, load_whole


def save_hub_folder(
    folder: str | Path,
    model: PreTrainedModel,
    *,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
    card: str | None = None,
    training_state: Path | None = None,
) -> Path:
    """Write a complete Hub folder: weights, configuration, image processor, the code of the model, and README.md where
    a card is given.

    It is written beside its place and then renamed, so that a reader never sees half of it; an older Hub folder there
    is replaced.

    Args:
        model: any of the EqCohViT models.
        image_mean, image_std: per channel, of images in [0, 1]; what the model was trained with.
        card: text of the model card.
        training_state: folder of a checkpoint of the run, copied to `training_state/`: who has it can go on exactly
            from there.

    Raises:
        ValueError: the model is none of ours, mean or std do not fit it, or the place holds something else.
    """
    folder = Path(os.path.abspath(folder))
    if not isinstance(model, PreTrainedModel) or model.config.model_type != "eqcohvit":
        raise ValueError(f"expected an EqCohViT model, got {type(model).__name__}")
    channels = model.config.num_channels
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if len(values) != channels:
            raise ValueError(f"{name} needs {channels} numbers, one for each channel of the model, got {len(values)}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()):
        raise ValueError(f"{folder} is there and is no model folder: give another place")
    side = model.config.square_image_size
    processor = EqCohViTImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=list(map(float, image_mean)),
        image_std=list(map(float, image_std)),
    )
    with write_folder_whole(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        if card is not None:
            (new / CARD_FILE).write_text(card, encoding="utf-8")
        if training_state is not None:
            shutil.copytree(training_state, new / STATE_FOLDER)
    return folder


def model_folder_of(name: str | Path, new: Path) -> Path:
    """The model folder that `find_model` means; where that is a checkpoint of a run, its model is written as a Hub
    folder to `new`.

    Raises:
        ValueError: as `find_model`, and as `load_whole` for a checkpoint.
    """
    place = Path(find_model(name))
    if not (place / STATE_FILE).is_file():
        return place
    state = json.loads((place / STATE_FILE).read_text())
    model = load_whole(modeling_eqcohvit.EqCohViTForPreTraining, place)
    return save_hub_folder(new, model, image_mean=state["image_mean"], image_std=state["image_std"])


def check_model_folder(folder: Path) -> None:
    """Raise a `ValueError` unless it is a model folder; of an EqCohViT all weights must be there and fit its
    configuration."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: expected config.json and *.safetensors in it")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no weights: expected *.safetensors beside config.json")
    if (folder / STATE_FILE).is_file():
        raise ValueError(f"{folder} is a checkpoint of a run, no model folder: expected OUTPUT_DIR/model")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") == "eqcohvit":
        architecture = (config.get("architectures") or ["EqCohViTModel"])[0]
        load_whole(getattr(modeling_eqcohvit, architecture, modeling_eqcohvit.EqCohViTModel), folder)


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in a repository; hidden ones and caches stay behind."""
    files = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        name.as_posix(): path
        for name, path in files
        if not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }
