"""A page that shows the states between two views which a model's equivariant features remember.

    python space_app/app.py [--model FOLDER_OR_REPO]

Without --model (or EQCOHVIT_MODEL): the small released checkpoint, or where that is missing a stand-in trained on drawn
sprites at the first start. Gradio's own variables choose the place: GRADIO_SERVER_NAME, GRADIO_SERVER_PORT.
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

import numpy as np
from PIL import Image
from transformers.utils import logging as transformers_logging

from demo import Demo
from eqcohvit.data.sprites import render_sprites
from layout import build, launch
from probe import cache_dir, load_probe
from standin import train_standin
from walk import SplitModel

_HERE = Path(__file__).parent
RELEASED = (_HERE / "model", _HERE.parent / "model_cards" / "eqcohvit-micro-sprites")  # in a Space; in the repository
EXAMPLES = {
    "fish": 26,
    "house": 9,
    "letter": 18,
    "arrow": 6,
    "key": 23,
    "mushroom": 5,
}  # numbers of sprites that no training sees
_FIRST_EXAMPLE, _EXAMPLE_SIDE = 1 << 42, 256
_STANDIN_NOTE = (
    "**No checkpoint was found, so this page shows a stand-in**: a tiny model that trained on drawn sprites for a few seconds when the "
    "page first started. It has never seen a photograph. `--model` or the variable `EQCOHVIT_MODEL` names a better one."
)


def find_model(named: str | None) -> tuple[str, str]:
    """The model to show and what to say about its origin: the one named, the released one, or the stand-in."""
    if named:
        return named, ""
    for folder in RELEASED:
        if (folder / "config.json").is_file():
            return str(folder.resolve()), ""
    return str(train_standin(cache_dir(), _say)), _STANDIN_NOTE


def draw_examples(folder: Path) -> dict[str, Path]:
    """The example pictures by name, drawn into a folder."""
    numbers = np.array(list(EXAMPLES.values()), dtype=np.int64) + _FIRST_EXAMPLE
    files = {name: folder / f"{name}.png" for name in EXAMPLES}
    for file, pixels in zip(files.values(), render_sprites(numbers, _EXAMPLE_SIDE).images, strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file)
    return files


def _say(text: str) -> None:
    print(text, flush=True)


def main(named: str | None) -> None:
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="eqcohvit-space-") as scratch:
        # Visitors' files: old ones go while the page runs, all of them with its end. The examples lie elsewhere, for
        # they stay.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(scratch) / "visitors")
        examples = Path(scratch) / "examples"
        examples.mkdir()
        name, note = find_model(named)
        model = SplitModel(name)
        page = build(Demo(model, load_probe(model, _say), draw_examples(examples)), note)
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(0)
        )  # so that the visitors' files go with a server that is stopped
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
