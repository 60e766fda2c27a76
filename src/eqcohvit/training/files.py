"""Writing files so that a kill or a full disk leaves the old content or the new one, never half of either."""

from __future__ import annotations

import os
from pathlib import Path


def path_beside(path: Path) -> Path:
    """Where the new content of a file is written first; a kill may leave it there."""
    return path.with_name(f".{path.name}.new")


def write_text_whole(path: Path, text: str) -> None:
    """Replace the content of `path`: written beside it, flushed to the disk, then renamed."""
    beside = path_beside(path)
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Flush what the system still holds of a file, or of the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
