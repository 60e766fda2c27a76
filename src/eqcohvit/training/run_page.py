"""The page of a run, report.html: what its parts know, its pictures, warnings, curves, settings. Written from
metrics.jsonl."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.bad_images import printable
from ..files import write_text_whole
from ..html_page import facts, page
from .health import HealthWatch
from .line_chart import MAX_SERIES, STYLE, Series, line_chart
from .monitor import read_metrics

PAGE = "report.html"
_COLORS = {"equivariant": 0, "invariant": 1, "backbone": 2}  # of the parts, as in evaluations


@dataclass(frozen=True)
class _Chart:
    """Metrics of one chart: those named `prefix` or `prefix/...`."""

    prefix: str
    title: str
    unit: str
    limits: tuple[float, float] | None = None


_OF_PARAMETERS = "probe/r2_of"
_KNOWN = (
    _Chart("probe/r2", "What the parts know: R2, strict", "R2", (0.0, 1.0)),
    _Chart("probe/r2_paper", "What the parts know: R2, with empty borders", "R2", (0.0, 1.0)),
    _Chart("probe/knn", "Nearest neighbors", "accuracy", (0.0, 1.0)),
)
_CURVES = (
    _Chart("loss", "Loss", "weighted sum of all terms"),
    _Chart("ssl", "SSL loss", "loss term, weighted"),
    _Chart("recon", "Reconstruction", "mean squared error"),
    _Chart("std", "Standard deviation of the parts over the batch", "standard deviation"),
    _Chart("rank", "Effective rank of the parts", "dimensions"),
    _Chart("grad_norm", "Norm of the gradients, before clipping", "norm"),
    _Chart("learning_rate", "Learning rate", "learning rate"),
    _Chart("samples_per_second", "Speed", "samples/s", (0.0, 0.0)),
    _Chart("data_wait_share", "Waiting for data", "share of the time", (0.0, 1.0)),
)
_HOW_TO_READ = (
    "<b>R2</b> of the transformation's parameters, regressed from a part's features of an image and of its "
    "transformed version, on "
    "images that are not trained on: 1 is perfect, 0 is guessing. The <i>equivariant</i> part should rise, the "
    "<i>invariant</i> part "
    "should stay low. <i>strict</i>: real pixels fill the borders of the transformed image, so that only the "
    "content tells. With "
    "<i>empty borders</i> (the paper's protocol) black corners may tell too. <b>Nearest neighbors</b>: accuracy "
    "of their vote."
)


def write_run_page(
    output_dir: Path,
    title: str,
    state: str,
    settings: dict[str, Any],
    watch: HealthWatch,
    about: dict[str, Any],
    command: str,
    verdict: str = "",
) -> Path:
    """Write `output_dir`/report.html whole or not at all, and return its path.

    Args:
        title: what the run is.
        state: where it stands.
        settings: all settings of the run by name.
        watch: a fresh one, that reads the whole history for warnings.
        about: versions, source ... by name.
        command: that started the run.
        verdict: of a run that has ended, shown with the warnings.
    """
    history = read_metrics(output_dir / "metrics.jsonl")
    pictures = sorted(
        (output_dir / "samples").glob("step-*.png"), key=lambda path: int(path.stem.removeprefix("step-"))
    )
    picture = pictures[-1] if pictures else None
    warnings = [*_warnings(output_dir, history, watch), *([verdict] if verdict else [])]
    text = render_run_page(title, state, history, picture, warnings, settings, about, command)
    write_text_whole(output_dir / PAGE, text)
    return output_dir / PAGE


def render_run_page(
    title: str,
    state: str,
    history: Sequence[dict[str, float]],
    picture: Path | None,
    warnings: Sequence[str],
    settings: dict[str, Any],
    about: dict[str, Any],
    command: str,
) -> str:
    """The HTML of the page. `history`: the lines of metrics.jsonl; `picture`: a PNG file of samples."""
    max_step = int(settings.get("max_steps") or 0)
    known = [chart for spec in [*_best_read(history), *_KNOWN] for chart in _charts(spec, history, max_step)]
    curves = [chart for spec in [*_CURVES, *_others(history)] for chart in _charts(spec, history, max_step)]
    body = [f"<h1>{html.escape(title)}</h1><p class='faint'>{html.escape(state)}</p>"]
    if warnings:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in warnings)
        body.append(f"<div class='warnings'><h2>Warnings</h2><ul>{items}</ul></div>")
    if known:
        body.append(
            f"<h2>What the features know</h2><div class='charts'>{''.join(known)}</div><p "
            f"class='faint'>{_HOW_TO_READ}</p>"
        )
    if picture is not None:
        source = base64.b64encode(picture.read_bytes()).decode()
        step = picture.stem.removeprefix("step-")
        caption = (
            f"Training images after step {step}: two views, and the states between them beside their reconstructions."
        )
        image = f"<img alt='{caption}' src='data:image/png;base64,{source}'>"
        body.append(f"<h2>Samples</h2><figure>{image}<figcaption>{caption}</figcaption></figure>")
    body.append("<h2>Curves</h2>")
    if curves:
        body[-1] += f"<div class='charts'>{''.join(curves)}</div>"
    else:
        body[-1] += "<p class='faint'>No metrics have been logged yet.</p>"
    chosen = {name: value for name, value in settings.items() if value not in (None, "")}
    body.append(f"<h2>How it was run</h2><pre>{html.escape(command)}</pre>{facts(about)}")
    body.append(f"<details><summary>All settings</summary>{facts(chosen)}</details>")
    return page(title, body, STYLE + _STYLE)


_STYLE = """
.warnings { border-left: 4px solid #d4a72c; background: var(--panel); padding: .3rem 1rem .5rem; border-radius: 4px;
  margin: 1rem 0; }
.warnings h2 { margin: .3rem 0; font-size: 1rem; }
.warnings ul { margin: 0; padding-left: 1.2rem; }
"""


def _charts(spec: _Chart, history: Sequence[dict[str, float]], max_step: int) -> Iterator[str]:
    """The charts of its metrics: none without metrics, several for more than eight lines."""
    names = [name for name in _names(history) if _belongs(name, spec.prefix)]
    for start in range(0, len(names), MAX_SERIES):
        lines = []
        for index, name in enumerate(names[start : start + MAX_SERIES]):
            label = spec.title.lower() if name == spec.prefix else name.removeprefix(f"{spec.prefix}/")
            points = [(line["step"], _number(line[name])) for line in history if name in line]
            lines.append(Series(label, points, _COLORS.get(label, index % MAX_SERIES)))
        title = f"{spec.title}, continued" if start else spec.title
        yield line_chart(title, spec.unit, lines, spec.limits, max_step)


def _best_read(history: Sequence[dict[str, float]]) -> list[_Chart]:
    """A chart of the parameter with the highest newest R2 from the equivariant part, if a probe has several."""
    newest = {name: value for line in history for name, value in line.items() if _belongs(name, _OF_PARAMETERS)}
    scores = {name.split("/")[2]: value for name, value in newest.items() if name.endswith("/equivariant")}
    if not scores:
        return []
    best = max(scores, key=lambda name: _number(scores[name]))
    return [_Chart(f"{_OF_PARAMETERS}/{best}", f"What the parts know of {best}: R2, strict", "R2", (0.0, 1.0))]


def _names(history: Sequence[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for line in history for name in line))


def _belongs(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}/")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _others(history: Sequence[dict[str, float]]) -> list[_Chart]:
    """Charts of the metrics that no other chart has, by the first word of their names."""
    shown = [_OF_PARAMETERS, *(spec.prefix for spec in (*_KNOWN, *_CURVES))]
    left = [name for name in _names(history) if not any(_belongs(name, prefix) for prefix in shown)]
    prefixes = dict.fromkeys(name.split("/")[0] for name in left if name != "step")
    return [_Chart(prefix, prefix.replace("_", " ").capitalize(), "value") for prefix in prefixes]


def _warnings(output_dir: Path, history: Sequence[dict[str, float]], watch: HealthWatch) -> list[str]:
    """The run's warnings, from its history, and the images that could not be read."""
    found = [text for line in history if "loss" in line for text in watch.warnings(int(line["step"]), line)]
    bad = output_dir / "bad_images.jsonl"
    lines = bad.read_text(encoding="utf-8", errors="replace").splitlines() if bad.is_file() else []
    if lines:
        found.append(
            f"{len(lines)} images could not be read and are left out (see {bad.name}); the first: {_reason(lines[0])}"
        )
    return found


def _reason(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:  # cut short when the run was killed
        return "unknown"
    return printable(f"{entry.get('path')}: {entry.get('reason')}") if isinstance(entry, dict) else "unknown"
