"""Supervised dense and geometric tasks on a ViT backbone: heads, their training, and their scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..files import write_folder_whole
from ..loading import find_model, load_whole
from ..preprocessing import Preprocessing
from .base import TASK_FILE, DenseTask, TaskOptions


class _Tasks(Mapping[str, type[DenseTask]]):
    """Task name -> class, imported when it is looked up: some tasks need pycocotools."""

    _PLACES = {
        "segmentation": (".segmentation", "Segmentation"),
        "instance_segmentation": (".instances", "InstanceSegmentation"),
        "detection": (".detection", "Detection"),
        "keypoints": (".keypoints", "Keypoints"),
        "homography": (".homography", "Homography"),
        "depth": (".depth", "Depth"),
    }

    def __getitem__(self, name: str) -> type[DenseTask]:
        module, class_name = self._PLACES[name]
        return getattr(import_module(module, __name__), class_name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._PLACES)

    def __len__(self) -> int:
        return len(self._PLACES)


TASKS = _Tasks()


def load_finetuned(folder: str | Path) -> tuple[DenseTask, PreTrainedModel]:
    """Task and model of a folder that `scripts/finetune.py` has written.

    Raises:
        ValueError: there is none, or it lacks weights.
    """
    folder = find_model(folder)
    path = Path(folder) / TASK_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no fine-tuned model: expected {TASK_FILE} in it, as scripts/finetune.py writes OUTPUT_DIR/model"
        )
    saved = json.loads(path.read_text())
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    task = TASKS[values.pop("task")](**values)
    return task, load_whole(task.model_class(), folder)


def save_finetuned(folder: Path, task: DenseTask, model: PreTrainedModel) -> None:
    """Write weights, configuration, image processor and task.json; an older model there is replaced when all is
    written."""
    # Heads predict places in the whole picture.
    processor = Preprocessing(task.image_size, task.mean, task.std).processor(fit="stretch")
    with write_folder_whole(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        task.save(new)


__all__ = ["TASKS", "DenseTask", "TaskOptions", "load_finetuned", "save_finetuned"]
