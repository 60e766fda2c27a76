"""The images that probes are fitted and tested on."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from operator import length_hint

import torch

from ..data import Batch, CanvasStream, Source
from ..preprocessing import FIT
from .settings import DataSettings

BLOCK_SIZE = 32  # images
TEST_SPRITES = 1 << 40  # number of the first test sprite, which no training run reaches
GROUP_SHARDS = 64  # read side by side, so that the images come from all over the data
_WINDOW_BYTES = 1 << 28  # of undecoded images that are shuffled together
_ROW_BYTES = 1 << 9  # of a path or an index, at least
_LEAST_WINDOW = 2048  # images
_ENOUGH_CLASSES = 0.8


@dataclass(frozen=True)
class ProbeImages:
    """`num_train` images to fit on and `num_test` images to test on, from sources that share no image.

    If both come from one source, the first `num_test` images of its shuffled order are the test images.
    """

    train: Source
    test: Source
    num_train: int
    num_test: int
    num_workers: int = 0
    max_bad_fraction: float = 0.01

    def count(self, part: str) -> int:
        """How many images to expect: no more than the source has, if it says so."""
        number = getattr(self, f"num_{part}")
        return min(number, length_hint(getattr(self, part)) or number)

    def fingerprint(self, part: str) -> str:
        """Changes if other images could come: from another source, or others of the same source."""
        shared = self.train is self.test and part == "train"
        return f"{getattr(self, part).fingerprint} {getattr(self, f'num_{part}')} {self.num_test if shared else 0}"

    def blocks(
        self, part: str, canvas: int, seen: int = 0, position: dict | None = None
    ) -> Iterator[tuple[Batch, int]]:
        """The `"train"` or `"test"` images in blocks of up to 32, in a fixed shuffled order, each image once.

        They are mixed from up to 64 shards, and from as many rows as `shuffle_window` says, because data may be sorted
        by class. Each block comes with the number of images of the stream that were read so far. That number and the
        position of the block say where to continue.

        Args:
            canvas: side of the square canvases in pixels.
            seen, position: where to continue.
        """
        start = self.num_test if self.train is self.test and part == "train" else 0
        stop = start + getattr(self, f"num_{part}")
        source = getattr(self, part)
        batches = CanvasStream(
            source,
            canvas,
            BLOCK_SIZE,
            num_workers=self.num_workers,
            shuffle_window=shuffle_window(source),
            group_shards=GROUP_SHARDS,
            max_bad_fraction=self.max_bad_fraction,
            position=position,
            fit=FIT,
        )
        for batch in batches:
            first_epoch = batch.epochs == 0
            index = torch.arange(seen, seen + len(batch))
            wanted = first_epoch & (index >= start) & (index < stop)
            seen += len(batch)
            if wanted.any():
                yield _rows_of(batch, wanted), seen
            if seen >= stop or not first_epoch.all():
                return


def _rows_of(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some images of a batch."""
    return Batch(
        canvases=batch.canvases[rows],
        sizes=batch.sizes[rows],
        keys=batch.keys[rows],
        epochs=batch.epochs[rows],
        labels=batch.labels[rows],
        position=batch.position,
    )


def shuffle_window(source: Source) -> int:
    """How many undecoded images to shuffle at a time: as many as 256 MiB hold, judging by the first one.

    Paths and indices are shuffled all at once.
    """
    records = (record for shard in range(source.num_shards) for record in source.read_shard(shard, 0))
    record = next(records, None)
    payload = record.payload if record is not None else None
    num_bytes = len(payload) if isinstance(payload, (bytes, bytearray, memoryview, str)) else _ROW_BYTES
    return max(_LEAST_WINDOW, _WINDOW_BYTES // max(num_bytes, _ROW_BYTES))


def missing_classes(labels: torch.Tensor, num_classes: int) -> str:
    """One line that says that labels (N,) cover too few classes; empty if they cover as many as a random choice would.

    A random choice of N images of C classes covers C (1 - (1 - 1/C)^N) on average. Less than 4/5 of that is too few.
    """
    seen = labels[labels >= 0].unique()
    expected = num_classes * (1 - (1 - 1 / max(num_classes, 1)) ** len(labels))
    if not len(seen) or len(seen) >= _ENOUGH_CLASSES * expected:
        return ""
    found = f"labels of {len(seen)} of {num_classes} classes in {len(labels)} images"
    return f"{found}: the data seem to be sorted by class, shuffle them"


# --------------------------------------------------------------------------------------------------------------- checks


def check_test_data(data: DataSettings) -> None:
    """Check the flags of the data.

    Raises:
        ValueError: they contradict each other, or an image would be both fitted and tested on.
    """
    if data.data_files is None and data.train_dir is None and data.dataset_name is None:
        for name in ("test_split", "test_data_files"):
            if value := getattr(data, name):
                allowed = "give dataset_name or data_files too"
                raise ValueError(f"{name} needs data to fit on, got only {name}={value!r}: {allowed}")
    if data.test_split and not data.test_data_files:
        if data.data_files is not None or data.train_dir is not None:  # then a split is only a name for all the files
            got = f"got test_split={data.test_split!r} and files"
            allowed = "give test_data_files, or neither to hold some out"
            raise ValueError(f"test_split needs dataset_name without data_files, {got}: {allowed}")
        if data.test_split == data.dataset_split:
            both = f"got {data.test_split!r} for both"
            raise ValueError(f"test_split must be another split than dataset_split, {both}")
    if data.test_data_files:
        folder = data.dataset_name if data.dataset_name and os.path.isdir(data.dataset_name) else "."
        fitting = {"train_dir": data.train_dir, "data_files": data.data_files}
        _check_no_file_twice(folder, fitting, data.test_data_files)


def _check_no_file_twice(folder: str, fitting: dict[str, str | None], test_data_files: str) -> None:
    """Raise a `ValueError` if a test file is also fitted on, by whatever path or link."""
    tested = _real_files(folder, test_data_files)
    for name, value in fitting.items():
        fitted = _real_files(folder, value) if value else {}
        common = sorted(fitted.keys() & tested.keys(), key=str)
        if common:
            path = fitted[common[0]]
            rest = f" and {len(common) - 1} more" if len(common) > 1 else ""
            problem = f"test_data_files must share no file with {name}, but {path}{rest} is in both"
            raise ValueError(f"{problem}: give other files to test on")


def _real_files(folder: str, patterns: str) -> dict[tuple[int, int] | str, str]:
    """Identity -> path of each file that comma-separated patterns and folders name.

    The identity of a file on another machine is its address.
    """
    found: dict[tuple[int, int] | str, str] = {}
    for pattern in [patterns] if os.path.exists(patterns) else patterns.split(","):
        pattern = pattern.strip()
        if "://" in pattern:
            found[pattern] = pattern
            continue
        for match in glob.glob(os.path.join(folder, os.path.expanduser(pattern)), recursive=True):
            inside = [match]
            if not os.path.isfile(match):
                inside = glob.glob(os.path.join(glob.escape(match), "**"), recursive=True)
            for path in filter(os.path.isfile, inside):
                status = os.stat(path)
                found[status.st_dev, status.st_ino] = os.path.normpath(path)
    return found
