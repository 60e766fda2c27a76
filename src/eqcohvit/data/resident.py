"""Small datasets stay decoded on the training device: each image is decoded and transferred once, not once an epoch."""

from collections.abc import Callable
from operator import length_hint

import psutil
import torch

from .order import Sample
from .sources import Record, Source
from .workers import KEPT, KEY, LABEL, Chunk

RESERVE = 1 / 8  # of the device's memory, left free for whatever else grows


class ResidentCanvases:
    """Canvas, size and label of each decoded image by its key. `CanvasStream` yields the same batches without it.

    It stops keeping images, with one line to `report`, when less than an eighth of the device's memory (on a CPU, of
    the machine's) would stay free; the other images are decoded in each epoch. The shards of a process change by
    epoch, so in the end each process keeps all images. A key must mean the same image in each epoch. `SpritesSource`
    gives new keys in each epoch, so its images cannot be kept.
    """

    def __init__(self, source: Source, canvas_size: int, device: torch.device, report: Callable[[str], None] = print):
        self.device = device
        self._report = report
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}  # canvas, size and label by key
        self._canvas_bytes = 3 * canvas_size**2
        self._is_full = False
        free, total = free_memory(device)
        room = max(0, int(free - RESERVE * total)) // self._canvas_bytes
        number = length_hint(source)  # 0 if only reading would show it
        if number > room:
            needed = number * self._canvas_bytes / 2**30
            report(
                f"resident: {number} images need {needed:.1f} GiB on {device}; "
                f"at most {room} fit, the others are decoded each epoch"
            )

    def __len__(self) -> int:
        return len(self._held)

    def without_kept(self, samples: list[Sample]) -> list[Sample]:
        """The samples as they go to a worker, without payloads for the images that are kept here."""
        held = [self._held.get(sample.record.key) for sample in samples]
        return [
            sample if found is None else sample._replace(record=Record(sample.record.key, KEPT, found[2]))
            for sample, found in zip(samples, held, strict=True)
        ]

    def with_kept(self, chunk: Chunk) -> Chunk:
        """The chunk on the device, completed by the kept canvases and sizes; new ones are kept."""
        canvases = chunk.canvases.to(self.device, non_blocking=True)
        sizes = chunk.sizes
        self._keep(chunk.meta[chunk.good & ~chunk.kept, : LABEL + 1].tolist(), canvases, sizes)
        if chunk.kept.any():
            fresh = zip(canvases, sizes, strict=True)
            good = chunk.meta[chunk.good, KEY].tolist()
            kept = chunk.kept[chunk.good].tolist()
            rows = [self._held[key][:2] if is_kept else next(fresh) for key, is_kept in zip(good, kept, strict=True)]
            canvases, sizes = (torch.stack(tensors) for tensors in zip(*rows, strict=True))
        return Chunk(canvases, sizes, chunk.meta, chunk.good, chunk.bad, torch.zeros_like(chunk.kept))

    def _keep(self, keys_labels: list[list[int]], canvases: torch.Tensor, sizes: torch.Tensor) -> None:
        # An image may come twice, in one chunk or in two that were handed out before it was kept.
        new = {key: index for index, (key, _) in enumerate(keys_labels) if key not in self._held}
        if self._is_full or not new:
            return
        free, total = free_memory(self.device)
        if free - len(new) * self._canvas_bytes < RESERVE * total:
            self._is_full = True
            kept = f"{len(self)} images ({len(self) * self._canvas_bytes / 2**30:.1f} GiB)"
            self._report(f"resident: no room for more than {kept} on {self.device}; the others are decoded each epoch")
            return
        rows = list(new.values())
        # Copies, because a worker's result is in shared memory, which is scarce.
        for key, index, canvas, size in zip(new, rows, canvases[rows], sizes[rows], strict=True):
            self._held[key] = canvas, size, keys_labels[index][1]


def free_memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of a GPU; otherwise of the machine, whatever limit a container may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return memory.available, memory.total
