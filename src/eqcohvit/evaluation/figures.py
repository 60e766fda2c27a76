"""The plots of a report, from rows, predictions, neighbors and patch features.

Matplotlib is imported only when they are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
import torch.nn.functional as F

from ..transforms import make_path
from .context import Evaluation, ReportFigure
from .extraction import CentralView, PairView
from .feature_cache import Features
from .features import LAST, RANDOM, Encoder, Feature, parts_of, select
from .metrics.r2.coefficients import r2_per_parameter
from .pairs import PROTOCOLS, moves
from .probes import nearest_neighbors
from .results import Row

_MAX_COLUMNS = 8
_NUM_POINTS = 500
_THUMBNAIL = 48
_PCA_IMAGES = 4
_QUERIES = 6
_NEIGHBORS = 4
Predictions = dict[tuple[str, str], np.ndarray]


def figures_of_rows(rows: Sequence[Row]) -> list[ReportFigure]:
    """Bars of the headline R2, and lines if there are layers."""
    pooled = [row for row in rows if row.headline and row.settings.get("task") == "r2"]
    pooled = [row for row in pooled if row.settings["pooling"] == pooled[0].settings["pooling"]]
    bars = [row for row in pooled if row.settings["layer"] == LAST and _is_of_its_own(row, pooled[0])]
    layers = [row for row in pooled if row.settings["layer"].isdigit() or row.part == "pixels"]
    figures = []
    if bars:
        caption = "R2 by transformation and part, mean and 95 % interval. Bars below -0.25 are cut."
        figures.append(ReportFigure("r2_bars", caption, lambda: _plots().r2_bars(bars)))
    if len({row.settings["layer"] for row in layers}) > 2:
        caption = "R2 of the pooled hidden states of the backbone by layer. Dashed: random weights, dotted: raw pixels."
        figures.append(ReportFigure("r2_by_layer", caption, lambda: _plots().r2_by_layer(layers)))
    return figures


def _is_of_its_own(row: Row, first: Row) -> bool:
    """Whether a row adds to the first protocol: where nothing moves, the protocols are the same."""
    protocol = row.settings["protocol"]
    if protocol == first.settings["protocol"] or protocol not in PROTOCOLS:
        return True
    return moves(make_path(row.settings["transform"]))


def scatter_figure(
    name: str,
    protocol: str,
    parameter_names: Sequence[str],
    predictions: Predictions,
    true: np.ndarray,
    num_draws: int = 1,
    units: Sequence[str] = (),
) -> ReportFigure:
    """Predictions (N, P) of each (encoder, part) against the true parameters (N, P), of N pairs.

    Args:
        units: of the parameters. Radians are drawn as degrees.
    """
    keys = [key for key in predictions if key[1] != "both"]
    if len(keys) > _MAX_COLUMNS:
        keys = [*keys[: _MAX_COLUMNS - 1], keys[-1]]  # the last one is the pixels
    scores = {key: r2_per_parameter(predictions[key], true) for key in keys}
    points = {key: predictions[key][:_NUM_POINTS] for key in keys}
    count = min(len(true), _NUM_POINTS)
    shown = f"{count} test images" if num_draws == 1 else f"{count} pairs of {len(true) // num_draws} test images"
    caption = f"Predicted versus true parameters of {name} ({protocol}), {shown}, first seed."
    factors = np.array([180 / np.pi if unit == "radians" else 1 for unit in units] or [1.0])
    points = {key: values * factors for key, values in points.items()}
    labels = [
        f"{parameter} ({'degrees' if unit == 'radians' else unit})" if unit else parameter
        for parameter, unit in zip_longest(parameter_names, units)
    ]
    draw = lambda: _plots().scatter(points, true[:_NUM_POINTS] * factors, labels, scores)  # noqa: E731
    return ReportFigure(f"scatter_{re.sub(r'[+:]', '_', name)}", caption, draw)


def pca_figure(evaluation: Evaluation, view: PairView) -> ReportFigure:
    """Patch features of test images and of their transformed versions as colors."""
    shown = []
    grids = {}
    for encoder in evaluation.model_encoders[:3]:
        size = encoder.image_size
        batch, _ = next(evaluation.samples.blocks("test", view.canvas_size(size)))
        # image, transformed, image, transformed ...
        images = view(batch, size)[0][:, :_PCA_IMAGES].transpose(0, 1).flatten(0, 1)
        shown.append(images)
        for (part, layer), tokens in encoder.tokens(images).items():
            if layer == LAST and part != "both":
                grids[encoder.name, part] = tokens.grid.cpu()
    caption = (
        f"Patch features of images and of the same images after {view.path.name} ({view.protocol}): the first three "
        "principal components of each line as red, green and blue. Features that follow the transformation turn and "
        "shift with the image."
    )
    pixels = shown[0].permute(0, 2, 3, 1).clamp(0, 1).numpy()
    return ReportFigure("pca_maps", caption, lambda: _plots().pca_maps(pixels, grids))


class _Thumbnails:
    """Small images, through the cache of the features."""

    name = "thumbnails"

    def __init__(self, image_size: int):
        self.image_size = image_size
        self.side = min(_THUMBNAIL, image_size)
        self.fingerprint = f"thumbnails {self.side}"

    def __call__(self, images: torch.Tensor) -> dict[Feature, torch.Tensor]:
        small = F.interpolate(images, size=(self.side, self.side), mode="area")
        return {Feature("thumbnail", LAST, "vector"): (small * 255).round().to(torch.uint8).flatten(1)}

    def show(self, vectors: dict[Feature, torch.Tensor], index: torch.Tensor) -> np.ndarray:
        """Images by index (...) -> (..., H, W, 3)."""
        pixels = next(iter(vectors.values()))[:, 0][index].unflatten(-1, (3, self.side, self.side))
        return pixels.movedim(-3, -1).numpy()


def neighbors_figure(evaluation: Evaluation) -> ReportFigure:
    """Test images and their nearest training images by each part of the models, and by raw pixels."""
    thumbnails = _Thumbnails(evaluation.encoders[0].image_size)
    encoders = [encoder for encoder in evaluation.encoders if not encoder.name.startswith(RANDOM)]
    train = evaluation.features("train", CentralView(), [*encoders, thumbnails])
    test = evaluation.features("test", CentralView(), [*encoders, thumbnails])
    queries = torch.arange(min(_QUERIES, len(test[thumbnails.name].keys)))
    pooling = evaluation.settings.pooling[0]
    found: dict[tuple[str, str], np.ndarray] = {}
    same: dict[tuple[str, str], np.ndarray] = {}
    for encoder, part in _shown_parts(encoders, train):
        x = select(train[encoder].vectors, part, LAST, pooling)[:, 0]
        queried = select(test[encoder].vectors, part, LAST, pooling)[queries, 0]
        _, index = nearest_neighbors(x, queried, _NEIGHBORS)
        found[encoder, part] = thumbnails.show(train[thumbnails.name].vectors, index)
        labels = test[encoder].labels[queries]
        same[encoder, part] = (train[encoder].labels[index] == labels[:, None]).numpy()
    shown = thumbnails.show(test[thumbnails.name].vectors, queries)
    caption = "Test images and their nearest training images by cosine similarity. Green frame: the same class."
    return ReportFigure("neighbors", caption, lambda: _plots().neighbors(shown, found, same))


def _shown_parts(encoders: Sequence[Encoder], features: dict[str, Features]) -> list[tuple[str, str]]:
    """Encoder and part of the columns: the first ones that fit, and the last one, which is the pixels."""
    keys = [
        (encoder.name, part)
        for encoder in encoders
        for part, layer in parts_of(features[encoder.name].vectors)
        if layer == LAST and part != "both"
    ]
    most = _MAX_COLUMNS - 2
    return keys if len(keys) <= most else [*keys[: most - 1], keys[-1]]


def _plots():
    from . import plots

    return plots
