"""Where images come from. A `Source` is a list of shards of records that can be read again in the same order.

Reading a record is cheap and happens in the main process; `decode_batch` is the expensive part and happens in the workers.
A record's key is a stable int64 (shard << 32 | row, except for sprites), so that random choices keyed by it survive resuming.
"""

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from .decode import BadImage, Decoded, decode_image, image_extensions, one_line
from .fingerprint import digest, file_mark
from .retry import Patience

ROWS_PER_VIRTUAL_SHARD = 512
ROWS_PER_READ = 64  # of undecoded images, held once per open shard
FEW_SHARDS = 64  # a dataset with fewer is split by row group; finding the row groups costs one small read per file
MAX_VIRTUAL_SHARDS = 256  # row groups are often of 100 rows; shuffling wants larger shards
MAX_FILE_BYTES = 1 << 29

_BUILDER_OF_ENDING = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_ARROW_BUILDERS = {"arrow", "csv", "json", "parquet"}
_OTHER_BUILDERS = {"csv", "imagefolder", "json"}


class Record(NamedTuple):
    """key: stable int64. payload: what `Source.decode_batch` understands. label: class index, -1 if there is none."""

    key: int
    payload: Any
    label: int


class Source(Protocol):
    """What `CanvasStream` reads. `cheap_rows`: reading a record to drop it costs next to nothing (a path, an index)."""

    name: str
    num_shards: int
    has_labels: bool
    label_names: list[str] | None
    cheap_rows: bool

    @property
    def fingerprint(self) -> str:
        """Changes whenever a record could have changed; from names, sizes and samples of the content, without reading all of it."""
        ...

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]: ...

    def decode_batch(self, payloads: Sequence[Any], canvas_size: int) -> list[Decoded | BadImage]: ...

    def where(self, record: Record) -> str:
        """Where a bad record lies, for the list of bad images."""
        ...


class _ImageSource:
    """Shared by the sources whose payload is the content of an image file, or the path of one."""

    def decode_batch(self, payloads: Sequence[Any], canvas_size: int) -> list[Decoded | BadImage]:
        return [_decode_or_bad(payload, canvas_size) for payload in payloads]


def _decode_or_bad(payload: Any, canvas_size: int) -> Decoded | BadImage:
    try:
        return decode_image(_read_file(payload) if isinstance(payload, str) else payload, canvas_size)
    except BadImage as error:
        return error


def _read_file(path: str) -> bytes:
    if "://" in path:
        return _read_remote_file(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:  # reading a pipe would never end
            raise BadImage(f"not a regular file of at most {MAX_FILE_BYTES} bytes")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(f"cannot read the file ({error.strerror or one_line(error)})") from None


def _read_remote_file(path: str) -> bytes:
    """A file inside a remote or zipped dataset repository."""
    from datasets.utils.file_utils import xopen

    patience = Patience()
    while True:
        try:
            with xopen(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise BadImage("cannot read the file (No such file)") from None
        except Exception as error:  # of the network; an image is not bad because the network is
            patience.failed(f"reading {path}", error)


class FolderSource(_ImageSource):
    """Image files below a folder, or matched by a glob of files and folders ("**" included). Names that start with "." are left out.

    No labels are needed; `labels=True` takes the name of the parent folder as the class. Shards are strided (`files[i::n]`), so that
    each of them mixes all folders.
    """

    cheap_rows = True

    def __init__(self, root_or_glob: str | os.PathLike, labels: bool = False):
        self.name = os.path.expanduser(os.fspath(root_or_glob))
        self._files = sorted(_list_images(self.name))
        if not self._files:
            raise ValueError(f"no images found in {self.name} (extensions {' '.join(sorted(image_extensions()))})")
        self.num_shards = -(-len(self._files) // ROWS_PER_VIRTUAL_SHARD)
        self.has_labels = labels
        self.label_names = sorted({_parent(file) for file in self._files}) if labels else None
        self._label_of = {name: index for index, name in enumerate(self.label_names or [])}

    def __len__(self) -> int:
        return len(self._files)

    @property
    def fingerprint(self) -> str:
        status = [(os.path.relpath(file, self.name), os.stat(file)) for file in self._files if os.path.exists(file)]
        return digest(["folder", self.has_labels, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in status)])

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        for row, path in enumerate(self._files[shard :: self.num_shards]):
            yield Record(shard << 32 | row, path, self._label_of[_parent(path)] if self.has_labels else -1)

    def where(self, record: Record) -> str:
        return record.payload


def _parent(path: str) -> str:
    return os.path.basename(os.path.dirname(path))


def _list_images(root_or_glob: str) -> set[str]:
    if os.path.exists(root_or_glob):  # first: a real folder may have glob characters in its name
        matches = [root_or_glob]
    elif glob.has_magic(root_or_glob):
        matches = glob.glob(root_or_glob, recursive=True)
    else:
        matches = []
    if not matches:
        raise ValueError(f"no such folder: {root_or_glob} (expected a folder of images, or a glob that matches files or folders)")
    found, seen = set(), set()
    for match in matches:
        if not os.path.isdir(match):
            found.add(match)
            continue
        for folder, subfolders, names in os.walk(match, followlinks=True):
            real = os.path.realpath(folder)
            subfolders[:] = [] if real in seen else [name for name in subfolders if not name.startswith(".")]
            if real not in seen:  # linked folders count once, and a link to a parent folder does not loop
                found.update(os.path.join(folder, name) for name in names)
            seen.add(real)
    extensions = image_extensions()
    return {path for path in found if os.path.splitext(path)[1].lower() in extensions and not os.path.basename(path).startswith(".")}


class SpritesSource:
    """The embedded data: rendered scenes, labelled, endless. An "epoch" is `num_samples` scenes that no other epoch repeats.

    The key of a scene is its index: offset + epoch * num_samples + i.
    """

    name = "sprites"
    has_labels = True
    label_names = None
    cheap_rows = True

    def __init__(self, num_samples: int = 16384, seed: int = 0, offset: int = 0):
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.num_samples, self.seed, self.offset = num_samples, seed, offset
        self.num_shards = -(-num_samples // ROWS_PER_VIRTUAL_SHARD)

    def __len__(self) -> int:
        return self.num_samples

    @property
    def fingerprint(self) -> str:
        from . import sprites

        with open(sprites.__file__, "rb") as file:  # what draws them is what they are
            return digest(["sprites", self.num_samples, self.seed, self.offset, file.read()])

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        start = self.offset + epoch * self.num_samples
        first = shard * ROWS_PER_VIRTUAL_SHARD
        for index in range(start + first, start + min(first + ROWS_PER_VIRTUAL_SHARD, self.num_samples)):
            yield Record(index, index, -1)

    def decode_batch(self, payloads: Sequence[int], canvas_size: int) -> list[Decoded | BadImage]:
        from .sprites import render_sprites

        scenes = render_sprites(np.asarray(payloads, dtype=np.int64), canvas_size, self.seed)
        size = (canvas_size, canvas_size)
        return [Decoded(image, size, int(label)) for image, label in zip(scenes.images, scenes.labels, strict=True)]

    def where(self, record: Record) -> str:
        return f"sprite {record.key}"


class DatasetSource(_ImageSource):
    """Anything that `datasets.load_dataset(..., streaming=True)` opens: a Hub id, a local folder, or "parquet", "webdataset",
    "imagefolder" ... with `data_files` (globs, a list, or a comma-separated list).

    Images stay undecoded bytes (or paths), only the needed columns are read, and the order is ours: `datasets` neither shuffles nor
    splits. Few shards are split further, by Parquet row group. `image_column` may be left out when exactly one column holds images;
    `label_column` when there is one ClassLabel column or one named "label" or "cls".
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
        import datasets

        files = None if data_files is None else expand_data_files(path, data_files, split)
        self.name = " ".join(str(part) for part in (path, name, split) if part)
        dataset = self._load(path, name, split, files)
        features = dataset.features or dict.fromkeys(next(iter(dataset), {}))  # some builders learn their columns from the rows only
        self._image_column = _find_image_column(features, image_column, self.name)
        self._label_column = _find_label_column(features, label_column, self.name)
        self.has_labels = self._label_column is not None
        self.label_names = getattr(features[self._label_column], "names", None) if self._label_column is not None else None
        columns = [self._image_column] + ([self._label_column] if self.has_labels else [])
        if dataset.info.builder_name == "parquet" and len(features) > len(columns):  # the other columns then need no download
            dataset = self._load(path, name, split, files, columns=columns)
        dataset = dataset.cast_column(self._image_column, datasets.Image(decode=False)).select_columns(columns)

        self._opened = (path, name, split, files)
        self._records: list[tuple[Any, int]] | None = None
        self._dataset, self.num_shards = dataset, dataset.num_shards
        if dataset.info.builder_name == "imagefolder":  # one shard, sorted by class, whose rows are mere paths
            self._records = list(self._read(dataset))
            self.num_shards = max(1, -(-len(self._records) // ROWS_PER_VIRTUAL_SHARD))
        elif dataset.num_shards < FEW_SHARDS and hasattr(dataset, "reshard"):
            self._dataset = dataset.reshard()
            self.num_shards = min(self._dataset.num_shards, MAX_VIRTUAL_SHARDS)
        self.cheap_rows = self._records is not None

    def _load(self, path: str, name: str | None, split: str, data_files: Any, **options: Any) -> Any:
        import datasets

        try:
            return datasets.load_dataset(path, name, split=split, data_files=data_files, streaming=True, **options)
        except (OSError, ValueError) as error:  # not found, gated, no connection, no such configuration or split, broken files
            raise ValueError(f"cannot open dataset {self.name}: {one_line(error, 400)}") from error

    @property
    def fingerprint(self) -> str:
        import datasets

        path, name, split, files = self._opened
        builder = datasets.load_dataset_builder(path, name, data_files=files)
        found = (builder.config.data_files or {}).get(split, [])
        return digest([path, name, split, self._image_column, self._label_column, builder.hash, *map(file_mark, found)])

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        if self._records is not None:
            rows = iter(self._records[shard :: self.num_shards])
        else:
            rows = self._read(self._dataset.shard(num_shards=self.num_shards, index=shard))
        for row, (payload, label) in enumerate(rows):
            yield Record(shard << 32 | row, payload, label)

    def _read(self, dataset: Any) -> Iterator[tuple[Any, int]]:
        for images, labels in self._columns(dataset):
            for image, label in zip(images, labels, strict=True):
                if isinstance(image, dict):
                    image = image["path"] if image["bytes"] is None else image["bytes"]
                yield image, -1 if label is None else int(label)

    def _columns(self, dataset: Any) -> Iterator[tuple[list[Any], list[Any]]]:
        """(images, labels) of some rows at a time; whichever way is several times faster for the kind of file."""
        if dataset.info.builder_name in _ARROW_BUILDERS:
            for table in dataset.with_format("arrow").iter(batch_size=ROWS_PER_READ):
                images = table[self._image_column].to_pylist()
                yield images, table[self._label_column].to_pylist() if self.has_labels else [None] * len(images)
        else:
            for row in dataset:
                yield [row[self._image_column]], [row[self._label_column] if self.has_labels else None]

    def where(self, record: Record) -> str:
        if isinstance(record.payload, str):
            return record.payload
        return f"{self.name}, shard {record.key >> 32} of {self.num_shards}, row {record.key & 0xFFFFFFFF}"


class _PartOfSource:
    """Some rows of each shard of a source, `num_rows` of them held out, or all the others; keys stay the same."""

    def __init__(self, source: Source, num_rows: int, held_out: bool):
        self.name, self.num_shards, self.cheap_rows = source.name, source.num_shards, source.cheap_rows
        self.has_labels, self.label_names = source.has_labels, source.label_names
        self.decode_batch, self.where = source.decode_batch, source.where
        self._source, self._num_rows, self._held_out = source, num_rows, held_out

    @property
    def fingerprint(self) -> str:
        return digest([self._source.fingerprint, self._num_rows, self._held_out])

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        records = self._source.read_shard(shard, epoch)
        if self.cheap_rows:
            first = list(records)
            num_rows = min(self._num_rows, len(first) // 2)
            rows = {i * len(first) // num_rows for i in range(num_rows)}  # evenly spread: paths are often sorted by class
        else:  # the beginning of the shard, so that no more than that has to be read for the few
            first = list(islice(records, 2 * self._num_rows))
            rows = range(min(self._num_rows, len(first) // 2))
        yield from (record for row, record in enumerate(first) if (row in rows) == self._held_out)
        if not self._held_out:
            yield from records


def hold_out(source: Source, num_samples: int) -> tuple[Source, Source]:
    """(the rest, `num_samples` or slightly more images) of a source; all shards have their share in what is held out, half at most."""
    num_rows = -(-num_samples // source.num_shards)
    return _PartOfSource(source, num_rows, held_out=False), _PartOfSource(source, num_rows, held_out=True)


def expand_data_files(path: str, data_files: str | Sequence[str] | dict[str, Any], split: str) -> dict[str, Any]:
    """Local patterns become sorted lists of files, so that a pattern without any match is reported here, in one line."""
    if isinstance(data_files, dict):
        return data_files
    patterns = _patterns(data_files)
    if path in _BUILDER_OF_ENDING.values() or path in _OTHER_BUILDERS:  # otherwise they are relative to the dataset's repository
        patterns = [file for pattern in patterns for file in _local_files(pattern)]
    return {split: patterns}


def _patterns(data_files: str | Sequence[str]) -> list[str]:
    if not isinstance(data_files, str):
        return [os.fspath(file) for file in data_files]
    return [data_files] if os.path.exists(data_files) else [part.strip() for part in data_files.split(",") if part.strip()]


def _local_files(pattern: str) -> list[str]:
    if "://" in pattern:
        return [pattern]
    expanded = os.path.expanduser(pattern)
    files = [expanded] if os.path.isfile(expanded) else sorted(filter(os.path.isfile, glob.glob(expanded, recursive=True)))
    if not files:
        raise ValueError(f"data_files: no file matches {pattern}")
    return [os.path.abspath(file) for file in files]


def builder_for(data_files: str | Sequence[str] | dict[str, Any]) -> str:
    if isinstance(data_files, dict):
        raise ValueError('data_files per split need a dataset_name, such as "parquet" or a Hub id')
    endings = {os.path.splitext(pattern)[1].lower() for pattern in _patterns(data_files)}
    if len(endings) != 1 or not endings <= _BUILDER_OF_ENDING.keys():
        raise ValueError(f"data_files without dataset_name must all end in one of {', '.join(_BUILDER_OF_ENDING)}, got {data_files}")
    return _BUILDER_OF_ENDING[endings.pop()]


def _find_image_column(features: dict[str, Any], wanted: str | None, name: str) -> str:
    import datasets

    columns = ", ".join(features) or "none"
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"image_column={wanted} is not a column of {name}; its columns: {columns}")
        return wanted
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        what = f"several image columns ({', '.join(found)})" if found else f"no image column among its columns ({columns})"
        raise ValueError(f"{name} has {what}; say which one to read with image_column")
    return found[0]


def _find_label_column(features: dict[str, Any], wanted: str | None, name: str) -> str | None:
    import datasets

    integers = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel) or str(getattr(feature, "dtype", "")).startswith(("int", "uint", "bool"))
    ]
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"label_column={wanted} is not a column of {name}; its columns: {', '.join(features)}")
        if features[wanted] is not None and wanted not in integers:
            raise ValueError(f"label_column={wanted} of {name} must hold class indices, but its type is {features[wanted]}")
        return wanted
    class_labels = [column for column in integers if isinstance(features[column], datasets.ClassLabel)]
    if len(class_labels) == 1:
        return class_labels[0]
    return next((column for column in ("label", "cls") if column in integers), None)


def open_source(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    split: str = "train",
    data_files: str | Sequence[str] | dict[str, Any] | None = None,
    train_dir: str | os.PathLike | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """The source that the arguments of a script name; with none of them, the embedded sprites.

    `data_files` without `dataset_name` is understood by its ending (.parquet, .arrow, .tar). `label_column="folder"` labels the images
    of `train_dir` by their parent folder.
    """
    if train_dir is not None and (dataset_name is not None or data_files is not None):
        raise ValueError("give either train_dir (a folder of images) or dataset_name / data_files, not both")
    if train_dir is not None:
        if image_column is not None or label_column not in (None, "folder"):
            raise ValueError('train_dir has no columns; label_column may only be "folder" (the name of the parent folder is the class)')
        return FolderSource(train_dir, labels=label_column == "folder")
    if dataset_name is None:
        if data_files is not None:
            dataset_name = builder_for(data_files)
        elif dataset_config_name is not None or image_column is not None or label_column is not None:
            raise ValueError("dataset_config_name, image_column and label_column need dataset_name or data_files")
        else:
            return SpritesSource()
    return DatasetSource(dataset_name, dataset_config_name, split, data_files, image_column, label_column)
