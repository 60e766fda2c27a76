"""Upload a folder to the Hub in one commit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..files import first_line
from .folder import check_model_folder, files_of

_STALE_PATTERNS = (".safetensors", ".safetensors.index.json", ".py")
_PERMANENT_STATUS = (400, 401, 403, 404, 409, 413, 422)


def push_hub_folder(folder: str | Path, repo_id: str, **options: Any) -> str:
    """Upload a model folder in one commit, and return the URL of the commit (`push_files`, with its options).

    Raises:
        ValueError: as `push_files`, or the folder is not a complete model folder.
    """
    folder = Path(folder)
    check_model_folder(folder)
    return push_files(files_of(folder), repo_id, "model", **options)


def push_files(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    repo_type: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    max_attempts: int = 5,
    wait_seconds: float = 2.0,
) -> str:
    """Upload files in one commit, and return its URL. A missing repository is created.

    When the connection breaks, the upload is tried again after a growing pause; files that have arrived are not sent
    again. The same commit deletes weights and code of an earlier upload that are not among the files.

    Args:
        files: by their path in the repository.
        repo_type: `"model"`, or `"space"` (Gradio).
        token: default: the environment's (`HF_TOKEN`) or the one of `hf auth login`.
        revision: a branch, created if it is missing; default: main.

    Raises:
        ValueError: the name is not allowed, the Hub refuses, or it is offline.
        ConnectionError: the last of `max_attempts` failed.
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    sdk = "gradio" if repo_type == "space" else None
    for attempt in range(1, max_attempts + 1):
        try:
            repo_id = api.create_repo(
                repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk
            ).repo_id
            at = {"repo_type": repo_type, "revision": revision}
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
            present = api.list_repo_files(repo_id, **at)
            stale = [name for name in present if name.endswith(_STALE_PATTERNS) and name not in files]
            operations = [
                *(CommitOperationDelete(name) for name in stale),
                *(CommitOperationAdd(name, content) for name, content in files.items()),
            ]
            return api.create_commit(repo_id, operations, commit_message=commit_message, **at).commit_url
        except (HTTPError, OSError, RuntimeError) as error:
            if isinstance(error, OfflineModeIsEnabled):
                raise ValueError(f"cannot upload to {repo_id} offline: unset HF_HUB_OFFLINE") from None
            refusal = _refusal(error)
            if refusal is not None:
                raise ValueError(f"the Hub refuses the upload to {repo_id}: {refusal}") from error
            if attempt == max_attempts:
                reason = first_line(error.__cause__ or error)
                raise ConnectionError(
                    f"upload to {repo_id} failed {attempt} times, last: {reason}; "
                    f"check the connection to {api.endpoint} and run it again to continue"
                ) from error
            time.sleep(min(wait_seconds * 2 ** (attempt - 1), 60))
    raise ValueError(f"max_attempts must be at least 1, got {max_attempts}")


def check_repo_id(repo_id: str) -> None:
    """Raise a `ValueError` unless it can be the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"expected a repository name like user/name, got {repo_id!r}: {error}") from None


def _refusal(error: BaseException) -> str | None:
    """Why another attempt would fail too; None for a broken connection or a server error."""
    if isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return f"status {status}, a token with write access is needed (HF_TOKEN or hf auth login)"
    if status in _PERMANENT_STATUS:
        return f"status {status}, {getattr(error, 'server_message', None) or first_line(error)}"
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return str(error)
    return None
