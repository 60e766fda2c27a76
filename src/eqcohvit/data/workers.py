"""Reading in a thread and decoding in worker processes, in order; a worker that dies is replaced and its work done
again."""

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
from .shared_memory import WAIT_SECONDS, NoSharedMemory, check_result, share
from .sources import Source

_Item = TypeVar("_Item")
# What the loader says of it: where it copies to page-locked memory (with a GPU), the thread that does so may die of the
# broken connection.
_WORKER_DIED = ("DataLoader worker", "Pin memory thread")


class KEPT:
    """In the place of a payload: not to be decoded, because the main process has the canvas (`resident`)."""


@dataclass
class Chunk:
    """What came of n samples, g of them good.

    canvases: uint8 (g, 3, S, S). sizes: int64 (g, 2). good: bool (n,). bad: (index, reason, where) of each other one.
    kept: bool (n,), `KEPT` ones: good, but without canvas and size until `ResidentCanvases.filled` gives them back.
    meta: int64 (n, 5), (key, label, epoch, group, row); after the bad ones are dropped (g, 5), or (g, 7) with num_seen
        and num_bad.
    """

    canvases: torch.Tensor
    sizes: torch.Tensor
    meta: torch.Tensor
    good: torch.Tensor
    bad: list[tuple[int, str, str]]
    kept: torch.Tensor

    def pin_memory(self) -> "Chunk":
        """Called by the `DataLoader`: from page-locked memory the copy to a GPU runs beside its work."""
        return Chunk(self.canvases.pin_memory(), self.sizes.pin_memory(), self.meta, self.good, self.bad, self.kept)


class Decoder(Dataset[Chunk]):
    """A map-style dataset whose "indices" are the raw samples themselves."""

    def __init__(self, source: Source, canvas_size: int, fit: str = "native"):
        self.source, self.canvas_size, self.fit = source, canvas_size, fit

    def __getitems__(self, samples: list[Sample]) -> "Chunk | ReadError":
        # A worker that takes too long dies of the alarm. The loader's own timeout would also be how long a dead one
        # goes unnoticed.
        limited = get_worker_info() is not None and hasattr(signal, "setitimer")
        if limited:
            signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS)
        try:
            return self._chunk(samples)
        except ReadError as error:  # as an exception it would come out of a worker with pages of traceback
            return error
        finally:
            if limited:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _chunk(self, samples: list[Sample]) -> Chunk:
        fresh = [index for index, sample in enumerate(samples) if sample.record.payload is not KEPT]
        decoded = self.source.decode_batch(
            [samples[index].record.payload for index in fresh], self.canvas_size, self.fit
        )
        good = [item for item in decoded if not isinstance(item, BadImage)]
        canvases = torch.empty((len(good), 3, self.canvas_size, self.canvas_size), dtype=torch.uint8)
        for canvas, item in zip(canvases.numpy(), good, strict=True):
            canvas[:] = item.canvas
        meta = torch.tensor([[s.record.key, s.record.label, s.epoch, s.group, s.row] for s in samples])
        mask, kept, bad = torch.ones(len(samples), dtype=torch.bool), torch.ones(len(samples), dtype=torch.bool), []
        kept[fresh] = False
        for index, item in zip(fresh, decoded, strict=True):
            if isinstance(item, BadImage):
                mask[index] = False
                bad.append((index, str(item), self.source.where(samples[index].record)))
            elif item.label is not None:
                meta[index, 1] = item.label
        sizes = torch.tensor([item.size for item in good], dtype=torch.int64).reshape(-1, 2)
        return share(Chunk(canvases, sizes, meta, mask, bad, kept))


def decoded(
    samples: Iterator[Sample],
    source: Source,
    canvas_size: int,
    chunk_size: int,
    num_workers: int,
    depth: int,
    prepare: Callable[[list[Sample]], list[Sample]] = lambda samples: samples,
    fit: str = "native",
) -> Iterator[Chunk]:
    """Decode chunks of `chunk_size` samples, in order. `depth` raw chunks wait for a worker; `prepare` sees each as it
    is handed out.

    Raises:
        ReadError: workers have died, or ended themselves after half an hour at a chunk, again and again at the samples
            that it names.
        NoSharedMemory: a worker has no room for what it has decoded.
    """
    decoder, reader = Decoder(source, canvas_size, fit), BackgroundIterator(_lists(samples, chunk_size), depth)
    handed_out: deque[list[Sample]] = deque()  # to workers, and not come back
    again: deque[list[Sample]] = deque()
    patience = Patience()
    try:
        while True:
            careful = bool(again)  # one at a time, so that the death of the worker tells which
            lists = _emptied(again) if careful else reader
            try:
                for chunk in _load(decoder, map(prepare, _noted(lists, handed_out)), num_workers, careful):
                    check_result(chunk)
                    if isinstance(chunk, ReadError):
                        raise chunk
                    handed_out.popleft()
                    patience.succeeded()
                    yield chunk
                if not careful:
                    return
            except NoSharedMemory:
                raise
            except (
                RuntimeError,
                ConnectionError,
                FileNotFoundError,
                EOFError,
            ) as error:  # the latter where it took a result with it
                if not num_workers or (isinstance(error, RuntimeError) and not str(error).startswith(_WORKER_DIED)):
                    raise
                again.extendleft(reversed(handed_out))
                handed_out.clear()
                first, last = (printable(source.where(again[0][index].record)) for index in (0, -1))
                patience.failed(f"decoding {len(again[0])} images from {first} to {last}", error)
    finally:
        reader.close()


def _emptied(lists: deque[list[Sample]]) -> Iterator[list[Sample]]:
    while lists:
        yield lists.popleft()


def _noted(lists: Iterator[list[Sample]], handed_out: deque[list[Sample]]) -> Iterator[list[Sample]]:
    for samples in lists:
        handed_out.append(samples)
        yield samples


def _load(
    decoder: Decoder, lists: Iterator[list[Sample]], num_workers: int, careful: bool
) -> Iterator[Chunk | ReadError]:
    loader = DataLoader(
        decoder,
        batch_sampler=lists,
        num_workers=1 if careful else num_workers,
        prefetch_factor=1 if careful else None,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        worker_init_fn=_survive_signals,
        generator=torch.Generator(),  # otherwise the loader draws from, and so changes, the global one
    )
    if not num_workers or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    # The loader would handle SIGCHLD so that a dead worker raises wherever the main thread is: in the middle of a step,
    # or of a checkpoint.
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
    """Schedulers signal all processes of a job, Ctrl-C the group; the main process may still want batches for its last
    step."""
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


def _merged(parts: list[tuple[torch.Tensor, ...]]) -> Chunk:
    canvases, sizes, meta = (
        parts[0] if len(parts) == 1 else (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    )
    return Chunk(
        canvases,
        sizes,
        meta,
        good=torch.ones(len(meta), dtype=torch.bool),
        bad=[],
        kept=torch.zeros(len(meta), dtype=torch.bool),
    )


class BackgroundIterator:
    """Runs an iterator in a thread, at most `depth` items ahead. The thread starts with the first item, after workers
    have forked."""

    def __init__(self, items: Generator[Any, None, None], depth: int):
        self._queue: queue.Queue = queue.Queue(depth)
        stop = threading.Event()
        self._thread = threading.Thread(
            target=_fill, args=(items, self._queue, stop), name="canvas-reader", daemon=True
        )
        # Also runs at exit: a thread that is still inside pyarrow while the interpreter goes down can crash it.
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


def _fill(items: Generator[Any, None, None], results: queue.Queue, stop: threading.Event) -> None:
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
