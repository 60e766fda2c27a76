"""The files and columns of a dataset: the files that a pattern matches, their builder, and the columns to use."""

import glob
import os
import re
import tarfile
from collections.abc import Sequence
from typing import Any

from .decode import one_line

_BUILDER_OF_ENDING = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
LOCAL_BUILDERS = {"csv", "imagefolder", "json", *_BUILDER_OF_ENDING.values()}


def name_and_size(file: str) -> tuple[str, int]:
    """Name and size of a local file; for a remote file its address without the commit, and 0."""
    if "://" in file:
        return re.sub(r"@[0-9a-f]{40}", "", file), 0
    return os.path.basename(file), os.path.getsize(file)


def check_columns(files: Sequence[str], columns: Sequence[str]) -> None:
    """Check that Parquet files have the columns, before any row is read.

    Raises:
        ValueError: a file lacks a column, or is broken.
    """
    import pyarrow
    import pyarrow.parquet

    for file in files:
        try:
            names = pyarrow.parquet.read_schema(file).names
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"cannot read {file}: {one_line(error)}") from None
        missing = [column for column in columns if column not in names]
        if missing:
            raise ValueError(f"{file} has no column {missing[0]}; its columns: {', '.join(names)}")


def is_whole(file: str) -> bool:
    """Whether a local file can be opened to its end, if that is quick to check; otherwise True."""
    import pyarrow
    import pyarrow.parquet

    try:
        if file.endswith(".tar"):
            with tarfile.open(file) as archive:
                archive.getmembers()
        elif file.endswith(".parquet"):
            pyarrow.parquet.read_metadata(file)
        return True
    except (tarfile.TarError, EOFError, OSError, pyarrow.ArrowException):
        return False


def expand_data_files(path: str, data_files: str | Sequence[str] | dict[str, Any], split: str) -> dict[str, Any]:
    """Replace local patterns by sorted lists of files; a pattern that matches nothing is an error of one line."""
    if isinstance(data_files, dict):
        return data_files
    patterns = _patterns(data_files)
    if path in LOCAL_BUILDERS:  # otherwise they are relative to the dataset's repository
        patterns = [file for pattern in patterns for file in _local_files(pattern)]
    return {split: patterns}


def _patterns(data_files: str | Sequence[str]) -> list[str]:
    if not isinstance(data_files, str):
        return [os.fspath(file) for file in data_files]
    if os.path.exists(data_files):
        return [data_files]
    return [part.strip() for part in data_files.split(",") if part.strip()]


def _local_files(pattern: str) -> list[str]:
    if "://" in pattern:
        return [pattern]
    expanded = os.path.expanduser(pattern)
    files = [expanded]
    if not os.path.isfile(expanded):
        files = sorted(file for file in glob.glob(expanded, recursive=True) if os.path.isfile(file))
    if not files:
        raise ValueError(f"data_files: no file matches {pattern}")
    return [os.path.abspath(file) for file in files]


def builder_for(data_files: str | Sequence[str] | dict[str, Any]) -> str:
    """The builder of `datasets` that reads files with one ending.

    Raises:
        ValueError: the ending is unknown, or the endings differ.
    """
    if isinstance(data_files, dict):
        raise ValueError('data_files per split need a dataset_name, such as "parquet" or a Hub id')
    endings = {os.path.splitext(pattern)[1].lower() for pattern in _patterns(data_files)}
    if len(endings) != 1 or not endings <= _BUILDER_OF_ENDING.keys():
        raise ValueError(
            f"data_files without dataset_name must all end in one of {', '.join(_BUILDER_OF_ENDING)}, got {data_files}"
        )
    return _BUILDER_OF_ENDING[endings.pop()]


def find_image_column(features: dict[str, Any], wanted: str | None, name: str) -> str:
    """The column `wanted` if it can hold images, or the only image column if `wanted` is None.

    Raises:
        ValueError: there is no such column, or several.
    """
    import datasets

    columns = ", ".join(features) or "none"
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"image_column={wanted} is not a column of {name}; its columns: {columns}")
        if not _may_hold_images(features[wanted]):
            raise ValueError(
                f"image_column={wanted} of {name} holds {str(features[wanted])[:200]}; expected one image a row: "
                "images, bytes, paths, URLs or base64 text"
            )
        return wanted
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        what = f"no image column among its columns ({columns})"
        if found:
            what = f"several image columns ({', '.join(found)})"
        raise ValueError(f"{name} has {what}; say which one to read with image_column")
    return found[0]


def _may_hold_images(feature: Any) -> bool:
    import datasets

    if feature is None or isinstance(feature, (datasets.Image, datasets.Array2D, datasets.Array3D)):
        return True
    if isinstance(feature, dict):
        return {"bytes", "path"} <= feature.keys()
    if isinstance(feature, datasets.List):  # rows of pixels, not of images
        return isinstance(feature.feature, datasets.List)
    return str(getattr(feature, "dtype", "")) in ("string", "large_string", "binary", "large_binary")


def find_label_column(features: dict[str, Any], wanted: str | None, name: str) -> str | None:
    """The column `wanted` if it holds class indices; if `wanted` is None, the column that looks like labels, or None.

    Raises:
        ValueError: there is no column `wanted`, or it holds something else.
    """
    import datasets

    integers = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
        or str(getattr(feature, "dtype", "")).startswith(("int", "uint", "bool"))
    ]
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"label_column={wanted} is not a column of {name}; its columns: {', '.join(features)}")
        if features[wanted] is not None and wanted not in integers:
            raise ValueError(
                f"label_column={wanted} of {name} must hold class indices, but its type is {features[wanted]}"
            )
        return wanted
    class_labels = [column for column in integers if isinstance(features[column], datasets.ClassLabel)]
    if len(class_labels) == 1:
        return class_labels[0]
    return next((column for column in ("label", "cls") if column in integers), None)
