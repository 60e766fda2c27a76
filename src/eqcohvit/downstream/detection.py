"""Object detection on COCO-style objects: RT-DETR on a pyramid of maps of a plain ViT, scored by pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import RTDetrConfig, RTDetrForObjectDetection

from ..evaluation.pictures import palette
from ..evaluation.rows import Rows
from ..hub.configuration_eqcohvit import EqCohViTConfig
from .backbones import pyramid
from .base import DenseTask, Sample, draw_rectangle
from .coco import PrecisionScore
from .options import TaskOptions

MAX_DETECTIONS = 100  # per image, as COCO counts
_MIN_SCORE_SHOWN = 0.4
_LEAST_CROP = 0.7  # sides of a training crop, as fractions of the image's
_MIN_VISIBLE = 0.4  # share of a box's area that a crop must keep


class _BoxScore(PrecisionScore):
    def add(self, prediction: dict[str, np.ndarray], sample: Sample) -> None:
        number = self.next_image(sample["width"], sample["height"])
        for box, label in zip(sample["boxes"].tolist(), sample["classes"].tolist(), strict=True):
            self.truth.append({"image_id": number, "category_id": label, "bbox": box, "area": box[2] * box[3]})
        for box, label, score in zip(
            *(prediction[key].tolist() for key in ("boxes", "classes", "scores")), strict=True
        ):
            self.found.append({"image_id": number, "category_id": label, "bbox": box, "score": score})


@dataclass
class Detection(DenseTask):
    """RT-DETR (arXiv:2304.08069) with three decoder layers; the pyramid resizes the last three maps, as ViTDet
    (arXiv:2203.16527) does.

    label_names: of the classes, in their order.
    """

    label_names: tuple[str, ...]

    name = "detection"
    protocol = (
        "whole images stretched to image_size x image_size; COCO average precision, at most "
        f"{MAX_DETECTIONS} boxes per image"
    )
    counted = "object"
    reads_pyramid = True
    models = {"rt_detr": RTDetrForObjectDetection}
    target_columns = ("objects",)
    target_purpose = "objects"

    @classmethod
    def own_fields(cls, options: TaskOptions, rows: Rows, target_column: str) -> dict[str, Any]:
        return {"label_names": _label_names(rows, target_column, options.num_labels)}

    @property
    def scales(self) -> list[float]:
        """Of the three feature maps beside the map of the backbone."""
        return pyramid(self.patch_size)[1:]

    def backbone_options(self, num_layers: int) -> dict[str, Any]:
        if num_layers < 3:
            raise ValueError(f"this head reads 3 stages, and the backbone has only {num_layers} layers")
        return {"out_indices": [num_layers - 2, num_layers - 1, num_layers], "scale_factors": self.scales}

    def head_config(self, backbone: EqCohViTConfig) -> RTDetrConfig:
        num_tokens = sum(int(self.image_size // self.patch_size * scale) ** 2 for scale in self.scales)
        return RTDetrConfig(
            backbone_config=backbone,
            freeze_backbone_batch_norms=False,
            encoder_in_channels=[backbone.hidden_size] * 3,
            feat_strides=[int(self.patch_size / scale) for scale in self.scales],
            decoder_layers=3,
            hidden_expansion=0.5,
            num_queries=min(MAX_DETECTIONS, num_tokens),
            id2label=dict(enumerate(self.label_names)),
            label2id={name: index for index, name in enumerate(self.label_names)},
        )

    def read_target(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Boxes x, y, width, height in pixels (N, 4), and their classes (N,); N may be 0.

        Raises:
            ValueError: a box has no area, or a class is unknown.
        """
        objects = row[self.target_column]
        if isinstance(objects, list):  # a list of objects, or the objects' lists
            objects = {key: [one[key] for one in objects] for key in (objects[0] if objects else ("bbox", "category"))}
        if objects is None:
            raise ValueError(
                f"column {self.target_column} is empty; an image without objects has empty lists of bbox and category"
            )
        key = _category_key(objects)
        try:
            boxes = np.array(objects["bbox"], dtype=np.float64).reshape(-1, 4)
        except (TypeError, ValueError):
            raise ValueError(
                f"the bbox of each object must be the numbers x, y, width, height, got {repr(objects['bbox'])[:99]}"
            ) from None
        try:
            classes = np.array(objects[key], dtype=np.int64)
        except (TypeError, ValueError):
            raise ValueError(
                f"the {key} of each object must be a whole number, got {repr(objects[key])[:99]}"
            ) from None
        if len(boxes) != len(classes):
            raise ValueError(f"the row has {len(boxes)} boxes and {len(classes)} categories")
        if len(classes) and not (classes.min() >= 0 and classes.max() < len(self.label_names)):
            wrong = classes.min() if classes.min() < 0 else classes.max()
            raise ValueError(f"an object has the category {wrong}, expected 0 .. {len(self.label_names) - 1}")
        flat = np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)))
        if len(flat):
            raise ValueError(
                f"the box {boxes[flat[0]].tolist()} has no area; expected x, y, width, height with "
                "positive width and height"
            )
        return boxes, classes

    def check_fit(self, target: tuple[np.ndarray, np.ndarray], image: Image.Image) -> None:
        boxes, _ = target
        outside = np.flatnonzero(((boxes[:, :2] >= image.size) | (boxes[:, :2] + boxes[:, 2:] <= 0)).any(axis=1))
        if len(outside):
            raise ValueError(
                f"the box {boxes[outside[0]].tolist()} lies outside of its image of {image.width} x "
                f"{image.height} pixels"
            )

    def train_sample(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image, (boxes, classes) = self.read(row)
        start, sides = draw_rectangle(image.size, _LEAST_CROP, rng)
        crop = image.resize(
            (self.image_size,) * 2, Image.Resampling.BICUBIC, box=(*start, *(start + sides)), reducing_gap=2.0
        )
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        low, high = np.clip(low, start, start + sides), np.clip(high, start, start + sides)
        kept = (high - low).clip(0).prod(axis=1) >= _MIN_VISIBLE * boxes[:, 2:].prod(axis=1)
        centers, sizes = ((low + high) / 2 - start) / sides, (high - low) / sides
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            centers[:, 0] = 1 - centers[:, 0]
        targets = torch.from_numpy(np.concatenate([centers, sizes], axis=1)[kept].astype(np.float32))
        return {"pixel_values": self.normalize(crop), "boxes": targets, "class_labels": torch.from_numpy(classes[kept])}

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        labels = [{key: sample[key] for key in ("boxes", "class_labels")} for sample in samples]
        return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), "labels": labels}

    def test_sample(self, row: dict[str, Any], index: int) -> Sample:
        image, (boxes, classes) = self.read(row)
        geometry = {"width": image.width, "height": image.height, "image": image}
        return {"pixel_values": self.normalize(self.stretch(image)), "boxes": boxes, "classes": classes, **geometry}

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        outputs = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
        return {"loss": outputs.loss, **{key: outputs.loss_dict[key] for key in ("loss_vfl", "loss_bbox", "loss_giou")}}

    def predict(
        self, model: torch.nn.Module, pixel_values: torch.Tensor, samples: Sequence[Sample]
    ) -> list[dict[str, np.ndarray]]:
        """Boxes x, y, width, height in pixels (N, 4), classes (N,), scores (N,) of each sample, best first."""
        outputs = model(pixel_values=pixel_values)
        scores, index = (
            outputs.logits.float().sigmoid().flatten(1).topk(min(MAX_DETECTIONS, outputs.logits[0].numel()), dim=1)
        )
        queries, classes = index // outputs.logits.shape[-1], index % outputs.logits.shape[-1]
        boxes = outputs.pred_boxes.float().gather(1, queries[..., None].expand(-1, -1, 4))
        boxes = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]], dim=-1).cpu().numpy()
        found = []
        for number, sample in enumerate(samples):
            scale = np.array([sample["width"], sample["height"]] * 2)
            found.append(
                {
                    "boxes": boxes[number] * scale,
                    "classes": classes[number].cpu().numpy(),
                    "scores": scores[number].cpu().numpy(),
                }
            )
        return found

    def start_score(self) -> _BoxScore:
        return _BoxScore(len(self.label_names))

    def picture(self, sample: Sample, prediction: dict[str, np.ndarray]) -> list[Image.Image]:
        shown = prediction["scores"] >= _MIN_SCORE_SHOWN
        drawn = [self._draw(sample["image"], sample["boxes"], sample["classes"])]
        drawn.append(
            self._draw(
                sample["image"], prediction["boxes"][shown], prediction["classes"][shown], prediction["scores"][shown]
            )
        )
        return [sample["image"], *drawn]

    def _draw(
        self, image: Image.Image, boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray | None = None
    ) -> Image.Image:
        canvas = image.copy()
        colors = palette(len(self.label_names))
        draw = ImageDraw.Draw(canvas)
        for number, (box, label) in enumerate(zip(boxes, classes, strict=True)):
            color = tuple(colors[label].tolist())
            draw.rectangle([*box[:2], *(box[:2] + box[2:])], outline=color, width=3)
            text = self.label_names[label] + (f" {scores[number]:.2f}" if scores is not None else "")
            draw.text((box[0] + 4, box[1] + 2), text, fill=color)
        return canvas


def _category_key(objects: dict[str, Any]) -> str:
    for key in ("category", "label", "category_id", "categories", "labels"):
        if key in objects:
            return key
    raise ValueError(f"objects need bbox and category, got {', '.join(objects)}")


def _label_names(rows: Rows, column: str, num_labels: int | None) -> tuple[str, ...]:
    """The class names of the dataset, or numbers if it has none and `num_labels` is given."""
    feature = rows.features[column]
    feature = getattr(feature, "feature", feature)
    if not isinstance(feature, dict) or "bbox" not in feature:
        raise ValueError(f"column {column} must hold COCO-style objects with bbox and category, got {feature}")
    category = feature[_category_key(feature)]
    category = getattr(category, "feature", category)
    if isinstance(category, datasets.ClassLabel):
        return tuple(category.names)
    if num_labels is None:
        raise ValueError(f"column {column} has no names of its categories: give their number with --num_labels")
    return tuple(str(index) for index in range(num_labels))
