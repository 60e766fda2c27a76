"""Settings of an evaluation, and of the data that evaluation and fine-tuning read; imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..cli import is_list, registered, setting

FROZEN_TASKS = registered("evaluation", "FROZEN_TASKS")
DENSE_TASKS = registered("downstream", "DENSE_TASKS")
VIDEO_TASKS = registered("evaluation", "VIDEO_TASKS")
_BY_SIZE: Any = None  # `suite.with_size` or the suite fills these, with what an evaluation of that size has


@dataclass(kw_only=True)
class DataSettings:
    """Which images or rows to fit on, and which to test on."""

    dataset_name: str | None = setting(None, "Hub id, local folder or builder")
    dataset_config_name: str | None = setting(None, "configuration of the dataset")
    dataset_split: str = setting("train", "split to fit on")
    test_split: str | None = setting(None, "split of dataset_name to test on; by default some of it is held out")
    data_files: str | None = setting(None, "files to fit on: a glob, or several separated by commas")
    test_data_files: str | None = setting(None, "files to test on; by default some of data_files is held out")
    train_dir: str | None = setting(None, "folder tree of images instead of a dataset, for tasks without annotations")
    num_workers: int = setting(0, "processes that decode images")


@dataclass(kw_only=True)
class AnnotationSettings:
    """Options of dense tasks; each task reads those that concern it."""

    image_size: int | None = setting(None, "side of the model's input in pixels; by default the encoder's")
    image_column: str | None = setting(None, "column of the photographs; by default the usual one")
    target_column: str | None = setting(None, "column of the annotations; by default the task's usual names")
    num_labels: int | None = setting(
        None, "number of classes (both segmentations, and detection if the data do not name them)"
    )
    ignore_label: int | None = setting(None, "segmentation: label of pixels that do not count, in addition to 255")
    reduce_labels: bool = setting(False, "both segmentations: classes count from 1, 0 means no class (ADE20K)")
    max_depth: int = setting(10, "depth: largest depth that counts (KITTI: 80)")
    depth_scale: float = setting(1.0, "depth: stored numbers are divided by it (KITTI: 256, NYU in millimeters: 1000)")


@dataclass(kw_only=True)
class EvaluationSettings(AnnotationSettings, DataSettings):
    """All settings of an evaluation; each field but `alone` is a flag with the field's name."""

    model: list[str] = setting(
        (), "folders or repositories: ours, any transformers vision model, or timm/NAME for a model of timm"
    )
    task: list[str] = setting(("r2",), "what to measure", (*FROZEN_TASKS, *DENSE_TASKS, *VIDEO_TASKS))
    full: bool = setting(
        False,
        "the whole protocol instead of the quick one: strict and paper, cls_mean and grid, 3 seeds, 4,096 + 2,048 "
        "images",
    )
    output: str | None = setting(None, "results.json to write; the page and its plots go into the same folder")
    suite: str | None = setting(
        None,
        "benchmark with fixed settings, to compare models; leave out the flags that it fixes",
        registered("evaluation", "SUITES"),
    )
    beside: list[str] = setting(
        (), "results.json files of earlier runs of the suite on the same images; their models are in the table too"
    )
    seeds: int = setting(_BY_SIZE, "seeds of each probe or head; default: 1, with --full 3")
    layer: list[str] = setting(("last",), "last, all, or indices of hidden states")
    cache_dir: str = setting(
        None, "folder of cached features; by default eqcohvit/features in the cache of Hugging Face"
    )
    cache_gb: float = setting(20.0, "gigabytes to keep there; the features used longest ago are removed")
    trust_remote_code: bool = setting(False, "run code that comes with the repository of a model")

    # Transformations and pooled features
    transform: list[str] = setting(
        ("rotation",),
        f"all, or some, joined by +, of {', '.join(registered('transforms', 'PATHS'))}; a factor such as rotation:2 "
        "scales the ranges",
    )
    protocol: list[str] = setting(
        _BY_SIZE,
        "paper: empty borders after the transformation; strict: real pixels; recolored: strict, with other colors in "
        "each view; default: strict, with --full paper and strict",
        registered("evaluation", "PROTOCOLS"),
    )
    head: list[str] = setting(
        ("mlp", "linear"),
        "regressors of r2; pretraining uses kernel, which is slow above 1,000 images",
        registered("evaluation", "R2_HEADS"),
    )
    pooling: list[str] = setting(
        _BY_SIZE,
        "how tokens become a vector; the first one leads the table, knn and linear use only it; default: cls_mean, "
        "with --full also grid",
        registered("evaluation", "POOLINGS"),
    )
    k: int = setting(20, "neighbors of knn")
    temperature: float = setting(0.07, "temperature of the weights exp(similarity / temperature) of knn")
    alone: str = _BY_SIZE  # not a flag: which parts get a row of the transformed image only: all, pixels or none

    # Columns of numbers as targets
    target_columns: list[str] = setting(
        (), "regress these columns instead of transformations: numbers, or lists of numbers of one length"
    )
    group_column: str | None = setting(
        None, "object or scene of a picture: whole groups are held out, and changes within a group are regressed too"
    )
    quaternion_columns: list[str] = setting((), "target columns that hold rotations as quaternions (x, y, z, w)")
    circular_columns: list[str] = setting(
        (),
        "target columns that start again after a period, such as yaw=360 or hue=1; regressed as cosine and sine",
    )

    # Dense tasks and videos
    max_steps: int = setting(
        500, "steps to fit a head on the frozen backbone of an encoder; a fine-tuned model is scored as it is"
    )
    frame_size: int = setting(480, "shorter side of the frames in pixels")
    max_frames: int | None = setting(None, "use only the first frames of each video")
    context_frames: int = setting(7, "recent frames that labels come from, in addition to the first frame")
    radius: int = setting(12, "in patches: those farther away along x or y do not count")
    top_k: int = setting(5, "most similar patches that count")

    # Data
    label_column: str | None = setting(None, "label column; with train_dir 'folder', whose name is the class")
    max_samples: int = setting(
        _BY_SIZE, "images to fit probes and heads on; default: 1024, with --full 4096, or the suite's number"
    )
    max_test_samples: int = setting(
        _BY_SIZE, "images to test them on; default: 512, with --full 2048, or the suite's number"
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if is_list(field) and value is not None:
                setattr(self, field.name, as_list(value))
        for name in ("output", "cache_dir"):
            if (place := getattr(self, name)) is not None:
                setattr(self, name, os.path.expanduser(place))


def as_list(value: Any) -> list[str]:
    """The values of a setting that takes several, also where a Python caller gives one."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    return [str(value)]
