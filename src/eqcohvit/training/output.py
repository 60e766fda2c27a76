"""Standard output and error that never end a run, not even with a closed pipe, a full disk, a lost terminal, or one
that only takes ASCII."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

COLUMNS = 100  # of what a run prints
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def fitted(text: str) -> str:
    """The text on lines of at most `COLUMNS` columns. Words such as paths stay whole."""
    return "\n".join(textwrap.wrap(text, COLUMNS, subsequent_indent="  ", **_WHOLE_WORDS))


def fitted_command(words: Sequence[str]) -> str:
    """A command line for a shell, indented, with a backslash where it continues; a flag and its value stay together."""
    text = ""
    for former, word in zip(["", *words], words, strict=False):
        is_value = former.startswith("--") and not word.startswith("--")
        text += ("\0" if is_value else " ") + shlex.quote(word).replace(" ", "\0")
    lines = textwrap.wrap(text.strip(), COLUMNS - 4, subsequent_indent="    ", **_WHOLE_WORDS)
    return "  " + " \\\n  ".join(lines).replace("\0", " ")


def entry_of(module: str) -> list[str]:
    """The words that start a command of ours: its installed entry, or the module."""
    name = "eqcohvit-push" if module == "push_to_hub" else f"eqcohvit-{module}"
    return [name] if shutil.which(name) else ["python", "-m", f"eqcohvit.commands.{module}"]


def viewer(page: str) -> list[str]:
    """A command that shows a page: in the browser, or served at http://127.0.0.1:8000 without a screen."""
    if sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))):
        return ["python", "-m", "webbrowser", page]
    return ["python", "-m", "http.server", "--bind", "127.0.0.1", "--directory", os.path.dirname(page) or "."]


def say_once(text: str) -> None:
    """Print a text from the main process, before processes know each other."""
    if os.environ.get("RANK", "0") == "0":
        print(fitted(text), flush=True)


def teller(show: Callable[[str], None]) -> Callable[[str], None]:
    """`show` for texts of any length."""
    return lambda text: show(fitted(text))


class SafeStream:
    """A stream whose `write` and `flush` do not fail; what cannot be written is dropped, from then on all of it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, unknown characters as backslash escapes."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # a closed file raises ValueError
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Discard the buffer and all later output: the interpreter flushes once more when it exits."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Inside, printing cannot fail; also a decorator."""
    former = sys.stdout, sys.stderr
    # A closed descriptor has no stream. The file that is opened here takes its number, so that no other file gets it.
    safe = [SafeStream(stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")) for stream in former]
    sys.stdout, sys.stderr = safe
    try:
        yield
    finally:
        for stream in safe:
            stream.flush()
        sys.stdout, sys.stderr = former
