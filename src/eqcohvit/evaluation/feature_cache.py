"""Features on disk, in chunks that are written whole, so that an interrupted command continues at its chunk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..files import write_whole
from .features import Feature

DEFAULT_CACHE = Path(HF_HOME) / "eqcohvit" / "features"
_FOLDER_NAME = re.compile("[0-9a-f]{32}")
_IN_USE_SECONDS = 3600


@dataclass(frozen=True)
class Features:
    """Features of N images.

    Args:
        vectors: (N, V, d) of each kind, for V views of each image.
        parameters: (N, P) of g.
        labels: (N,), -1 if unknown.
        keys: (N,).
    """

    vectors: dict[Feature, torch.Tensor]
    parameters: torch.Tensor
    labels: torch.Tensor
    keys: torch.Tensor


class FeatureCache:
    """Chunks of the features of one encoder, in files chunk-00000.safetensors, chunk-00001.safetensors ...

    Args:
        identity: all that the features depend on, except the versions of the libraries and the device.
    """

    def __init__(self, root: str | Path, *identity: str):
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        parts = (torch.__version__, transformers.__version__, device, *identity)
        self.folder = Path(root) / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def state(self, index: int) -> dict | None:
        """Where the stream was after a chunk: `seen`, `position`, `last`. None if the chunk is missing or damaged."""
        try:
            with safe_open(self._path(index), "pt") as file:
                return json.loads(file.metadata()["state"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def num_done(self) -> tuple[int, bool]:
        """The number of chunks without a gap, and whether these are all chunks."""
        count = 0
        last = False
        while not last and (state := self.state(count)) is not None:
            count += 1
            last = state["last"]
        return count, last

    def write(self, index: int, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Write a chunk, whole or not at all. `state` is where the stream is after it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        contiguous = {name: values.contiguous() for name, values in tensors.items()}
        with write_whole(self._path(index), is_shared=True) as new:
            save_file(contiguous, new, metadata={"state": json.dumps(state)})

    def read(self) -> Features:
        """All chunks, joined."""
        os.utime(self.folder)  # marks it as used now, see `prune_cache`
        chunks = [load_file(self._path(index)) for index in range(self.num_done()[0])]
        whole = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        own = {name: whole.pop(name) for name in ("parameters", "labels", "keys")}
        return Features({Feature(*name.split("/")): values for name, values in whole.items()}, **own)

    def _path(self, index: int) -> Path:
        return self.folder / f"chunk-{index:05d}.safetensors"


def prune_cache(root: str | Path, max_bytes: float) -> int:
    """Remove the features that were used longest ago until the rest takes at most `max_bytes`.

    Features used within the last hour stay, because another command may be working on them.

    Returns:
        The number of bytes removed.
    """
    folders: list[tuple[float, int, Path]] = []
    for path in Path(root).glob("*"):
        if _FOLDER_NAME.fullmatch(path.name) and path.is_dir():
            with suppress(FileNotFoundError):  # another command has just removed or renamed a file in it
                folders.append((path.stat().st_mtime, sum(file.stat().st_size for file in path.glob("*")), path))
    total = sum(size for _, size, _ in folders)
    left = total
    for used, size, path in sorted(folders):
        if left <= max_bytes or time.time() - used < _IN_USE_SECONDS:
            break
        shutil.rmtree(path, ignore_errors=True)
        left -= size
    return total - left
