"""Model cards, filled from the files of a run, so that no number in them is written by hand."""

from __future__ import annotations

import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.results import INTERVAL, Row, tables
from ..files import METRICS_FILE, RESULTS_FILE, SETTINGS_FILE
from .license import LICENSE_PATTERN, describe_base, hub_id, license_of

_CONTROLS = ("random weights", "raw pixels")
_BUILDERS = ("arrow", "csv", "imagefolder", "json", "parquet", "text", "webdataset")


def read_template() -> str:
    """The text of the template, publish/TEMPLATE.md, as it is installed with the package."""
    return (files("eqcohvit.publish") / "TEMPLATE.md").read_text(encoding="utf-8")


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """What a run left behind: `name`, `settings` (config.yaml), `metrics` (last line of metrics.jsonl), `results`
    (results.json or none).

    Raises:
        ValueError: there is no run in this folder.
    """
    run_dir = Path(run_dir)
    if not (run_dir / SETTINGS_FILE).is_file():
        raise ValueError(f"{run_dir} holds no run: expected {SETTINGS_FILE} in it")
    metrics = run_dir / METRICS_FILE
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    results = run_dir / RESULTS_FILE
    return {
        "name": run_dir.resolve().name,
        "settings": yaml.safe_load((run_dir / SETTINGS_FILE).read_text()),
        "metrics": json.loads(lines[-1]) if lines else {},
        "results": json.loads(results.read_text()) if results.is_file() else None,
    }


def render_card(template: str, run: dict[str, Any], results: dict[str, Any] | None = None) -> str:
    """Fill a card's `{{ placeholders }}` from a run's own files (`read_run`) and, where there is one, its evaluation.

    Args:
        template: text of the template, from `read_template`.
        run: `settings`, `metrics`, `name`.
        results: of scripts/evaluate.py or scripts/finetune.py: `rows` (`evaluation.results.Row`), and `protocol` or
            `settings`. Rows with `headline: false` are details that a card leaves out.

    Raises:
        ValueError: a placeholder is unknown, or the front-matter is not valid.
    """
    settings, metrics = run["settings"], run.get("metrics") or {}
    repo_id = run.get("repo_id") or settings.get("hub_model_id") or run["name"]
    rows = [row for row in (Row(**row) for row in (results or {"rows": []})["rows"]) if row.headline]
    base, license = describe_base(settings), license_of(settings)
    fields = {
        "license_fields": yaml.safe_dump(license.fields, sort_keys=False).strip(),
        "license": license.text,
        "front_matter": _front_matter(settings, repo_id, rows, results or {}, run["name"]),
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "backbone": f"{f'that of {base}, trained further' if base else settings['model_preset']} ({settings['backbone']})",
        "image_size": settings["image_size"],
        "invariant_dim": settings["feature_dim"] - settings["equivariant_dim"],
        "settings_table": _table(["setting", "value"], [[f"`{k}`", f"`{v}`"] for k, v in _shown(settings).items()]),
        "data": _describe_data(settings),
        "progress_table": _table(["metric", "last logged value"], [[f"`{k}`", f"{v:.4g}"] for k, v in metrics.items()])
        if metrics
        else "No metrics were logged.",
        "results": _describe_results(rows, results or {}),
        **{
            key: settings[key]
            for key in ("objective", "path", "augmentation", "border", "recon_weight", "num_intermediates")
        },
        **{key: settings[key] for key in ("feature_dim", "equivariant_dim", "seed")},
        "steps": metrics.get("step", 0),
    }
    unknown = sorted(set(re.findall(r"{{\s*(\w+)\s*}}", template)) - set(fields))
    if unknown:
        raise ValueError(f"unknown placeholder {unknown[0]!r} in the template; known: {', '.join(sorted(fields))}")
    card = re.sub(r"{{\s*(\w+)\s*}}", lambda match: str(fields[match[1]]), template)
    check_card(card)
    return card


def check_card(card: str) -> dict[str, Any]:
    """The parsed front-matter of a model card; offline stand-in for the Hub's own check.

    Raises:
        ValueError: the front-matter is missing or has a field that the Hub would refuse, or a placeholder was left.
    """
    match = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    if match is None:
        raise ValueError("a model card begins with front-matter between two lines of ---")
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the card's front-matter is no YAML: {' '.join(str(error).split())}") from None
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
    """The settings that a reader can use; places on the machine of the run are its owner's business."""
    local = {
        "output_dir",
        "output",
        "model",
        "resume_from_checkpoint",
        "report_to",
        "push_to_hub",
        "push_training_state",
        "hub_model_id",
    }
    local |= {"train_dir", "data_files", "test_data_files", "knn_guard_data_files"}
    local |= {
        key
        for key, name in (("dataset_name", _dataset_id(settings)), ("init_from", hub_id(settings.get("init_from"))))
        if not name
    }
    return {key: value for key, value in settings.items() if key not in local and value not in (None, [], "")}


def _dataset_id(settings: dict[str, Any]) -> str | None:
    """The Hub id of the run's dataset, where it has one."""
    name = settings.get("dataset_name")
    return None if settings.get("data_files") or name in _BUILDERS else hub_id(name)


def _describe_data(settings: dict[str, Any]) -> str:
    if settings.get("train_dir"):
        return "The images of a local folder; no labels were used."
    if settings.get("dataset_name") or settings.get("data_files"):
        name = _dataset_id(settings)
        source = f"[{name}](https://huggingface.co/datasets/{name})" if name else "a local dataset"
        return f"Split `{settings['dataset_split']}` of {source}, streamed; no labels were used."
    photographs = (
        "" if describe_base(settings) else "no photographs and "
    )  # the model that it continued from may have seen some
    return f"The drawn sprites that are embedded in the package, generated while training; {photographs}no labels were used."


def _protocol(results: dict[str, Any]) -> dict[str, Any]:
    protocol = results.get("protocol", results.get("settings", {}))
    return protocol if isinstance(protocol, dict) else {"protocol": protocol}


def _own_name(rows: list[Row], run_name: str) -> str | None:
    names = list(dict.fromkeys(row.encoder for row in rows if not row.encoder.startswith(_CONTROLS)))
    if run_name in names or not names:
        return run_name if names else None
    if len(names) > 1:
        raise ValueError(
            f"the results are of several models ({', '.join(names)}), and none has the run's name {run_name!r}"
        )
    return names[0]


def _front_matter(settings: dict, repo_id: str, rows: list[Row], results: dict, run_name: str) -> str:
    """The fields of the front-matter that depend on the run, as YAML: `datasets`, `base_model` and `model-index` where
    there are any."""
    data: dict[str, Any] = {}
    dataset = _dataset_id(settings)
    if dataset:
        data["datasets"] = [dataset]
    start = hub_id(settings.get("init_from"))
    if start:
        data |= {"base_model": start, "base_model_relation": "finetune"}
    own = _own_name(rows, run_name)
    if own is not None:
        source = str(_protocol(results).get("test_source") or _protocol(results).get("source") or "see the card")
        source = Path(source).name if source.startswith(("/", ".", "~")) else source
        entries = [
            {
                "task": {"type": "image-feature-extraction", "name": str(results.get("task", "Frozen features"))},
                "dataset": {"type": re.sub(r"[^\w./-]+", "-", source).strip("-").lower(), "name": source},
                "metrics": [
                    {
                        "type": re.split(r"[\s,-]", row.metric)[0].lower(),
                        "value": round(row.mean, 4),
                        "name": f"{row.metric} ({row.part})",
                    }
                ],
            }
            for row in rows
            if row.encoder == own
        ]
        data["model-index"] = [{"name": repo_id.split("/")[-1], "results": entries}]
    return (
        yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip()
        if data
        else "# no dataset of the Hub, no measured results"
    )


def _describe_results(rows: list[Row], results: dict) -> str:
    if not rows:
        return "This model has not been evaluated."
    measured = [_table(header, lines) for header, *lines in tables(rows)]
    protocol = _shown(_protocol(results))
    shown = _table(["protocol", ""], [[f"`{key}`", f"`{value}`"] for key, value in protocol.items()])
    versions = ", ".join(f"{key} {value}" for key, value in results.get("versions", {}).items())
    measured += [INTERVAL] if any(row.half is not None for row in rows) else []
    return "\n\n".join(
        [*measured, *([shown] if protocol else []), *([f"Measured with {versions}."] if versions else [])]
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
