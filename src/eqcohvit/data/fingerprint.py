"""Fingerprints of data, by which cached features and published numbers identify their images."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

WHOLE_BYTES = 1 << 25  # files up to this size, 32 MiB, are read whole
SAMPLES = 64  # of a larger file, spread evenly, its beginning and its end included
SAMPLE_BYTES = 1 << 16
MARKED_FILES = 1024  # of which `content_mark` reads a little


def digest(parts: Sequence[Any]) -> str:
    """Hexadecimal digest of plain values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def file_mark(path: str, whole_bytes: int = WHOLE_BYTES, sample_bytes: int = SAMPLE_BYTES) -> tuple[Any, ...]:
    """Name, size and a digest of the content of a local file; the address of a remote one, which holds its commit.

    A file of more than `whole_bytes` is not read whole: the digest is of 64 samples of `sample_bytes`, and the time of
    its last change is part of the mark. So a copy with another time counts as another file. A change between the
    samples is missed only if size and time stay the same, for example because a tool restores the time.
    """
    if "://" in path:
        return (path,)
    name = os.path.basename(path)
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size <= whole_bytes:
            return (name, status.st_size, hashlib.sha256(file.read()).hexdigest())
        content = hashlib.sha256()
        last = status.st_size - sample_bytes
        for index in range(SAMPLES):
            file.seek(index * last // (SAMPLES - 1))
            content.update(file.read(sample_bytes))
    return (name, status.st_size, status.st_mtime_ns, content.hexdigest())


def content_mark(files: Sequence[str]) -> str:
    """Digest of the sizes and of the first and last bytes of local files, at most 1024 of them, spread evenly.

    It does not depend on where the files are. Remote and unreadable files are skipped.
    """
    step = -(-len(files) // MARKED_FILES) or 1
    parts = []
    for path in files[::step]:
        with suppress(OSError), open(path, "rb") as file:
            first = file.read(SAMPLE_BYTES)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - SAMPLE_BYTES, 0))
            parts.append((size, hashlib.sha256(first + file.read(SAMPLE_BYTES)).hexdigest()))
    return digest(parts)
