"""Semantic segmentation in the ADE20K layout: an image and an annotation image of class indices per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig, UperNetConfig, UperNetForSemanticSegmentation

from ..evaluation.metrics.mean_iou.confusion import confusion_matrix, iou_scores
from ..evaluation.pictures import IGNORED, color_labels
from ..evaluation.rows import Rows, check_size, read_labels
from ..hub.configuration_eqcohvit import EqCohViTConfig
from .backbones import spread_stages
from .base import DenseTask, Sample, cut, draw_square, resize_maps
from .heads import DenseHeadConfig, LinearSegmentation
from .options import TaskOptions

_LEAST_CROP = 0.6  # side of a training crop, as a fraction of the shorter side


class _IoUScore:
    def __init__(self, num_labels: int):
        self.confusion = np.zeros((num_labels, num_labels), dtype=np.int64)

    def add(self, prediction: np.ndarray, sample: Sample) -> None:
        self.confusion += confusion_matrix(prediction, sample["labels"], len(self.confusion), IGNORED)

    def result(self) -> dict[str, float]:
        scores = iou_scores(self.confusion)
        return {"mIoU": scores["mean_iou"], "pixel accuracy": scores["overall_accuracy"]}


@dataclass
class Segmentation(DenseTask):
    """UPerNet (arXiv:1807.10221, as wide as the backbone) or a linear head.

    num_labels: number of classes. ignore_label: value of pixels that do not count, in addition to 255. reduce_labels: 0
        means
    "no class", and the classes 1 .. num_labels become 0 .. num_labels - 1, as in ADE20K.
    """

    num_labels: int
    ignore_label: int | None
    reduce_labels: bool

    name = "segmentation"
    protocol = (
        "whole images with the shorter side at image_size, logits resized to the annotation; mIoU "
        "over the classes of all images"
    )
    models = {"upernet": UperNetForSemanticSegmentation, "linear": LinearSegmentation}
    target_columns = ("annotation", "label", "mask", "segmentation_mask")

    @classmethod
    def own_fields(cls, options: TaskOptions, rows: Rows, target_column: str) -> dict[str, Any]:
        if options.num_labels is None or not 2 <= options.num_labels <= IGNORED:
            raise ValueError(
                f"segmentation needs --num_labels, the number of classes (2 to {IGNORED}), got {options.num_labels}"
            )
        return {name: getattr(options, name) for name in ("num_labels", "ignore_label", "reduce_labels")}

    def backbone_options(self, num_layers: int) -> dict[str, Any]:
        if self.head == "linear":
            return {}
        return {"out_indices": spread_stages(num_layers), "scale_factors": [4, 2, 1, 0.5]}

    def head_config(self, backbone: EqCohViTConfig) -> PreTrainedConfig:
        if self.head == "linear":
            return DenseHeadConfig(backbone_config=backbone, num_labels=self.num_labels)
        width = backbone.hidden_size
        return UperNetConfig(
            backbone_config=backbone,
            num_labels=self.num_labels,
            loss_ignore_index=IGNORED,
            hidden_size=width,
            auxiliary_in_channels=width,
            auxiliary_channels=width,
        )

    def read_target(self, row: dict[str, Any]) -> np.ndarray:
        """Class of each pixel, int64 (H, W), 255 if the pixel does not count.

        Raises:
            ValueError: a value is not a class, or no pixel counts.
        """
        labels = read_labels(row, self.target_column)
        ignored = labels == IGNORED
        if self.ignore_label is not None:
            ignored |= labels == self.ignore_label
        if self.reduce_labels:
            ignored |= labels == 0
            labels = labels - 1
        wrong = labels[~ignored & ((labels < 0) | (labels >= self.num_labels))]
        if wrong.size:
            shift = int(self.reduce_labels)
            raise ValueError(
                f"the annotation has the value {wrong[0] + shift}, expected {shift} .. "
                f"{self.num_labels - 1 + shift}, or {IGNORED} where a "
                "pixel does not count; see --num_labels, --ignore_label and --reduce_labels"
            )
        if ignored.all():
            raise ValueError("the annotation is empty: no pixel has a class")
        return np.where(ignored, IGNORED, labels)

    def check_fit(self, target: np.ndarray, image: Image.Image) -> None:
        check_size(target, image)

    def train_sample(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image, labels = self.read(row)
        box = draw_square(image.size, _LEAST_CROP, rng)
        left, top, right, bottom = box
        rows, columns = np.nonzero(labels[int(top) : int(bottom) + 1, int(left) : int(right) + 1] != IGNORED)
        if len(rows) == 0:  # a crop without labeled pixels teaches nothing: take one around a labeled pixel
            rows, columns = np.nonzero(labels != IGNORED)
            chosen = rng.integers(len(rows))
            side = right - left
            place = np.array([columns[chosen], rows[chosen]])
            start = np.clip(place - side / 2, 0, np.array(image.size) - side)
            box = (*start, *(start + side))
        image, labels = cut(image, labels.astype(np.uint8), box, self.image_size, rng)
        return {"pixel_values": self.normalize(image), "labels": torch.from_numpy(labels.astype(np.int64))}

    def test_sample(self, row: dict[str, Any], index: int) -> Sample:
        image, labels = self.read(row)
        return {"pixel_values": self.normalize(self.resize_whole(image)), "labels": labels}

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"loss": model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss}

    def predict(
        self, model: torch.nn.Module, pixel_values: torch.Tensor, samples: Sequence[Sample]
    ) -> list[np.ndarray]:
        """Class of each pixel, int64 (H, W) of the annotation."""
        logits = model(pixel_values=pixel_values).logits.float()
        sizes = [sample["labels"].shape for sample in samples]
        return [maps.argmax(dim=0).cpu().numpy() for maps in resize_maps(logits, sizes)]

    def start_score(self) -> _IoUScore:
        return _IoUScore(self.num_labels)

    def picture(self, sample: Sample, prediction: np.ndarray) -> list[Image.Image]:
        maps = (color_labels(labels, self.num_labels) for labels in (sample["labels"], prediction))
        return [self.to_image(sample["pixel_values"]), *maps]
