"""The report of an evaluation: plots as PNG files, and one self-contained HTML page that needs no scripts."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .context import Figure
from .features import PIXELS, RANDOM
from .results import LOWER, Row, tables

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --faint: #59636e; --back: #ffffff; --panel: #f6f8fa; --line: #d1d9e0; --best: #0a7a4f; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --faint: #9198a1; --back: #0d1117; --panel: #161b22; --line: #3d444d; --best: #4cc38a; }
}
body { font: 15px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back); }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.faint { color: var(--faint); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { background: var(--panel); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tr.first td { border-top: 2px solid var(--line); }
td.best { font-weight: 700; color: var(--best); }
figure { margin: 1.6rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--faint); font-size: 13.5px; max-width: 60rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: var(--panel); border-radius: 6px; }
pre { padding: .7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--faint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
"""

_HOW_TO_READ = {
    "R2": "<b>R2</b> of the transformation's parameters, regressed from frozen features of an image and of its transformed version: 1 is "
    "perfect, 0 is guessing the mean, below 0 is worse than that (nothing is clipped). <i>paper</i>: the transformed image shows empty "
    "borders, which alone tell most of the motion. <i>strict</i>: real pixels fill them, so that only the content tells, except for zoom, "
    "which sharpness tells. <i>grid</i>: the same from all patches instead of "
    "pooled features, which is easy even for raw pixels and random weights.",
    "kNN": "<b>kNN</b>: accuracy of a vote of the nearest training images by cosine similarity.",
    "linear": "<b>linear</b>: accuracy of a linear classifier on frozen features; held-out training images chose its learning rate.",
    "change": "<b>change</b>: squared distance that features move under the transformation, relative to two different images.",
    "linearity": "<b>linearity</b>: share of that movement that a linear map with the known parameters predicts: 1 is a linear action.",
    "CKA": "<b>CKA</b>: similarity of two parts' features over the test images: 0 is unrelated, 1 the same up to rotation and scale.",
}


def report_paths(output: str | Path) -> tuple[Path, Path]:
    """Page and folder of plots beside a results file: report.html and plots/ for results.json, NAME_report.html ... for NAME.json."""
    output = Path(output)
    prefix = "" if output.stem == "results" else f"{output.stem}_"
    return output.with_name(f"{prefix}report.html"), output.with_name(f"{prefix}plots")


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
    read = [text for kind, text in _HOW_TO_READ.items() if kind in kinds]
    controls = [name for name in (RANDOM, PIXELS) if any(row.encoder.startswith(name) for row in rows)]
    beside = f", beside {' and '.join(controls)}" if controls else ""
    body = [
        f"<h1>What do the features know?</h1><p class='faint'>{html.escape(names)}{beside}</p>",
        *(_table(cells, headline) for cells in tables(headline)),
        *(f"<p class='faint'>{text}</p>" for text in read),
        *(_figure(figure, png) for figure, png in figures),
    ]
    if details:
        body.append("<details><summary>All numbers: each parameter, head, pooling</summary>")
        body += [*(_table(cells, details) for cells in tables(details)), "</details>"]
    body.append("<h2>How it was measured</h2>" + _facts(results))
    title = html.escape(f"Evaluation of {names}")
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{title}</title><style>{_STYLE}</style>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"


def _table(cells: list[list[str]], rows: Sequence[Row]) -> str:
    """The best value of each column is emphasised, except where more is not better."""
    means = {(row.encoder, row.part, row.metric): row.mean for row in rows}
    best = {
        metric: (min if metric.endswith(LOWER) else max)(value for (_, _, name), value in means.items() if name == metric)
        for metric in cells[0][2:]
        if not metric.startswith(("change", "CKA"))
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
    items = "".join(f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(_text(value))}</dd>" for key, value in lines)
    return f"<dl>{items}</dl><pre>{html.escape(results.get('command', ''))}</pre>"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
