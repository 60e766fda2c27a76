"""The list of bad images of a run, `bad_images.jsonl`."""

import json
from collections.abc import Iterator
from pathlib import Path


class BadImages:
    """The list of bad images of a run: one JSON object per line. What an earlier part of the run, or another process,
    has listed is not listed again."""

    def __init__(self, source_name: str, path: str | Path | None):
        self.source_name = source_name
        self.path = None if path is None else Path(path)
        self._listed: set[tuple[str, int]] = set()
        self._num_read = 0
        self._first = ""

    def add(self, key: int, epoch: int, reason: str, where: str) -> None:
        """List an image once; `where` it is and the `reason` are for people to read."""
        self._first = self._first or f"{printable(where)}: {printable(reason)}"
        if self.path is None or (self.source_name, key) in self._listed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:  # appended, so that processes do not overwrite each other
            file.seek(self._num_read)
            news = file.read()
            self._num_read += len(news)
            self._listed.update(_listed_in(news))
            if (self.source_name, key) in self._listed:
                return
            entry = {"source": self.source_name, "key": key, "epoch": epoch, "path": where, "reason": reason}
            cut_short = b"\n" if news and not news.endswith(b"\n") else b""
            file.write(cut_short + json.dumps(entry).encode() + b"\n")
        self._listed.add((self.source_name, key))

    def summary(self) -> str:
        """The first bad image of this part of the run, and where all are listed."""
        return f"first: {self._first}" if self.path is None else f"first: {self._first}; all are listed in {self.path}"


def _listed_in(lines: bytes) -> Iterator[tuple[str, int]]:
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
            yield entry["source"], entry["key"]
        except (ValueError, KeyError, TypeError):  # a line cut short when the run was killed
            continue


def printable(text: str) -> str:
    """The text without line breaks and control characters: names of files in other people's data may hold anything."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
