"""One writer per run folder: a lock file that names the process that holds it.

The system releases the lock when the process ends, for any reason. A file system without locks offers no protection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".run.lock"
_held: dict[str, IO[str]] = {}


def lock_run(output_dir: Path) -> None:
    """Lock the folder until `release_runs`; it is created if it is missing.

    Raises:
        ValueError: another process holds it; the message says which.
        OSError: it cannot be written.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    place = os.path.realpath(output_dir)
    if fcntl is None or place in _held:
        return
    file = (output_dir / LOCK_FILE).open("a+")
    try:
        # A forked process does not inherit this kind of lock: workers that outlive a killed run do not hold its folder.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            message = f"{output_dir} is being written by {holder}: wait for it, stop it, or give another --output_dir"
            raise ValueError(message) from None
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[place] = file


def release_runs() -> None:
    """Release all folders that this process holds; the lock files stay."""
    while _held:
        _, file = _held.popitem()
        with contextlib.suppress(OSError):
            file.close()
