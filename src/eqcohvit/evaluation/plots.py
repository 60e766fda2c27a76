"""Plots of an evaluation, each a function that returns a matplotlib figure. Colours follow the part of the features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .features import PIXELS, RANDOM
from .results import ALONE, Row

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PART_COLORS = {
    "equivariant": "#D55E00",
    "invariant": "#0072B2",
    "both": "#CC79A7",
    "backbone": "#009E73",
    "pixels": "#777777",
}
_OTHER_COLOR = "#56B4E9"
_FLOOR = -0.25  # bars of lower R2 are cut there; their number is in the table


def color_of(part: str) -> str:
    """The colour that a part has in all plots."""
    return PART_COLORS.get(part.split(",")[0], _OTHER_COLOR)


def r2_bars(rows: Sequence[Row]) -> Figure:
    """R2 by transformation (columns) and protocol (lines): a bar for each encoder and part, with its 95 % interval."""
    transforms = list(dict.fromkeys(row.settings["transform"] for row in rows))
    protocols = list(dict.fromkeys(row.settings["protocol"] for row in rows))
    encoders = list(dict.fromkeys(row.encoder for row in rows))
    parts = list(dict.fromkeys((row.encoder, row.part) for row in rows))
    places = {key: index + 0.8 * encoders.index(key[0]) for index, key in enumerate(parts)}
    width = max(3.4, 0.8 + 0.24 * len(parts))
    columns = min(len(transforms), max(1, int(13 // width)))
    lines = -(-len(transforms) // columns) * len(protocols)
    figure = Figure(figsize=(width * columns, 2.1 * lines + 1.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    for axis in axes.flat:
        axis.set_visible(False)
    for index, transform in enumerate(transforms):
        for line, protocol in enumerate(protocols):
            axis = axes[index // columns * len(protocols) + line][index % columns]
            axis.set_visible(True)
            for row in rows:
                if (row.settings["transform"], row.settings["protocol"]) == (transform, protocol):
                    place = places[row.encoder, row.part]
                    height = min(max(row.mean, _FLOOR), 1.05)
                    style = {"hatch": "////", "edgecolor": "white"} if row.part.endswith(ALONE) else {}
                    style |= {"yerr": row.half, "ecolor": "black", "capsize": 1.5, "error_kw": {"lw": 0.8}}
                    axis.bar(place, height, 0.85, color=color_of(row.part), **style)
            axis.axhline(0, color="black", linewidth=0.8)
            axis.set_title(f"{transform}, {protocol}", fontsize=10)
            axis.set_ylim(_FLOOR, 1.05)
            axis.grid(axis="y", alpha=0.3)
            axis.set_axisbelow(True)
            middles = [np.mean([place for key, place in places.items() if key[0] == encoder]) for encoder in encoders]
            axis.set_xticks(middles, [_wrap(name) for name in encoders], fontsize=8)
            axis.tick_params(axis="x", length=0, labelbottom=True)
    for line in axes:
        line[0].set_ylabel("R2")
    labels = list(dict.fromkeys(part for _, part in parts))
    handles = [
        Patch(facecolor=color_of(part), hatch="////" if part.endswith(ALONE) else None, edgecolor="white")
        for part in labels
    ]
    fitting = max(2, int(figure.get_figwidth() / 1.3))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(fitting, len(labels)), frameon=False, fontsize=9
    )
    return figure


def _wrap(name: str, width: int = 13) -> str:
    words, lines = name.replace("_", "_ ").replace("-", "- ").split(" "), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word if word.endswith(("_", "-")) else word + " "
    return "\n".join(line.strip() for line in lines)


def r2_by_layer(rows: Sequence[Row]) -> Figure:
    """R2 of the backbone's hidden states by their index: one panel for each transformation and protocol, one line for
    each encoder."""
    panels = list(dict.fromkeys((row.settings["transform"], row.settings["protocol"]) for row in rows))
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.2 * columns, 2.8 * -(-len(panels) // columns) + 0.5), layout="constrained")
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        for encoder in dict.fromkeys(row.encoder for row in rows):
            own = [
                row
                for row in rows
                if row.encoder == encoder and (row.settings["transform"], row.settings["protocol"]) == panel
            ]
            own = sorted(
                (row for row in own if row.settings["layer"].isdigit()), key=lambda row: int(row.settings["layer"])
            )
            if own:
                x, y = [int(row.settings["layer"]) for row in own], np.array([row.mean for row in own])
                half = np.array([row.half or 0.0 for row in own])
                style = "--" if encoder.startswith(RANDOM) else "-"
                (line,) = axis.plot(
                    x, y, style, marker="o", markersize=3.5, label=encoder, color="gray" if style == "--" else None
                )
                axis.fill_between(x, y - half, y + half, alpha=0.2, color=line.get_color())
        pixels = [
            r.mean for r in rows if r.part == "pixels" and (r.settings["transform"], r.settings["protocol"]) == panel
        ]
        if pixels:
            axis.axhline(pixels[0], color="#777777", linestyle=":", label=PIXELS)
        axis.set_title(", ".join(panel), fontsize=10)
        axis.set_xlabel("hidden state (0: embedding)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("R2")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def scatter(
    predictions: dict[tuple[str, str], np.ndarray], true: np.ndarray, names: Sequence[str], scores: dict
) -> Figure:
    """Predicted versus true parameters of test images: a column for each (encoder, part), a line for each parameter.

    predictions: (N, P) each; true (N, P); scores: R2 (P,) of each.
    """
    keys, lines = list(predictions), min(len(names), 4)
    figure = Figure(figsize=(2.3 * len(keys) + 0.5, 2.25 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, len(keys), squeeze=False, sharex="row", sharey="row")
    for line in range(lines):
        low, high = true[:, line].min(), true[:, line].max()
        margin = 0.15 * (high - low)
        for axis, key in zip(axes[line], keys, strict=True):
            axis.plot([low, high], [low, high], color="black", linewidth=0.8)
            axis.scatter(
                true[:, line], predictions[key][:, line], s=5, alpha=0.45, color=color_of(key[1]), linewidths=0
            )
            axis.set_xlim(low - margin, high + margin)
            axis.set_ylim(low - margin, high + margin)
            axis.text(0.04, 0.94, f"R2 {scores[key][line]:.2f}", transform=axis.transAxes, va="top", fontsize=8)
            axis.tick_params(labelsize=7)
            if line == 0:
                axis.set_title(f"{_wrap(key[0], 20)}\n{key[1]}", fontsize=9)
        axes[line][0].set_ylabel(f"{names[line]}\npredicted", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("true", fontsize=8)
    return figure


def neighbours(
    queries: np.ndarray, found: dict[tuple[str, str], np.ndarray], same: dict[tuple[str, str], np.ndarray]
) -> Figure:
    """Test images and their nearest training images for each (encoder, part); a green frame where the class is the
    same, red where not.

    queries: (Q, H, W, 3); found: (Q, k, H, W, 3) each; same: (Q, k) each.
    """
    keys, count = list(found), next(iter(found.values())).shape[1]
    figure = Figure(figsize=(0.62 * (1 + (count + 0.4) * len(keys)), 0.62 * len(queries) + 0.6))
    width, height = 1 + (count + 0.4) * len(keys), len(queries) + 0.9
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_xlim(-0.1, width)
    axis.set_ylim(height, 0)
    axis.axis("off")

    def show(image: np.ndarray, x: float, y: float, frame: str | None) -> None:
        axis.imshow(image, extent=(x + 0.05, x + 0.95, y + 0.95, y + 0.05), interpolation="nearest", aspect="auto")
        if frame:
            axis.add_patch(_frame(x, y, frame))

    for line, image in enumerate(queries):
        show(image, 0, line + 0.8, None)
        for column, key in enumerate(keys):
            for rank in range(count):
                frame = "#009E73" if same[key][line, rank] else "#D55E00"
                show(found[key][line, rank], 1.4 + column * (count + 0.4) + rank, line + 0.8, frame)
    axis.text(0.5, 0.6, "image", ha="center", fontsize=8)
    for column, key in enumerate(keys):
        axis.text(1.4 + column * (count + 0.4) + count / 2, 0.6, ", ".join(key), ha="center", fontsize=8)
    axis.set_xlim(-0.1, width)
    axis.set_ylim(height, 0)
    return figure


def _frame(x: float, y: float, color: str):
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, edgecolor=color, linewidth=1.6)


def pca_maps(images: np.ndarray, grids: dict[tuple[str, str], torch.Tensor]) -> Figure:
    """The first three principal components of patch features as red, green and blue: a line for each (encoder, part), a
    column an image.

    images: (N, H, W, 3) in [0, 1]; grids: (N, h, w, d) each. The components are of all patches of a line together.
    """
    figure = Figure(figsize=(1.15 * len(images) + 1.6, 1.15 * (1 + len(grids)) + 0.2), layout="constrained")
    axes = figure.subplots(1 + len(grids), len(images), squeeze=False)
    for axis, image in zip(axes[0], images, strict=True):
        axis.imshow(image)
    axes[0][0].set_ylabel("image", rotation=0, ha="right", va="center", fontsize=8)
    for line, (key, grid) in zip(axes[1:], grids.items(), strict=True):
        for axis, colors in zip(line, principal_colors(grid), strict=True):
            axis.imshow(colors, interpolation="nearest")
        line[0].set_ylabel(f"{_wrap(key[0], 16)}\n{key[1]}", rotation=0, ha="right", va="center", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def principal_colors(grid: torch.Tensor) -> np.ndarray:
    """Patch features (N, h, w, d) -> (N, h, w, 3) in [0, 1]: three principal components, each between its 2nd and 98th
    percentile."""
    flat = grid.flatten(0, 2).double()
    flat = flat - flat.mean(dim=0)
    directions = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
    signs = directions.gather(
        1, directions.abs().argmax(dim=1, keepdim=True)
    ).sign()  # of an eigenvector nothing else fixes it
    values = flat @ (directions * signs).T
    low, high = (torch.quantile(values, q, dim=0) for q in (0.02, 0.98))
    return ((values - low) / (high - low).clamp_min(1e-9)).clamp(0, 1).reshape(*grid.shape[:3], -1).numpy()
