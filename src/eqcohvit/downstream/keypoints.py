"""Keypoints of one instance per row: an image, its keypoints in pixels, and the box of the instance if the data have
one.

Images with several people need one row per person, as in top-down pose estimation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import VitPoseConfig, VitPoseForPoseEstimation

from ..evaluation.metrics.pck.distances import correct_keypoints
from ..evaluation.rows import Rows
from ..hub.configuration_eqcohvit import EqCohViTConfig
from .base import DenseTask, Sample
from .coco import OTHER_SIGMA, PrecisionScore
from .options import TaskOptions

UPSAMPLING = 4  # heat-map cells per patch and direction
THRESHOLDS = (0.05, 0.1)  # of PCK
_BOX_PADDING = 1.25
# Of training crops; zoom and shift as fractions of the side of the crop.
_MAX_ANGLE = np.deg2rad(30.0)
_ZOOM = 0.25
_SHIFT = 0.1


@dataclass(frozen=True)
class Crop:
    """A square piece of an image, rotated: center (x, y) and side in pixels, angle in radians, `size` cells after the
    crop."""

    center: np.ndarray
    side: float
    angle: float
    size: int

    @property
    def _turn(self) -> np.ndarray:
        return np.array([[np.cos(self.angle), -np.sin(self.angle)], [np.sin(self.angle), np.cos(self.angle)]])

    def apply(self, image: Image.Image) -> Image.Image:
        """The crop of an image; places outside the image are black."""
        factor = max(1, int(self.side / self.size))  # averaged first, so that bilinear reading does not skip pixels
        reduced = image.reduce(factor) if factor > 1 else image
        linear = self._turn * self.side / self.size
        offset = self.center - linear @ np.full(2, self.size / 2)
        data = np.column_stack([linear, offset]) / factor
        return reduced.transform(
            (self.size, self.size), Image.Transform.AFFINE, data.flatten().tolist(), Image.Resampling.BILINEAR
        )

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Points (K, 2) of the image -> of the crop."""
        return (points - self.center) @ self._turn * self.size / self.side + self.size / 2

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points (K, 2) of the crop -> of the image."""
        return (points - self.size / 2) @ self._turn.T * self.side / self.size + self.center


def draw_heatmaps(points: np.ndarray, side: int, sigma: float) -> torch.Tensor:
    """A Gaussian of height 1 for each point (K, 2), in cells: float (K, side, side)."""
    cells = np.arange(side) + 0.5
    along = np.exp(-((cells - points[:, :, None]) ** 2) / (2 * sigma**2))  # (K, 2, side)
    return torch.from_numpy((along[:, 1, :, None] * along[:, 0, None, :]).astype(np.float32))


def find_peaks(heatmaps: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Heat maps (..., K, h, w) -> points (..., K, 2) in cells and heights (..., K).

    Between cells the logarithm is treated as a parabola, which is exact for a Gaussian (as in arXiv:1910.06278, but
    along x and y only)."""
    height, width = heatmaps.shape[-2:]
    flat = heatmaps.flatten(-2)
    best = flat.argmax(dim=-1)
    logs = flat.clamp_min(1e-4).log()
    points = []
    for place, count, stride in ((best % width, width, 1), (best // width, height, width)):
        before, here, after = (
            logs.gather(-1, (best + step).clamp(0, flat.shape[-1] - 1)[..., None])[..., 0]
            for step in (-stride, 0, stride)
        )
        curvature = before - 2 * here + after
        shift = torch.where(curvature < -1e-6, 0.5 * (before - after) / curvature.clamp(max=-1e-6), 0.0).clamp(
            -0.5, 0.5
        )
        inside = (place > 0) & (place < count - 1)
        points.append(place + 0.5 + torch.where(inside, shift, 0.0))
    return torch.stack(points, dim=-1).cpu().numpy(), flat.amax(dim=-1).cpu().numpy()


class _KeypointScore(PrecisionScore):
    kind = "keypoints"

    def __init__(self):
        super().__init__(num_labels=1)
        self.correct: dict[float, list[np.ndarray]] = {threshold: [] for threshold in THRESHOLDS}

    def add(self, prediction: tuple[np.ndarray, np.ndarray], sample: Sample) -> None:
        points, heights = prediction
        true = sample["points"]
        visible = sample["visible"]
        box = sample["box"]
        for threshold, correct in self.correct.items():
            correct.append(correct_keypoints(points, true, visible, max(box[2:]), threshold))
        number = self.next_image(sample["width"], sample["height"])
        common = {"image_id": number, "category_id": 0}
        flat = np.column_stack([true, 2 * visible]).flatten().tolist()
        size = {"bbox": list(map(float, box)), "area": float(box[2] * box[3]), "num_keypoints": int(visible.sum())}
        self.truth.append({**common, "keypoints": flat, **size})
        found = np.column_stack([points, np.ones(len(points))]).flatten().tolist()
        self.found.append({**common, "keypoints": found, "score": float(heights.mean())})

    def result(self) -> dict[str, float]:
        values = {
            f"PCK@{threshold}": float(np.concatenate(correct).mean()) for threshold, correct in self.correct.items()
        }
        return values | {f"{name} (OKS)": value for name, value in super().result().items()}


@dataclass
class Keypoints(DenseTask):
    """ViTPose (arXiv:2204.12484): heat maps by two transposed convolutions on the last feature map, or by one
    convolution.

    No flips in training: which keypoints change places is not in the data. box_column: empty where the whole image is
        the instance.
    """

    num_keypoints: int
    box_column: str

    name = "keypoints"
    protocol = (
        "one crop round the true box (or the whole image), no flipped copy; PCK by the longer side of the "
        "box; AP over OKS of .50 to .95, "
        f"area of the box, sigmas of COCO for 17 keypoints, else {OTHER_SIGMA}; a prediction's score is "
        "the mean height of its peaks"
    )
    models = {"classic": VitPoseForPoseEstimation, "simple": VitPoseForPoseEstimation}
    target_columns = ("keypoints",)
    target_purpose = "keypoints"

    @classmethod
    def own_fields(cls, options: TaskOptions, rows: Rows, target_column: str) -> dict[str, Any]:
        box_column = "bbox" if "bbox" in rows.features else ""
        return {"num_keypoints": len(_read_points(rows[0], target_column)), "box_column": box_column}

    @property
    def map_side(self) -> int:
        """Side of a heat map in cells."""
        return self.image_size // self.patch_size * UPSAMPLING

    def backbone_options(self, num_layers: int) -> dict[str, Any]:
        return {"image_size": self.image_size, "reshape_hidden_states": False, "include_prefix_tokens": False}

    def head_config(self, backbone: EqCohViTConfig) -> VitPoseConfig:
        return VitPoseConfig(
            backbone_config=backbone, num_labels=self.num_keypoints, use_simple_decoder=self.head == "simple"
        )

    def read_target(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (K, 2) in pixels, which of them are labeled (K,), and the box x, y, width, height.

        Raises:
            ValueError: a wrong number of keypoints, no labeled keypoint, or a box without area.
        """
        values = _read_points(row, self.target_column)
        if len(values) != self.num_keypoints:
            raise ValueError(f"expected {self.num_keypoints} keypoints, as in the first row, got {len(values)}")
        visible = np.isfinite(values[:, :2]).all(axis=1) & (values[:, 2] > 0)
        if not visible.any():
            raise ValueError("the annotation is empty: no keypoint is labeled")
        points = np.nan_to_num(values[:, :2])
        low, high = points[visible].min(axis=0), points[visible].max(axis=0)
        if not self.box_column:
            if not (high > low).all():
                raise ValueError(
                    "the labeled keypoints have no extent, so that the size of the instance is unknown: "
                    "add a column bbox"
                )
            return points, visible, np.concatenate([low, high - low])
        try:
            box = np.array(row[self.box_column], dtype=np.float64)
        except (TypeError, ValueError):
            box = np.empty(0)
        if box.shape != (4,) or not (np.isfinite(box).all() and (box[2:] > 0).all()):
            given = repr(row[self.box_column])[:99]
            raise ValueError(
                f"the box {given} has no area; expected x, y, width, height with positive width and height"
            )
        return points, visible, box

    def _whole(self, image: Image.Image, box: np.ndarray) -> Crop:
        if self.box_column:
            return Crop(box[:2] + box[2:] / 2, _BOX_PADDING * max(box[2:]), 0.0, self.image_size)
        return Crop(np.array(image.size) / 2, float(max(image.size)), 0.0, self.image_size)

    def train_sample(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image, (points, visible, box) = self.read(row)
        whole = self._whole(image, box)
        center = whole.center + rng.uniform(-_SHIFT, _SHIFT, 2) * whole.side
        crop = Crop(
            center,
            whole.side * rng.uniform(1 - _ZOOM, 1 + _ZOOM),
            rng.uniform(-_MAX_ANGLE, _MAX_ANGLE),
            self.image_size,
        )
        moved = crop.to_crop(points)
        visible = visible & ((moved >= 0) & (moved < self.image_size)).all(axis=1)
        scale = self.map_side / self.image_size
        maps = draw_heatmaps(moved * scale, self.map_side, max(1.0, self.map_side / 32))
        return {
            "pixel_values": self.normalize(crop.apply(image)),
            "heatmaps": maps,
            "visible": torch.from_numpy(visible).float(),
        }

    def test_sample(self, row: dict[str, Any], index: int) -> Sample:
        image, (points, visible, box) = self.read(row)
        crop = self._whole(image, box)
        geometry = {
            "points": points,
            "visible": visible,
            "box": box,
            "crop": crop,
            "width": image.width,
            "height": image.height,
        }
        return {"pixel_values": self.normalize(crop.apply(image)), **geometry}

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        errors = (model(batch["pixel_values"]).heatmaps - batch["heatmaps"]).square().sum(dim=(2, 3))
        return {"loss": (errors * batch["visible"]).sum() / batch["visible"].sum().clamp_min(1)}

    def predict(
        self, model: torch.nn.Module, pixel_values: torch.Tensor, samples: Sequence[Sample]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Points (K, 2) in pixels of the image and the heights of their peaks (K,), of each sample."""
        points, heights = find_peaks(model(pixel_values).heatmaps.float())
        points = points * self.image_size / self.map_side
        return [(sample["crop"].to_image(p), h) for sample, p, h in zip(samples, points, heights, strict=True)]

    def start_score(self) -> _KeypointScore:
        return _KeypointScore()

    def picture(self, sample: Sample, prediction: tuple[np.ndarray, np.ndarray]) -> list[Image.Image]:
        image = self.to_image(sample["pixel_values"])
        zoom = max(1, 256 // self.image_size)
        pictures = [image]
        for points, color in ((sample["points"][sample["visible"]], "lime"), (prediction[0], "red")):
            canvas = image.resize((image.width * zoom, image.height * zoom))
            draw = ImageDraw.Draw(canvas)
            for x, y in sample["crop"].to_crop(points) * zoom:
                draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=color)
            pictures.append(canvas)
        return pictures


def _read_points(row: dict[str, Any], column: str) -> np.ndarray:
    """x, y and visibility of each keypoint, float (K, 3), from (K, 2), (K, 3) or COCO's flat 3 K numbers."""
    try:
        values = np.array(row[column], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty((0, 0))
    if values.ndim == 1 and values.size and values.size % 3 == 0:
        values = values.reshape(-1, 3)
    if values.ndim != 2 or not len(values) or values.shape[1] not in (2, 3):
        raise ValueError(
            f"column {column} must hold keypoints as (K, 2), (K, 3) or 3 K numbers, got an array of shape "
            f"{values.shape}"
        )
    return values if values.shape[1] == 3 else np.column_stack([values, np.ones(len(values))])
