"""Supervised dense and geometric tasks on a ViT backbone: heads, their training, and their scores."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .base import DenseTask


class TaskEntry(NamedTuple):
    """Where the class of a task is, and the names of its heads, the default first."""

    module: str
    class_name: str
    heads: tuple[str, ...]


# Modules are imported when they are used: some need pycocotools.
DENSE_TASKS = {
    "segmentation": TaskEntry(".segmentation", "Segmentation", ("upernet", "linear")),
    "instance_segmentation": TaskEntry(".instances", "InstanceSegmentation", ("mask2former",)),
    "detection": TaskEntry(".detection", "Detection", ("rt_detr",)),
    "keypoints": TaskEntry(".keypoints", "Keypoints", ("classic", "simple")),
    "homography": TaskEntry(".homography", "Homography", ("conv",)),
    "depth": TaskEntry(".depth", "Depth", ("depth_anything",)),
}


def task_class(name: str) -> type[DenseTask]:
    """The class of a task of `DENSE_TASKS`."""
    entry = DENSE_TASKS[name]
    return getattr(import_module(entry.module, __name__), entry.class_name)
