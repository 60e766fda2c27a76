"""What the supervised dense tasks share: samples, a head on the backbone, a loss, a score, pictures."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from ..data.shared_memory import WAIT_SECONDS, check_result, share
from ..evaluation.extraction import progress
from ..evaluation.rows import Rows, find_column, read_image, row_errors
from ..hub.configuration_eqcohvit import EqCohViTConfig
from ..preprocessing import Preprocessing
from . import DENSE_TASKS
from .backbones import EncoderFolder, find_backbone, pyramid
from .options import TaskOptions

TASK_FILE = "task.json"
MAX_CHECKED_ROWS = 2000  # decoding more annotations would delay the first message too long
MAX_TEST_BATCH = 16
NUM_PICTURES = 6  # of predictions
_MIN_SAMPLES_OF_BAR = 64  # no progress bar for fewer

Sample = dict[str, Any]


class Score(Protocol):
    """Collects predictions of a test set."""

    def add(self, prediction: Any, sample: Sample) -> None:
        """Add the prediction of a sample."""

    def result(self) -> dict[str, float]:
        """Metric name -> value."""


@dataclass
class DenseTask(ABC):
    """A task with everything to train and to test it, saved beside the model as task.json.

    image_size: side in pixels of the model's input. patch_size: side of the backbone's patches in pixels. mean, std:
    per channel, of images in [0, 1].
    """

    image_size: int
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: str
    image_column: str
    target_column: str

    name: ClassVar[str]
    protocol: ClassVar[str]  # what the numbers mean, for results.json
    picture_titles: ClassVar[tuple[str, ...]] = ("image", "target", "prediction")
    default_rows: ClassVar[Callable[[], tuple[Rows, Rows]] | None] = None  # for training and testing without data flags
    counted: ClassVar[str | None] = None  # has classes in the second part of a target, and a row may have none
    models: ClassVar[dict[str, type[PreTrainedModel]]]  # by the name of the head, as in `DENSE_TASKS`
    target_columns: ClassVar[tuple[str, ...]] = ()  # usual names of the targets' column; none if they are generated
    target_purpose: ClassVar[str] = "annotations"
    reads_pyramid: ClassVar[bool] = False  # then the side of the input is a multiple of the cell of its coarsest map

    @abstractmethod
    def head_config(self, backbone: EqCohViTConfig) -> PreTrainedConfig:
        """The configuration of the head's model with this backbone."""

    @abstractmethod
    def read_target(self, row: dict[str, Any]) -> Any:
        """The target of a row; a `ValueError` of one line if it is not valid. The image is not decoded."""

    @abstractmethod
    def train_sample(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        """A randomly augmented sample of fixed shapes, with `pixel_values` (3, S, S)."""

    @abstractmethod
    def test_sample(self, row: dict[str, Any], index: int) -> Sample:
        """The whole image as `pixel_values` (3, H, W), and the target as in the data."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Named scalars, `loss` among them."""

    @abstractmethod
    def predict(self, model: torch.nn.Module, pixel_values: torch.Tensor, samples: Sequence[Sample]) -> list[Any]:
        """One prediction for each of the `pixel_values` (B, 3, H, W), in the geometry of the target."""

    @abstractmethod
    def start_score(self) -> Score:
        """An empty score of this task."""

    @abstractmethod
    def picture(self, sample: Sample, prediction: Any) -> list[Image.Image]:
        """One picture for each of `picture_titles`."""

    # ------------------------------------------------------------------------------------ what a task may do otherwise

    @classmethod
    def own_fields(cls, options: TaskOptions, rows: Rows, target_column: str) -> dict[str, Any]:
        """The fields that only this task has; a `ValueError` of one line if options or rows do not fit."""
        return {}

    def backbone_options(self, num_layers: int) -> dict[str, Any]:
        """Arguments of `EncoderFolder.backbone`: which feature maps the head reads."""
        return {}

    def check_fit(self, target: Any, image: Image.Image) -> None:  # noqa: B027  not every target has a size
        """Raise a `ValueError` of one line if a target does not fit its image."""

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Samples of equal shapes -> batch."""
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    # ---------------------------------------------------------------------------------------------- shared by all tasks

    @classmethod
    def from_options(cls, options: TaskOptions, encoder: EncoderFolder, rows: Rows) -> Self:
        """The task of these options; a `ValueError` of one line if options, columns or encoder do not fit."""
        patch_size = encoder.config.square_patch_size
        size = options.image_size or encoder.preprocessing.image_size
        unit = round(patch_size / pyramid(patch_size)[-1]) if cls.reads_pyramid else patch_size
        if size < unit or size % unit:
            expected = f"must be a multiple of {unit} for this backbone and head"
            raise ValueError(f"image_size of {cls.name} {expected}, got {size}")
        heads = DENSE_TASKS[cls.name].heads
        head = options.head or heads[0]
        if head not in heads:
            raise ValueError(f"head of {cls.name} must be one of {', '.join(heads)}, got {head}")
        target = ""
        if cls.target_columns:
            target = find_column(rows, options.target_column, cls.target_columns, cls.target_purpose)
        return cls(
            image_size=size,
            patch_size=patch_size,
            mean=encoder.preprocessing.mean,
            std=encoder.preprocessing.std,
            head=head,
            image_column=find_column(rows, options.image_column, ["image"], "photographs"),
            target_column=target,
            **cls.own_fields(options, rows, target),
        )

    def model_class(self) -> type[PreTrainedModel]:
        """The class that `head` names."""
        return self.models[self.head]

    def build(self, encoder: EncoderFolder, random_weights: bool) -> PreTrainedModel:
        """The encoder, trained or random, with a new head."""
        backbone = encoder.backbone(random_weights, **self.backbone_options(encoder.config.num_hidden_layers))
        model = self.model_class()(self.head_config(backbone.config))
        find_backbone(model).load_state_dict(backbone.state_dict())
        return model

    def read(self, row: dict[str, Any]) -> tuple[Image.Image, Any]:
        """The image and the target of a row; a `ValueError` of one line if one of them is not valid."""
        image = read_image(row, self.image_column)
        target = self.read_target(row)
        self.check_fit(target, image)
        return image, target

    @property
    def preprocessing(self) -> Preprocessing:
        """Size and normalization of the images."""
        return Preprocessing(self.image_size, self.mean, self.std)

    def normalize(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> float (3, H, W) in normalized pixels."""
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
        return self.preprocessing.normalize(pixels.permute(2, 0, 1))

    def resize_whole(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side to `image_size`, the other one in proportion, both rounded to whole patches."""
        scale = self.image_size / min(image.size)
        width, height = (max(1, round(scale * side / self.patch_size)) * self.patch_size for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)

    def stretch(self, image: Image.Image) -> Image.Image:
        """Resize to `image_size` x `image_size`."""
        return image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, reducing_gap=2.0)

    def to_image(self, pixel_values: torch.Tensor) -> Image.Image:
        """The inverse of `normalize`."""
        pixels = pixel_values.permute(1, 2, 0).cpu().numpy()
        pixels = pixels * np.array(self.std, dtype=np.float32) + np.array(self.mean, dtype=np.float32)
        return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))

    def check_rows(self, rows: Rows, what: str) -> None:
        """Check the targets of the first rows.

        Raises:
            ValueError: a target is wrong; the message names the row.
        """
        if getattr(rows, "is_rendered", False):  # correct by construction, and drawing them takes seconds
            return
        for index in range(min(len(rows), MAX_CHECKED_ROWS)):
            with row_errors(what, index):
                self.read_target(rows[index])
        if self.counted and not any(len(self.read_target(rows[index])[1]) for index in range(len(rows))):
            raise ValueError(f"the {what} rows are empty: none of {len(rows)} images has an {self.counted}")

    def save(self, folder: Path) -> None:
        """Write the task into a model folder."""
        (folder / TASK_FILE).write_text(json.dumps({"task": self.name, **dataclasses.asdict(self)}, indent=1) + "\n")


class RenderedRows:
    """The embedded data as rows, drawn when they are read: `count` rows from the scene `offset` on."""

    is_rendered = True
    size: ClassVar[int]  # side of a rendered scene in pixels

    def __init__(self, count: int, offset: int = 0):
        self.count = count
        self.offset = offset

    def __len__(self) -> int:
        return self.count

    def select(self, indices: range) -> Self:
        """The first of these rows, as in a dataset."""
        return type(self)(len(indices), self.offset)


def draw_square(size: tuple[int, int], least: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random square of an image of this size (width, height): left, top, right, bottom in pixels.

    Its side is at least so large a fraction of the image's shorter side.
    """
    side = rng.uniform(least, 1.0) * min(size)
    left = rng.uniform(0, size[0] - side)
    top = rng.uniform(0, size[1] - side)
    return left, top, left + side, top + side


def draw_rectangle(size: tuple[int, int], least: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random rectangle of an image of this size (width, height): its start (x, y) and its sides in pixels.

    Each side is at least so large a fraction of the image's.
    """
    sides = np.array(size) * rng.uniform(least, 1.0, 2)
    return rng.uniform(0, np.array(size) - sides), sides


def cut(
    image: Image.Image, target: np.ndarray, box: tuple[float, float, float, float], size: int, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """A box of an image and of its target (H, W), resized to `size` x `size` pixels, flipped half of the time.

    Args:
        box: left, top, right and bottom in pixels.
    """
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    target = np.array(Image.fromarray(target).resize((size, size), Image.Resampling.NEAREST, box=box))
    if rng.random() < 0.5:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), target[:, ::-1]
    return image, target


def resize_maps(maps: Iterable[torch.Tensor], sizes: Iterable[tuple[int, ...]]) -> Iterator[torch.Tensor]:
    """Maps (C, h, w) of each image -> (C, H, W), by bilinear interpolation."""
    for own, size in zip(maps, sizes, strict=True):
        yield F.interpolate(own[None], size=size, mode="bilinear", align_corners=False)[0]


class _TestSamples(Dataset):
    def __init__(self, task: DenseTask, rows: Rows, count: int):
        self.task = task
        self.rows = rows
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample | ValueError:
        try:
            with row_errors("test", index):
                return share(self.task.test_sample(self.rows[index], index))
        except ValueError as error:  # a worker's exception would arrive as a page of traceback
            return error


def _as_it_is(sample: Any) -> Any:
    """The sample unchanged: the default function of the loader would turn arrays into tensors."""
    return sample


def iterate_test_samples(
    task: DenseTask, rows: Rows, max_samples: int | None = None, num_workers: int = 0
) -> Iterator[list[Sample]]:
    """The first test samples, in batches of consecutive samples of one shape."""
    count = len(rows) if max_samples is None else min(len(rows), max_samples)
    batch: list[Sample] = []
    workers = {"num_workers": num_workers, "timeout": WAIT_SECONDS if num_workers else 0}
    for sample in DataLoader(_TestSamples(task, rows, count), batch_size=None, collate_fn=_as_it_is, **workers):
        check_result(sample)
        if isinstance(sample, ValueError):
            raise sample
        if batch and (len(batch) == MAX_TEST_BATCH or sample["pixel_values"].shape != batch[0]["pixel_values"].shape):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


@torch.inference_mode()
def evaluate_task(
    task: DenseTask,
    model: torch.nn.Module,
    rows: Rows,
    max_samples: int | None = None,
    num_workers: int = 0,
) -> tuple[dict[str, float], list[list[Image.Image]]]:
    """Score the model on the first `max_samples` rows: metric values, and pictures of evenly spread predictions."""
    model.eval()
    device = next(model.parameters()).device
    score = task.start_score()
    pictures = []
    seen = 0
    total = len(rows) if max_samples is None else min(len(rows), max_samples)
    shown = set(spread(total, NUM_PICTURES))
    bar = (
        progress(f"testing {task.name.replace('_', ' ')}", total, unit="img") if total >= _MIN_SAMPLES_OF_BAR else None
    )
    for samples in iterate_test_samples(task, rows, max_samples, num_workers):
        pixel_values = torch.stack([sample["pixel_values"] for sample in samples]).to(device)
        for sample, prediction in zip(samples, task.predict(model, pixel_values, samples), strict=True):
            score.add(prediction, sample)
            if seen in shown:
                pictures.append(task.picture(sample, prediction))
            seen += 1
        if bar is not None:
            bar.update(len(samples))
    if bar is not None:
        bar.close()
    return score.result(), pictures


def spread(total: int, count: int) -> list[int]:
    """`count` evenly spread numbers of 0 .. total - 1, or all of them if there are fewer."""
    return sorted({index * total // count for index in range(count)}) if total else []
