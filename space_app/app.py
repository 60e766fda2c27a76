"""A page that shows what the two parts of a model's features say about a picture that moves.

    python space_app/app.py [--model FOLDER_OR_REPO]

Without --model or EQCOHVIT_MODEL the page shows a released checkpoint. Gradio's own variables choose the address:
GRADIO_SERVER_NAME, GRADIO_SERVER_PORT.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from transformers.utils import logging as transformers_logging

from demo import Demo
from layout import build, launch
from probe import load_probe
from scenes import find_examples
from walk import SplitModel

_HERE = Path(__file__).parent
RELEASED = (_HERE / "model", _HERE.parent / "model_cards" / "eqcohvit-photos-small")  # in a Space; in the repository


def find_model(named: str | None) -> str:
    """The model to show: the one named, or the released one.

    Raises:
        ValueError: no model was named, and none is released.
    """
    if named:
        return named
    for folder in RELEASED:
        if (folder / "config.json").is_file():
            return str(folder.resolve())
    raise ValueError(f"no model in {' or '.join(map(str, RELEASED))}: choose one with --model FOLDER_OR_REPO")


def _say(text: str) -> None:
    print(text, flush=True)


def main(named: str | None) -> None:
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="eqcohvit-space-") as scratch:
        # Visitors' files: old ones go while the page runs, all of them when it ends.
        os.environ["GRADIO_TEMP_DIR"] = scratch
        model = SplitModel(find_model(named))
        page = build(Demo(model, load_probe(model, _say), find_examples()))
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(0)
        )  # so that a stopped server deletes the visitors' files too
        launch(page)


def cli(argv: list[str] | None = None) -> int:
    """Serve with command-line arguments; the exit code is 2 for bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model", default=os.environ.get("EQCOHVIT_MODEL"), help="EqCohViT folder or repository with decoders"
    )
    try:
        main(parser.parse_args(argv).model)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(cli())
