"""Settings of the supervised tasks and of their training. Importing this module does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Task -> its heads, the default first.
TASK_HEADS: dict[str, tuple[str, ...]] = {
    "segmentation": ("upernet", "linear"),
    "instance_segmentation": ("mask2former",),
    "detection": ("rt_detr",),
    "keypoints": ("classic", "simple"),
    "homography": ("conv",),
    "depth": ("depth_anything",),
}
TRAINABLE = ("head", "all", "lora")


def _option(default: Any, text: str, kind: type = str) -> Any:
    return field(default=default, metadata={"help": text, "type": kind})


@dataclass(frozen=True)
class TaskOptions:
    """Options of the tasks, which are flags of the commands. Each task reads its own.

    `head`: default: the first one of the task.
    """

    head: str | None = None
    image_size: int | None = _option(None, "side of the model's input in pixels; default: the encoder's", int)
    image_column: str | None = _option(None, "column of the photographs; default: image")
    target_column: str | None = _option(None, "column of the annotations; default: the task's usual names")
    num_labels: int | None = _option(
        None, "number of classes (both segmentations, and detection if the data do not name them)", int
    )
    ignore_label: int | None = _option(None, "segmentation: label of pixels that do not count, in addition to 255", int)
    reduce_labels: bool = _option(False, "both segmentations: classes count from 1, 0 means no class (ADE20K)", bool)
    max_depth: int = _option(10, "depth: largest depth that counts (KITTI: 80); default: 10", int)
    depth_scale: float = _option(
        1.0, "depth: stored numbers are divided by it (KITTI: 256, NYU in millimeters: 1000); default: 1", float
    )

    @classmethod
    def add_flags(cls, parser: Any, leave_out: Sequence[str] = ()) -> None:
        """Add a flag for each option that has a help text."""
        for option in dataclasses.fields(cls):
            if not option.metadata or option.name in leave_out:
                continue
            kind = option.metadata["type"]
            how = {"action": "store_true"} if kind is bool else {"type": kind, "default": option.default}
            parser.add_argument(f"--{option.name}", help=option.metadata["help"], **how)


@dataclass(frozen=True)
class FinetuneSettings:
    """How to train.

    train: `"head"` (the backbone is frozen), `"all"`, or `"lora"` (head, and adapters in the backbone).
    backbone_lr_scale: learning rate of the backbone's parameters over that of the head's. batch_size: per device.
    """

    train: str = "all"
    max_steps: int = 500
    batch_size: int = 16
    learning_rate: float = 1e-3
    backbone_lr_scale: float = 0.1
    weight_decay: float = 0.05
    warmup_steps: int = 25
    max_grad_norm: float = 1.0
    lora_rank: int = 8
    seed: int = 0
    mixed_precision: str | None = None
    num_workers: int = 0
    logging_steps: int = 25
    save_steps: int = 250
    save_total_limit: int = 2

    def check(self) -> None:
        """Raise a `ValueError` of one line for the first setting that cannot work."""
        if self.train not in TRAINABLE:
            raise ValueError(f"train must be one of {', '.join(TRAINABLE)}, got {self.train}")
        for name in (
            "max_steps",
            "learning_rate",
            "max_grad_norm",
            "lora_rank",
            "logging_steps",
            "save_steps",
            "save_total_limit",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("backbone_lr_scale", "weight_decay", "warmup_steps", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie between 0 and 2**32 - 1, got {self.seed}")
        if self.batch_size < 2:
            raise ValueError(
                f"per_device_train_batch_size must be at least 2, because heads have batch norms, got {self.batch_size}"
            )
