#!/usr/bin/env python
"""What the parts know at the checkpoints of a run with the task, and of one without it.

    python scripts/reproduction/curves.py with_task.json without_task.json curves.png

Both files come from `scripts/evaluate.py --model RUN/checkpoints/step-* --task r2 knn --protocol strict`, which takes
the same checkpoints of each run.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eqcohvit.evaluation.plots import color_of
from eqcohvit.evaluation.results import Row

PANELS = {"R2 rotation, strict": "R2 of the angle (strict)", "kNN-20": "Nearest neighbors (kNN-20)"}


def points(rows: list[Row], part: str, metric: str) -> list[tuple[int, float, float]]:
    """Step, mean, and half of the 95 % interval of a part at each checkpoint, in the order of the steps."""
    found = []
    for row in rows:
        step = re.search(r"step-(\d+)", row.encoder)
        if step and (row.part, row.metric) == (part, metric):
            found.append((int(step[1]), row.mean, row.half or 0.0))
    return sorted(found)


def draw(axis: Axes, rows: list[Row], part: str, metric: str, label: str, style: str = "-") -> None:
    """A curve with its interval as a band."""
    steps, means, halves = zip(*points(rows, part, metric), strict=True)
    color = color_of(part)
    axis.plot(steps, means, style, color=color, label=label, marker="o", markersize=3)
    low = [mean - half for mean, half in zip(means, halves, strict=True)]
    high = [mean + half for mean, half in zip(means, halves, strict=True)]
    axis.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)


def plot(with_task: list[Row], without_task: list[Row]) -> Figure:
    """A panel for the angle and one for the neighbors; dashed: without the task; dotted: raw pixels."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        for part in ("equivariant", "invariant", "backbone"):
            draw(axis, with_task, part, metric, part)
        draw(axis, without_task, "backbone", metric, "backbone without the task", "--")
        pixels = next(row for row in with_task if (row.part, row.metric) == ("pixels", metric))
        axis.axhline(pixels.mean, color=color_of("pixels"), linestyle=":", label="raw pixels")
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("training step")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, loc="center right")
    return figure


def main(with_task: str, without_task: str, output: str) -> None:
    """Read both files and write the picture."""
    rows = ([Row(**row) for row in json.loads(Path(path).read_text())["rows"]] for path in (with_task, without_task))
    figure = plot(*rows)
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
