"""Labeled rows of a dataset in their usual columns, decoded late, with one-line errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..data.dataset_files import builder_for, expand_data_files
from ..data.decode import one_line
from ..hub.image_reading_eqcohvit import content_of, load, opened, quiet, to_rgb
from .images import check_test_data
from .settings import DataSettings

_HELD_OUT = 10  # every tenth row
_ROWS_PER_READ = 1000  # of a Parquet file, while it is converted
Rows = Any  # a datasets.Dataset, or anything with `len` and integer indexing to a dict of columns


class row_errors:  # noqa: N801  reads as a statement
    """Context manager that puts the row in front of the message of a `ValueError`."""

    def __init__(self, what: str, index: int):
        self.where = f"{what} row {index}"

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"{self.where}: {error}") from None


def open_rows(
    dataset_name: str | None,
    dataset_config_name: str | None,
    split: str,
    data_files: str | Sequence[str] | None,
    train_dir: str | None = None,
) -> datasets.Dataset:
    """A map-style dataset whose image columns stay undecoded: {"bytes": ..., "path": ...}.

    Args:
        data_files: as for pretraining: a glob, or several separated by commas; without `dataset_name` understood by its
            ending.
        train_dir: a folder tree of images instead, for tasks without labels.

    Raises:
        ValueError: the dataset, split or file does not exist.
    """
    if train_dir is not None:
        if dataset_name is not None or data_files is not None:
            raise ValueError("give either train_dir (a folder of images) or dataset_name / data_files, not both")
        path, files = "imagefolder", {split: f"{train_dir}/**"}
    elif data_files is not None:
        path = dataset_name or builder_for(data_files)
        files = expand_data_files(path, data_files, split)
    elif dataset_name is not None:
        path, files = dataset_name, None
    else:
        raise ValueError(
            "this task needs data: give --dataset_name or --data_files, or --train_dir for tasks without annotations"
        )
    # The default, the size of the file's first group, may be 0.
    options: dict[str, Any] = {"batch_size": _ROWS_PER_READ} if path == "parquet" else {}
    try:
        dataset = datasets.load_dataset(path, dataset_config_name, split=split, data_files=files, **options)
    except Exception as error:  # not found, gated, no connection, no such configuration or split, broken files
        # The outer error of datasets says only that there was one.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ValueError(f"cannot open dataset {path}: {one_line(cause, 400)}") from error
    if len(dataset) == 0:
        raise ValueError(f"dataset {path}, split {split}, has no rows")
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def open_train_and_test(
    data: DataSettings, default: Callable[[], tuple[Rows, Rows]] | None = None
) -> tuple[Rows, Rows]:
    """The rows to train and to test on.

    Without a test split or test files, every tenth row is held out; of fewer than ten, the last one.

    Args:
        default: makes both if no data are named.

    Raises:
        ValueError: the data do not exist, or none are named and there is no default.
    """
    check_test_data(data)
    if default is not None and data.dataset_name is None and data.data_files is None and data.train_dir is None:
        return default()
    dataset = (data.dataset_name, data.dataset_config_name)
    train = open_rows(*dataset, data.dataset_split, data.data_files, data.train_dir)
    if data.test_split or data.test_data_files:
        split = data.test_split or data.dataset_split
        return train, open_rows(*dataset, split, data.test_data_files or data.data_files, data.train_dir)
    if len(train) < 2:
        raise ValueError(
            "the dataset has only one row, too few to hold some out: give --test_split or --test_data_files"
        )
    held_out = [index for index in range(len(train)) if index % _HELD_OUT == _HELD_OUT - 1] or [len(train) - 1]
    kept = sorted(set(range(len(train))) - set(held_out))
    return train.select(kept), train.select(held_out)


def find_column(rows: Rows, wanted: str | None, usual: Sequence[str], purpose: str) -> str:
    """The column that holds the `purpose`: the wanted one, or the first of the usual names.

    Raises:
        ValueError: the dataset does not have it.
    """
    columns = list(rows.features)
    for name in [wanted] if wanted else usual:
        if name in columns:
            return name
    expected = wanted or " or ".join(usual)
    raise ValueError(f"the dataset has no column {expected} for the {purpose}; its columns: {', '.join(columns)}")


def read_image(row: dict[str, Any], column: str) -> Image.Image:
    """The upright RGB image of a row.

    Raises:
        ValueError: it cannot be decoded.
    """
    return to_rgb(_open(row, column))


def read_labels(row: dict[str, Any], column: str) -> np.ndarray:
    """The class index of each pixel of an annotation image, int64 (H, W).

    Raises:
        ValueError: it cannot be decoded, or has colors instead of indices.
    """
    image = _open(row, column)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise ValueError(
            f"column {column} must hold single-channel images of class indices, got one of mode {image.mode}"
        )
    return np.asarray(image).astype(np.int64)


def read_instances(row: dict[str, Any], column: str) -> tuple[np.ndarray, np.ndarray]:
    """The instances of a color image: red is the class, green the number of the instance, 0 for none.

    Returns:
        The number 1 .. N of the instance at each pixel, int32 (H, W), or 0; the red value of each
        instance, int64 (N,).

    Raises:
        ValueError: it cannot be decoded, has no colors, or an instance has several classes.
    """
    image = _open(row, column)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(
            f"column {column} must hold RGB images, red the class, green the instance, got one of mode {image.mode}"
        )
    red, green = (np.asarray(image)[:, :, channel].astype(np.int64) for channel in (0, 1))
    pairs, numbers = np.unique(green * 256 + red, return_inverse=True)
    present = pairs >= 256
    number, label = pairs[present] // 256, pairs[present] % 256
    twice = np.flatnonzero(np.diff(number) == 0)
    if len(twice):
        at = twice[0]
        raise ValueError(
            f"instance {number[at]} of column {column} has the classes {label[at]} and {label[at + 1]}, expected one"
        )
    ids = np.cumsum(present) * present
    return ids[numbers.reshape(red.shape)].astype(np.int32), label


def check_size(target: np.ndarray, image: Image.Image, what: str = "annotation", of: str = "image") -> None:
    """Raise a `ValueError` if a target (H, W) has another size than its image."""
    if target.shape != (image.height, image.width):
        raise ValueError(
            f"the {what} is of {target.shape[1]} x {target.shape[0]} pixels, its {of} of {image.width} x {image.height}"
        )


def read_depth(row: dict[str, Any], column: str) -> np.ndarray:
    """The depth of each pixel in the units of the file, float32 (H, W): a single-channel image, or nested numbers.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(row[column], dict | Image.Image):
        try:
            values = np.asarray(row[column], dtype=np.float32)
        except (TypeError, ValueError):  # rows of different lengths, or no numbers
            values = np.empty(0)
    else:
        image = _open(row, column)
        values = np.asarray(image).astype(np.float32) if image.mode in ("L", "I", "I;16", "F") else np.empty(0)
    if values.ndim != 2:
        raise ValueError(f"column {column} must hold single-channel depth images or (height, width) numbers")
    return values


def _open(row: dict[str, Any], column: str) -> Image.Image:
    """The stored image, with its numbers unchanged."""
    cell = row[column]
    if cell is None:
        raise ValueError(f"column {column} is empty")
    if not isinstance(cell, (dict, str, bytes, Image.Image)):
        raise ValueError(f"column {column} must hold images, got {type(cell).__name__}")
    try:
        with quiet():
            image = opened(content_of(cell))
            load(image)
    except Exception as error:  # broken files make Pillow raise almost anything
        raise ValueError(f"the image of column {column} cannot be decoded ({one_line(error)})") from None
    return image
