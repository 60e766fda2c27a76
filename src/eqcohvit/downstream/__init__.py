"""Supervised dense and geometric tasks on a ViT backbone: heads, their training, and their scores."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import DenseTask

# Task -> its module and class, which are imported when they are used: some need pycocotools.
_CLASSES = {
    "segmentation": (".segmentation", "Segmentation"),
    "instance_segmentation": (".instances", "InstanceSegmentation"),
    "detection": (".detection", "Detection"),
    "keypoints": (".keypoints", "Keypoints"),
    "homography": (".homography", "Homography"),
    "depth": (".depth", "Depth"),
}


def task_class(name: str) -> type[DenseTask]:
    """The class of a task of `options.TASK_HEADS`."""
    module, class_name = _CLASSES[name]
    return getattr(import_module(module, __name__), class_name)
