"""Folders of fine-tuned models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..files import write_folder_whole
from ..loading import find_model, load_whole
from . import task_class
from .base import TASK_FILE, DenseTask


def load_finetuned(folder: str | Path) -> tuple[DenseTask, PreTrainedModel]:
    """Task and model of a folder that fine-tuning has written.

    Raises:
        ValueError: the folder has no fine-tuned model, or the model lacks weights.
    """
    folder = find_model(folder)
    path = Path(folder) / TASK_FILE
    if not path.is_file():
        expected = f"expected {TASK_FILE} in it, as fine-tuning writes OUTPUT_DIR/model"
        raise ValueError(f"{folder} holds no fine-tuned model: {expected}")
    saved = json.loads(path.read_text())
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    task = task_class(values.pop("task"))(**values)
    return task, load_whole(task.model_class(), folder)


def save_finetuned(folder: Path, task: DenseTask, model: PreTrainedModel) -> None:
    """Write weights, configuration, image processor and task.json, then replace an older model."""
    # Heads predict places in the whole picture.
    processor = task.preprocessing.processor(fit="stretch")
    with write_folder_whole(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        task.save(new)
