"""Batches on the device, without waiting for the copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..data import Batch


class DevicePrefetcher:
    """Yields the batches of an iterator on the device, in their order.

    On a GPU they are copied on a stream of their own, so that the copy of a batch runs beside the kernels of the step
    before, which are still queued; only kernels that read the batch wait for it. For that the batches must lie in
    page-locked memory, as those of `CanvasStream` do on a machine with a GPU. Elsewhere it is `Batch.to`.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device):
        self.batches, self.device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> DevicePrefetcher:
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            return next(self.batches).to(self.device)
        with torch.cuda.stream(
            self._stream
        ):  # around `next` too: a batch with resident canvases is put together on the device
            batch = next(self.batches)
            batch = batch.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for tensor in (batch.canvases, batch.sizes, batch.keys, batch.epochs, batch.labels):
            tensor.record_stream(current)  # its memory is not given away while a queued kernel may read it
        return batch
