"""Hub folders: write one whole, upload it in one commit."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .hub import modeling_eqcohvit
from .hub.image_processing_eqcohvit import EqCohViTImageProcessorPil
from .loading import STATE_FILE, find_model, load_whole

CARD_NAME, STATE_FOLDER = "README.md", "training_state"
_STALE_PATTERNS = (".safetensors", ".safetensors.index.json", ".py")
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
    """Write a complete Hub folder: weights, configuration, image processor, the code of the model, and README.md where
    a card is given.

    It is written beside its place and then renamed, so that a reader never sees half of it; an older Hub folder there
    is replaced.

    Args:
        model: any of the EqCohViT models.
        image_mean, image_std: per channel, of images in [0, 1]; what the model was trained with.
        card: text of the model card.
        training_state: folder of a checkpoint of the run, copied to `training_state/`: who has it can go on exactly
            from there.

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
        size={"height": side, "width": side},
        image_mean=list(map(float, image_mean)),
        image_std=list(map(float, image_std)),
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


def model_folder_of(name: str | Path, new: Path) -> Path:
    """The model folder that `find_model` means; where that is a checkpoint of a run, its model is written as a Hub
    folder to `new`.

    Raises:
        ValueError: as `find_model`, and as `load_whole` for a checkpoint.
    """
    place = Path(find_model(name))
    if not (place / STATE_FILE).is_file():
        return place
    state = json.loads((place / STATE_FILE).read_text())
    model = load_whole(modeling_eqcohvit.EqCohViTForPreTraining, place)
    return save_hub_folder(new, model, image_mean=state["image_mean"], image_std=state["image_std"])


def check_model_folder(folder: Path) -> None:
    """Raise a `ValueError` unless it is a model folder; of an EqCohViT all weights must be there and fit its
    configuration."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: expected config.json and *.safetensors in it")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no weights: expected *.safetensors beside config.json")
    if (folder / STATE_FILE).is_file():
        raise ValueError(f"{folder} is a checkpoint of a run, no model folder: expected OUTPUT_DIR/model")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") == "eqcohvit":
        architecture = (config.get("architectures") or ["EqCohViTModel"])[0]
        load_whole(getattr(modeling_eqcohvit, architecture, modeling_eqcohvit.EqCohViTModel), folder)


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

    After a broken connection it is tried again, waiting longer each time; what has arrived is not sent again. Weights
    and code of an earlier upload that the folder no longer holds are deleted in the same commit.

    Args:
        token: by default the one of the environment (`HF_TOKEN`) or of `hf auth login`.
        revision: a branch, made where it is missing; default: main.

    Raises:
        ValueError: the folder is no Hub folder, lacks weights, the name is not allowed, or the Hub refuses.
        ConnectionError: it still fails after `max_attempts`.
    """
    folder = Path(folder)
    check_model_folder(folder)
    return push_files(
        files_of(folder), repo_id, "model", private, token, revision, commit_message, max_attempts, wait_seconds
    )


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in a repository; hidden ones and caches stay behind."""
    files = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        name.as_posix(): path
        for name, path in files
        if not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }


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
    """Upload files by their path in a repository of type `"model"` or `"space"` (of Gradio), as `push_hub_folder` does
    and fails."""
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"expected a repository name like user/name, got {repo_id!r}: {error}") from None
    api, sdk = HfApi(token=token), "gradio" if repo_type == "space" else None
    for attempt in range(1, max_attempts + 1):
        try:
            repo_id = api.create_repo(
                repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk
            ).repo_id
            at = {"repo_type": repo_type, "revision": revision}
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
            there = api.list_repo_files(repo_id, **at)
            operations = [
                *(
                    CommitOperationDelete(name)
                    for name in there
                    if name.endswith(_STALE_PATTERNS) and name not in files
                ),
                *(CommitOperationAdd(name, path) for name, path in files.items()),
            ]
            return api.create_commit(repo_id, operations, commit_message=commit_message, **at).commit_url
        except (HTTPError, OSError, RuntimeError) as error:
            refusal = _refusal(error)
            if refusal is not None:
                raise ValueError(f"the Hub refuses the upload to {repo_id}: {refusal}") from error
            if attempt == max_attempts:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise ConnectionError(
                    f"upload to {repo_id} failed {attempt} times, last: {reason}; run it again to go on"
                ) from error
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
