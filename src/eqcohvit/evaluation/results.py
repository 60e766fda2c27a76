"""Numbers of an evaluation: rows, tables, results.json."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

LOWER = "↓"  # ends the name of a metric of which less is better
_MAX_COLUMNS = 6  # of numbers in one table; more are dealt into several


@dataclass(frozen=True)
class Row:
    """One number of a table: the values of all seeds for an encoder's part.

    Args:
        headline: whether it belongs into the printed table and the model card; the others are in the report and results.json.
        settings: what `metric` says, for programs: task, transform, protocol, head, pooling, layer ...
    """

    encoder: str
    part: str
    metric: str
    values: list[float]
    headline: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds; None for a single value."""
        if len(self.values) < 2:
            return None
        return (sum((value - self.mean) ** 2 for value in self.values) / (len(self.values) - 1)) ** 0.5

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


def tables(rows: Sequence[Row]) -> list[list[list[str]]]:
    """Tables of cells, the first line the header: one line per encoder and part, one column per metric.

    Metrics that do not fit side by side are grouped by task, protocol and pooling.
    """
    metrics: dict[str, tuple] = {}
    for row in rows:
        metrics.setdefault(row.metric, tuple(str(row.settings.get(key, "")) for key in ("task", "protocol", "pooling", "head")))
    groups = {("all",): list(metrics)}
    if len(metrics) > _MAX_COLUMNS:
        groups = {}
        for metric, group in metrics.items():
            groups.setdefault(group, []).append(metric)
    cells = {(row.encoder, row.part, row.metric): str(row) for row in rows}
    found = []
    for columns in groups.values():
        keys = dict.fromkeys((row.encoder, row.part) for row in rows if row.metric in columns)
        found.append([["encoder", "part", *columns]] + [[*key, *(cells.get((*key, metric), "") for metric in columns)] for key in keys])
    return found


def format_table(cells: list[list[str]]) -> str:
    """Cells, the first line the header -> aligned Markdown."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def versions() -> dict[str, str]:
    """What a number was measured with."""
    return {
        "eqcohvit": sys.modules[__name__.split(".")[0]].__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads",
    }


def write_results(path: str | Path, results: dict[str, Any]) -> None:
    """Write JSON whole or not at all, each row (they may be `Row`s) in a line of its own."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    rows = [json.dumps(row, default=dataclasses.asdict) for row in results.get("rows", [])]
    rest = json.dumps({name: value for name, value in results.items() if name != "rows"}, indent=1, default=dataclasses.asdict)
    temporary.write_text(rest[:-2] + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n" if rows else rest + "\n")
    temporary.replace(path)
