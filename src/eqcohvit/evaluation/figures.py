"""Which plots a report shows, made of rows, predictions, neighbours and patch features. Matplotlib is imported when
they are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .context import Evaluation, ReportFigure
from .extraction import CentralView, PairView
from .features import LAST, RANDOM, Feature, parts_of, select
from .metrics.r2.coefficients import r2_per_parameter
from .probes import nearest_neighbors
from .results import Row

_MAX_COLUMNS = 8
_NUM_POINTS = 500
_THUMBNAIL = 48
Predictions = dict[tuple[str, str], np.ndarray]


def figures_of_rows(rows: Sequence[Row]) -> list[ReportFigure]:
    """Bars and lines of the headline R2."""
    pooled = [row for row in rows if row.headline and row.settings.get("task") == "r2"]
    pooled = [row for row in pooled if row.settings["pooling"] == pooled[0].settings["pooling"]]
    bars = [row for row in pooled if row.settings["layer"] == LAST]
    layers = [row for row in pooled if row.settings["layer"].isdigit() or row.part == "pixels"]
    figures = []
    if bars:
        caption = "R2 by transformation and part, mean and 95 % interval; bars below -0.25 are cut."
        figures.append(ReportFigure("r2_bars", caption, lambda: _plots().r2_bars(bars)))
    if len({row.settings["layer"] for row in layers}) > 2:
        caption = "R2 of the backbone's pooled hidden states by layer; dashed: random weights, dotted: raw pixels."
        figures.append(ReportFigure("r2_by_layer", caption, lambda: _plots().r2_by_layer(layers)))
    return figures


def scatter_figure(
    name: str, protocol: str, parameter_names: Sequence[str], predictions: Predictions, true: np.ndarray
) -> ReportFigure:
    """Predictions (N, P) of each (encoder, part) against the true parameters (N, P)."""
    keys = [key for key in predictions if key[1] != "both"]
    keys = keys if len(keys) <= _MAX_COLUMNS else [*keys[: _MAX_COLUMNS - 1], keys[-1]]  # the last one is the pixels
    scores = {key: r2_per_parameter(predictions[key], true) for key in keys}
    points = {key: predictions[key][:_NUM_POINTS] for key in keys}
    caption = f"Predicted versus true parameters of {name} ({protocol}), {min(len(true), _NUM_POINTS)} test images, first seed."
    draw = lambda: _plots().scatter(points, true[:_NUM_POINTS], parameter_names, scores)  # noqa: E731
    return ReportFigure(f"scatter_{name.replace('+', '_')}", caption, draw)


def pca_figure(evaluation: Evaluation, view: PairView, num_images: int = 4) -> ReportFigure:
    """Patch features of test images and of their transformed versions as colours."""
    shown, grids = [], {}
    for encoder in evaluation.model_encoders[:3]:
        size = encoder.image_size
        batch, _ = next(evaluation.samples.blocks("test", view.canvas_size(size)))
        images = (
            view(batch, size)[0][:, :num_images].transpose(0, 1).flatten(0, 1)
        )  # image, transformed, image, transformed ...
        shown.append(images)
        for (part, layer), tokens in encoder.tokens(images).items():
            if layer == LAST and part != "both":
                grids[encoder.name, part] = tokens.grid.cpu()
    caption = (
        f"Patch features of images and of the same images after {view.path.name} ({view.protocol}): the first three principal components "
        "of each line's features as red, green, blue. What follows the transformation turns and shifts with the image."
    )
    pixels = shown[0].permute(0, 2, 3, 1).clamp(0, 1).numpy()
    return ReportFigure("pca_maps", caption, lambda: _plots().pca_maps(pixels, grids))


class _Thumbnails:
    """Small images, by way of the same cache as features."""

    name = "thumbnails"

    def __init__(self, image_size: int):
        self.image_size, self.side = image_size, min(_THUMBNAIL, image_size)
        self.fingerprint = f"thumbnails {self.side}"

    def __call__(self, images: torch.Tensor) -> dict[Feature, torch.Tensor]:
        small = F.interpolate(images, size=(self.side, self.side), mode="area")
        return {Feature("thumbnail", LAST, "vector"): (small * 255).round().to(torch.uint8).flatten(1)}

    def show(self, vectors: dict[Feature, torch.Tensor], index: torch.Tensor) -> np.ndarray:
        """Images by index (...) -> (..., H, W, 3)."""
        pixels = next(iter(vectors.values()))[:, 0][index].unflatten(-1, (3, self.side, self.side))
        return pixels.movedim(-3, -1).numpy()


def neighbors_figure(evaluation: Evaluation, num_queries: int = 6, k: int = 4) -> ReportFigure:
    """Test images and their nearest training images by each part of the models, and by raw pixels."""
    thumbnails = _Thumbnails(evaluation.encoders[0].image_size)
    encoders = [encoder for encoder in evaluation.encoders if not encoder.name.startswith(RANDOM)]
    train, test = (evaluation.features(part, CentralView(), [*encoders, thumbnails]) for part in ("train", "test"))
    queries = torch.arange(min(num_queries, len(test[thumbnails.name].keys)))
    found, same = {}, {}
    for encoder in encoders:
        for part, layer in parts_of(train[encoder.name].vectors):
            if layer != LAST or part == "both":
                continue
            pooling = evaluation.settings["pooling"][0]
            x, queried = (select(f[encoder.name].vectors, part, layer, pooling)[:, 0] for f in (train, test))
            _, index = nearest_neighbors(x, queried[queries], k)
            found[encoder.name, part] = thumbnails.show(train[thumbnails.name].vectors, index)
            same[encoder.name, part] = (
                train[encoder.name].labels[index] == test[encoder.name].labels[queries][:, None]
            ).numpy()
    columns = [*list(found)[: _MAX_COLUMNS - 3], *list(found)[-1:]] if len(found) > _MAX_COLUMNS - 2 else list(found)
    shown = thumbnails.show(test[thumbnails.name].vectors, queries)
    caption = "Test images and their nearest training images by cosine similarity. Green frame: the same class."
    draw = lambda: _plots().neighbours(shown, {c: found[c] for c in columns}, {c: same[c] for c in columns})  # noqa: E731
    return ReportFigure("neighbours", caption, draw)


def _plots():
    from . import plots

    return plots
