"""Hub folders: write one whole, fill its model card from a run's files, upload it in one commit."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .base_model import LICENSE_PATTERN, describe_base, hub_id, license_of
from .hub.image_processing_eqcohvit import EqCohViTImageProcessorPil

CARD_NAME, STATE_FOLDER = "README.md", "training_state"
CONTROLS = ("random weights", "raw pixels")
_STALE_PATTERNS = (".safetensors", ".safetensors.index.json", ".py")
_BUILDERS = ("arrow", "csv", "imagefolder", "json", "parquet", "text", "webdataset")
_PERMANENT_STATUS = (400, 401, 403, 404, 409, 413, 422)


# ---------------------------------------------------------------------------------------------------------------- folder


def save_hub_folder(
    folder: str | Path,
    model: PreTrainedModel,
    *,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
    card: str | None = None,
    training_state: Path | None = None,
) -> Path:
    """Write a complete Hub folder: weights, configuration, image processor, the code of the model, and README.md where a card is given.

    It is written beside its place and then renamed, so that a reader never sees half of it; an older Hub folder there is replaced.

    Args:
        model: any of the EqCohViT models.
        image_mean, image_std: per channel, of images in [0, 1]; what the model was trained with.
        card: text of the model card.
        training_state: folder of a checkpoint of the run, copied to `training_state/`: who has it can go on exactly from there.

    Raises:
        ValueError: the model is none of ours, mean or std do not fit it, or the place holds something else.
    """
    folder = Path(os.path.abspath(folder))
    if not isinstance(model, PreTrainedModel) or model.config.model_type != "eqcohvit":
        raise ValueError(f"expected an EqCohViT model, got {type(model).__name__}")
    channels = model.config.num_channels
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if len(values) != channels:
            raise ValueError(f"{name} needs {channels} numbers, one for each channel of the model, got {len(values)}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()):
        raise ValueError(f"{folder} is there and is no model folder: give another place")
    side = model.config.square_image_size
    processor = EqCohViTImageProcessorPil(
        size={"height": side, "width": side}, image_mean=list(map(float, image_mean)), image_std=list(map(float, image_std))
    )
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        if card is not None:
            (new / CARD_NAME).write_text(card, encoding="utf-8")
        if training_state is not None:
            shutil.copytree(training_state, new / STATE_FOLDER)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
    return folder


# ---------------------------------------------------------------------------------------------------------------- upload


def push_hub_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    *,
    max_attempts: int = 5,
    wait_seconds: float = 2.0,
) -> str:
    """Upload a Hub folder in one commit and return the commit's URL; the repository is made where it is missing.

    After a broken connection it is tried again, waiting longer each time; what has arrived is not sent again. Weights and code of an
    earlier upload that the folder no longer holds are deleted in the same commit.

    Args:
        token: by default the one of the environment (`HF_TOKEN`) or of `hf auth login`.
        revision: a branch, made where it is missing; default: main.

    Raises:
        ValueError: the folder is no Hub folder, the name is not allowed, or the Hub refuses.
        ConnectionError: it still fails after `max_attempts`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: expected config.json and *.safetensors in it")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no weights: expected *.safetensors beside config.json")
    return push_files(files_of(folder), repo_id, "model", private, token, revision, commit_message, max_attempts, wait_seconds)


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in a repository; hidden ones and caches stay behind."""
    files = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {name.as_posix(): path for name, path in files if not any(part.startswith((".", "__pycache__")) for part in name.parts)}


def push_files(
    files: dict[str, Path],
    repo_id: str,
    repo_type: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload",
    max_attempts: int = 5,
    wait_seconds: float = 2.0,
) -> str:
    """Upload files by their path in a repository of type `"model"` or `"space"` (of Gradio), as `push_hub_folder` does and fails."""
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"expected a repository name like user/name, got {repo_id!r}: {error}") from None
    api, sdk = HfApi(token=token), "gradio" if repo_type == "space" else None
    for attempt in range(1, max_attempts + 1):
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk).repo_id
            at = {"repo_type": repo_type, "revision": revision}
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
            there = api.list_repo_files(repo_id, **at)
            operations = [
                *(CommitOperationDelete(name) for name in there if name.endswith(_STALE_PATTERNS) and name not in files),
                *(CommitOperationAdd(name, path) for name, path in files.items()),
            ]
            return api.create_commit(repo_id, operations, commit_message=commit_message, **at).commit_url
        except (HTTPError, OSError, RuntimeError) as error:
            refusal = _refusal(error)
            if refusal is not None:
                raise ValueError(f"the Hub refuses the upload to {repo_id}: {refusal}") from error
            if attempt == max_attempts:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise ConnectionError(f"upload to {repo_id} failed {attempt} times, last: {reason}; run it again to go on") from error
            time.sleep(min(wait_seconds * 2 ** (attempt - 1), 60))
    raise ValueError(f"max_attempts must be at least 1, got {max_attempts}")


def _refusal(error: BaseException) -> str | None:
    """Why trying again is of no use; none for a broken connection or a server in trouble."""
    if isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return f"status {status}, a token with write access is needed (HF_TOKEN or hf auth login)"
    if status in _PERMANENT_STATUS:
        return f"status {status}, {getattr(error, 'server_message', None) or str(error).splitlines()[0]}"
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return None


# ------------------------------------------------------------------------------------------------------------------ card


def read_run(run_dir: str | Path) -> dict[str, Any]:
    """What a run left behind: `name`, `settings` (config.yaml), `metrics` (last line of metrics.jsonl), `results` (results.json or none).

    Raises:
        ValueError: there is no run in this folder.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise ValueError(f"{run_dir} holds no run: expected config.yaml in it")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines() if (run_dir / "metrics.jsonl").is_file() else []
    results = run_dir / "results.json"
    return {
        "name": run_dir.resolve().name,
        "settings": yaml.safe_load((run_dir / "config.yaml").read_text()),
        "metrics": json.loads(lines[-1]) if lines else {},
        "results": json.loads(results.read_text()) if results.is_file() else None,
    }


def render_card(template: str, run: dict[str, Any], results: dict[str, Any] | None = None) -> str:
    """Fill a card's `{{ placeholders }}` from a run's own files (`read_run`) and, where there is one, its evaluation.

    Args:
        template: text of model_cards/TEMPLATE.md.
        run: `settings`, `metrics`, `name`.
        results: of scripts/evaluate.py: `rows` of `{name | encoder, part, metric, mean, std | values}`, and `protocol` or `settings`.
            Rows with `headline: false` are details that a card leaves out.

    Raises:
        ValueError: a placeholder is unknown, or the front-matter is not valid.
    """
    settings, metrics = run["settings"], run.get("metrics") or {}
    repo_id = run.get("repo_id") or settings.get("hub_model_id") or run["name"]
    rows = [_result_row(row) for row in results["rows"] if row.get("headline", True)] if results else []
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
        **{key: settings[key] for key in ("objective", "path", "augmentation", "border", "recon_weight", "num_intermediates")},
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
                if not isinstance(metric.get("type"), str) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise ValueError(f"each metric of the card's model-index needs a type and a finite value, got {metric!r}")
    return data


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a reader can use; places on the machine of the run are its owner's business."""
    local = {"output_dir", "output", "model", "resume_from_checkpoint", "report_to", "push_to_hub", "push_training_state", "hub_model_id"}
    local |= {"train_dir", "data_files", "test_data_files", "knn_guard_data_files"}
    local |= {key for key, name in (("dataset_name", _dataset_id(settings)), ("init_from", hub_id(settings.get("init_from")))) if not name}
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
    photographs = "" if describe_base(settings) else "no photographs and "  # the model that it continued from may have seen some
    return f"The drawn sprites that are embedded in the package, generated while training; {photographs}no labels were used."


def _result_row(row: dict[str, Any]) -> dict[str, Any]:
    """One row with `name`, `part`, `metric`, `mean`, `std` (none for a single seed), from either form of results.json."""
    values = row.get("values") or []
    mean = row["mean"] if "mean" in row else sum(values) / len(values)
    std = row.get("std")
    if std is None and len(values) > 1:
        std = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return {"name": row.get("name") or row["encoder"], "part": row["part"], "metric": row["metric"], "mean": mean, "std": std}


def _protocol(results: dict[str, Any]) -> dict[str, Any]:
    protocol = results.get("protocol", results.get("settings", {}))
    return protocol if isinstance(protocol, dict) else {"protocol": protocol}


def _own_name(rows: list[dict[str, Any]], run_name: str) -> str | None:
    names = list(dict.fromkeys(row["name"] for row in rows if not row["name"].startswith(CONTROLS)))
    if run_name in names or not names:
        return run_name if names else None
    if len(names) > 1:
        raise ValueError(f"the results are of several models ({', '.join(names)}), and none has the run's name {run_name!r}")
    return names[0]


def _front_matter(settings: dict, repo_id: str, rows: list[dict], results: dict, run_name: str) -> str:
    """The fields of the front-matter that depend on the run, as YAML: `datasets`, `base_model` and `model-index` where there are any."""
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
                        "type": re.split(r"[\s,-]", row["metric"])[0].lower(),
                        "value": round(row["mean"], 4),
                        "name": f"{row['metric']} ({row['part']})",
                    }
                ],
            }
            for row in rows
            if row["name"] == own
        ]
        data["model-index"] = [{"name": repo_id.split("/")[-1], "results": entries}]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip() if data else "# no dataset of the Hub, no measured results"


def _describe_results(rows: list[dict], results: dict) -> str:
    if not rows:
        return "This model has not been evaluated."
    cells = [[row["name"], row["part"], row["metric"], _mean_and_std(row)] for row in rows]
    table = _table(["features of", "part", "metric", "value"], cells)
    protocol = _shown(_protocol(results))
    shown = _table(["protocol", ""], [[f"`{key}`", f"`{value}`"] for key, value in protocol.items()])
    versions = ", ".join(f"{key} {value}" for key, value in results.get("versions", {}).items())
    return "\n\n".join(filter(None, [table, shown if protocol else "", f"Measured with {versions}." if versions else ""]))


def _mean_and_std(row: dict[str, Any]) -> str:
    return f"{row['mean']:.3f}" + (f" ± {row['std']:.3f}" if row["std"] is not None else "")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
