"""Model cards, filled in from the files of a run, so that no number in them is typed by hand."""

from __future__ import annotations

import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.results import BLEND, NEARER, PIXELS, RANDOM, Row, findings, interval_note, tables
from ..evaluation.suite import few_images
from ..files import (
    LOCAL_DATA_SETTINGS,
    METRICS_FILE,
    MODEL_FOLDER,
    OWN_SETTINGS,
    RESULTS_FILE,
    SETTINGS_FILE,
    message_of,
)
from .license import LICENSE_PATTERN, describe_base, hub_id, license_of

_CONTROLS = (RANDOM, PIXELS, NEARER, BLEND)
_BUILDERS = ("arrow", "csv", "imagefolder", "json", "parquet", "text", "webdataset")


def read_template() -> str:
    """The text of the template, publish/TEMPLATE.md, as it is installed with the package."""
    return (files("eqcohvit.publish") / "TEMPLATE.md").read_text(encoding="utf-8")


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """What a run has written.

    Returns:
        `name` of its folder, `folder` of its model, `settings` (config.yaml), `metrics` (last line of metrics.jsonl),
        and `results` (results.json, or None).

    Raises:
        ValueError: the folder holds no run.
    """
    run_dir = Path(run_dir)
    if not (run_dir / SETTINGS_FILE).is_file():
        raise ValueError(f"{run_dir} holds no run: expected {SETTINGS_FILE} in it")
    metrics = run_dir / METRICS_FILE
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    results = run_dir / RESULTS_FILE
    return {
        "name": run_dir.resolve().name,
        "folder": (run_dir.name if run_dir.is_absolute() else run_dir.as_posix()) + f"/{MODEL_FOLDER}",
        "settings": yaml.safe_load((run_dir / SETTINGS_FILE).read_text()),
        "metrics": json.loads(lines[-1]) if lines else {},
        "results": json.loads(results.read_text()) if results.is_file() else None,
    }


def render_card(template: str, run: dict[str, Any], results: dict[str, Any] | None = None) -> str:
    """Fill in a card's `{{ placeholders }}` from the files of a run and, if given, an evaluation.

    Args:
        template: text of the template, from `read_template`.
        run: from `read_run`. Optional entries: `repo_id` is the name by which users load the model (default:
            `hub_model_id`, then `folder`), `dataset` the Hub id of a dataset that was read from local files, and
            `start`, for a run that began with a model from elsewhere than the Hub, its name and origin as Markdown,
            and the `License` of the weights.
        results: of an evaluation or a fine-tuning: `rows` (`evaluation.results.Row`), and `protocol` or `settings`.
            Rows with `headline: false` are details that the card leaves out.

    Raises:
        ValueError: a placeholder is unknown, or the front-matter is not valid.
    """
    settings = run["settings"] | ({"dataset_name": run["dataset"], "data_files": None} if run.get("dataset") else {})
    metrics = run.get("metrics") or {}
    results = results or {"rows": []}
    repo_id = run.get("repo_id") or settings.get("hub_model_id")
    rows = [row for row in (Row(**row) for row in results["rows"]) if row.headline]
    base, license = run.get("start") or (describe_base(settings), license_of(settings))
    title = repo_id.split("/")[-1] if repo_id else run["name"]
    shown = [[f"`{key}`", f"`{value}`"] for key, value in _shown(settings).items()]
    logged = [[f"`{key}`", f"{value:.4g}"] for key, value in metrics.items()]
    copied = ("objective", "path", "augmentation", "border", "num_intermediates", "feature_dim")
    fields = {key: settings[key] for key in (*copied, "equivariant_dim", "seed", "image_size")}
    fields |= {
        "recon_weight": f"{settings['recon_weight']:g}",
        "license_fields": yaml.safe_dump(license.fields, sort_keys=False).strip(),
        "license": license.text,
        "front_matter": _front_matter(settings, title, rows, results, run["name"]),
        "title": title,
        "repo_id": repo_id or run["folder"],
        "backbone": f"{f'from {base}, trained further' if base else settings['model_preset']} ({settings['backbone']})",
        "invariant_dim": settings["feature_dim"] - settings["equivariant_dim"],
        "settings_table": _table(["setting", "value"], shown),
        "data": _describe_data(settings),
        "progress_table": _table(["metric", "last logged value"], logged) if metrics else "No metrics were logged.",
        "results": _describe_results(rows, results),
        "steps": metrics.get("step", 0),
    }
    unknown = sorted(set(re.findall(r"{{\s*(\w+)\s*}}", template)) - set(fields))
    if unknown:
        raise ValueError(f"unknown placeholder {unknown[0]!r} in the template; known: {', '.join(sorted(fields))}")
    card = re.sub(r"{{\s*(\w+)\s*}}", lambda match: str(fields[match[1]]), template)
    check_card(card)
    return card


def rename_card(card: str, repo_id: str) -> str:
    """A card from `render_card` with another repository in its title, its examples and its model-index.

    All other text stays as it is, also what was written by hand. A card without our example is not changed.
    """
    example = re.search(r'model="([^"]+)", trust_remote_code=True', card)
    if example is None:
        return card
    title = re.search(r"^# (.+)$", card, flags=re.MULTILINE)
    card = card.replace(f'"{example[1]}"', f'"{repo_id}"')
    if title is not None:
        new = repo_id.split("/")[-1]
        card = card.replace(f"\n{title[0]}\n", f"\n# {new}\n", 1)
        card = card.replace(f"\n- name: {title[1]}\n  results:", f"\n- name: {new}\n  results:", 1)
    return card


def check_card(card: str) -> dict[str, Any]:
    """Check a model card as the Hub does, without a connection, and return its parsed front-matter.

    Raises:
        ValueError: the front-matter is missing or has a field that the Hub would refuse, or a placeholder is left.
    """
    match = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    if match is None:
        raise ValueError("a model card begins with front-matter between two lines of ---")
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the card's front-matter is not valid YAML: {message_of(error)}") from None
    left = re.search(r"{{.*?}}", card)
    if left:
        raise ValueError(f"the card still holds the placeholder {left[0]}")
    if not isinstance(data, dict):
        raise ValueError(f"the card's front-matter must be a mapping, got {type(data).__name__}")
    expected = {"library_name": "transformers", "pipeline_tag": "image-feature-extraction"}
    for key, value in expected.items():
        if data.get(key) != value:
            raise ValueError(f"the card's {key} must be {value!r}, got {data.get(key)!r}")
    if not isinstance(data.get("license"), str) or not re.fullmatch(LICENSE_PATTERN, data["license"]):
        raise ValueError(f"the card's license must be an identifier like 'apache-2.0', got {data.get('license')!r}")
    for key in ("tags", "datasets"):
        values = data.get(key, [] if key == "datasets" else None)
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise ValueError(f"the card's {key} must be a list of names, got {values!r}")
    for model in data.get("model-index", []):
        for result in model["results"]:
            for key in ("task", "dataset"):
                if not isinstance(result.get(key, {}).get("type"), str):
                    raise ValueError(f"each result of the card's model-index needs {key}.type, got {result.get(key)!r}")
            for metric in result["metrics"]:
                value = metric.get("value")
                if (
                    not isinstance(metric.get("type"), str)
                    or not isinstance(value, (int, float))
                    or not math.isfinite(value)
                ):
                    raise ValueError(
                        f"each metric of the card's model-index needs a type and a finite value, got {metric!r}"
                    )
    return data


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are of use to a reader."""
    local = {*OWN_SETTINGS, *LOCAL_DATA_SETTINGS, "output", "model", "test_data_files"}
    if not _dataset_id(settings):
        local.add("dataset_name")
    if not hub_id(settings.get("init_from")):
        local.add("init_from")
    return {key: value for key, value in settings.items() if key not in local and value not in (None, [], "")}


def _dataset_id(settings: dict[str, Any]) -> str | None:
    """The Hub id of the run's dataset, if it has one."""
    name = settings.get("dataset_name")
    return None if settings.get("data_files") or name in _BUILDERS else hub_id(name)


def _describe_data(settings: dict[str, Any]) -> str:
    if settings.get("train_dir"):
        return "The images of a local folder. No labels were used."
    if settings.get("dataset_name") or settings.get("data_files"):
        name = _dataset_id(settings)
        source = f"[{name}](https://huggingface.co/datasets/{name})" if name else "a local dataset"
        return f"Split `{settings['dataset_split']}` of {source}. No labels were used."
    # The model that a run continues from may have seen photographs.
    photographs = "labels" if describe_base(settings) else "photographs and no labels"
    return f"Drawings that the package `eqcohvit` generates during training. No {photographs} were used."


def _protocol(results: dict[str, Any]) -> dict[str, Any]:
    protocol = results.get("protocol", results.get("settings", {}))
    return protocol if isinstance(protocol, dict) else {"protocol": protocol}


def _own_name(rows: list[Row], run_name: str) -> str | None:
    """The name that the model itself has in the rows."""
    names = list(dict.fromkeys(row.encoder for row in rows if not row.encoder.startswith(_CONTROLS)))
    if run_name in names or not names:
        return run_name if names else None
    if len(names) > 1:
        raise ValueError(f"the results are of several models ({', '.join(names)}), none with the name {run_name!r}")
    return names[0]


def _front_matter(settings: dict, title: str, rows: list[Row], results: dict, run_name: str) -> str:
    """The fields of the front-matter that depend on the run, as YAML: `datasets`, `base_model` and `model-index`."""
    data: dict[str, Any] = {}
    dataset = _dataset_id(settings)
    if dataset:
        data["datasets"] = [dataset]
    start = hub_id(settings.get("init_from"))
    if start:
        data |= {"base_model": start, "base_model_relation": "finetune"}
    own = _own_name(rows, run_name)
    if own is not None:
        source = _evaluated_on(results, dataset)
        entry = {
            "task": {"type": "image-feature-extraction", "name": str(results.get("task", "Frozen features"))},
            "dataset": {"type": re.sub(r"[^\w./-]+", "-", source).strip("-").lower(), "name": source},
            "metrics": [_metric(row) for row in rows if row.encoder == own],
        }
        data["model-index"] = [{"name": title, "results": [entry]}]
    if not data:
        return "# without a dataset of the Hub and without measured results"
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip()


def _metric(row: Row) -> dict[str, Any]:
    kind = re.split(r"[\s,-]", row.metric)[0].lower()
    return {"type": kind, "value": round(row.mean, 4), "name": f"{row.metric} ({row.part})"}


def _evaluated_on(results: dict[str, Any], dataset: str | None) -> str:
    """The name of the images of the evaluation, without places on the machine."""
    protocol = _protocol(results)
    source = str(protocol.get("test_source") or protocol.get("source") or "see the card")
    if dataset and source.split()[0] in _BUILDERS:  # its files were read
        return dataset
    return _without_place(source)


def _without_place(source: str) -> str:
    """A name of images, without where their folder is on this machine."""
    return Path(source).name if source.startswith(("/", ".", "~")) else source


def _describe_results(rows: list[Row], results: dict) -> str:
    if not rows:
        return "This model has not been evaluated."
    parts = [_table(header, lines) for header, *lines in tables(rows)]
    protocol = _protocol(results)
    parts += findings([Row(**row) for row in results["rows"]])  # also those that the tables leave out
    parts += few_images(protocol.get("train_images"))
    if interval_note(rows):
        parts.append(interval_note(rows))
    shown = _shown(protocol)
    shown |= {key: _without_place(str(shown[key])) for key in ("source", "test_source") if key in shown}
    lines = [[f"`{key}`", f"`{value}`"] for key, value in shown.items()]
    versions = ", ".join(f"{key} {value}" for key, value in results.get("versions", {}).items())
    details = [_table(["protocol", "value"], lines)] if lines else []
    if versions:
        details.append(f"Measured with {versions}.")
    if details:
        parts += ["<details><summary>How it was measured</summary>", *details, "</details>"]
    return "\n\n".join(parts)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
