"""Images from anything that the `datasets` library opens, and the source that a command's arguments select."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .dataset_files import (
    LOCAL_BUILDERS,
    builder_for,
    check_columns,
    expand_data_files,
    find_image_column,
    find_label_column,
    is_whole,
    name_and_size,
)
from .decode import one_line
from .fingerprint import content_mark, digest, file_mark
from .retry import ReadError, is_transient
from .sources import ROWS_PER_VIRTUAL_SHARD, FolderSource, ImageSource, Record, Source, SpritesSource

ROWS_PER_READ = 64  # of undecoded images, held once per open shard
ROWS_PER_COLUMN_READ = 1024  # of columns without images
FEW_SHARDS = 64  # a dataset with fewer is split by row group; finding the row groups takes one small read per file
MAX_VIRTUAL_SHARDS = 256  # row groups often have 100 rows, and shuffling needs larger shards

SAVED_STATE = "state.json"
_ARROW_BUILDERS = {"arrow", "csv", "json", "parquet"}
MAX_SHOWN = 300  # characters of a path or a URL; a longer text is an encoded image


class DatasetSource(ImageSource):
    """Anything that `datasets.load_dataset(..., streaming=True)` opens: a Hub id, a local folder, or "parquet",
    "webdataset", "imagefolder" ... with `data_files` (globs, a list, or a comma-separated list).

    Images stay undecoded bytes or paths, only the needed columns are read, and `datasets` neither shuffles nor splits.
    If the dataset has few shards, they are split further by Parquet row group. `image_column` is optional if exactly
    one column holds images, `label_column` if there is one ClassLabel column or one named "label" or "cls".
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        data_files: str | Sequence[str] | dict[str, Any] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        self.name = " ".join(str(part) for part in (path, name, split) if part)
        if data_files is None and os.path.isfile(os.path.join(path, SAVED_STATE)):
            path, data_files = _saved_files(path)
        if data_files is None and path in LOCAL_BUILDERS and not os.path.exists(path):
            raise ValueError(f"dataset_name={path} reads files: say which with data_files")
        files = None if data_files is None else expand_data_files(path, data_files, split)
        self._opened = (path, name, split, files)
        dataset = self._load()
        # Some builders learn their columns only from the rows.
        self.features = dataset.features or dict.fromkeys(self._first_row(dataset))
        self._image_column = find_image_column(self.features, image_column, self.name)
        self._label_column = find_label_column(self.features, label_column, self.name)
        self.label_names = getattr(self.features.get(self._label_column or ""), "names", None)
        self._dataset = self._only_these_columns(dataset)
        self._records: list[tuple[Any, int]] | None = None
        if dataset.info.builder_name == "imagefolder":  # one shard, sorted by class, whose rows are only paths
            self._records = self._list_images()
            self.num_shards = max(1, -(-len(self._records) // ROWS_PER_VIRTUAL_SHARD))
        else:
            num_shards = self._dataset.num_shards
            self._dataset = self._naming_files(lambda: _split_further(self._dataset))
            self.num_shards = min(self._dataset.num_shards, max(num_shards, MAX_VIRTUAL_SHARDS))
        self.cheap_rows = self._records is not None
        self.has_labels = self._label_column is not None or self.label_names is not None

    def _only_these_columns(self, dataset: Any) -> Any:
        """The dataset with undecoded images, and labels if there are any; other columns are not read."""
        import datasets

        columns = [column for column in (self._image_column, self._label_column) if column is not None]
        if dataset.info.builder_name == "parquet":
            # The default block size is taken from the first block, which may be empty.
            check_columns(self._local_files(), columns)
            dataset = self._load(columns=columns, batch_size=ROWS_PER_READ)
        if dataset.features:
            dataset = dataset.cast_column(self._image_column, datasets.Image(decode=False))
        return dataset.select_columns(columns)

    def _list_images(self) -> list[tuple[str, int]]:
        """Path and class of each image below a folder or in an archive, whose classes are the folders."""
        import datasets

        try:
            return list(self._read(self._dataset))
        except ValueError as error:
            if "class label" not in str(error):
                raise
        # For an archive, the builder mistakes the folder that contains it for the class.
        undecoded = datasets.Image(decode=False)
        self._dataset = self._load(drop_labels=True).cast_column(self._image_column, undecoded)
        self._label_column = None
        images, self.label_names = _labeled_by_folder([image for image, _ in self._read(self._dataset)])
        return images

    def _load(self, **options: Any) -> Any:
        import datasets

        path, name, split, files = self._opened
        options |= {"split": split, "data_files": files, "streaming": True}
        # Errors: not found, gated, no connection, no such configuration or split, broken files.
        return self._naming_files(lambda: datasets.load_dataset(path, name, **options))

    def _naming_files(self, function: Callable[[], Any]) -> Any:
        """The result of the function; an error becomes one line that names the dataset, and the file if it is
        broken."""
        try:
            return function()
        except Exception as error:
            raise ValueError(f"cannot open dataset {self.name}{self._broken()}: {one_line(error, 400)}") from error

    def _first_row(self, dataset: Any) -> dict[str, Any]:
        return self._naming_files(lambda: next(iter(dataset), {}))

    def _local_files(self) -> list[str]:
        _, _, split, files = self._opened
        found = (files or {}).get(split, [])
        if isinstance(found, (str, os.PathLike)):
            found = [found]
        return [str(file) for file in found if os.path.isfile(file)]

    def _broken(self) -> str:
        """ ", file F" if one of the local files cannot be read to its end, otherwise nothing."""
        files = self._local_files()
        broken = files if len(files) == 1 else [file for file in files if not is_whole(file)]
        return f", file {broken[0]}" if broken else ""

    def __length_hint__(self) -> int:
        """Number of images; 0 if the dataset does not state it."""
        if self._records is not None:
            return len(self._records)
        split = (self._dataset.info.splits or {}).get(self._opened[2])
        return split.num_examples or 0 if split else 0

    def _builder(self) -> tuple[Any, list[str]]:
        """The builder of `datasets`, and the files of the split."""
        import datasets

        path, name, split, files = self._opened
        builder = datasets.load_dataset_builder(path, name, data_files=files)
        return builder, list((builder.config.data_files or {}).get(split, []))

    @property
    def fingerprint(self) -> str:
        builder, found = self._builder()
        path, name, split, _ = self._opened
        return digest([path, name, split, self._image_column, self._label_column, builder.hash, *map(file_mark, found)])

    @property
    def identity(self) -> str:
        if self._records is not None:
            places = [str(image).rpartition("::") for image, _ in self._records]  # (name in the archive, "::", file)
            root = os.path.commonpath([os.path.dirname(file) for _, _, file in places] or [""])
            return digest(["images", *(name + file.removeprefix(root) for name, _, file in places)])
        return digest(["files", self._opened[2], self._image_column, *map(name_and_size, self._builder()[1])])

    @property
    def content(self) -> str:
        if self._records is not None:  # images, or archives of images
            return content_mark(list(dict.fromkeys(str(image).rpartition("::")[2] for image, _ in self._records)))
        return content_mark(self._builder()[1])

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        if self._records is not None:
            rows = iter(self._records[shard :: self.num_shards])
        else:
            rows = self._read(self._dataset.shard(num_shards=self.num_shards, index=shard))
        try:
            for row, (payload, label) in enumerate(rows):
                yield Record(shard << 32 | row, payload, label)
        except Exception as error:
            if is_transient(error):
                raise
            place = f"{self.name}, shard {shard} of {self.num_shards}{self._broken()}"
            raise ReadError(f"cannot read {place}: {one_line(error, 400)}") from error

    def _read(self, dataset: Any) -> Iterator[tuple[Any, int]]:
        for images, labels in self._columns(dataset):
            for image, label in zip(images, labels, strict=True):
                if isinstance(image, dict):
                    image = image["path"] if image["bytes"] is None else image["bytes"]
                yield image, -1 if label is None else int(label)

    def _columns(self, dataset: Any) -> Iterator[tuple[list[Any], list[Any]]]:
        """(images, labels) of some rows at a time, in the way that is several times faster for the kind of file."""
        label_column = self._label_column
        if dataset.info.builder_name in _ARROW_BUILDERS:
            for table in dataset.with_format("arrow").iter(batch_size=ROWS_PER_READ):
                images = table[self._image_column].to_pylist()
                yield images, [None] * len(images) if label_column is None else table[label_column].to_pylist()
        else:
            for row in dataset:
                yield [row[self._image_column]], [None if label_column is None else row[label_column]]

    def read_columns(self, names: Sequence[str]) -> tuple[np.ndarray, dict[str, list[Any]]]:
        """Columns of all rows, without the images: the keys of the records, int64 (N,), and N values for each column.

        Raises:
            ValueError: a name is not a column.
        """
        missing = [name for name in names if name not in self.features]
        if missing:
            raise ValueError(f"{self.name} has no column {', '.join(missing)}; its columns: {', '.join(self.features)}")
        columns = list(names)
        parquet = self._dataset.info.builder_name == "parquet"
        options: dict[str, Any] = {"columns": columns, "batch_size": ROWS_PER_COLUMN_READ} if parquet else {}
        dataset = self._load(**options).select_columns(columns)
        values: dict[str, list[Any]] = {name: [] for name in columns}
        if self._records is not None:
            for row in dataset:
                for name in columns:
                    values[name].append(row[name])
            index = np.arange(len(self._records))
            return (index % self.num_shards) << 32 | index // self.num_shards, values
        keys = []
        dataset = _split_further(dataset)
        for shard in range(self.num_shards):
            count = 0
            for block in dataset.shard(num_shards=self.num_shards, index=shard).iter(batch_size=ROWS_PER_COLUMN_READ):
                for name in columns:
                    values[name].extend(block[name])
                count += len(block[columns[0]])
            keys.append(shard << 32 | np.arange(count))
        return np.concatenate(keys), values

    def where(self, record: Record) -> str:
        if isinstance(record.payload, str) and len(record.payload) <= MAX_SHOWN:
            return record.payload
        place = f"{self.name}, shard {record.key >> 32} of {self.num_shards}, row {record.key & 0xFFFFFFFF}"
        return f"{place} ({record.payload[:24]}...)" if isinstance(record.payload, str) else place


def _saved_files(folder: str) -> tuple[str, list[str]]:
    """Builder and files of what `save_to_disk` of `datasets` has written."""
    saved = json.loads(Path(folder, SAVED_STATE).read_text())["_data_files"]
    return "arrow", [os.path.join(folder, file["filename"]) for file in saved]


def _labeled_by_folder(images: list[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """(path, class) of each path, also inside of an archive, and the names of the classes, which are the folders'."""
    folders = [os.path.basename(os.path.dirname(image.split("::")[0])) for image in images]
    names = sorted(set(folders))
    index = {name: number for number, name in enumerate(names)}
    return [(image, index[folder]) for image, folder in zip(images, folders, strict=True)], names


def _split_further(dataset: Any) -> Any:
    """The dataset, with one shard per Parquet row group if it has few shards."""
    return dataset.reshard() if dataset.num_shards < FEW_SHARDS and hasattr(dataset, "reshard") else dataset


def open_source(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    split: str = "train",
    data_files: str | Sequence[str] | dict[str, Any] | None = None,
    train_dir: str | os.PathLike | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    leave_out: str | os.PathLike | None = None,
) -> Source:
    """The source that a command's arguments select; without arguments, the embedded sprites.

    The kind of `data_files` without `dataset_name` follows from their ending (.parquet, .arrow, .tar).
    `label_column="folder"` labels the images of `train_dir` by their parent folder. `leave_out` is a folder inside of
    `train_dir` whose images are ignored, such as the output of a run.
    """
    if train_dir is not None and (dataset_name is not None or data_files is not None):
        raise ValueError("give either train_dir (a folder of images) or dataset_name / data_files, not both")
    if train_dir is not None:
        if image_column is not None or label_column not in (None, "folder"):
            raise ValueError(
                'train_dir has no columns; label_column may only be "folder" (the parent folder is the class)'
            )
        return FolderSource(train_dir, labels=label_column == "folder", leave_out=leave_out)
    if dataset_name is None:
        if data_files is not None:
            dataset_name = builder_for(data_files)
        elif dataset_config_name is not None or image_column is not None or label_column is not None:
            raise ValueError("dataset_config_name, image_column and label_column need dataset_name or data_files")
        else:
            return SpritesSource()
    return DatasetSource(dataset_name, dataset_config_name, split, data_files, image_column, label_column)
