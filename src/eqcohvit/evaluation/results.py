"""Numbers of an evaluation: rows, tables, results.json."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from ..files import write_text_whole
from .intervals import seeds_half_width

INTERVAL = (
    "±: half of a 95 % interval, over the seeds of the probe, each with its own draw of the transformations, and, for R2, kNN and linear, "
    "over the test images (bootstrap). What another training run would give is not in it, except in lines of several training seeds."
)
ALONE = ", g alone"  # ends the name of a part of which the probe sees the transformed image without the original
LOWER = "↓"  # ends the name of a metric of which less is better
_MAX_COLUMNS = 6  # of numbers in one table; more are dealt into several


@dataclass(frozen=True)
class Row:
    """One number of a table: the values of all seeds for an encoder's part.

    Args:
        half_width: of the 95 % interval about their mean; where it is not given, Student's t over the seeds
            (`intervals`).
        headline: whether it belongs into the printed table and the model card; the others are in the report and
            results.json.
        settings: what `metric` says, for programs: task, transform, protocol, head, pooling, layer ...
    """

    encoder: str
    part: str
    metric: str
    values: list[float]
    headline: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    half_width: float | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def half(self) -> float | None:
        """Half of the 95 % interval; None for a single value of which no more is known."""
        return seeds_half_width(self.values) if self.half_width is None else self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def training_seeds(rows: Sequence[Row]) -> list[Row]:
    """A row for each number of models that differ by their training seed alone: the mean over them, each model's mean
    one value.

    Such models are called alike but for `seed` and a number at the end: `vicreg-seed0`, `vicreg-seed1`;
    `vicreg/seed-0`, `vicreg/seed-1`.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        match = re.fullmatch(r"(.*?)[-_/ ]*seed[-_=]?\d+", row.encoder)
        if match and "(" not in match[1]:  # not the control of such a model
            groups.setdefault((match[1] or "model", row.part, row.metric), []).append(row)
    return [
        Row(
            f"{name}, {len(group)} training seeds",
            part,
            metric,
            [row.mean for row in group],
            group[0].headline,
            group[0].settings,
        )
        for (name, part, metric), group in groups.items()
        if len(group) > 1
    ]


def tables(rows: Sequence[Row]) -> list[list[list[str]]]:
    """Tables of cells, the first line the header: one line per encoder and part, one column per metric.

    Metrics that do not fit side by side are grouped by task, protocol and pooling.
    """
    metrics: dict[str, tuple] = {}
    for row in rows:
        metrics.setdefault(
            row.metric, tuple(str(row.settings.get(key, "")) for key in ("task", "protocol", "pooling", "head"))
        )
    groups = {("all",): list(metrics)}
    if len(metrics) > _MAX_COLUMNS:
        groups = {}
        for metric, group in metrics.items():
            groups.setdefault(group, []).append(metric)
    cells = {(row.encoder, row.part, row.metric): str(row) for row in rows}
    found = []
    for columns in groups.values():
        keys = dict.fromkeys((row.encoder, row.part) for row in rows if row.metric in columns)
        found.append(
            [["encoder", "part", *columns]]
            + [[*key, *(cells.get((*key, metric), "") for metric in columns)] for key in keys]
        )
    return found


def format_table(cells: list[list[str]]) -> str:
    """Cells, the first line the header -> aligned Markdown."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def versions() -> dict[str, str]:
    """What a number was measured with."""
    return {
        "eqcohvit": sys.modules[__name__.split(".")[0]].__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
    }


def write_results(path: str | Path, results: dict[str, Any]) -> None:
    """Write JSON whole or not at all, each row (they may be `Row`s) in a line of its own."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(row, default=_row_fields) for row in results.get("rows", [])]
    rest = json.dumps({name: value for name, value in results.items() if name != "rows"}, indent=1, default=_row_fields)
    write_text_whole(path, rest[:-2] + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n" if rows else rest + "\n")


def _row_fields(row: Row) -> dict[str, Any]:
    """The fields of a row for results.json, its interval with them."""
    return dataclasses.asdict(row) | {"half_width": row.half}
