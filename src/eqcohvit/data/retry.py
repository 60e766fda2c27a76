"""What fails may be a passing trouble of a network or a machine: it is tried again a few times, with growing pauses,
then named."""

import sys
import time

from .decode import one_line

RETRY_SECONDS = (1.0, 4.0, 16.0, 60.0)


class ReadError(OSError):
    """The data cannot be read or decoded, although it was tried several times; the message says what and why."""


# Of these, too, networks' errors come, not all of which are an OSError.
_NETWORK_LIBRARIES = {
    "aiohttp",
    "botocore",
    "fsspec",
    "http",
    "httpcore",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "requests",
    "urllib3",
}


def passes(error: Exception) -> bool:
    """Whether an error may be over when the same is tried again: those of the network and of the operating system."""
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
        """The next failure is the first again."""
        self._failures = 0

    def failed(self, what: str, error: Exception) -> None:
        """Say so and pause, `RETRY_SECONDS` by the number of failures.

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
