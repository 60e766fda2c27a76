"""Batches on the device, and what is random about their views, ahead of the step that needs them."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from ..data import Batch
from ..transforms import Draws
from .signals import StopRequested, StopSignals


class DevicePrefetcher:
    """Yields each batch of an iterator with its draws, in order: the canvases and the draws on the device, all else on
    the host.

    `fetch` takes the next one ahead. The loop calls it when the work of a step has been queued on a GPU: the host then
    draws while the GPU computes. Copies have their own stream; only kernels that read a batch wait for them. For
    that the batches must be in page-locked memory. `CanvasStream` puts them there on a machine with a GPU.

    Args:
        draw: gives the draws of a batch (`ViewRenderer.draw`).
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, draw: Callable[[Batch], Draws]):
        self.batches, self.device, self.draw = batches, device, draw
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: deque[tuple[Batch, Draws, Any] | Exception] = deque()

    def __iter__(self) -> DevicePrefetcher:
        return self

    def __next__(self) -> tuple[Batch, Draws]:
        item = self._ready.popleft() if self._ready else self._take()
        if isinstance(item, Exception):
            raise item
        batch, draws, copied = item
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            # Their memory is not given away while a queued kernel may read it.
            draws.map(lambda tensor: tensor.record_stream(current))
            batch.canvases.record_stream(current)
        return batch, draws

    def fetch(self, stop: StopSignals) -> float:
        """Take one batch ahead, unless a signal asks the run to stop; an error is raised when that batch is asked for.

        Returns the seconds that it waited for the batch if meanwhile the GPU has run out of work.
        """
        started = time.perf_counter()
        with contextlib.suppress(StopRequested), stop.interruptible():
            try:
                self._ready.append(self._take())
            except StopRequested:
                raise
            except Exception as error:
                self._ready.append(error)
        is_idle = self._stream is None or torch.cuda.current_stream(self.device).query()
        return time.perf_counter() - started if is_idle else 0.0

    def _take(self) -> tuple[Batch, Draws, Any]:
        """The next batch, its draws, and on a GPU the event after their copy."""
        if self._stream is None:
            batch = next(self.batches)
            return replace(batch, canvases=batch.canvases.to(self.device)), self.draw(batch), None
        with torch.cuda.stream(self._stream):  # around `next` too: resident canvases are put together on the device
            batch = next(self.batches)
            batch = replace(batch, canvases=batch.canvases.to(self.device, non_blocking=True))
            return batch, self.draw(batch).to(self.device), self._stream.record_event()
