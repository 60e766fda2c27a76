"""Write files and folders whole: a kill or a full disk leaves the old content or the new, never half of either.

The names of the files in a run, a checkpoint and a model folder are defined here as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# In the folder of a run.
SETTINGS_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
CHECKPOINTS = "checkpoints"
MODEL_FOLDER = "model"
PLACEHOLDER = "USER/NAME"  # of a repository, in commands that a user completes
FINETUNE_SETTINGS_FILE = "finetune.yaml"
# In a checkpoint. SETTINGS_FILE, WEIGHTS_FILE and CONFIG_FILE are there too.
STATE_FILE = "run_state.json"
# In a model folder.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PROCESSOR_FILE = "preprocessor_config.json"
CARD_FILE = "README.md"
STATE_FOLDER = "training_state"  # the checkpoint from which the model was exported

# Settings that are places on the machine of a run, or decisions of its owner: cards and published settings omit them.
OWN_SETTINGS = (
    "output_dir",
    "resume_from_checkpoint",
    "report_to",
    "push_to_hub",
    "push_training_state",
    "hub_model_id",
)
LOCAL_DATA_SETTINGS = ("train_dir", "data_files", "knn_guard_data_files")


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type when the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def message_of(error: BaseException, limit: int = 400) -> str:
    """The message of an error on one line, at most `limit` characters of it."""
    return " ".join(str(error).split())[:limit]


def path_beside(path: Path) -> Path:
    """Where the new content of a file or folder is written first; a kill may leave it there."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def write_whole(path: Path, is_shared: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to; it replaces `path` at the end, unless an error was raised.

    Args:
        is_shared: whether other processes may write the same file at the same time.
    """
    new = path_beside(path)
    if is_shared:
        new = new.with_suffix(f".{os.getpid()}")
    yield new
    flush_to_disk(new)
    os.replace(new, path)
    flush_to_disk(path.parent)


def write_text_whole(path: Path, text: str) -> None:
    """Replace the content of a text file (`write_whole`)."""
    with write_whole(path) as new:
        new.write_text(text, encoding="utf-8")


@contextmanager
def write_folder_whole(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to write into; it replaces `path` at the end, unless an error was raised.

    Whoever may read the folder may read its files: safetensors writes them for their owner alone.
    """
    path = Path(os.path.abspath(path))
    new = path_beside(path)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        readable = new.stat().st_mode & 0o666
        for file in (new, *new.rglob("*")):
            if file.is_file():
                file.chmod(readable)
            flush_to_disk(file)
        if path.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        new.rename(path)
        flush_to_disk(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.is_dir():
            shutil.rmtree(old, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """Flush what the system still buffers for a file, or for the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_model(run: Path, folder: Path) -> None:
    """Let transformers load the folder of a run: make its model files links to those in `folder`, below it.

    A file system without links is left as it is.
    """
    for name in (WEIGHTS_FILE, PROCESSOR_FILE, CONFIG_FILE):
        beside = path_beside(run / name)
        with suppress(OSError):
            beside.unlink(missing_ok=True)
            beside.symlink_to(folder.relative_to(run) / name)
            os.replace(beside, run / name)
