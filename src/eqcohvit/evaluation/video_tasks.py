"""The video tasks of scripts/evaluate.py: labels of the first frame, propagated by frozen features."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from .context import Evaluation, ReportFigure
from .features import ModelEncoder
from .pictures import make_sheet, with_height
from .propagation import PropagationSettings
from .results import Row
from .rows import open_rows
from .video import PICTURE_TITLES, VIDEO_TASKS, PatchEncoder, PixelPatches, propagate_videos, read_videos


def video_rows(evaluation: Evaluation, name: str) -> list[Row]:
    """Scores of label propagation for each part of the encoders, random weights, and the pixels of the patches."""
    task = VIDEO_TASKS[name]
    settings = evaluation.settings
    split = settings.test_split or settings.dataset_split
    files = settings.test_data_files or settings.data_files
    rows = open_rows(settings.dataset_name, settings.dataset_config_name, split, files)
    videos = read_videos(rows, settings.image_column, settings.target_column, settings.max_frames)
    encoders = [PatchEncoder(encoder) for encoder in evaluation.encoders if isinstance(encoder, ModelEncoder)]
    propagation = PropagationSettings(settings.context_frames, settings.radius, settings.top_k)
    controls = [PixelPatches(encoders[0].patch_size)]
    report = partial(print, file=sys.stderr, flush=True)
    results = propagate_videos(task, [*encoders, *controls], videos, settings.frame_size, propagation, report)
    caption = f"{title_of(name)}: labels of the first part of {encoders[0].name} at four times. {task.protocol}."
    evaluation.figures.append(picture_figure(name, caption, PICTURE_TITLES, results.pictures))
    protocol = {"task": name, "frame_size": settings.frame_size, **vars(propagation)}
    return [
        Row(encoder, part, f"{title_of(name)} {metric}", [value], headline="recall" not in metric, settings=protocol)
        for (encoder, part), values in results.values.items()
        for metric, value in values.items()
    ]


def title_of(task: str) -> str:
    """The name of a task as words."""
    return task.replace("_", " ")


def picture_figure(name: str, caption: str, titles: tuple[str, ...], pictures: list[list[Image.Image]]) -> ReportFigure:
    """A sheet of pictures as a figure of the report."""

    def draw() -> Any:
        from matplotlib.figure import Figure as Canvas

        pixels = np.asarray(make_sheet(titles, [[with_height(picture) for picture in row] for row in pictures]))
        canvas = Canvas(figsize=(pixels.shape[1] / 100, pixels.shape[0] / 100), dpi=100)
        axis = canvas.add_axes((0, 0, 1, 1))
        axis.imshow(pixels)
        axis.set_axis_off()
        return canvas

    return ReportFigure(name, caption, draw)


# Task -> function of an `Evaluation` that returns rows.
VIDEO_ROWS: dict[str, Callable[[Evaluation], list[Row]]] = {
    name: partial(video_rows, name=name) for name in VIDEO_TASKS
}
