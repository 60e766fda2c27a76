"""The report of an evaluation: plots as PNG files, and one self-contained HTML page that needs no scripts."""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_text_whole
from ..html_page import facts, page
from ..transforms import make_path
from .context import ReportFigure
from .pairs import PROTOCOLS, given_away, moves
from .results import ALONE, LOWER, PIXELS, RANDOM, Row, findings, interval_note, tables

_STYLE = """
tbody th { background: none; font-weight: 400; vertical-align: top; text-align: left; white-space: nowrap; }
tbody td:nth-child(n) { vertical-align: top; text-align: right; }
thead th:first-child, tbody th[rowspan] { white-space: normal; overflow-wrap: anywhere; }
thead th:first-child, tbody th[rowspan] { min-width: 8rem; max-width: 17rem; }
tr.first th { border-top: 2px solid var(--line); }
figure { overflow-x: auto; }
figure img { box-sizing: border-box; width: 100%; max-width: none; min-width: 56rem; }
small { color: var(--faint); font-weight: 400; font-size: 11.5px; }
table.suite th[colspan] { text-align: center; }
table.suite td { line-height: 1.25; }
table.suite th, table.suite td { padding: .28rem .5rem; }
"""

_HOW_TO_READ = {
    "R2": "<b>R2</b> of the parameters of a transformation, regressed from frozen features of an image and of its "
    "transformed version: 1 is perfect, 0 is guessing the mean, and negative values are worse than that (nothing is "
    "clipped). <i>paper</i>: the transformed image shows empty borders, which reveal most of the motion. "
    "<i>strict</i>: real pixels fill them, so that only the content reveals it; exceptions are named below the table. "
    "<i>recolored</i>: the same, and each view has its own random colors, as in another light. "
    "<i>grid</i>: the same from all patches instead of pooled features, which is easy even for raw pixels and random "
    "weights.",
    "kNN": "<b>kNN</b>: accuracy of a vote of the nearest training images by cosine similarity.",
    "linear": "<b>linear</b>: accuracy of a linear classifier on frozen features. Held-out training images chose its "
    "learning rate.",
    "alone": "<b>g alone</b>: the same probe on the transformed image without the original. What it reads from raw "
    "pixels, the protocol gives away.",
    "recall@1": "<b>recall@1</b>: how often the most similar of all test images is the original of a transformed one.",
    "change": "<b>change</b>: squared distance that features move under the transformation, relative to two different "
    "images.",
    "linearity": "<b>linearity</b>: share of that movement that a linear map with the known parameters predicts: 1 is "
    "a linear action. <i>shuffled</i>: the same for the movement of another image, for comparison; it is not 0.",
    "CKA": "<b>CKA</b>: debiased similarity of two parts over the test images: 0 is unrelated, 1 is equal up to "
    "rotation and scale. <i>shuffled</i>: for features of different images.",
}
_LATENTS = (
    "<b>R2</b> of columns of the dataset, regressed from frozen features: 1 is perfect, 0 is guessing the mean, and "
    "negative values are worse than that (nothing is clipped). <i>one picture</i>: the value, from one picture. "
    "<i>change</i>: the change between two pictures of one group, from both. <i>g alone</i> sees only the second "
    "picture. No group is both fitted and tested on."
)


def protocol_notes(rows: Sequence[Row]) -> list[str]:
    """A line for each transformation and protocol that gives g away, such as "zoom, strict: sharpness tells it"."""
    about_g = [row.settings for row in rows if row.settings.get("task") != "reconstruction"]
    settings = [own for own in about_g if own.get("protocol") in PROTOCOLS]
    pairs = dict.fromkeys((own["transform"], own["protocol"]) for own in settings)
    found = {pair: given_away(make_path(pair[0]), pair[1]) for pair in pairs}
    return [f"{transform}, {protocol}: {reason}" for (transform, protocol), reason in found.items() if reason]


def report_paths(output: str | Path) -> tuple[Path, Path]:
    """Page and folder of plots beside a results file: results.html and plots/ for results.json, NAME.html and
    NAME_plots/ for NAME.json."""
    output = Path(output)
    prefix = "" if output.stem == "results" else f"{output.stem}_"
    return output.with_suffix(".html"), output.with_name(f"{prefix}plots")


def write_report(
    output: str | Path, results: dict[str, Any], rows: Sequence[Row], figures: Sequence[ReportFigure]
) -> Path:
    """Write the plots and the page beside `output` (results.json) and return the page's path."""
    page, folder = report_paths(output)
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.draw().savefig(buffer, format="png", dpi=130)
        (folder / f"{figure.name}.png").write_bytes(buffer.getvalue())
        shown.append((figure, buffer.getvalue()))
    write_text_whole(page, render_page(results, rows, shown))
    return page


def render_page(results: dict[str, Any], rows: Sequence[Row], figures: Sequence[tuple[ReportFigure, bytes]]) -> str:
    """The HTML page; figures come with their PNG content."""
    headline = [row for row in rows if row.headline]
    details = [row for row in rows if not row.headline]
    tested = dict.fromkeys(row.encoder for row in rows if not row.encoder.startswith((RANDOM, PIXELS)))
    names = ", ".join([model["name"] for model in results.get("models", [])] or tested)
    kinds = {re.split("[ -]", row.metric)[0] for row in rows}
    kinds |= {"alone"} if any(row.part.endswith(ALONE) for row in rows) else set()
    read = [text for kind, text in _HOW_TO_READ.items() if kind in kinds]
    if any("kind" in row.settings for row in rows):
        read = [_LATENTS]
    controls = [name for name in (RANDOM, PIXELS) if any(row.encoder.startswith(name) for row in rows)]
    beside = f", beside {' and '.join(controls)}" if controls else ""
    version = results.get("protocol_version")
    notes = protocol_notes(headline)
    interval = interval_note(headline)
    suite = f"suite {html.escape(results['suite'])}, " if results.get("suite") else ""
    measured = f"<br>{suite}protocol version {html.escape(version)}" if version else ""
    headline_tables = [suite_table(headline)] if suite else [_table(cells, headline) for cells in tables(headline)]
    body = [
        f"<h1>What do the features know?</h1><p class='faint'>{html.escape(names)}{beside}{measured}</p>",
        *headline_tables,
        *(f"<p>{html.escape(text)}</p>" for text in findings(rows)),
        *(f"<p class='faint'>{text}</p>" for text in read),
        *([f"<p class='faint'><b>Gives g away</b>: {'; '.join(map(html.escape, notes))}.</p>"] if notes else []),
        *([f"<p class='faint'><b>±</b>{interval[1:]}</p>"] if interval else []),
        *(_figure(figure, png) for figure, png in figures),
    ]
    if details:
        body.append("<details><summary>All numbers: each parameter, head, pooling</summary>")
        body += [*(_table(cells, details) for cells in tables(details)), "</details>"]
    body.append("<h2>How it was measured</h2>" + _facts(results))
    return page(f"Evaluation of {names}", body, _STYLE)


def _table(cells: list[list[str]], rows: Sequence[Row]) -> str:
    """A table with the best value of each column emphasized, unless more is not better. *g alone* does not compete."""
    means = {(row.encoder, row.part, row.metric): row.mean for row in rows if not row.part.endswith(ALONE)}
    best = {
        metric: (min if metric.endswith(LOWER) else max)(
            (value for (_, _, name), value in means.items() if name == metric), default=None
        )
        for metric in cells[0][2:]
        if not metric.startswith(("change", "CKA")) and not metric.endswith("shuffled")
    }
    lines = []
    starts = _starts([line[0] for line in cells[1:]])
    for start, (encoder, part, *values) in zip(starts, cells[1:], strict=True):
        marks = [means.get((encoder, part, metric), "") == best.get(metric) for metric in cells[0][2:]]
        numbers = "".join(
            f"<td{' class=best' if mark else ''}>{value}</td>" for value, mark in zip(values, marks, strict=True)
        )
        lines.append(f"{start}<th>{html.escape(part)}</th>{numbers}</tr>")
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in cells[0])
    return f"<div class='wide'><table><thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _starts(encoders: Sequence[str]) -> list[str]:
    """How the line of each part begins: the name of an encoder is in its first line, and spans all of them."""
    starts = []
    for encoder, group in itertools.groupby(encoders):
        count = len(list(group))
        starts += [f"<tr class=first><th rowspan={count}>{_breakable(encoder)}</th>", *["<tr>"] * (count - 1)]
    return starts


def _breakable(name: str) -> str:
    """A name that may continue on the next line behind `/`, `_`, `.` and `-`."""
    return re.sub(r"([/_.-])", r"\1<wbr>", html.escape(name))


def suite_table(rows: Sequence[Row]) -> str:
    """One table of the R2 benchmark: a line for each encoder and part, a column for each transformation and protocol.

    If nothing moves, the protocols are the same and only the first is shown. The first column is the mean over
    the transformations in the first protocol.
    """
    protocols = list(dict.fromkeys(row.settings["protocol"] for row in rows))
    columns: dict[str, list[str]] = {}
    for transform in dict.fromkeys(row.settings["transform"] for row in rows):
        columns[transform] = protocols if moves(make_path(transform)) else protocols[:1]
    found = {(row.encoder, row.part, row.settings["transform"], row.settings["protocol"]): row for row in rows}
    lines = list(dict.fromkeys((row.encoder, row.part) for row in rows if row.part != "both"))
    means: dict[tuple[str, str], float] = {}
    for line in lines:
        own = [
            found[*line, transform, protocols[0]] for transform in columns if (*line, transform, protocols[0]) in found
        ]
        if len(own) == len(columns):
            means[line] = sum(row.mean for row in own) / len(own)
    cells = [(transform, protocol) for transform, chosen in columns.items() for protocol in chosen]
    contenders = [line for line in lines if not line[1].endswith(ALONE)]
    best = {
        cell: max(
            (row.mean for line in contenders if (row := found.get((*line, *cell))) and row.mean > 0), default=None
        )
        for cell in cells
    }
    top = "".join(
        f"<th colspan={len(chosen)}>{html.escape(name.replace('_', ' '))}</th>" for name, chosen in columns.items()
    )
    below = "".join(f"<th>{html.escape(protocol)}</th>" for _, protocol in cells)
    head = f"<tr><th></th><th></th><th>mean</th>{top}</tr>"
    head += f"<tr><th>encoder</th><th>part</th><th>{protocols[0]}</th>{below}</tr>"
    body = []
    for start, line in zip(_starts([encoder for encoder, _ in lines]), lines, strict=True):
        mean = f"{means[line]:.3f}" if line in means else ""
        is_best = (
            line in contenders and line in means and means[line] == max(means.get(other, -1e9) for other in contenders)
        )
        numbers = [f"<td{' class=best' if is_best else ''}>{mean}</td>"]
        for cell in cells:
            row = found.get((*line, *cell))
            value, _, spread = str(row).partition(" ") if row else ("", "", "")
            small = f"<br><small>{html.escape(spread)}</small>" if spread else ""
            mark = " class=best" if row and line in contenders and row.mean == best[cell] else ""
            numbers.append(f"<td{mark}>{value}{small}</td>")
        body.append(f"{start}<th>{html.escape(line[1])}</th>{''.join(numbers)}</tr>")
    return f"<div class='wide'><table class=suite><thead>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"


def _figure(figure: ReportFigure, png: bytes) -> str:
    caption = html.escape(figure.caption)
    source = base64.b64encode(png).decode()
    return (
        f"<figure><img alt='{caption}' src='data:image/png;base64,{source}'><figcaption>{caption}</figcaption></figure>"
    )


def _facts(results: dict[str, Any]) -> str:
    version = {"protocol version": results["protocol_version"]} if "protocol_version" in results else {}
    groups = {"protocol": version | results.get("protocol", {}), "versions": results.get("versions", {})}
    lines = [(key, value) for group in groups.values() for key, value in group.items()]
    for model in results.get("models", []):
        text = (
            f"{model['image_size']} px, mean {model['mean']}, std {model['std']}, weights {model['fingerprint'][:12]}"
        )
        lines.append((model["name"], text))
    return f"{facts(dict(lines))}<pre>{html.escape(results.get('command', ''))}</pre>"
