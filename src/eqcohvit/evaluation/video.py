"""Video object segmentation and part propagation: frozen patch features propagate the labels of the first frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from .features import PIXELS, ModelEncoder, part_name, part_order
from .metrics.davis_j_and_f.masks import contour_accuracy, region_similarity
from .metrics.mean_iou.confusion import confusion_matrix, iou_scores
from .pictures import overlay
from .propagation import DINO_SETTINGS, LabelPropagation, PropagationSettings, labels_to_patches, patches_to_labels
from .rows import Rows, check_size, find_column, read_image, read_labels, row_errors

VOID = 255
_OTHER_PATCH_SIZE = 32  # of models without patches, such as convolutional ones: their usual stride
_LONGER_SIDE_MULTIPLE = 64  # pixels, as in DINO's protocol


# ------------------------------------------------------------------------------------------------------------- features


class FrameEncoder(Protocol):
    """Features of each patch, by part. `patch_size` in pixels."""

    name: str
    patch_size: int

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """A frame (3, H, W) in [0, 1] -> part -> features (h, w, d)."""


@dataclass
class PatchEncoder:
    """The parts of a split model, or the backbone of any other, and its layers.

    Sides of frames must be multiples of the patch size.
    """

    encoder: ModelEncoder

    def __post_init__(self):
        self.name = self.encoder.name
        self.patch_size = self.encoder.patch_size or _OTHER_PATCH_SIZE

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = self.encoder.tokens(image[None])
        return {part_name(*key): tokens[key].grid[0] for key in sorted(tokens, key=part_order) if key[0] != "both"}


@dataclass
class PixelPatches:
    """Control: the pixels of each patch, minus the mean color of the frame."""

    patch_size: int
    name: str = PIXELS

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        centered = image - image.mean(dim=(1, 2), keepdim=True)
        patches = centered.unfold(1, self.patch_size, self.patch_size).unfold(2, self.patch_size, self.patch_size)
        return {"pixels": patches.permute(1, 2, 0, 3, 4).flatten(2)}


# --------------------------------------------------------------------------------------------------------------- videos


@dataclass(frozen=True)
class Video:
    """Frames in order, read one at a time: image, and class of each pixel int64 (H, W), 255 without a label."""

    name: str
    frames: Callable[[], Iterator[tuple[Image.Image, np.ndarray]]]
    num_frames: int


def read_videos(
    rows: Rows, image_column: str | None = None, target_column: str | None = None, max_frames: int | None = None
) -> list[Video]:
    """The videos of rows with columns image, annotation, sequence (or video) and frame, sorted by frame.

    Raises:
        ValueError: a column is missing, or a video has a single frame.
    """
    image_column = find_column(rows, image_column, ["image"], "frames")
    target_column = find_column(rows, target_column, ["annotation", "mask", "label"], "annotations")
    sequence_column = find_column(rows, None, ["sequence", "video"], "name of the video")
    frame_column = find_column(rows, None, ["frame", "frame_index"], "number of the frame")
    places: dict[str, list[tuple[int, int]]] = {}
    for index, (name, frame) in enumerate(zip(rows[sequence_column], rows[frame_column], strict=True)):
        try:
            places.setdefault(str(name), []).append((int(frame), index))
        except (TypeError, ValueError):
            raise ValueError(
                f"video row {index}: column {frame_column} must hold whole numbers, got {frame!r}"
            ) from None
    videos = []
    for name, found in places.items():
        order = [index for _, index in sorted(found)][:max_frames]
        if len(order) < 2:
            raise ValueError(f"video {name} has one frame; label propagation needs at least two")
        videos.append(Video(name, _reader(rows, order, image_column, target_column), len(order)))
    return videos


def _reader(
    rows: Rows, order: list[int], image_column: str, target_column: str
) -> Callable[[], Iterator[tuple[Image.Image, np.ndarray]]]:
    def frames() -> Iterator[tuple[Image.Image, np.ndarray]]:
        for index in order:
            with row_errors("video", index):
                image = read_image(rows[index], image_column)
                labels = read_labels(rows[index], target_column)
                wrong = labels[(labels < 0) | (labels > VOID)]
                if wrong.size:
                    raise ValueError(
                        f"the annotation has the value {wrong[0]}, expected 0 .. {VOID}, of which {VOID} is void"
                    )
                check_size(labels, image, of="frame")
            yield image, labels

    return frames


def resize_frame(image: Image.Image, shorter_side: int, patch_size: int) -> torch.Tensor:
    """RGB image -> float (3, H, W) in [0, 1], of the frame size of DINO's protocol: 832 x 480 for the 854 x 480 of
    DAVIS.

    The shorter side is as given. The longer one is in proportion and rounded down to a multiple of 64 pixels. Then both
    are rounded to whole patches, which changes nothing for patches of 8, 16 and 32 pixels.
    """
    scale = shorter_side / min(image.size)
    step = _LONGER_SIDE_MULTIPLE
    in_proportion = int(scale * max(image.size) + 1e-6)
    longer_side = max(in_proportion // step * step, shorter_side)
    sides = [shorter_side if side == min(image.size) else longer_side for side in image.size]
    width, height = (max(1, round(side / patch_size)) * patch_size for side in sides)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    pixels = np.asarray(resized, dtype=np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


# --------------------------------------------------------------------------------------------------------------- scores


class ObjectScore:
    """J and F of each object of each video, mean over its frames, then over all objects (DAVIS-2017, arXiv:1704.00675).

    As in the official semi-supervised code (github.com/davisvideochallenge/davis2017-evaluation), the objects are 1 ..
    the highest number of the first frame, even if some numbers are missing: an object that neither exists nor is
    predicted scores 1. Void pixels are background. The first frame, which is given, and the last one of a video do not
    count, except if there are only two.
    """

    def __init__(self):
        self.objects: dict[tuple[str, int], list[tuple[float, float]]] = {}

    def add(self, video: Video, frame: int, predicted: np.ndarray, true: np.ndarray, objects: Sequence[int]) -> None:
        """Add the labels of a frame: predicted and true (H, W), and the numbers of the video's objects."""
        if frame == video.num_frames - 1 and video.num_frames > 2:
            return
        for label in objects:
            masks = predicted == label, true == label
            scores = self.objects.setdefault((video.name, label), [])
            scores.append((region_similarity(*masks), contour_accuracy(*masks)))

    def result(self) -> dict[str, float]:
        """J, F, their mean and their recalls."""
        means = np.array([np.mean(scores, axis=0) for scores in self.objects.values()])
        recalls = np.array([(np.array(scores) > 0.5).mean(axis=0) for scores in self.objects.values()])
        (region, contour), (region_recall, contour_recall) = means.mean(axis=0), recalls.mean(axis=0)
        values = {
            "J&F": (region + contour) / 2,
            "J": region,
            "F": contour,
            "J recall": region_recall,
            "F recall": contour_recall,
        }
        return {name: float(value) for name, value in values.items()}


class PartScore:
    """mIoU over the classes of all frames except the given first ones (VIP, doi:10.1145/3240508.3240660)."""

    def __init__(self):
        self.confusion = np.zeros((VOID, VOID), dtype=np.int64)

    def add(self, video: Video, frame: int, predicted: np.ndarray, true: np.ndarray, objects: Sequence[int]) -> None:
        """Add the labels of a frame: predicted and true (H, W), `VOID` without a label."""
        self.confusion += confusion_matrix(predicted, true, VOID, VOID)

    def result(self) -> dict[str, float]:
        """Mean IoU and pixel accuracy."""
        scores = iou_scores(self.confusion)
        return {"mIoU": scores["mean_iou"], "pixel accuracy": scores["overall_accuracy"]}


@dataclass(frozen=True)
class VideoTask:
    """How predictions are scored, and what the numbers mean."""

    score: Callable[[], ObjectScore | PartScore]
    protocol: str


VIDEO_TASKS = {
    "video_segmentation": VideoTask(
        ObjectScore, "label propagation as in DINO's DAVIS protocol; J and F without first and last frames"
    ),
    "part_propagation": VideoTask(
        PartScore, "label propagation as in DINO's DAVIS protocol; mIoU over the classes of all later frames"
    ),
}


# ---------------------------------------------------------------------------------------------------------- propagation


@dataclass
class VideoResults:
    """values: (encoder, part) -> metric -> value.

    pictures: of each video, the frames at four times with the labels of the first encoder.
    """

    values: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    pictures: list[list[Image.Image]] = field(default_factory=list)


PICTURE_TITLES = ("first frame, labels given", "a third of the way", "two thirds", "last frame")


def propagate_videos(
    task: VideoTask,
    encoders: Sequence[FrameEncoder],
    videos: Sequence[Video],
    shorter_side: int = 480,
    settings: PropagationSettings = DINO_SETTINGS,
    report: Callable[[str], Any] = lambda line: None,
) -> VideoResults:
    """Score all parts of all encoders on all videos.

    One frame is held in memory at a time, and the features of the context frames.

    Args:
        shorter_side: frames are resized to it, in pixels.
        report: called with a line after each video and encoder.

    Raises:
        ValueError: a first frame has no labeled object.
    """
    results = VideoResults()
    scores = {}
    for number, video in enumerate(videos):
        for encoder in encoders:
            shown = {0, video.num_frames // 3, 2 * video.num_frames // 3, video.num_frames - 1}
            frames = []
            for index, image, truth, predictions, objects in _propagate(video, encoder, shorter_side, settings):
                for part, predicted in predictions.items():
                    if index:
                        score = scores.setdefault((encoder.name, part), task.score())
                        score.add(video, index, predicted, truth, objects)
                if encoder is encoders[0] and index in shown:
                    frames.append(overlay(image, next(iter(predictions.values())), objects[-1] + 1))
            if frames:
                results.pictures.append([frames[min(i, len(frames) - 1)] for i in range(len(PICTURE_TITLES))])
            report(f"video {number + 1}/{len(videos)} {video.name}: {video.num_frames} frames, {encoder.name}")
    results.values = {key: score.result() for key, score in scores.items()}
    return results


def _propagate(
    video: Video, encoder: FrameEncoder, shorter_side: int, settings: PropagationSettings
) -> Iterator[tuple[int, Image.Image, np.ndarray, dict[str, np.ndarray], list[int]]]:
    """Frame number, image, true labels, labels by part (of the first frame the given ones), numbers of the objects."""
    states: dict[str, LabelPropagation] = {}
    objects = []
    size = (0, 0)
    for index, (image, truth) in enumerate(video.frames()):
        if index == 0:
            objects = _find_objects(video, truth)
            size = truth.shape
        if truth.shape != size:
            shapes = f"{truth.shape[1]} x {truth.shape[0]} pixels, the first one of {size[1]} x {size[0]}"
            raise ValueError(f"video {video.name}: frame {index} is of {shapes}")
        features = encoder(resize_frame(image, shorter_side, encoder.patch_size))
        if index == 0:
            for part, maps in features.items():
                shares = labels_to_patches(truth, objects[-1] + 1, (maps.shape[0], maps.shape[1]))
                states[part] = LabelPropagation(maps, shares.to(maps.device), settings)
            predictions = dict.fromkeys(features, truth)
        else:
            predictions = {part: patches_to_labels(states[part].step(maps), size) for part, maps in features.items()}
        yield index, image, truth, predictions, objects


def _find_objects(video: Video, truth: np.ndarray) -> list[int]:
    """Numbers of the objects: 1 .. the highest of the first frame."""
    highest = int(np.where(truth == VOID, 0, truth).max())
    if highest == 0:
        values = ", ".join(map(str, np.unique(truth)))
        expected = f"expected objects numbered from 1 ({VOID} is void), got {values}"
        raise ValueError(f"video {video.name}: the annotation of the first frame is empty: {expected}")
    return list(range(1, highest + 1))
