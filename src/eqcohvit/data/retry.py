"""Retry what a network or a machine may have failed at only for a while, with growing pauses; then raise an error that
names it."""

import sys
import time

from .decode import one_line

RETRY_SECONDS = (1.0, 4.0, 16.0, 60.0)


class ReadError(OSError):
    """The data cannot be read or decoded, even after several attempts; the message says what and why."""


# Some of their errors are not an OSError.
_NETWORK_LIBRARIES = "aiohttp botocore fsspec http httpcore httpx httpx2 huggingface_hub requests urllib3".split()


def is_transient(error: Exception) -> bool:
    """Whether another attempt may succeed: after an error of the network or of the operating system."""
    if isinstance(error, ReadError):
        return False
    return isinstance(error, OSError) or any(
        base.__module__.partition(".")[0] in _NETWORK_LIBRARIES for base in type(error).__mro__
    )


class Patience:
    """Counts the failures of one thing in a row."""

    def __init__(self) -> None:
        self._failures = 0

    def succeeded(self) -> None:
        """Start counting again."""
        self._failures = 0

    def failed(self, what: str, error: Exception) -> None:
        """Print the failure and pause for as many seconds as `RETRY_SECONDS` says.

        Raises:
            ReadError: there have been too many.
        """
        if self._failures == len(RETRY_SECONDS):
            raise ReadError(
                f"{what} failed {self._failures + 1} times in a row, at last with {one_line(error)}"
            ) from error
        seconds = RETRY_SECONDS[self._failures]
        self._failures += 1
        print(f"{what} failed ({one_line(error)}); trying again in {seconds:g} s", file=sys.stderr, flush=True)
        time.sleep(seconds)
