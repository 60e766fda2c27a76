"""Instance segmentation: Mask2Former on a pyramid of feature maps of a plain ViT, scored by pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from ..data.sprite_shapes import SHAPES
from ..data.sprites import render_sprites
from ..evaluation.images import TEST_SPRITES
from ..evaluation.pictures import overlay
from ..evaluation.rows import Rows, check_size, read_instances
from ..hub.configuration_eqcohvit import EqCohViTConfig
from .backbones import pyramid, spread_stages
from .base import DenseTask, RenderedRows, Sample, cut, draw_rectangle, resize_maps
from .coco import PrecisionScore
from .options import TaskOptions

MAX_INSTANCES = 100  # predictions per image, as COCO counts
_MIN_SCORE_SHOWN = 0.4
_LEAST_CROP = 0.7  # sides of a training crop, as fractions of the image's
_MIN_PIXELS = 4  # of an instance in a training crop; smaller instances are left out


class SpriteGrids(RenderedRows):
    """The embedded data as rows: 2 x 2 rendered scenes in a square, each with an object of one of 10 classes."""

    features = ("image", "annotation")
    num_labels = len(SHAPES)
    size = 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        scenes = render_sprites(self.offset + 4 * index + np.arange(4), self.size)
        classes, numbers = (
            np.where(scenes.mask, values[:, None, None], 0) for values in (scenes.labels, np.arange(1, 5))
        )
        annotations = np.stack([classes, numbers, np.zeros_like(classes)], axis=-1).astype(np.uint8)
        images = (scenes.images.transpose(0, 2, 3, 1), annotations)
        whole = [np.concatenate([np.concatenate(pair, axis=1) for pair in (four[:2], four[2:])]) for four in images]
        return dict(zip(self.features, map(Image.fromarray, whole), strict=True))


def sprite_grids() -> tuple[SpriteGrids, SpriteGrids]:
    """Training and test rows that share no scene."""
    return SpriteGrids(4096), SpriteGrids(128, TEST_SPRITES)


class _MaskScore(PrecisionScore):
    kind = "segm"

    def add(self, prediction: dict[str, Any], sample: Sample) -> None:
        instances = sample["instances"]
        height, width = instances.shape
        number = self.next_image(width, height)
        for index, label in enumerate(sample["classes"].tolist(), start=1):
            mask = coco_masks.encode(np.asfortranarray(instances == index, dtype=np.uint8))
            place = {
                "segmentation": mask,
                "bbox": coco_masks.toBbox(mask).tolist(),
                "area": float(coco_masks.area(mask)),
            }
            self.truth.append({"image_id": number, "category_id": label, **place})
        found = zip(prediction["masks"], prediction["classes"].tolist(), prediction["scores"].tolist(), strict=True)
        self.found += [
            {"image_id": number, "category_id": label, "segmentation": m, "score": score} for m, label, score in found
        ]


@dataclass
class InstanceSegmentation(DenseTask):
    """Mask2Former (arXiv:2112.01527) with three encoder and three decoder layers on maps of a quarter to a 32nd of the
    image.

    Annotations are color images as in transformers' examples of instance segmentation: red is the class, green the
    number of the instance, 0 for none. num_labels: number of classes. reduce_labels: red counts the classes from 1.
    """

    num_labels: int
    reduce_labels: bool

    name = "instance_segmentation"
    protocol = (
        "whole images stretched to image_size x image_size, masks resized to the image; COCO average precision of "
        f"masks, at most {MAX_INSTANCES} per image"
    )
    default_rows = staticmethod(sprite_grids)
    counted = "instance"
    reads_pyramid = True
    models = {"mask2former": Mask2FormerForUniversalSegmentation}
    target_columns = ("annotation", "label", "mask")

    @classmethod
    def own_fields(cls, options: TaskOptions, rows: Rows, target_column: str) -> dict[str, Any]:
        num_labels = options.num_labels or getattr(rows, "num_labels", None)
        if num_labels is None or not 1 <= num_labels <= 255:
            raise ValueError(
                f"instance segmentation needs --num_labels, the number of classes (1 to 255), got {num_labels}"
            )
        return {"num_labels": num_labels, "reduce_labels": options.reduce_labels}

    def backbone_options(self, num_layers: int) -> dict[str, Any]:
        return {"out_indices": spread_stages(num_layers), "scale_factors": pyramid(self.patch_size)}

    def head_config(self, backbone: EqCohViTConfig) -> Mask2FormerConfig:
        return Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=self.num_labels,
            num_queries=MAX_INSTANCES,
            encoder_layers=3,
            decoder_layers=4,  # the first prediction counts as one
            train_num_points=min(12544, self.image_size**2 // 4),
        )

    def read_target(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The number 1 .. N of the instance at each pixel, int32 (H, W), or 0, and the classes (N,) of the instances.

        Raises:
            ValueError: an instance has no class or several, or a class is unknown.
        """
        instances, labels = read_instances(row, self.target_column)
        shift = int(self.reduce_labels)
        wrong = labels[(labels < shift) | (labels >= self.num_labels + shift)]
        if wrong.size:
            expected = f"{shift} .. {self.num_labels - 1 + shift}"
            raise ValueError(
                f"an instance has the class {wrong[0]}, expected {expected}; see --num_labels and --reduce_labels"
            )
        return instances, labels - shift

    def check_fit(self, target: tuple[np.ndarray, np.ndarray], image: Image.Image) -> None:
        check_size(target[0], image)

    def train_sample(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image, (instances, classes) = self.read(row)
        start, sides = draw_rectangle(image.size, _LEAST_CROP, rng)
        image, numbers = cut(image, instances, (*start, *(start + sides)), self.image_size, rng)
        masks = numbers == np.arange(1, len(classes) + 1)[:, None, None]
        kept = masks.sum(axis=(1, 2)) >= _MIN_PIXELS
        targets = {
            "masks": torch.from_numpy(masks[kept].astype(np.float32)),
            "classes": torch.from_numpy(classes[kept]),
        }
        return {"pixel_values": self.normalize(image), **targets}

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        lists = {key: [sample[key] for sample in samples] for key in ("masks", "classes")}
        return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), **lists}

    def test_sample(self, row: dict[str, Any], index: int) -> Sample:
        image, (instances, classes) = self.read(row)
        pixel_values = self.normalize(self.stretch(image))
        return {"pixel_values": pixel_values, "instances": instances, "classes": classes, "image": image}

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        outputs = model(pixel_values=batch["pixel_values"], mask_labels=batch["masks"], class_labels=batch["classes"])
        return {"loss": outputs.loss.squeeze()}

    def predict(
        self, model: torch.nn.Module, pixel_values: torch.Tensor, samples: Sequence[Sample]
    ) -> list[dict[str, Any]]:
        """Masks as run lengths of COCO, classes (N,), scores (N,) of each sample, best first.

        A score is the product of the score of the class and of the mask.
        """
        outputs = model(pixel_values=pixel_values)
        shares = outputs.class_queries_logits.float().softmax(dim=-1)[..., :-1]
        scores, index = shares.flatten(1).topk(min(MAX_INSTANCES, shares[0].numel()), dim=1)
        queries, classes = index // self.num_labels, index % self.num_labels
        found = []
        chosen = [maps[own].float() for maps, own in zip(outputs.masks_queries_logits, queries, strict=True)]
        sizes_of_images = [sample["instances"].shape for sample in samples]
        for number, logits in enumerate(resize_maps(chosen, sizes_of_images)):
            inside = logits > 0
            sizes = inside.sum(dim=(1, 2))
            certainty = (logits.sigmoid() * inside).sum(dim=(1, 2)) / sizes.clamp_min(1)
            best = (scores[number] * certainty).sort(descending=True, stable=True)
            order = best.indices[sizes[best.indices] > 0]
            masks = inside[order].cpu().numpy().astype(np.uint8).transpose(1, 2, 0)
            kept = {
                "classes": classes[number, order].cpu().numpy(),
                "scores": (scores[number] * certainty)[order].cpu().numpy(),
            }
            found.append({"masks": coco_masks.encode(np.asfortranarray(masks)), **kept})
        return found

    def start_score(self) -> _MaskScore:
        return _MaskScore(self.num_labels)

    def picture(self, sample: Sample, prediction: dict[str, Any]) -> list[Image.Image]:
        """Each instance has a different color."""
        found = np.zeros_like(sample["instances"])
        shown = [
            mask
            for mask, score in zip(prediction["masks"], prediction["scores"], strict=True)
            if score >= _MIN_SCORE_SHOWN
        ]
        for number, mask in reversed(list(enumerate(shown, start=1))):  # the most certain on top
            found[coco_masks.decode(mask) > 0] = number
        maps = (
            overlay(sample["image"], numbers, max(int(numbers.max()), 1) + 1)
            for numbers in (sample["instances"], found)
        )
        return [sample["image"], *maps]
