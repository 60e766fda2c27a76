"""Upload a folder to the Hub in one commit."""

from __future__ import annotations

import time
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..files import first_line
from .folder import check_model_folder, files_of

_STALE_PATTERNS = (".safetensors", ".safetensors.index.json", ".py")
_PERMANENT_STATUS = (400, 401, 403, 404, 409, 413, 422)


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
                reason = first_line(error.__cause__ or error)
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
        return f"status {status}, {getattr(error, 'server_message', None) or first_line(error)}"
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return None
