"""Any `Source` -> an endless stream of full batches of canvases: seeded, sharded, exactly once per epoch, resumable.

The order, of which a position (epoch, group, row) is the whole state:
  epoch   a seeded permutation of the shards, dealt into groups of up to `MAX_GROUP_SHARDS`
  group   its shards are read round-robin; the rows of this rank pass through windows, each permuted as a whole
  row     how many rows of the group this rank has emitted
So nothing waits in a shuffle buffer that a checkpoint would have to hold. Resuming reads the current group again, undecoded, up to
the row. Raw records are read in the main process (in a thread) and decoded in the workers, whose number changes nothing.

Ranks share the rows of each shard (row % world_size) where dropping a row is cheap or the shards do not divide well; then no rank runs
ahead of another. Otherwise each rank reads its own shards. Every rank yields full batches for ever, so none can wait for another.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from .decode import BadImage
from .sources import Record, Source

MAX_GROUP_SHARDS = 8
MIN_SEEN = 200  # images after which the share of bad ones is judged; a smaller dataset is judged after its first pass
_START = {"epoch": 0, "group": 0, "row": 0, "num_seen": 0, "num_bad": 0}


class TooManyBadImages(Exception):
    """More than `max_bad_fraction` of the images could not be decoded."""


@dataclass
class Batch:
    """B samples.

    canvases: uint8 (B, 3, S, S). sizes: int64 (B, 2), (height, width) of the originals in pixels. keys, epochs: int64 (B,); together
    they name one view of one sample. labels: int64 (B,), -1 if unknown. position: JSON-able; where to go on after this batch.
    """

    canvases: torch.Tensor
    sizes: torch.Tensor
    keys: torch.Tensor
    epochs: torch.Tensor
    labels: torch.Tensor
    position: dict[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    def _map(self, function: Any) -> "Batch":
        tensors = (self.canvases, self.sizes, self.keys, self.epochs, self.labels)
        return Batch(*(function(tensor) for tensor in tensors), position=self.position)

    def pin_memory(self) -> "Batch":
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


class CanvasStream:
    """Iterating yields `Batch`es for ever. A new iterator goes on after the last batch that the stream has yielded.

    `position` takes the `position` of a batch of this rank; the source, `seed`, `world_size`, `shuffle` and `shuffle_window` must be the
    same as then, batch size and number of workers may differ. Bad images are left out, counted (`num_bad` of `num_seen`, up to the last
    yielded batch) and each listed once in `bad_images_path` (JSON lines).
    """

    def __init__(
        self,
        source: Source,
        canvas_size: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        shuffle: bool = True,
        shuffle_window: int = 2048,
        max_bad_fraction: float = 0.01,
        bad_images_path: str | Path | None = None,
        position: dict[str, Any] | None = None,
    ):
        for name, value, least in (
            ("canvas_size", canvas_size, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
            ("num_workers", num_workers, 0),
            ("shuffle_window", shuffle_window, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank={rank}, world_size={world_size}")
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1], got {max_bad_fraction}")
        self.source, self.canvas_size, self.batch_size, self.num_workers = source, canvas_size, batch_size, num_workers
        self.max_bad_fraction = max_bad_fraction
        self._order = _Order(source, seed, rank, world_size, shuffle, shuffle_window)
        self._bad_images = _BadImages(source.name, bad_images_path)
        self.position = self._order.identity() | (_START if position is None else self._order.check(position))

    @property
    def num_seen(self) -> int:
        return self.position["num_seen"]

    @property
    def num_bad(self) -> int:
        return self.position["num_bad"]

    def __iter__(self) -> Iterator[Batch]:
        start = dict(self.position)
        samples = self._order.samples(start["epoch"], start["group"], start["row"])
        depth = max(4, self._order.shuffle_window // self.batch_size)  # the next window is read while this one is decoded
        chunks = _decoded(samples, self.source, self.canvas_size, self.batch_size, self.num_workers, depth)
        for chunk in _regroup(self._without_bad(chunks, start["num_seen"], start["num_bad"]), self.batch_size):
            state = dict(zip(_START, chunk.meta[-1, 2:].tolist(), strict=True))
            self.position = self._order.identity() | state
            yield chunk.to_batch(dict(self.position))

    def _without_bad(self, chunks: Iterable["_Chunk"], num_seen: int, num_bad: int) -> Iterator["_Chunk"]:
        for chunk in chunks:
            good = chunk.good
            seen = num_seen + torch.arange(1, len(good) + 1)
            bad = num_bad + torch.cumsum(~good, 0)
            num_seen, num_bad = int(seen[-1]), int(bad[-1])
            for index, reason, where in chunk.bad:
                key, _, epoch = chunk.meta[index, :3].tolist()
                self._bad_images.add(key, epoch, reason, where)
            first_pass_done = int(chunk.meta[-1, 2]) > 0
            if (num_seen >= MIN_SEEN or first_pass_done) and num_bad > self.max_bad_fraction * num_seen:
                raise TooManyBadImages(
                    f"{num_bad} of {num_seen} images ({num_bad / num_seen:.1%}) could not be decoded, more than "
                    f"max_bad_fraction={self.max_bad_fraction:g} allows; {self._bad_images.summary()}"
                )
            if first_pass_done and num_bad == num_seen:
                raise TooManyBadImages(f"not one of {num_seen} images could be decoded; {self._bad_images.summary()}")
            chunk.meta = torch.column_stack((chunk.meta, seen, bad))[good]
            yield chunk


def sequential(source: Source, canvas_size: int, batch_size: int, max_samples: int | None = None, num_workers: int = 0) -> Iterator[Batch]:
    """One pass in the order of the source, without shuffling; the last batch may be smaller. For evaluation.

    `max_samples` counts the rows read. Bad images are left out, and a warning at the end says how many; none but bad ones is an error.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples}")
    order = _Order(source, shuffle=False)
    samples = (sample for group in range(order.num_groups(0)) for sample in order.group_samples(0, group))
    chunks = _decoded(islice(samples, max_samples), source, canvas_size, batch_size, num_workers, depth=4)
    return _one_pass(chunks, batch_size, source.name)


def _one_pass(chunks: Iterator["_Chunk"], batch_size: int, name: str) -> Iterator[Batch]:
    problems: list[str] = []
    num_good = 0

    def without_bad() -> Iterator[_Chunk]:
        for chunk in chunks:
            problems.extend(f"{_printable(where)}: {_printable(reason)}" for _, reason, where in chunk.bad)
            chunk.meta = chunk.meta[chunk.good]
            yield chunk

    for chunk in _regroup(without_bad(), batch_size, keep_last=True):
        num_good += len(chunk.meta)
        yield chunk.to_batch(position={})
    if problems and not num_good:
        raise TooManyBadImages(f"none of the {len(problems)} images of {name} could be decoded; first: {problems[0]}")
    if problems:
        warnings.warn(f"left out {len(problems)} images of {name} that could not be decoded; first: {problems[0]}", stacklevel=2)


# ---------------------------------------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """A record and the position after it."""

    record: Record
    epoch: int
    group: int
    row: int


@dataclass(frozen=True)
class _Order:
    source: Source
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    shuffle: bool = True
    shuffle_window: int = 2048

    @property
    def splits_rows(self) -> bool:
        """Dividing S shards among ranks would let ranks drift apart by up to world_size / S of an epoch, in every epoch."""
        shards, ranks = self.source.num_shards, self.world_size
        return self.source.cheap_rows or (shards % ranks != 0 and shards < 16 * ranks)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a position to have a meaning."""
        names = ("seed", "rank", "world_size", "shuffle", "shuffle_window")
        return {name: getattr(self, name) for name in names} | {"num_shards": self.source.num_shards}

    def check(self, position: dict[str, Any]) -> dict[str, int]:
        identity = self.identity()
        missing = [name for name in (*identity, *_START) if name not in position]
        if missing:
            raise ValueError(f"position lacks {', '.join(missing)}; expected the `position` of a batch, got {position}")
        for name, value in identity.items():
            if position[name] != value:
                raise ValueError(f"cannot resume: the position was saved with {name}={position[name]}, this stream has {name}={value}")
        return {name: int(position[name]) for name in _START}

    def samples(self, epoch: int, group: int, row: int) -> Iterator[_Sample]:
        """This rank's samples from a position on, without end."""
        first_epoch, first_group, skip, empty_epochs = epoch, group, row, 0
        for epoch in count(first_epoch):
            empty_epochs += 1
            for group in range(first_group, self.num_groups(epoch)):
                for sample in self.group_samples(epoch, group, skip):
                    empty_epochs = 0
                    yield sample
                skip = 0
            first_group = 0
            if empty_epochs > self.world_size + 1:  # with fewer rows than ranks, a rank may miss out on single epochs
                raise ValueError(f"{self.source.name} has no rows (rank {self.rank} of {self.world_size})")

    def num_groups(self, epoch: int) -> int:
        return len(self._groups(epoch))

    def _groups(self, epoch: int) -> list[list[int]]:
        num_shards = self.source.num_shards
        shards = self._generator(epoch).permutation(num_shards).tolist() if self.shuffle else list(range(num_shards))
        if not self.splits_rows:
            shards = shards[(self.rank + epoch) % self.world_size :: self.world_size]
        size = max(1, min(MAX_GROUP_SHARDS, num_shards // self.world_size)) if self.shuffle else 1
        return [shards[start : start + size] for start in range(0, len(shards), size)]

    def group_samples(self, epoch: int, group: int, skip: int = 0) -> Iterator[_Sample]:
        rows = _round_robin([self.source.read_shard(shard, epoch) for shard in self._groups(epoch)[group]])
        if self.splits_rows and self.world_size > 1:
            first = (self.rank - group - epoch) % self.world_size  # the remainder of a division falls on each rank in turn
            rows = islice(rows, first, None, self.world_size)
        if not self.shuffle:
            for row, record in enumerate(islice(rows, skip, None), start=skip + 1):
                yield _Sample(record, epoch, group, row)
            return
        start = 0
        for index, window in enumerate(self._windows(rows, epoch, group)):
            end = start + len(window)
            if end > skip:
                order = self._generator(epoch, group, index).permutation(len(window)).tolist()
                for row in range(max(start, skip), end):
                    yield _Sample(window[order[row - start]], epoch, group, row + 1)
            start = end

    def _windows(self, rows: Iterator[Record], epoch: int, group: int) -> Iterator[list[Record]]:
        """Lists of `shuffle_window` records. The first is cut at random (if it does not hold all), so that borders differ by epoch."""
        window = list(islice(rows, self.shuffle_window))
        if len(window) == self.shuffle_window:
            cut = int(self._generator(epoch, group).integers(1, self.shuffle_window + 1))
            yield window[:cut]
            window = window[cut:] + list(islice(rows, cut))
        while window:
            yield window
            window = list(islice(rows, self.shuffle_window))

    def _generator(self, *counters: int) -> np.random.Generator:
        # The length goes in too: a seed sequence ignores trailing zeros, and (epoch 3) must not equal (epoch 3, group 0).
        return np.random.default_rng([len(counters), self.seed, *counters])


def _round_robin(iterators: list[Iterator[Record]]) -> Iterator[Record]:
    while iterators:
        alive = []
        for iterator in iterators:
            for record in islice(iterator, 1):
                yield record
                alive.append(iterator)
        iterators = alive


# ---------------------------------------------------------------------------------------------------------------------
# Reading in a thread, decoding in workers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Chunk:
    """What came of n samples, g of them good.

    canvases: uint8 (g, 3, S, S). sizes: int64 (g, 2). good: bool (n,). bad: (index, reason, where) of each other one.
    meta: int64 (n, 5), (key, label, epoch, group, row); after the bad ones are dropped (g, 5), or (g, 7) with num_seen and num_bad.
    """

    canvases: torch.Tensor
    sizes: torch.Tensor
    meta: torch.Tensor
    good: torch.Tensor
    bad: list[tuple[int, str, str]]

    def to_batch(self, position: dict[str, Any]) -> Batch:
        keys, labels, epochs = (column.contiguous() for column in self.meta[:, :3].unbind(1))
        return Batch(self.canvases, self.sizes, keys, epochs, labels, position)


class _Decoder:
    """A map-style dataset whose "indices" are the raw samples themselves."""

    def __init__(self, source: Source, canvas_size: int):
        self.source, self.canvas_size = source, canvas_size

    def __getitems__(self, samples: list[_Sample]) -> _Chunk:
        decoded = self.source.decode_batch([sample.record.payload for sample in samples], self.canvas_size)
        good = [item for item in decoded if not isinstance(item, BadImage)]
        canvases = torch.empty((len(good), 3, self.canvas_size, self.canvas_size), dtype=torch.uint8)
        for canvas, item in zip(canvases.numpy(), good, strict=True):
            canvas[:] = item.canvas
        meta = torch.tensor([[s.record.key, s.record.label, s.epoch, s.group, s.row] for s in samples])
        bad = []
        for index, (sample, item) in enumerate(zip(samples, decoded, strict=True)):
            if isinstance(item, BadImage):
                bad.append((index, str(item), self.source.where(sample.record)))
            elif item.label is not None:
                meta[index, 1] = item.label
        mask = torch.tensor([not isinstance(item, BadImage) for item in decoded])
        return _Chunk(canvases, torch.tensor([item.size for item in good], dtype=torch.int64).reshape(-1, 2), meta, mask, bad)


def _decoded(
    samples: Iterator[_Sample], source: Source, canvas_size: int, chunk_size: int, num_workers: int, depth: int
) -> Iterator[_Chunk]:
    """Decode chunks of `chunk_size` samples, in order. `depth` raw chunks wait for a worker."""
    reader = _BackgroundIterator(_lists(samples, chunk_size), depth)
    loader = DataLoader(
        _Decoder(source, canvas_size),
        batch_sampler=reader,
        num_workers=num_workers,
        collate_fn=_identity,
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        worker_init_fn=_survive_signals,
        generator=torch.Generator(),  # otherwise the loader draws from, and so changes, the global one
    )
    try:
        yield from loader
    finally:
        reader.close()


def _lists(samples: Iterator[_Sample], size: int) -> Iterator[list[_Sample]]:
    while chunk := list(islice(samples, size)):
        yield chunk


def _identity(chunk: _Chunk) -> _Chunk:
    return chunk


def _survive_signals(_worker: int) -> None:
    """Schedulers signal all processes of a job, Ctrl-C the group; the main process may still want batches for its last step."""
    if sys.platform == "linux":
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_the_parent_says, daemon=True).start()


def _leave_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _regroup(chunks: Iterable[_Chunk], size: int, keep_last: bool = False) -> Iterator[_Chunk]:
    """Chunks without bad images -> chunks of exactly `size`; one that is full already is passed on without a copy."""
    held: list[tuple[torch.Tensor, ...]] = []
    num_held = 0
    for chunk in chunks:
        tensors = (chunk.canvases, chunk.sizes, chunk.meta)
        while len(tensors[0]):
            taken = tuple(tensor[: size - num_held] for tensor in tensors)
            tensors = tuple(tensor[size - num_held :] for tensor in tensors)
            held.append(taken)
            num_held += len(taken[0])
            if num_held == size:
                yield _merged(held)
                held, num_held = [], 0
    if keep_last and held:
        yield _merged(held)


def _merged(parts: list[tuple[torch.Tensor, ...]]) -> _Chunk:
    canvases, sizes, meta = parts[0] if len(parts) == 1 else (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return _Chunk(canvases, sizes, meta, good=torch.ones(len(meta), dtype=torch.bool), bad=[])


class _BackgroundIterator:
    """Runs an iterator in a thread, at most `depth` items ahead. The thread starts with the first item, after workers have forked."""

    def __init__(self, items: Iterator[Any], depth: int):
        self._queue: queue.Queue = queue.Queue(depth)
        stop = threading.Event()
        self._thread = threading.Thread(target=_fill, args=(items, self._queue, stop), name="canvas-reader", daemon=True)
        # Also runs at exit: a thread that is still inside pyarrow while the interpreter goes down can crash it.
        self._finalizer = weakref.finalize(self, _stop, self._thread, self._queue, stop)
        self._started = False

    def __iter__(self) -> "_BackgroundIterator":
        return self

    def __next__(self) -> Any:
        if not self._finalizer.alive:
            raise StopIteration
        if not self._started:
            self._started = True
            self._thread.start()
        item, error = self._queue.get()
        if error is not None:
            self.close()
            raise error
        return item

    def close(self) -> None:
        self._finalizer()


def _fill(items: Iterator[Any], results: queue.Queue, stop: threading.Event) -> None:
    last: BaseException = StopIteration()
    try:
        for item in items:
            if not _put(results, (item, None), stop):
                items.close()
                return
    except BaseException as error:
        last = error
    _put(results, (None, last), stop)


def _put(results: queue.Queue, item: Any, stop: threading.Event) -> bool:
    if not stop.is_set():
        results.put(item)
    return not stop.is_set()


def _stop(thread: threading.Thread, results: queue.Queue, stop: threading.Event) -> None:
    stop.set()
    deadline = time.monotonic() + 10  # a thread that waits for the network cannot be woken
    while thread.is_alive() and thread is not threading.current_thread() and time.monotonic() < deadline:
        with contextlib.suppress(queue.Empty):  # make room, in case the thread waits for it
            results.get_nowait()
        thread.join(timeout=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Bad images
# ---------------------------------------------------------------------------------------------------------------------


class _BadImages:
    """The list of bad images of a run: one JSON object per line. What an earlier part of the run, or another process, has listed is not
    listed again."""

    def __init__(self, source_name: str, path: str | Path | None):
        self.source_name = source_name
        self.path = None if path is None else Path(path)
        self._listed: set[tuple[str, int]] = set()
        self._num_read = 0
        self._first = ""

    def add(self, key: int, epoch: int, reason: str, where: str) -> None:
        self._first = self._first or f"{_printable(where)}: {_printable(reason)}"
        if self.path is None or (self.source_name, key) in self._listed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:  # appended, so that processes do not overwrite each other
            file.seek(self._num_read)
            news = file.read()
            self._num_read += len(news)
            self._listed.update(_listed_in(news))
            if (self.source_name, key) in self._listed:
                return
            entry = {"source": self.source_name, "key": key, "epoch": epoch, "path": where, "reason": reason}
            cut_short = b"\n" if news and not news.endswith(b"\n") else b""
            file.write(cut_short + json.dumps(entry).encode() + b"\n")
        self._listed.add((self.source_name, key))

    def summary(self) -> str:
        return f"first: {self._first}" if self.path is None else f"first: {self._first}; all are listed in {self.path}"


def _listed_in(lines: bytes) -> Iterator[tuple[str, int]]:
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
            yield entry["source"], entry["key"]
        except (ValueError, KeyError, TypeError):  # a line cut short when the run was killed
            continue


def _printable(text: str) -> str:
    """The text without line breaks and control characters: names of files in other people's data may hold anything."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
