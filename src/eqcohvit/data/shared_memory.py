"""Results of worker processes in shared memory. If it is full, the worker says so; otherwise its result would never
come."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import get_worker_info

WAIT_SECONDS = 1800.0  # to wait for the next result of a worker, which may read from a network


class NoSharedMemory(OSError):
    """A worker process has no room for its result."""


def share(result: Any) -> Any:
    """The same nested result; in a worker of a `DataLoader` its tensors are in shared memory, or `NoSharedMemory` is
    returned instead.

    The loader itself would move them in a thread of the worker, where an error is only printed.
    """
    if get_worker_info() is None:
        return result
    try:
        _move(result)
    except RuntimeError as error:
        return NoSharedMemory(
            f"no room in shared memory for a worker's result ({' '.join(str(error).split())[:150]}). {_way_out()}"
        )
    return result


def check_result(result: Any) -> Any:
    """The result of a worker; raises the `NoSharedMemory` that was returned instead."""
    if isinstance(result, NoSharedMemory):
        raise result
    return result


def _move(result: Any) -> None:
    if isinstance(result, torch.Tensor):
        if result.device.type == "cpu" and not result.is_shared():
            result.share_memory_()
    elif isinstance(result, dict):
        for value in result.values():
            _move(value)
    elif isinstance(result, (list, tuple)):
        for value in result:
            _move(value)
    elif hasattr(result, "__dataclass_fields__"):
        _move(vars(result))


def _way_out() -> str:
    advice = "set the number of workers to 0, or give the container more (docker run --shm-size 2g)"
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return advice[0].upper() + advice[1:]
    return f"/dev/shm has {status.f_bavail * status.f_frsize / 2**20:.0f} MiB free: {advice}"
