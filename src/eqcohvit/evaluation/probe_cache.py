"""A cache of probe results, on disk beside the features: the same probe on the same numbers is fitted once."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from ..files import write_whole
from . import pair_regression, probes
from .pair_regression import PairData


def cached(
    cache_dir: str | Path,
    probe: Callable[..., dict[str, np.ndarray]],
    *inputs: torch.Tensor | PairData,
    **settings: object,
) -> dict[str, np.ndarray]:
    """`probe(*inputs, **settings)`, arrays by name, read from `cache_dir` if the same call was made before.

    The key is the content of the inputs, the settings, the code of the probes, and the device. So the controls, which
    many commands share, are fitted once, and an interrupted command continues at the probe where it was.
    """
    path = Path(cache_dir) / "probes" / f"{_key(probe, inputs, settings)}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile):  # missing or damaged
        found = probe(*inputs, **settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path, is_shared=True) as new, new.open("wb") as file:
        np.savez(file, **found)  # pyrefly: ignore[bad-argument-type]  # any of them could be `allow_pickle`
    return found


def _key(probe: Callable, inputs: tuple[torch.Tensor | PairData, ...], settings: dict[str, object]) -> str:
    values = list(_values(inputs))
    is_cuda = any(isinstance(value, torch.Tensor) and value.is_cuda for value in values)
    device = torch.cuda.get_device_name() if is_cuda else "cpu"
    code = [inspect.getsource(module) for module in (probes, pair_regression, sys.modules[probe.__module__])]
    key = hashlib.sha256(repr((torch.__version__, device, *code, sorted(settings.items()))).encode())
    for value in values:
        if not isinstance(value, torch.Tensor):
            key.update(repr(value).encode())
            continue
        key.update(repr((tuple(value.shape), value.dtype)).encode())
        key.update(value.detach().cpu().contiguous().numpy().tobytes())
    return key.hexdigest()[:32]


def _values(inputs: tuple[torch.Tensor | PairData, ...]) -> Iterator[torch.Tensor | int | None]:
    for value in inputs:
        if isinstance(value, PairData):
            yield from (getattr(value, field.name) for field in dataclasses.fields(value))
        else:
            yield value
