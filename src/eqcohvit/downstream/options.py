"""Settings of the supervised tasks and of their training. Importing this module does not import torch."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass
from typing import ClassVar

from ..cli import RunSettings, check_choices, check_numbers, setting
from ..evaluation.settings import AnnotationSettings, DataSettings
from ..files import FINETUNE_SETTINGS_FILE
from ..training.arguments import PRECISIONS
from . import DENSE_TASKS

TRAINABLE = ("head", "all", "lora")
_HEADS = "; ".join(f"{name}: {', '.join(task.heads)}" for name, task in DENSE_TASKS.items())
_POSITIVE = ("max_steps", "learning_rate", "lora_rank", "logging_steps", "save_steps", "max_test_samples")
_NOT_NEGATIVE = ("backbone_lr_scale", "weight_decay", "warmup_steps", "num_workers")


@dataclass(kw_only=True)
class TaskOptions(AnnotationSettings):
    """Options of the tasks; each task reads those that concern it."""

    head: str | None = setting(None, f"{_HEADS}; by default the first one")


@dataclass(kw_only=True)
class FinetuneArguments(TaskOptions, DataSettings, RunSettings):
    """All settings of fine-tuning; each field is a flag with the field's name."""

    file_name: ClassVar[str] = FINETUNE_SETTINGS_FILE
    may_change: ClassVar[frozenset[str]] = frozenset(
        ("resume_from_checkpoint", "output_dir", "max_test_samples", "num_workers", "logging_steps", "save_steps")
    )

    task: str = setting(MISSING, "what to learn", tuple(DENSE_TASKS), common=True)
    model: str = setting(MISSING, "folder or repository of the encoder: ours, or a transformers ViT", common=True)
    train: str = setting("all", "head: frozen backbone; lora: adapters in it", TRAINABLE, common=True)
    random_weights: bool = setting(False, "control: the backbone without its trained weights", common=True)
    output_dir: str = setting("outputs/finetune", "folder of the run", common=True)
    resume_from_checkpoint: str | None = setting(
        None, "'latest' of output_dir, or the path of a checkpoint folder", common=True
    )
    max_test_samples: int | None = setting(None, "test on at most this many rows, the first ones")

    # Training
    per_device_train_batch_size: int = setting(16, "images per step and device")
    max_steps: int = setting(500, "optimizer steps")
    learning_rate: float = setting(1e-3, "peak learning rate of the head")
    backbone_lr_scale: float = setting(0.1, "learning rate of the backbone divided by the one of the head")
    weight_decay: float = setting(0.05, "weight decay of matrices")
    warmup_steps: int = setting(25, "steps of linear warm-up")
    lora_rank: int = setting(8, "rank of the adapters")
    mixed_precision: str | None = setting(
        None, "by default the launcher's, else bf16 on GPUs that support it, else no", PRECISIONS
    )
    logging_steps: int = setting(25, "steps between progress lines")
    save_steps: int = setting(250, "steps between checkpoints")
    seed: int = setting(0, "seed of weights, order and augmentation")

    def __post_init__(self) -> None:
        self.output_dir = os.path.expanduser(self.output_dir)

    def check(self) -> None:
        """Raise a `ValueError` of one line for the first setting that cannot work."""
        check_choices(self)
        check_numbers(self, _POSITIVE, _NOT_NEGATIVE)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie between 0 and 2**32 - 1, got {self.seed}")
        if self.per_device_train_batch_size < 2:
            size = self.per_device_train_batch_size
            reason = "because heads have batch norms"
            raise ValueError(f"per_device_train_batch_size must be at least 2, {reason}, got {size}")
