"""Reading in a thread and decoding in worker processes, in order. A worker that dies is replaced and its work is
repeated."""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from .bad_images import printable
from .decode import BadImage
from .order import Sample
from .retry import Patience, ReadError
from .shared_memory import WAIT_SECONDS, check_result, share
from .sources import Source

_Item = TypeVar("_Item")
# How the loader's messages begin. With a GPU the thread that copies to page-locked memory may die of the broken
# connection.
_WORKER_DIED = ("DataLoader worker", "Pin memory thread")


# Columns of `Chunk.meta`. From `EPOCH` on they are the columns of `order.START`.
KEY, LABEL, EPOCH, GROUP, ROW, NUM_SEEN, NUM_BAD = range(7)


class KEPT:
    """Takes the place of a payload that needs no decoding because the main process has the canvas (`resident`)."""


@dataclass
class Chunk:
    """The result of decoding n samples, g of them good.

    canvases: uint8 (g, 3, S, S). sizes: int64 (g, 2). good: bool (n,). bad: (index, reason, where) of each bad sample.
    kept: bool (n,), the `KEPT` samples: good, but without canvas and size until `ResidentCanvases.with_kept` adds them.
    meta: int64 (n, 5), with the columns `KEY` to `ROW`; without the bad ones (g, 5), or (g, 7) with `CanvasStream`'s
    counts.
    """

    canvases: torch.Tensor
    sizes: torch.Tensor
    meta: torch.Tensor
    good: torch.Tensor
    bad: list[tuple[int, str, str]]
    kept: torch.Tensor

    def pin_memory(self) -> "Chunk":
        """Called by the `DataLoader`: copies from page-locked memory to a GPU overlap with its work."""
        return Chunk(self.canvases.pin_memory(), self.sizes.pin_memory(), self.meta, self.good, self.bad, self.kept)


class Decoder(Dataset[Chunk]):
    """A map-style dataset whose "indices" are the raw samples themselves."""

    def __init__(self, source: Source, canvas_size: int, fit: str):
        self.source = source
        self.canvas_size = canvas_size
        self.fit = fit

    def __getitems__(self, samples: list[Sample]) -> "Chunk | ReadError":
        # An alarm ends a worker that takes too long. The loader's own timeout would also delay noticing a dead worker.
        limited = get_worker_info() is not None and hasattr(signal, "setitimer")
        if limited:
            signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS)
        try:
            return self._chunk(samples)
        except ReadError as error:  # raised in a worker, it would arrive with pages of traceback
            return error
        finally:
            if limited:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _chunk(self, samples: list[Sample]) -> Chunk:
        meta = torch.tensor([[s.record.key, s.record.label, s.epoch, s.group, s.row] for s in samples])
        kept = torch.tensor([sample.record.payload is KEPT for sample in samples])
        good = torch.ones(len(samples), dtype=torch.bool)
        images = []
        bad = []
        fresh = (~kept).nonzero().flatten().tolist()
        payloads = [samples[index].record.payload for index in fresh]
        results = self.source.decode_batch(payloads, self.canvas_size, self.fit)
        for index, result in zip(fresh, results, strict=True):
            if isinstance(result, BadImage):
                good[index] = False
                bad.append((index, str(result), self.source.where(samples[index].record)))
                continue
            images.append(result)
            if result.label is not None:
                meta[index, LABEL] = result.label
        canvases = torch.empty((len(images), 3, self.canvas_size, self.canvas_size), dtype=torch.uint8)
        for canvas, image in zip(canvases.numpy(), images, strict=True):
            canvas[:] = image.canvas
        sizes = torch.tensor([image.size for image in images], dtype=torch.int64).reshape(-1, 2)
        return share(Chunk(canvases, sizes, meta, good, bad, kept))


def decoded(
    samples: Iterator[Sample],
    source: Source,
    canvas_size: int,
    chunk_size: int,
    num_workers: int,
    depth: int,
    prepare: Callable[[list[Sample]], list[Sample]] | None = None,
    fit: str = "native",
) -> Iterator[Chunk]:
    """Decode chunks of `chunk_size` samples, in order. Up to `depth` raw chunks are read ahead.

    `prepare` changes each chunk as it is handed out. If a worker dies, the chunks that were handed out are decoded
    again, one at a time, so that the next failure names the chunk that causes it.

    Raises:
        ReadError: workers have died, or spent half an hour on a chunk, again and again at the samples that it names.
        NoSharedMemory: a worker has no room for what it has decoded.
    """
    decoder = Decoder(source, canvas_size, fit)
    reader = BackgroundIterator(_lists(samples, chunk_size), depth)
    handed_out: deque[list[Sample]] = deque()  # to workers, and not yet back
    again: deque[list[Sample]] = deque()  # to be decoded a second time
    patience = Patience()

    def hand_out(lists: Iterator[list[Sample]]) -> Iterator[list[Sample]]:
        for own in lists:
            handed_out.append(own)
            yield own if prepare is None else prepare(own)

    try:
        while True:
            is_second_time = bool(again)
            lists = hand_out(_emptied(again) if is_second_time else reader)
            try:
                for chunk in _load(decoder, lists, num_workers, one_at_a_time=is_second_time):
                    check_result(chunk)
                    if isinstance(chunk, ReadError):
                        raise chunk
                    handed_out.popleft()
                    patience.succeeded()
                    yield chunk
                if not is_second_time:
                    return
            except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
                if not _is_death_of_worker(error, num_workers):
                    raise
                again.extendleft(reversed(handed_out))
                handed_out.clear()
                first = printable(source.where(again[0][0].record))
                last = printable(source.where(again[0][-1].record))
                patience.failed(f"decoding {len(again[0])} images from {first} to {last}", error)
    finally:
        reader.close()


def _is_death_of_worker(error: Exception, num_workers: int) -> bool:
    """Errors of a connection or a file come from a worker that died while it sent its result."""
    if not num_workers:
        return False
    return not isinstance(error, RuntimeError) or str(error).startswith(_WORKER_DIED)


def _emptied(lists: deque[list[Sample]]) -> Iterator[list[Sample]]:
    while lists:
        yield lists.popleft()


def _load(
    decoder: Decoder, lists: Iterator[list[Sample]], num_workers: int, one_at_a_time: bool
) -> Iterator[Chunk | ReadError]:
    loader = DataLoader(
        decoder,
        batch_sampler=lists,
        num_workers=1 if one_at_a_time else num_workers,
        prefetch_factor=1 if one_at_a_time else None,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        worker_init_fn=_survive_signals,
        generator=torch.Generator(),  # without it the loader would draw from the global one and so change it
    )
    if not num_workers or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    # The loader's handler of SIGCHLD would raise for a dead worker wherever the main thread is, for example in the
    # middle of a checkpoint. Keep our own.
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    signal.signal(signal.SIGCHLD, handler)
    return iterator


def _lists(samples: Iterator[Sample], size: int) -> Generator[list[Sample], None, None]:
    while chunk := list(islice(samples, size)):
        yield chunk


def _identity(item: _Item) -> _Item:
    return item


def _survive_signals(_worker: int) -> None:
    """Ignore the signals that schedulers send to all processes of a job and Ctrl-C to the group: the main process may
    still need batches for its last step."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if sys.platform == "linux":
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_the_parent_says, daemon=True).start()


def _leave_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def regroup(chunks: Iterable[Chunk], size: int, keep_last: bool = False) -> Iterator[Chunk]:
    """Chunks without bad images -> chunks of exactly `size`; a chunk that already has this size is not copied."""
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
                held = []
                num_held = 0
    if keep_last and held:
        yield _merged(held)


def _merged(parts: list[tuple[torch.Tensor, ...]]) -> Chunk:
    """One chunk of good samples from the (canvases, sizes, meta) of several."""
    tensors = parts[0]
    if len(parts) > 1:
        tensors = [torch.cat(each) for each in zip(*parts, strict=True)]
    canvases, sizes, meta = tensors
    good = torch.ones(len(meta), dtype=torch.bool)
    return Chunk(canvases, sizes, meta, good, bad=[], kept=~good)


class BackgroundIterator:
    """Runs an iterator in a thread, at most `depth` items ahead. The thread starts at the first request, after the
    workers have forked."""

    def __init__(self, items: Generator[Any, None, None], depth: int):
        self._queue: queue.Queue = queue.Queue(depth)
        stop = threading.Event()
        self._thread = threading.Thread(
            target=_read_ahead, args=(items, self._queue, stop), name="canvas-reader", daemon=True
        )
        # Also runs at exit: a thread still inside pyarrow while the interpreter shuts down can crash it.
        self._finalizer = weakref.finalize(self, _stop, self._thread, self._queue, stop)
        self._started = False

    def __iter__(self) -> "BackgroundIterator":
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
        """Stop the thread and drop what it has read."""
        self._finalizer()


def _read_ahead(items: Generator[Any, None, None], results: queue.Queue, stop: threading.Event) -> None:
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
    deadline = time.monotonic() + 10  # a thread that waits for the network cannot be woken up
    while thread.is_alive() and thread is not threading.current_thread() and time.monotonic() < deadline:
        with contextlib.suppress(queue.Empty):  # make room in case the thread waits to put an item
            results.get_nowait()
        thread.join(timeout=0.01)
