"""How long tests wait for what surely comes: a busy machine is slow, and only one that does nothing for so long has a
fault."""

import time
from collections.abc import Callable

PATIENCE = 900.0  # seconds for what takes a few on a quiet machine


def until(condition: Callable[[], object], pause: float = 0.05) -> bool:
    """Poll until the condition holds; False where it does not after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
