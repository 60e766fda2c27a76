"""Plots of an evaluation. Each function returns a matplotlib figure. Colors follow the part of the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from .features import PIXELS, RANDOM
from .results import ALONE, Row, wrap

# Okabe and Ito's palette, which color-blind readers can tell apart.
PART_COLORS = {
    "equivariant": "#D55E00",
    "invariant": "#0072B2",
    "both": "#CC79A7",
    "backbone": "#009E73",
    "pixels": "#777777",
}
_OTHER_COLOR = "#56B4E9"
_FLOOR = -0.25  # bars of lower R2 are cut there; their number is in the table
_WIDTH = 11.0  # of a figure in inches, which fills the page
_MAX_PANELS = 4  # side by side


def color_of(part: str) -> str:
    """The color of a part in all plots."""
    return PART_COLORS.get(part.split(",")[0], _OTHER_COLOR)


def r2_bars(rows: Sequence[Row]) -> Figure:
    """R2 by transformation and protocol (panels): a bar for each encoder and part, with its 95 % interval."""
    lines = list(dict.fromkeys((row.encoder, row.part) for row in rows))
    encoders = list(dict.fromkeys(encoder for encoder, _ in lines))
    labels = {encoder: wrap(encoder, 26) for encoder in encoders}
    places: dict[tuple[str, str], float] = {}
    start = 0.0
    for encoder, label in labels.items():
        own = [line for line in lines if line[0] == encoder]
        room = max(len(own), 0.75 * (label.count("\n") + 1))  # in bars
        places |= {line: start + (room - len(own)) / 2 + index for index, line in enumerate(own)}
        start += room + 0.6
    figure, axes, panels = _panels(rows, _MAX_PANELS, height=0.2 * start + 0.5, legend_height=0.6, sharex=True)
    for axis, shown in panels:
        for row in shown:
            length = min(max(row.mean, _FLOOR), 1.05)
            axis.barh(places[row.encoder, row.part], length, 0.85, xerr=row.half, **_bar_style(row.part))
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlim(_FLOOR, 1.05)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
    middles = [np.mean([place for line, place in places.items() if line[0] == encoder]) for encoder in encoders]
    axes[0][0].set_yticks(middles, list(labels.values()), fontsize=8)
    axes[0][0].set_ylim(max(places.values()) + 0.8, min(places.values()) - 0.8)  # the first encoder is on top
    for axis in axes.flat[max(0, len(panels) - axes.shape[1]) : len(panels)]:  # the lowest panel of each column
        axis.tick_params(axis="x", labelbottom=True)
        axis.set_xlabel("R2", fontsize=9)
    _part_legend(figure, list(dict.fromkeys(part for _, part in lines)))
    return figure


def _panels(
    rows: Sequence[Row], most: int, height: float, legend_height: float, sharex: bool
) -> tuple[Figure, np.ndarray, list[tuple[Axes, list[Row]]]]:
    """A figure with a panel for each transformation and protocol, all its axes (lines, columns), and each panel's rows.

    most: panels side by side. height: of a line of panels in inches. legend_height: of what comes below them.
    """
    by_panel: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_panel.setdefault((row.settings["transform"], row.settings["protocol"]), []).append(row)
    columns = min(most, len(by_panel))
    num_lines = -(-len(by_panel) // columns)
    figure = Figure(figsize=(_WIDTH, num_lines * height + legend_height), layout="constrained")
    axes = figure.subplots(num_lines, columns, squeeze=False, sharex=sharex, sharey=True)
    for axis in axes.flat[len(by_panel) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, by_panel, strict=False):
        axis.set_title(", ".join(panel).replace("_", " "), fontsize=10)
    return figure, axes, list(zip(axes.flat, by_panel.values(), strict=False))


def _bar_style(part: str) -> dict[str, Any]:
    style: dict[str, Any] = {"color": color_of(part), "ecolor": "black", "capsize": 1.5, "error_kw": {"lw": 0.8}}
    return style | ({"hatch": "////", "edgecolor": "white"} if part.endswith(ALONE) else {})


def _part_legend(figure: Figure, parts: Sequence[str]) -> None:
    """The color of each part, below the plots."""
    handles = [
        Patch(facecolor=color_of(part), hatch="////" if part.endswith(ALONE) else None, edgecolor="white")
        for part in parts
    ]
    columns = min(len(parts), 7)
    figure.legend(handles, parts, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def r2_by_layer(rows: Sequence[Row]) -> Figure:
    """R2 of the hidden states of the backbone by index: a panel for each transformation and protocol, a line for each
    encoder."""
    encoders = list(dict.fromkeys(row.encoder for row in rows))
    figure, axes, panels = _panels(rows, most=3, height=3, legend_height=0.25 * len(encoders), sharex=False)
    for axis, shown in panels:
        for encoder in encoders:
            own = [row for row in shown if row.encoder == encoder and row.settings["layer"].isdigit()]
            if own:
                _draw_layers(axis, encoder, sorted(own, key=lambda row: int(row.settings["layer"])))
        pixels = [row.mean for row in shown if row.part == "pixels"]
        if pixels:
            axis.axhline(pixels[0], color=PART_COLORS["pixels"], linestyle=":", label=PIXELS)
        axis.set_xlabel("hidden state (0: embedding)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("R2")
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = max(1, min(len(labels), 130 // max(map(len, labels))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _draw_layers(axis: Axes, encoder: str, rows: Sequence[Row]) -> None:
    x = [int(row.settings["layer"]) for row in rows]
    y = np.array([row.mean for row in rows])
    half = np.array([row.half or 0.0 for row in rows])
    is_random = encoder.startswith(RANDOM)
    style: dict[str, Any] = {"linestyle": "--", "color": "gray"} if is_random else {}
    (line,) = axis.plot(x, y, marker="o", markersize=3.5, label=encoder, **style)
    axis.fill_between(x, y - half, y + half, alpha=0.2, color=line.get_color())


def scatter(
    predictions: dict[tuple[str, str], np.ndarray], true: np.ndarray, names: Sequence[str], scores: dict
) -> Figure:
    """Predicted versus true parameters of test images: a column for each (encoder, part), a line for each parameter.

    predictions: (N, P) each; true (N, P); scores: R2 (P,) of each.
    """
    keys = list(predictions)
    lines = min(len(names), 4)
    side = _WIDTH / max(len(keys), 4)
    titles = {key: f"{wrap(key[0], int(11 * side))}\n{key[1]}" for key in keys}
    head = 0.16 * max(title.count("\n") for title in titles.values())
    figure = Figure(figsize=(side * len(keys), side * lines + 0.4 + head), layout="constrained")
    axes = figure.subplots(lines, len(keys), squeeze=False, sharex="row", sharey="row")
    for line in range(lines):
        low, high = true[:, line].min(), true[:, line].max()
        margin = 0.15 * (high - low)
        for axis, key in zip(axes[line], keys, strict=True):
            axis.plot([low, high], [low, high], color="black", linewidth=0.8)
            color = color_of(key[1])
            axis.scatter(true[:, line], predictions[key][:, line], s=5, alpha=0.45, color=color, linewidths=0)
            axis.set_xlim(low - margin, high + margin)
            axis.set_ylim(low - margin, high + margin)
            axis.text(0.04, 0.94, f"R2 {scores[key][line]:.2f}", transform=axis.transAxes, va="top", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.xaxis.set_major_locator(
                MaxNLocator(max(2, int(2.5 * side)), steps=[1, 2, 5, 10])
            )  # labels do not touch
            if line == 0:
                axis.set_title(titles[key], fontsize=8)
        axes[line][0].set_ylabel(f"{names[line]}\npredicted", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("true", fontsize=8)
    return figure


def neighbors(
    queries: np.ndarray, found: dict[tuple[str, str], np.ndarray], same: dict[tuple[str, str], np.ndarray]
) -> Figure:
    """Test images and their nearest training images for each (encoder, part).

    The frame is green if the class is the same, red if not. queries: (Q, H, W, 3); found: (Q, k, H, W, 3) each; same:
    (Q, k) each.
    """
    keys = list(found)
    count = next(iter(found.values())).shape[1]
    width = 1 + (count + 0.4) * len(keys)  # in images
    unit = min(_WIDTH / width, 0.9)  # inches for each image
    titles = {key: f"{wrap(key[0], int(count * unit * 13))}\n{key[1]}" for key in keys}
    head = 0.3 + 0.16 / unit * max(title.count("\n") + 1 for title in titles.values())
    height = len(queries) + head
    figure = Figure(figsize=(unit * width, unit * height))
    axis = figure.add_axes((0, 0, 1, 1))

    def show(image: np.ndarray, x: float, y: float) -> None:
        axis.imshow(image, extent=(x + 0.05, x + 0.95, y + 0.95, y + 0.05), interpolation="nearest", aspect="auto")

    for line, image in enumerate(queries):
        show(image, 0, line + head)
        for column, key in enumerate(keys):
            for rank in range(count):
                x = 1.4 + column * (count + 0.4) + rank
                show(found[key][line, rank], x, line + head)
                axis.add_patch(_frame(x, line + head, "#009E73" if same[key][line, rank] else "#D55E00"))
    axis.text(0.5, head - 0.1, "image", ha="center", va="bottom", fontsize=8)
    for column, key in enumerate(keys):
        middle = 1.4 + column * (count + 0.4) + count / 2
        axis.text(middle, head - 0.1, titles[key], ha="center", va="bottom", fontsize=8)
    axis.set_xlim(-0.1, width)
    axis.set_ylim(height, 0)
    axis.axis("off")
    return figure


def _frame(x: float, y: float, color: str) -> Rectangle:
    return Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, edgecolor=color, linewidth=1.6)


def pca_maps(images: np.ndarray, grids: dict[tuple[str, str], torch.Tensor]) -> Figure:
    """Three principal components of patch features as red, green and blue: a line for each (encoder, part).

    images: (N, H, W, 3) in [0, 1], one for each column; grids: (N, h, w, d) each. The components of a line are those of
    all its patches together.
    """
    side = (_WIDTH - 1.8) / len(images)
    figure = Figure(figsize=(_WIDTH, side * (1 + len(grids)) + 0.2), layout="constrained")
    axes = figure.subplots(1 + len(grids), len(images), squeeze=False)
    style: dict[str, Any] = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 8}
    for axis, image in zip(axes[0], images, strict=True):
        axis.imshow(image)
    axes[0][0].set_ylabel("image", **style)
    for line, (key, grid) in zip(axes[1:], grids.items(), strict=True):
        for axis, colors in zip(line, principal_colors(grid), strict=True):
            axis.imshow(colors, interpolation="nearest")
        line[0].set_ylabel(f"{wrap(key[0], 22)}\n{key[1]}", **style)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def principal_colors(grid: torch.Tensor) -> np.ndarray:
    """Patch features (N, h, w, d) -> (N, h, w, 3) in [0, 1].

    Three principal components, each scaled so that its 2nd and 98th percentiles are 0 and 1.
    """
    flat = grid.flatten(0, 2).double()
    flat = flat - flat.mean(dim=0)
    directions = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
    # The sign of an eigenvector is arbitrary: make its largest entry positive.
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    values = flat @ (directions * signs).T
    low = torch.quantile(values, 0.02, dim=0)
    high = torch.quantile(values, 0.98, dim=0)
    return ((values - low) / (high - low).clamp_min(1e-9)).clamp(0, 1).reshape(*grid.shape[:3], -1).numpy()
