"""What probes have found, on disk beside the features: a probe that has been fitted on the same numbers before is not
fitted again."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from . import probes


def remembered(
    cache_dir: str | Path,
    probe: Callable[..., dict[str, np.ndarray]],
    *tensors: torch.Tensor | None,
    **settings: object,
) -> dict[str, np.ndarray]:
    """`probe(*tensors, **settings)`, arrays by name, from `cache_dir` where the same was asked before.

    The key is the content of the tensors, the settings, the code of the probes, and what computes. So the controls,
    which many commands share, are fitted once, and an interrupted command goes on at the probe where it was.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    device = torch.cuda.get_device_name() if given[0].is_cuda else "cpu"
    code = inspect.getsource(probes), inspect.getsource(sys.modules[probe.__module__])
    identity = (torch.__version__, device, *code, sorted(settings.items()))
    key = hashlib.sha256(repr(identity).encode())
    for tensor in tensors:
        if tensor is None:
            key.update(b"None")
            continue
        key.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        key.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    path = Path(cache_dir) / "probes" / f"{key.hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile):  # not there, or damaged
        found = probe(*tensors, **settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.npz")
    np.savez(temporary, **found)  # pyrefly: ignore[bad-argument-type]  # any of them could be `allow_pickle`
    temporary.replace(path)
    return found
