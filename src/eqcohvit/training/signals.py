"""A signal ends a run between two steps, with everything saved; on several processes, between the same two steps.

Exit codes of `scripts/pretrain.py` and `scripts/finetune.py`: 0 finished, 1 it had to stop (the last line says why), 2
bad input, `EXIT_STOPPED` (75, the EX_TEMPFAIL of sysexits.h) stopped by a signal with all finished steps saved, 128 +
number for a second signal, which ends it at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ..cli import exit_code_of
from ..files import message_of
from .output import safe_output
from .run_lock import release_runs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

EXIT_STOPPED = 75
REPEAT_SECONDS = 2.0  # launchers pass on a signal that the scheduler has sent to the whole group already
# How long the other processes wait for one that reads data or uploads. One that has died is noticed at once, by its
# closed connection.
PATIENCE = timedelta(minutes=30)
_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGXCPU") if hasattr(signal, name)
]
_Item = TypeVar("_Item")
_kept: list[Any] = []  # objects whose destructors must not run: see `leave`


def leave(code: int) -> NoReturn:
    """End the process with this exit code.

    The destructor of a gloo group waits for its threads while it holds the lock that they need
    (https://github.com/pytorch/pytorch/issues/56297), so that a run of several processes could hang after it has
    finished or failed. Such a process exits without running destructors."""
    if not _kept:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class StopRequested(BaseException):
    """A signal asks the run to stop. Not an `Exception`, so that code that skips broken images does not catch it."""


class StopSignals:
    """Context in which SIGTERM, SIGINT, SIGUSR1, SIGHUP and SIGXCPU make the next call of `next_batches` return None
    instead of ending the process.

    An ignored SIGHUP (`nohup`) stays ignored. While nothing is half done (`interruptible`), such as during a wait for
    data, the signal raises `StopRequested` at once. Outside the main thread, where Python cannot handle signals, the
    context does nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._since = 0.0
        self._interruptible = False
        self._former: dict[int, Any] = {}
        self._group: ProcessGroup | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            ignored = {getattr(signal, "SIGHUP", None)} if _is_ignored("SIGHUP") else set()
            self._former = {number: signal.signal(number, self._handle) for number in _SIGNALS if number not in ignored}
        return self

    def __exit__(self, _kind: type | None, error: BaseException | None, _traceback: object) -> None:
        if self._group is not None and error is not None:
            _kept.append(error)  # the frames of its traceback hold the groups and their unfinished work
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.name is not None:
            # The system sends SIGXCPU again each second; the hard limit ends the process soon enough.
            if time.monotonic() - self._since > REPEAT_SECONDS and signal.Signals(number).name != "SIGXCPU":
                os._exit(128 + number)
            return
        self.name = signal.Signals(number).name
        self._since = time.monotonic()
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"{self.name}: finishing the step and saving; a second signal ends the run at once\n".encode())
        if self._interruptible:
            raise StopRequested

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises `StopRequested` at once."""
        self._interruptible = True
        try:
            if self.name is not None:
                raise StopRequested
            yield
        finally:
            self._interruptible = False

    def connect(self) -> None:
        """Let all processes of the default group stop together; called once by each of them."""
        import torch.distributed as dist

        if dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=PATIENCE)  # a separate group: asking must not wait for a GPU
            assert isinstance(group, dist.ProcessGroup)  # all processes belong to it
            self._group = group
            _kept.extend((dist.group.WORLD, self._group))

    def message(self, step: int) -> str:
        """What a run says when it was stopped after `step`."""
        reason = self.name or "a signal to another process"
        return f"stopped by {reason} after step {step}; --resume_from_checkpoint latest goes on from there"

    def next_batches(self, batches: Iterator[_Item], count: int) -> list[_Item] | None:
        """The next `count` batches, for one step; None on all processes if one of them was asked to stop.

        Raises:
            ConnectionError: another process has died.
        """
        taken = None
        with contextlib.suppress(StopRequested), self.interruptible():
            taken = list(islice(batches, count))
        if self._group is None:
            return None if self.name else taken
        import torch
        import torch.distributed as dist

        stop = torch.tensor(int(self.name is not None))
        try:
            dist.all_reduce(stop, op=dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            reason = message_of(error, 200)
            raise ConnectionError(f"another process of this run has ended or does not answer ({reason})") from None
        return None if stop.item() else taken


def _is_ignored(name: str) -> bool:
    return hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN


class RunFailed(Exception):
    """The run had to stop; the message says why in one line."""


@safe_output()
def exit_code(run: Callable[[StopSignals], Any]) -> int:
    """Run, print what went wrong in one line, and return the exit code."""

    def run_until_stopped() -> None:
        with StopSignals() as stop:
            run(stop)

    try:
        return exit_code_of(run_until_stopped, RunFailed, FloatingPointError)
    except StopRequested:
        return EXIT_STOPPED
    except Exception:  # such as another process that has died during a step; `leave` must be reached anyway
        traceback.print_exc()
        return 1
    finally:
        release_runs()
