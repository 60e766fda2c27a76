"""Any `Source` -> an endless stream of full batches of canvases: seeded, sharded, exactly once per epoch, resumable.

A thread of the main process reads raw records in an order whose position is plain state (`order`). Workers decode them,
and their number changes nothing (`workers`). So a checkpoint needs no shuffle buffer: resuming reads the current group
again, undecoded, up to the row.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any

import torch

from .bad_images import BadImages, printable
from .decode import BadImage
from .fingerprint import content_mark, digest
from .jpeg import jpeg_decoder
from .order import MAX_GROUP_SHARDS, START, Order, in_order
from .resident import ResidentCanvases
from .retry import ReadError, is_transient
from .sources import Source
from .workers import EPOCH, KEY, Chunk, decoded, regroup

FIRST_ROWS = 8  # read before a run begins
MIN_SEEN = 200  # images after which the share of bad ones is judged; a smaller dataset is judged after its first pass


class TooManyBadImages(Exception):
    """More than `max_bad_fraction` of the images could not be decoded."""


@dataclass
class Batch:
    """B samples.

    canvases: uint8 (B, 3, S, S). sizes: int64 (B, 2), (height, width) of the originals in pixels. keys, epochs: int64
    (B,); together they identify one view of one sample. labels: int64 (B,), -1 if unknown. position: JSON-able; where
    to continue after this batch.
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
        """The batch in page-locked memory, so that the copy to a GPU overlaps with its work; tensors on a GPU stay."""
        return self._map(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


class CanvasStream:
    """Iterating yields `Batch`es forever. A new iterator continues after the last batch that the stream has yielded.

    To resume, `position` is the `position` of a batch of this rank, or the list of the positions of all ranks if their
    number has changed. Source, `seed` and `shuffle_window` must be the same as before; batch size and number of workers
    can differ. Bad images are skipped, counted (`num_bad` of `num_seen`, up to the last yielded batch) and
    listed once each in `bad_images_path` (JSON lines). `fit` is as in `decode_image`. Images are mixed from up to
    `group_shards` shards at a time. With `resident` the canvases are on its device, and each image is decoded once if
    there is room.
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
        shuffle_window: int = 2048,
        max_bad_fraction: float = 0.01,
        bad_images_path: str | Path | None = None,
        position: dict[str, Any] | list[dict[str, Any]] | None = None,
        resident: ResidentCanvases | None = None,
        fit: str = "native",
        group_shards: int = MAX_GROUP_SHARDS,
    ):
        for name, value, least in (
            ("canvas_size", canvas_size, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
            ("num_workers", num_workers, 0),
            ("shuffle_window", shuffle_window, 1),
            ("group_shards", group_shards, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank={rank}, world_size={world_size}")
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must lie between 0 and 1, got {max_bad_fraction}")
        self.source = source
        self.canvas_size = canvas_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.max_bad_fraction = max_bad_fraction
        self.fit = fit
        self._resident = resident
        order = Order(source, seed, rank, world_size, shuffle_window, group_shards)
        self._order, start = order.resumed_at(position)
        self._bad_images = BadImages(source.name, bad_images_path)
        self.position = self._order.position(start)

    @property
    def num_seen(self) -> int:
        """Records read so far by this rank, bad ones too."""
        return self.position["num_seen"]

    @property
    def num_bad(self) -> int:
        """Bad ones among them."""
        return self.position["num_bad"]

    def __iter__(self) -> Iterator[Batch]:
        start = dict(self.position)
        good_chunks = self._without_bad(self._decoded_from(start), start["num_seen"], start["num_bad"])
        for chunk in regroup(good_chunks, self.batch_size):
            state = dict(zip(START, chunk.meta[-1, EPOCH:].tolist(), strict=True))
            self.position = self._order.position(state)
            yield _to_batch(chunk, dict(self.position))

    def _decoded_from(self, start: dict[str, Any]) -> Iterator[Chunk]:
        """Chunks from a position on, with the canvases that are resident."""
        resident = self._resident
        chunks = decoded(
            self._order.samples(start["epoch"], start["group"], start["row"]),
            self.source,
            self.canvas_size,
            chunk_size=self.batch_size,
            num_workers=self.num_workers,
            depth=max(4, self._order.shuffle_window // self.batch_size),  # read the next window while decoding this one
            prepare=None if resident is None else resident.without_kept,
            fit=self.fit,
        )
        return chunks if resident is None else map(resident.with_kept, chunks)

    def _without_bad(self, chunks: Iterable[Chunk], num_seen: int, num_bad: int) -> Iterator[Chunk]:
        """The chunks with only their good samples, each with the counts of images up to it as two more columns.

        Args:
            num_seen, num_bad: counts before the first chunk.
        """
        for chunk in chunks:
            for index, reason, where in chunk.bad:
                self._bad_images.add(int(chunk.meta[index, KEY]), int(chunk.meta[index, EPOCH]), reason, where)
            seen = num_seen + torch.arange(1, len(chunk.good) + 1)
            bad = num_bad + torch.cumsum(~chunk.good, 0)
            num_seen = int(seen[-1])
            num_bad = int(bad[-1])
            self._check_share(num_seen, num_bad, first_pass_done=bool(chunk.meta[-1, EPOCH] > 0))
            chunk.meta = torch.column_stack((chunk.meta, seen, bad))[chunk.good]
            yield chunk

    def _check_share(self, num_seen: int, num_bad: int, first_pass_done: bool) -> None:
        """Raise `TooManyBadImages` if more images are bad than `max_bad_fraction` allows, or all are."""
        if (num_seen >= MIN_SEEN or first_pass_done) and num_bad > self.max_bad_fraction * num_seen:
            raise TooManyBadImages(
                f"{num_bad} of {num_seen} images ({num_bad / num_seen:.1%}) could not be decoded, more than "
                f"max_bad_fraction={self.max_bad_fraction:g} allows; {self._bad_images.summary()}"
            )
        if first_pass_done and num_bad == num_seen:
            raise TooManyBadImages(f"none of {num_seen} images could be decoded; {self._bad_images.summary()}")


def check_first_rows(source: Source, canvas_size: int, max_bad_fraction: float = 0.0) -> None:
    """Read and decode the first images of a source, to find out before anything is written if all of them are bad.

    Raises:
        ValueError: the rows cannot be read, or none of them is an image and `max_bad_fraction` is below 1.
        ReadError: the network or the disk failed several times.
    """
    try:
        records = [sample.record for sample in islice(in_order(source), FIRST_ROWS)]
    except ReadError as error:
        if not isinstance(error.__cause__, Exception) or is_transient(error.__cause__):
            raise
        raise ValueError(str(error)) from error
    if not records:
        raise ValueError(f"{source.name} has no rows")
    decoded = source.decode_batch([record.payload for record in records], canvas_size)
    if max_bad_fraction < 1 and all(isinstance(item, BadImage) for item in decoded):
        first = f"{printable(source.where(records[0]))}: {printable(str(decoded[0]))}"
        raise ValueError(f"none of the first {len(records)} images of {source.name} can be read; first: {first}")


def describe_data(source: Source) -> dict[str, Any]:
    """What a checkpoint says of the images that it was trained on: `identity`, `content` (of files and of the first
    rows, which may be remote), `num_images` (0 where the source does not say), and `jpeg_decoder`."""
    content = [source.content]
    for sample in islice(in_order(source), FIRST_ROWS):
        payload = sample.record.payload
        content.append(content_mark([payload]) if isinstance(payload, str) else digest([payload]))
    return {
        "identity": source.identity,
        "content": digest(content),
        "num_images": length_hint(source),
        "jpeg_decoder": jpeg_decoder(),
    }


def sequential(
    source: Source, canvas_size: int, batch_size: int, max_samples: int | None = None, fit: str = "native"
) -> Iterator[Batch]:
    """One pass in the order of the source, without shuffling; the last batch may be smaller. For evaluation.

    `max_samples` counts the rows read. Bad images are skipped, and a warning at the end says how many. If all images
    are bad, that is an error.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples}")
    samples = islice(in_order(source), max_samples)
    chunks = decoded(samples, source, canvas_size, batch_size, num_workers=0, depth=4, fit=fit)
    return _one_pass(chunks, batch_size, source.name)


def _one_pass(chunks: Iterator[Chunk], batch_size: int, name: str) -> Iterator[Batch]:
    problems: list[str] = []
    num_good = 0
    for chunk in regroup(_good_ones(chunks, problems), batch_size, keep_last=True):
        num_good += len(chunk.meta)
        yield _to_batch(chunk, position={})
    if problems and not num_good:
        raise TooManyBadImages(f"none of the {len(problems)} images of {name} could be decoded; first: {problems[0]}")
    if problems:
        warnings.warn(
            f"left out {len(problems)} images of {name} that could not be decoded; first: {problems[0]}", stacklevel=2
        )


def _good_ones(chunks: Iterator[Chunk], problems: list[str]) -> Iterator[Chunk]:
    """The chunks with only their good samples; what is wrong with the others is added to `problems`."""
    for chunk in chunks:
        problems += [f"{printable(where)}: {printable(reason)}" for _, reason, where in chunk.bad]
        chunk.meta = chunk.meta[chunk.good]
        yield chunk


def _to_batch(chunk: Chunk, position: dict[str, Any]) -> Batch:
    keys, labels, epochs = (column.contiguous() for column in chunk.meta[:, :3].unbind(1))
    batch = Batch(chunk.canvases, chunk.sizes, keys, epochs, labels, position)
    # The workers' canvases are already pinned, except in a batch that was put together from two chunks after a bad
    # image.
    return batch.pin_memory() if torch.cuda.is_available() else batch
