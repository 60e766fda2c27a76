"""Numbers of an evaluation: rows, tables, results.json."""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_text_whole

RANDOM, PIXELS = "random weights", "raw pixels"  # the controls, in place of an encoder
ALONE = ", g alone"  # end of the name of a part if the probe sees only the transformed image
LOWER = "↓"  # end of the name of a metric if lower is better
NEARER, BLEND = "the nearer view", "blend of both views"  # beside rebuilt states, in place of an encoder
_MAX_COLUMNS = 6  # of numbers in one table; more are split into several tables
_NAME_WIDTH = 24  # of an encoder in a table on a terminal


@dataclass(frozen=True)
class Row:
    """One number of a table: the values of all seeds for an encoder's part.

    Args:
        half_width: of the 95 % interval around their mean; default: Student's t over the seeds (`intervals`).
        headline: whether it belongs in the printed table and the model card. The others are in the report and
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
        """Half of the 95 % interval; None for a single value without `half_width`."""
        from .intervals import seeds_half_width

        return seeds_half_width(self.values) if self.half_width is None else self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def training_seeds(rows: Sequence[Row]) -> list[Row]:
    """A row for each group of models that differ only by their training seed: the mean over them.

    The names of such models differ only by `seed` and a number at the end: `vicreg-seed0`, `vicreg-seed1`;
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


def interval_note(rows: Sequence[Row]) -> str:
    """What ± covers in these rows; empty if none has an interval."""
    found = [row for row in rows if row.half is not None]
    if not found:
        return ""
    seeds = "the seeds of the probe, each with its own draw of the transformations"
    images = "the test images (bootstrap)"
    covered = images
    if any(len(row.values) > 1 for row in found):
        covered = f"{seeds}, and, for R2, kNN and linear, over {images}"
    several = any("training seeds" in row.encoder for row in rows)
    but = ", except in lines of several training seeds" if several else ""
    return f"±: half of a 95 % interval, over {covered}. It does not include other training runs{but}."


def findings(rows: Sequence[Row]) -> list[str]:
    """Lines below a table of all rows: the errors of angles in degrees, and what R2 does not show."""
    return [*_errors_of_angles(rows), *_verdicts(rows)]


def _errors_of_angles(rows: Sequence[Row]) -> list[str]:
    """A line for each median error in degrees: of the parts, of raw pixels, and of random weights."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        if row.metric.startswith("median error") and row.metric.endswith(" (degrees)") and row.part != "both":
            parts = found.setdefault(row.metric.removesuffix(" (degrees)"), {}).setdefault(row.encoder, [])
            if not row.encoder.startswith(RANDOM) or not parts:  # of random weights the first part is enough
                name = "" if row.encoder.startswith((RANDOM, PIXELS)) else f"{row.part} "
                parts.append(f"{name}{row.mean:.1f}°")
    lines = []
    for metric, encoders in found.items():
        texts = [f"{encoder} {', '.join(parts)}" for encoder, parts in encoders.items()]
        lines.append(f"{metric.capitalize()}: {'; '.join(texts)}.")
    return lines


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """What R2 of the equivariant parts does not show: a line for those that could be guessing, and for those that are
    not clearly above raw pixels.

    An R2 could be guessing if its interval reaches 0. It is not clearly above another if both intervals overlap.
    """
    headline = [row for row in rows if row.headline and row.settings.get("task") == "r2"]
    pixels = {row.metric: row for row in headline if row.encoder == PIXELS and not row.part.endswith(ALONE)}
    found: dict[str, list[str]] = {}
    for row in headline:
        if row.part != "equivariant" or row.encoder.startswith(RANDOM):
            continue
        control = pixels.get(row.metric)
        low = row.mean - (row.half or 0)
        if low <= 0:
            kind, text = "could be guessing", f"{row.metric} ({row})"
        elif control is not None and low <= control.mean + (control.half or 0):
            kind, text = "is not clearly above raw pixels", f"{row.metric} ({row}, pixels {control})"
        else:
            continue
        found.setdefault(f"{row.encoder}: the equivariant part {kind} in", []).append(text)
    return [f"{start} {'; '.join(texts)}." for start, texts in found.items()]


def tables(rows: Sequence[Row]) -> list[list[list[str]]]:
    """Tables of cells: a header, then one line per encoder and part, one column per metric.

    Metrics that do not fit side by side are grouped by task, protocol and pooling. Groups of the same encoders share a
    table as long as they fit.
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
    encoders = {metric: {row.encoder for row in rows if row.metric == metric} for metric in metrics}
    together: list[list[str]] = []
    for columns in groups.values():
        fits = together and len(together[-1]) + len(columns) <= _MAX_COLUMNS
        if fits and encoders[together[-1][0]] == encoders[columns[0]]:
            together[-1] += columns
        else:
            together.append(columns)
    cells = {(row.encoder, row.part, row.metric): str(row) for row in rows}
    found = []
    for columns in together:
        keys = dict.fromkeys((row.encoder, row.part) for row in rows if row.metric in columns)
        found.append(
            [["encoder", "part", *columns]]
            + [[*key, *(cells.get((*key, metric), "") for metric in columns)] for key in keys]
        )
    return found


def format_table(cells: list[list[str]]) -> str:
    """Cells, whose first line is the header -> aligned Markdown."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def format_tables(rows: Sequence[Row], width: int = 80) -> str:
    """All tables as text for a terminal, with at most `width` columns wherever one column of numbers fits.

    A table has no line for a part without a number in its columns.
    """
    texts = []
    for cells in tables(rows):
        names = [line[:2] for line in cells]
        columns = list(zip(*(line[2:] for line in cells), strict=True))
        while columns:
            count = len(columns)
            while count > 1 and max(map(len, _text_table(names, columns[:count]).splitlines())) > width:
                count -= 1
            texts.append(_text_table(names, columns[:count]))
            columns = columns[count:]
    return "\n\n".join(texts)


def _text_table(names: Sequence[list[str]], columns: Sequence[tuple[str, ...]]) -> str:
    """Aligned columns. Long names of encoders continue in the lines of their parts, and headings are two lines."""
    heading = [*names[0], *(column[0] for column in columns)]
    upper = [text.partition(", ")[0] + ("," if ", " in text else "") for text in heading]
    lower = [text.partition(", ")[2] for text in heading]
    lines = [upper, lower] if any(lower) else [upper]
    numbers = [list(line) for line in zip(*(column[1:] for column in columns), strict=True)]
    measured = [(name, own) for name, own in zip(names[1:], numbers, strict=True) if any(own)]
    for encoder, group in itertools.groupby(measured, key=lambda line: line[0][0]):
        parts = [[part, *own] for (_, part), own in group]
        pieces = wrap(encoder, _NAME_WIDTH).split("\n")
        count = max(len(parts), len(pieces))
        pieces += [""] * (count - len(pieces))
        parts += [[""] * (len(heading) - 1)] * (count - len(parts))
        lines += [[name, *own] for name, own in zip(pieces, parts, strict=True)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    num_headings = 2 if any(lower) else 1
    return "\n".join([*text[:num_headings], rule, *text[num_headings:]])


def wrap(name: str, width: int) -> str:
    """A name on several lines of about `width` characters, broken behind `/`, `_`, `-`, `.` and at spaces."""
    lines = [""]
    for word in re.findall(r"[^/_\-. ]*[/_\-. ]?", name):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def versions() -> dict[str, str]:
    """Versions of the libraries, and the device."""
    import torch
    import transformers

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
    """Write JSON whole or not at all, with each row (a dict or a `Row`) on one line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(row, default=_row_fields) for row in results.get("rows", [])]
    rest = json.dumps({name: value for name, value in results.items() if name != "rows"}, indent=1, default=_row_fields)
    write_text_whole(path, rest[:-2] + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n" if rows else rest + "\n")


def _row_fields(row: Row) -> dict[str, Any]:
    """The fields of a row for results.json, including its interval."""
    return dataclasses.asdict(row) | {"half_width": row.half}
