"""Homography estimation by the S-COCO protocol (DeTone et al., arXiv:1606.03798), on any images.

An image is resized to 320 x 240. A patch of 128 x 128 is chosen at random, and each of its corners is moved by up to 32
pixels along x and y. The second patch is the content of the same frame after the image is warped back by the homography
of the corners. The model estimates the four displacements from the two patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..evaluation.metrics.corner_error.corners import corner_error
from ..evaluation.results import LOWER
from ..evaluation.rows import read_image
from ..hub.configuration_eqcohvit import EqCohViTConfig
from .base import DenseTask, Sample
from .heads import DenseHeadConfig, HomographyRegressor

IMAGE_SIZE = (320, 240)  # width, height
PATCH_SIZE = 128
MAX_DISPLACEMENT = 32
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64) * PATCH_SIZE


def homography_from_corners(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The homography (3, 3) that maps four points (4, 2) to four others. Its last entry is 1."""
    rows = []
    values = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def cut_pair(image: Image.Image, place: np.ndarray, displacements: np.ndarray) -> tuple[Image.Image, Image.Image]:
    """The patch whose upper left corner is at `place` (x, y), and the patch with the displaced corners (4, 2)."""
    patches = []
    for moved in (np.zeros((4, 2)), displacements):
        matrix = homography_from_corners(CORNERS, CORNERS + place + moved)
        size = (PATCH_SIZE, PATCH_SIZE)
        patches.append(
            image.transform(size, Image.Transform.PERSPECTIVE, matrix.flatten()[:8].tolist(), Image.Resampling.BILINEAR)
        )
    return patches[0], patches[1]


class _CornerScore:
    def __init__(self):
        self.errors: list[float] = []
        self.still: list[float] = []

    def add(self, prediction: np.ndarray, sample: Sample) -> None:
        self.errors.append(corner_error(prediction, sample["displacements"]))
        self.still.append(corner_error(np.zeros((4, 2)), sample["displacements"]))

    def result(self) -> dict[str, float]:
        values = {f"mean corner error (px) {LOWER}": self.errors, f"the same of no motion (px) {LOWER}": self.still}
        return {name: float(np.mean(errors)) for name, errors in values.items()}


@dataclass
class Homography(DenseTask):
    """A three-layer convolutional head on the features of both patches."""

    name = "homography"
    protocol = (
        "S-COCO: patches of 128 px from images of 320 x 240, corners moved by up to 32 px; one fixed pair from each "
        "test image"
    )
    models = {"conv": HomographyRegressor}
    picture_titles = ("first patch", "second patch", "true corners green, predicted red")

    def head_config(self, backbone: EqCohViTConfig) -> DenseHeadConfig:
        return DenseHeadConfig(backbone_config=backbone, image_size=self.image_size)

    def read_target(self, row: dict[str, Any]) -> None:
        """None: the pairs are generated, so the data need no annotations."""

    def _pair(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = read_image(row, self.image_column).resize(IMAGE_SIZE, Image.Resampling.BICUBIC, reducing_gap=2.0)
        room = np.array(IMAGE_SIZE) - PATCH_SIZE - 2 * MAX_DISPLACEMENT
        place = MAX_DISPLACEMENT + rng.integers(0, room + 1)
        displacements = rng.uniform(-MAX_DISPLACEMENT, MAX_DISPLACEMENT, (4, 2))
        size = (self.image_size, self.image_size)
        patches = [
            self.normalize(patch.resize(size, Image.Resampling.BICUBIC))
            for patch in cut_pair(image, place, displacements)
        ]
        return {"pixel_values": torch.cat(patches), "displacements": displacements, "place": place, "image": image}

    def train_sample(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        sample = self._pair(row, rng)
        return {
            "pixel_values": sample["pixel_values"],
            "targets": torch.from_numpy(sample["displacements"]).float() / MAX_DISPLACEMENT,
        }

    def test_sample(self, row: dict[str, Any], index: int) -> Sample:
        return self._pair(row, np.random.default_rng((1, index)))

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"loss": F.mse_loss(model(batch["pixel_values"]), batch["targets"])}

    def predict(
        self, model: torch.nn.Module, pixel_values: torch.Tensor, samples: Sequence[Sample]
    ) -> list[np.ndarray]:
        """Displacements of the corners in pixels, (4, 2) each: upper left, upper right, lower right, lower left."""
        return list(model(pixel_values).double().cpu().numpy() * MAX_DISPLACEMENT)

    def start_score(self) -> _CornerScore:
        return _CornerScore()

    def picture(self, sample: Sample, prediction: np.ndarray) -> list[Image.Image]:
        canvas = sample["image"].copy()
        draw = ImageDraw.Draw(canvas)
        corners = CORNERS + sample["place"]
        for displacements, color in (
            (np.zeros((4, 2)), "white"),
            (sample["displacements"], "lime"),
            (prediction, "red"),
        ):
            points = [tuple(point) for point in corners + displacements]
            draw.line([*points, points[0]], fill=color, width=2)
        return [*(self.to_image(patch) for patch in sample["pixel_values"].chunk(2)), canvas]
