"""Where images come from. A `Source` is a list of shards of records that can be read again in the same order.

Reading a record is cheap and happens in the main process; `decode_batch` is the expensive part and happens in the
workers. A record's key is a stable int64 (shard << 32 | row, except for sprites), so that random choices keyed by it
survive resuming.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..hub.image_reading_eqcohvit import content_of
from .decode import BadImage, Decoded, decode_image, image_extensions, one_line
from .fingerprint import content_mark, digest
from .retry import Patience, is_transient

ROWS_PER_VIRTUAL_SHARD = 512
MAX_ENDINGS = 5  # of files that are left out, named each


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
        """Changes whenever a record could have changed; from names, sizes and samples of the content, without reading
        all of it."""
        ...

    @property
    def identity(self) -> str:
        """Changes if a key would name another record; from the names of the images or files, not from their place."""
        return self.fingerprint

    @property
    def content(self) -> str:
        """Changes if local files of the same names hold other images; from samples (`content_mark`)."""
        return ""

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        """The records of a shard, in the same order each time; `epoch` matters only to endless sources."""

    def decode_batch(self, payloads: Sequence[Any], canvas_size: int, fit: str = "native") -> list[Decoded | BadImage]:
        """Payloads of records -> canvases of S x S pixels, or what is wrong with them. `fit` as in `decode_image`."""

    def where(self, record: Record) -> str:
        """Where a bad record is, for the list of bad images."""
        ...


class ImageSource(Source):
    """Shared by the sources whose payload is the content of an image file, or the path of one."""

    def decode_batch(self, payloads: Sequence[Any], canvas_size: int, fit: str = "native") -> list[Decoded | BadImage]:
        return [_decode_or_bad(payload, canvas_size, fit) for payload in payloads]


def _decode_or_bad(payload: Any, canvas_size: int, fit: str) -> Decoded | BadImage:
    try:
        return decode_image(_read_file(payload) if isinstance(payload, str) else payload, canvas_size, fit)
    except BadImage as error:
        return error


def _read_file(text: str) -> bytes:
    """The content of a path, a URL, or base64; of a file inside a remote or zipped dataset repository, too."""
    if "://" not in text[:200] or text.startswith("data:"):
        return content_of(text)
    from datasets.utils.file_utils import xopen

    patience = Patience()
    while True:
        try:
            if text.startswith(("http://", "https://")):
                return content_of(text)
            with xopen(text, "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise BadImage("cannot read the file (No such file)") from None
        except BadImage:
            raise
        except Exception as error:
            if not is_transient(error):
                raise BadImage(one_line(error)) from None
            patience.failed(f"reading {text[:200]}", error)  # an image is not bad because the network is


class FolderSource(ImageSource):
    """Image files below a folder, or matched by a glob of files and folders ("**" included). Names that start with "."
    are left out.

    No labels are needed; `labels=True` takes the name of the parent folder as the class. Images below the folder
    `leave_out` are ignored, unless all of them are there. Shards are strided (`files[i::n]`), so that each of them
    mixes all folders.
    """

    cheap_rows = True

    def __init__(
        self, root_or_glob: str | os.PathLike, labels: bool = False, leave_out: str | os.PathLike | None = None
    ):
        self.name = os.path.expanduser(os.fspath(root_or_glob))
        found = _outside(leave_out, _list_files(self.name), self.name)
        self._files = sorted(filter(_is_image, found))
        self._left_out = Counter(os.path.splitext(path)[1].lower() for path in found if not _is_image(path))
        if not self._files:
            extensions = " ".join(sorted(image_extensions()))
            raise ValueError(f"no images found in {self.name}{self._what_is_left_out()} (extensions {extensions})")
        self.num_shards = -(-len(self._files) // ROWS_PER_VIRTUAL_SHARD)
        self.has_labels = labels
        self.label_names = sorted({_parent(file) for file in self._files}) if labels else None
        self._label_of = {name: index for index, name in enumerate(self.label_names or [])}

    def __len__(self) -> int:
        return len(self._files)

    @property
    def summary(self) -> str:
        """How many images there are, and which files are left out because of their names, in one line."""
        return f"{len(self._files)} images in {self.name}{self._what_is_left_out()}"

    def _what_is_left_out(self) -> str:
        counts = [
            f"{count} {ending or 'without an ending'}" for ending, count in self._left_out.most_common(MAX_ENDINGS)
        ]
        if rest := self._left_out.total() - sum(count for _, count in self._left_out.most_common(MAX_ENDINGS)):
            counts.append(f"{rest} others")
        return f"; left out: {', '.join(counts)} (no ending of a format that is read)" if counts else ""

    @property
    def fingerprint(self) -> str:
        status = [(os.path.relpath(file, self.name), os.stat(file)) for file in self._files if os.path.exists(file)]
        return digest(["folder", self.has_labels, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in status)])

    @property
    def identity(self) -> str:
        return digest(["folder", *(os.path.relpath(file, self.name) for file in self._files)])

    @property
    def content(self) -> str:
        return content_mark(self._files)

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        for row, path in enumerate(self._files[shard :: self.num_shards]):
            yield Record(shard << 32 | row, path, self._label_of[_parent(path)] if self.has_labels else -1)

    def where(self, record: Record) -> str:
        return record.payload


def _parent(path: str) -> str:
    return os.path.basename(os.path.dirname(path))


def _outside(folder: str | os.PathLike | None, files: set[str], root: str) -> set[str]:
    """The files that are not below the folder; all files if the root itself is."""
    if folder is None:
        return files
    left_out = os.path.join(os.path.realpath(os.path.expanduser(os.fspath(folder))), "")
    real = {parent: os.path.join(os.path.realpath(parent), "") for parent in {os.path.dirname(file) for file in files}}
    if os.path.join(os.path.realpath(root), "").startswith(left_out):
        return files
    return {file for file in files if not real[os.path.dirname(file)].startswith(left_out)}


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in image_extensions()


def _list_files(root_or_glob: str) -> set[str]:
    if os.path.exists(root_or_glob):  # first: a real folder may have glob characters in its name
        matches = [root_or_glob]
    elif glob.has_magic(root_or_glob):
        matches = glob.glob(root_or_glob, recursive=True)
    else:
        matches = []
    if not matches:
        raise ValueError(
            f"no such folder: {root_or_glob} (expected a folder of images, or a glob that matches files or folders)"
        )
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
    return {path for path in found if not os.path.basename(path).startswith(".")}


class SpritesSource(Source):
    """The embedded data: rendered scenes, labeled, endless. An "epoch" is `num_samples` scenes that no other epoch
    repeats.

    The key of a scene is its index: offset + epoch * num_samples + i.
    """

    name = "sprites"
    has_labels = True
    label_names = None
    cheap_rows = True

    def __init__(self, num_samples: int = 16384, seed: int = 0, offset: int = 0):
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.num_samples = num_samples
        self.seed = seed
        self.offset = offset
        self.num_shards = -(-num_samples // ROWS_PER_VIRTUAL_SHARD)

    def __len__(self) -> int:
        return self.num_samples

    @property
    def fingerprint(self) -> str:
        from . import sprite_scenes, sprite_shapes, sprites

        # What draws them is what they are.
        code = [Path(module.__file__).read_bytes() for module in (sprites, sprite_scenes, sprite_shapes)]
        return digest(["sprites", self.num_samples, self.seed, self.offset, *code])

    @property
    def identity(self) -> str:
        return digest(["sprites", self.num_samples, self.seed, self.offset])

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        start = self.offset + epoch * self.num_samples
        first = shard * ROWS_PER_VIRTUAL_SHARD
        for index in range(start + first, start + min(first + ROWS_PER_VIRTUAL_SHARD, self.num_samples)):
            yield Record(index, index, -1)

    def decode_batch(self, payloads: Sequence[int], canvas_size: int, fit: str = "native") -> list[Decoded | BadImage]:
        from .sprites import render_sprites

        scenes = render_sprites(np.asarray(payloads, dtype=np.int64), canvas_size, self.seed)
        size = (canvas_size, canvas_size)
        return [Decoded(image, size, int(label)) for image, label in zip(scenes.images, scenes.labels, strict=True)]

    def where(self, record: Record) -> str:
        return f"sprite {record.key}"


class SourceView(Source):
    """Some records of a source, with the same keys; a subclass says which."""

    def __init__(self, source: Source):
        self.name = source.name
        self.num_shards = source.num_shards
        self.cheap_rows = source.cheap_rows
        self.has_labels = source.has_labels
        self.label_names = source.label_names
        self._source = source

    @property
    def content(self) -> str:
        """As in the whole source."""
        return self._source.content

    def decode_batch(self, payloads: Sequence[Any], canvas_size: int, fit: str = "native") -> list[Decoded | BadImage]:
        return self._source.decode_batch(payloads, canvas_size, fit)

    def where(self, record: Record) -> str:
        return self._source.where(record)


class _PartOfSource(SourceView):
    """Some rows of each shard of a source, `num_rows` of them held out (at most 1 / `share`), or all the others."""

    def __init__(self, source: Source, num_rows: int, share: int, held_out: bool):
        super().__init__(source)
        self._num_rows = num_rows
        self._share = share
        self._held_out = held_out

    @property
    def fingerprint(self) -> str:
        return digest([self._source.fingerprint, self._num_rows, self._share, self._held_out])

    @property
    def identity(self) -> str:
        """As in the whole source."""
        return digest([self._source.identity, self._num_rows, self._share, self._held_out])

    def __length_hint__(self) -> int:
        """How many images there are, up to what short shards have less; 0 where the source does not say."""
        number = length_hint(self._source)
        held_out = min(self._num_rows * self.num_shards, number // self._share)
        return held_out if self._held_out else number - held_out

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        records = self._source.read_shard(shard, epoch)
        if self.cheap_rows:
            first = list(records)
            num_rows = min(self._num_rows, len(first) // self._share)
            # Evenly spread, because paths are often sorted by class.
            rows = {index * len(first) // num_rows for index in range(num_rows)}
        else:  # the beginning of the shard, so that no more than that has to be read for the few
            first = list(islice(records, self._share * self._num_rows))
            rows = range(min(self._num_rows, len(first) // self._share))
        yield from (record for row, record in enumerate(first) if (row in rows) == self._held_out)
        if not self._held_out:
            yield from records


def hold_out(source: Source, num_samples: int, share: int = 2) -> tuple[Source, Source]:
    """(the rest, `num_samples` or slightly more images) of a source; of each shard at most 1 / `share` is held out."""
    num_rows = -(-num_samples // source.num_shards)
    return _PartOfSource(source, num_rows, share, held_out=False), _PartOfSource(source, num_rows, share, held_out=True)
