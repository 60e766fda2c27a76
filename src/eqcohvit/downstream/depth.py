"""Monocular metric depth: the DepthAnything head (DPT) on the backbone, scale-invariant logarithmic loss, RMSE, AbsRel
and delta1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

from ..data.sprites import render_sprites
from ..evaluation.images import TEST_SPRITES
from ..evaluation.metrics.depth_errors.depths import depth_errors
from ..evaluation.pictures import color_values
from ..evaluation.results import LOWER
from ..evaluation.rows import Rows, check_size, read_depth
from ..hub.configuration_eqcohvit import EqCohViTConfig
from .backbones import spread_stages
from .base import DenseTask, RenderedRows, Sample, cut, draw_square, resize_maps
from .options import TaskOptions

MIN_DEPTH = 1e-3
_LEAST_CROP = 0.7  # side of a training crop, as a fraction of the shorter side
_VARIANCE_FOCUS = 0.85  # lambda of the loss (arXiv:1907.10326, equation 6)


class SpriteRows(RenderedRows):
    """The embedded data as rows: rendered scenes and the distance of each pixel (about 0.5 to 1.2 image sides)."""

    features = ("image", "depth_map")
    size = 128

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = render_sprites(np.array([self.offset + index]), self.size)
        return {"image": Image.fromarray(scene.images[0].transpose(1, 2, 0)), "depth_map": scene.depth[0]}


def sprite_rows() -> tuple[SpriteRows, SpriteRows]:
    """Training and test rows that share no scene."""
    return SpriteRows(4096), SpriteRows(256, TEST_SPRITES)


def scale_invariant_loss(predicted: torch.Tensor, true: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Root of mean(d^2) - 0.85 mean(d)^2 with d = log predicted - log true over the valid pixels: three (B, H, W) ->
    scalar.

    0 if no pixel is valid.
    """
    error = torch.where(valid, predicted.clamp_min(MIN_DEPTH).log() - true.clamp_min(MIN_DEPTH).log(), 0.0).float()
    count = valid.sum().clamp_min(1)
    mean, square = error.sum() / count, error.square().sum() / count
    return (square - _VARIANCE_FOCUS * mean.square()).clamp_min(1e-8).sqrt()


class _DepthScore:
    """All images have the same weight, as in the usual benchmarks."""

    def __init__(self):
        self.errors: list[dict[str, float]] = []

    def add(self, prediction: np.ndarray, sample: Sample) -> None:
        self.errors.append(depth_errors(prediction, sample["depth"]))

    def result(self) -> dict[str, float]:
        shown = {"RMSE": f"RMSE {LOWER}", "AbsRel": f"AbsRel {LOWER}", "delta1": "delta1"}
        return {title: float(np.mean([errors[name] for errors in self.errors])) for name, title in shown.items()}


@dataclass
class Depth(DenseTask):
    """DepthAnything's head (arXiv:2401.10891) with metric output.

    max_depth: largest depth that counts and that the head can predict, in meters or the unit of the data.
    depth_scale: stored numbers are divided by it, for example by 256 for KITTI or 1000 for the 16-bit images of NYU.
    """

    max_depth: int
    depth_scale: float

    name = "depth"
    protocol = (
        "whole images with the shorter side at image_size, depth resized to the reference; "
        "errors over pixels with 0 < depth <= max_depth"
    )
    default_rows = staticmethod(sprite_rows)
    models = {"depth_anything": DepthAnythingForDepthEstimation}
    target_columns = ("depth_map", "depth", "annotation")
    target_purpose = "depth"

    @classmethod
    def own_fields(cls, options: TaskOptions, rows: Rows, target_column: str) -> dict[str, Any]:
        values = {"max_depth": options.max_depth, "depth_scale": options.depth_scale}
        for name, value in values.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        return values

    def backbone_options(self, num_layers: int) -> dict[str, Any]:
        return {"out_indices": spread_stages(num_layers), "reshape_hidden_states": False}

    def head_config(self, backbone: EqCohViTConfig) -> DepthAnythingConfig:
        width = backbone.hidden_size
        return DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=self.patch_size,
            reassemble_hidden_size=width,
            neck_hidden_sizes=[max(16, width // 8), max(16, width // 4), width // 2, width],
            depth_estimation_type="metric",
            max_depth=self.max_depth,
        )

    def read_target(self, row: dict[str, Any]) -> np.ndarray:
        """Depth of each pixel, float32 (H, W); 0 if it is unknown.

        Raises:
            ValueError: no pixel has a depth in (0, max_depth].
        """
        depth = read_depth(row, self.target_column) / self.depth_scale
        depth = np.where(np.isfinite(depth) & (depth > 0) & (depth <= self.max_depth), depth, 0).astype(np.float32)
        if not depth.any():
            problem = f"the depth map is empty: no pixel has a depth in (0, {self.max_depth}]"
            raise ValueError(f"{problem}; see --max_depth and --depth_scale")
        return depth

    def check_fit(self, target: np.ndarray, image: Image.Image) -> None:
        check_size(target, image, "depth map")

    def train_sample(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image, depth = self.read(row)
        image, depth = cut(image, depth, draw_square(image.size, _LEAST_CROP, rng), self.image_size, rng)
        return {"pixel_values": self.normalize(image), "depth": torch.from_numpy(np.ascontiguousarray(depth))}

    def test_sample(self, row: dict[str, Any], index: int) -> Sample:
        image, depth = self.read(row)
        return {"pixel_values": self.normalize(self.resize_whole(image)), "depth": depth}

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        predicted = model(pixel_values=batch["pixel_values"]).predicted_depth
        return {"loss": scale_invariant_loss(predicted, batch["depth"], batch["depth"] > 0)}

    def predict(
        self, model: torch.nn.Module, pixel_values: torch.Tensor, samples: Sequence[Sample]
    ) -> list[np.ndarray]:
        """Depth of each pixel in the unit of the data, float32 (H, W) of the reference."""
        predicted = model(pixel_values=pixel_values).predicted_depth.float()
        sizes = [sample["depth"].shape for sample in samples]
        return [depth[0].cpu().numpy() for depth in resize_maps(predicted.unsqueeze(1), sizes)]

    def start_score(self) -> _DepthScore:
        return _DepthScore()

    def picture(self, sample: Sample, prediction: np.ndarray) -> list[Image.Image]:
        truth = np.where(sample["depth"] > 0, sample["depth"], np.nan)
        limits = float(np.nanmin(truth)), float(np.nanmax(truth))
        return [self.to_image(sample["pixel_values"]), *(color_values(depth, *limits) for depth in (truth, prediction))]
