"""The report of an evaluation: plots as PNG files, and one self-contained HTML page that needs no scripts."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..training.html_page import facts, page
from .context import Figure
from .features import PIXELS, RANDOM
from .results import ALONE, INTERVAL, LOWER, Row, tables

_HOW_TO_READ = {
    "R2": "<b>R2</b> of the transformation's parameters, regressed from frozen features of an image and of its transformed version: 1 is "
    "perfect, 0 is guessing the mean, below 0 is worse than that (nothing is clipped). <i>paper</i>: the transformed image shows empty "
    "borders, which alone tell most of the motion. <i>strict</i>: real pixels fill them, so that only the content tells, except for zoom, "
    "which sharpness tells. <i>grid</i>: the same from all patches instead of "
    "pooled features, which is easy even for raw pixels and random weights.",
    "kNN": "<b>kNN</b>: accuracy of a vote of the nearest training images by cosine similarity.",
    "linear": "<b>linear</b>: accuracy of a linear classifier on frozen features; held-out training images chose its learning rate.",
    "alone": "<b>g alone</b>: the same probe on the transformed image without the original: what the protocol gives away.",
    "change": "<b>change</b>: squared distance that features move under the transformation, relative to two different images.",
    "linearity": "<b>linearity</b>: share of that movement that a linear map with the known parameters predicts: 1 is a linear action. "
    "<i>shuffled</i>: the same figure of another image's movement, for comparison; it is not 0.",
    "CKA": "<b>CKA</b>: debiased similarity of two parts over the test images: 0 is unrelated, 1 the same but for rotation and scale. "
    "<i>shuffled</i>: of features of different images.",
}


def report_paths(output: str | Path) -> tuple[Path, Path]:
    """Page and folder of plots beside a results file: results.html and plots/ for results.json, NAME.html and NAME_plots/ for NAME.json."""
    output = Path(output)
    prefix = "" if output.stem == "results" else f"{output.stem}_"
    return output.with_suffix(".html"), output.with_name(f"{prefix}plots")


def write_report(output: str | Path, results: dict[str, Any], rows: Sequence[Row], figures: Sequence[Figure]) -> Path:
    """Write the plots and the page beside `output` (results.json) and return the page's path."""
    page, folder = report_paths(output)
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.draw().savefig(buffer, format="png", dpi=130)
        (folder / f"{figure.name}.png").write_bytes(buffer.getvalue())
        shown.append((figure, buffer.getvalue()))
    temporary = page.with_name(f".{page.name}.tmp")
    temporary.write_text(render_page(results, rows, shown), encoding="utf-8")
    temporary.replace(page)
    return page


def render_page(results: dict[str, Any], rows: Sequence[Row], figures: Sequence[tuple[Figure, bytes]]) -> str:
    """The HTML page; figures come with their PNG content."""
    headline = [row for row in rows if row.headline]
    details = [row for row in rows if not row.headline]
    tested = dict.fromkeys(row.encoder for row in rows if not row.encoder.startswith((RANDOM, PIXELS)))
    names = ", ".join([model["name"] for model in results.get("models", [])] or tested)
    kinds = {re.split("[ -]", row.metric)[0] for row in rows}
    kinds |= {"alone"} if any(row.part.endswith(ALONE) for row in rows) else set()
    read = [text for kind, text in _HOW_TO_READ.items() if kind in kinds]
    controls = [name for name in (RANDOM, PIXELS) if any(row.encoder.startswith(name) for row in rows)]
    beside = f", beside {' and '.join(controls)}" if controls else ""
    body = [
        f"<h1>What do the features know?</h1><p class='faint'>{html.escape(names)}{beside}</p>",
        *(_table(cells, headline) for cells in tables(headline)),
        *(f"<p class='faint'>{text}</p>" for text in read),
        *([f"<p class='faint'><b>±</b>{INTERVAL[1:]}</p>"] if any(row.half is not None for row in headline) else []),
        *(_figure(figure, png) for figure, png in figures),
    ]
    if details:
        body.append("<details><summary>All numbers: each parameter, head, pooling</summary>")
        body += [*(_table(cells, details) for cells in tables(details)), "</details>"]
    body.append("<h2>How it was measured</h2>" + _facts(results))
    return page(f"Evaluation of {names}", body)


def _table(cells: list[list[str]], rows: Sequence[Row]) -> str:
    """The best value of each column is emphasised, except where more is not better."""
    means = {(row.encoder, row.part, row.metric): row.mean for row in rows}
    best = {
        metric: (min if metric.endswith(LOWER) else max)(value for (_, _, name), value in means.items() if name == metric)
        for metric in cells[0][2:]
        if not metric.startswith(("change", "CKA")) and not metric.endswith("shuffled")
    }
    lines, previous = [], None
    for encoder, part, *values in cells[1:]:
        marks = [means.get((encoder, part, metric)) == best.get(metric, float("nan")) for metric in cells[0][2:]]
        name = html.escape(encoder) if encoder != previous else ""
        numbers = "".join(f"<td{' class=best' if mark else ''}>{value}</td>" for value, mark in zip(values, marks, strict=True))
        lines.append(f"<tr{' class=first' if name else ''}><td>{name}</td><td>{html.escape(part)}</td>{numbers}</tr>")
        previous = encoder
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in cells[0])
    return f"<div class='wide'><table><thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _figure(figure: Figure, png: bytes) -> str:
    caption = html.escape(figure.caption)
    source = base64.b64encode(png).decode()
    return f"<figure><img alt='{caption}' src='data:image/png;base64,{source}'><figcaption>{caption}</figcaption></figure>"


def _facts(results: dict[str, Any]) -> str:
    groups = {"protocol": results.get("protocol", {}), "versions": results.get("versions", {})}
    lines = [(key, value) for group in groups.values() for key, value in group.items()]
    for model in results.get("models", []):
        text = f"{model['image_size']} px, mean {model['mean']}, std {model['std']}, weights {model['fingerprint'][:12]}"
        lines.append((model["name"], text))
    return f"{facts(dict(lines))}<pre>{html.escape(results.get('command', ''))}</pre>"
