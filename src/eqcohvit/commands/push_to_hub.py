"""Upload a model folder (weights, code, processor, card) to the Hub in one commit.

    python scripts/push_to_hub.py --folder outputs/pretrain/model --repo_id user/name

The token comes from HF_TOKEN or `hf auth login`. After a broken connection run it again: what has arrived is not sent
again. `--space` uploads the demo instead: the page, the package and the model of --folder (default: the released
checkpoint) as one Space.

    python scripts/push_to_hub.py --space --repo_id user/name

With `--run_dir outputs/pretrain` the card is filled from the run's own files (config.yaml, metrics.jsonl, results.json)
first. With `--training_state outputs/pretrain/checkpoints/step-N` others can go on from there, with
`python scripts/pretrain.py --resume_from_checkpoint user/name --output_dir runs/continued`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from transformers.utils import logging as transformers_logging

from ..files import CARD_FILE, STATE_FILE, STATE_FOLDER
from ..publish.card import read_run, read_template, render_card
from ..publish.folder import check_model_folder, files_of, model_folder_of
from ..publish.upload import push_files, push_hub_folder

_PACKAGE = Path(__file__).parents[1]
_ROOT = _PACKAGE.parents[1]  # of the repository
_RELEASED = _ROOT / "model_cards" / "eqcohvit-micro-sprites"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command line; `SystemExit` with code 2 for ones that do not exist."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--folder", type=Path, help="model folder as pretraining writes it, folder of a run, or checkpoint of one"
    )
    parser.add_argument(
        "--space", action="store_true", help="upload the demo, with the model in it, instead of the model alone"
    )
    parser.add_argument("--repo_id", required=True, help="repository, user/name; made where it is missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--token", help="access token; default: HF_TOKEN or the one of `hf auth login`")
    parser.add_argument("--revision", help="branch; default: main")
    parser.add_argument("--commit_message", help="default: Upload model, or Upload Space")
    parser.add_argument(
        "--run_dir", type=lambda path: Path(path).expanduser(), help="folder of the run, to write the model card from"
    )
    parser.add_argument(
        "--training_state", type=Path, help="checkpoint of the run, to be put into the folder and uploaded too"
    )
    args = parser.parse_args(argv)
    if args.folder is None:
        if not args.space:
            parser.error("the following arguments are required: --folder")
        args.folder = _RELEASED
    if args.space and (args.run_dir or args.training_state):
        parser.error("--space takes neither --run_dir nor --training_state")
    return args


def space_files(model_folder: Path) -> dict[str, Path]:
    """What a Space holds, by path: the page, the package beside it (nothing installs it there), and the model in
    model/.

    Raises:
        ValueError: the folder is no model folder.
    """
    check_model_folder(model_folder)
    package = files_of(_PACKAGE)

    def wanted(name: str) -> bool:
        return not name.endswith(".py") and not name.startswith(f"{STATE_FOLDER}/")

    return {
        **files_of(_ROOT / "space_app"),
        **{f"eqcohvit/{name}": path for name, path in package.items()},
        **{f"model/{name}": path for name, path in files_of(model_folder).items() if wanted(name)},
    }


def main(args: argparse.Namespace, new: Path) -> None:
    """Fill in the card and the training state, and upload; `new` is where a checkpoint becomes a model folder."""
    transformers_logging.disable_progress_bar()
    args.folder = model_folder_of(args.folder, new)
    if args.space:
        files, message = space_files(args.folder), args.commit_message or "Upload Space"
        url = push_files(files, args.repo_id, "space", args.private, args.token, args.revision, message)
        print(f"uploaded {len(files)} files to the Space {args.repo_id}: {url}")
        return
    if args.training_state is not None and not (args.training_state / STATE_FILE).is_file():
        raise ValueError(
            f"no checkpoint at {args.training_state}: expected a folder such as outputs/pretrain/checkpoints/step-N"
        )
    if (args.run_dir or args.training_state) and not args.folder.is_dir():
        raise ValueError(f"expected a model folder, found none at {args.folder}")
    if args.training_state is not None:
        shutil.rmtree(args.folder / STATE_FOLDER, ignore_errors=True)
        shutil.copytree(args.training_state, args.folder / STATE_FOLDER)
    if args.run_dir is not None:
        run = {**read_run(args.run_dir), "repo_id": args.repo_id}
        card = render_card(read_template(), run, run["results"])
        (args.folder / CARD_FILE).write_text(card, encoding="utf-8")
    message = args.commit_message or "Upload model"
    url = push_hub_folder(args.folder, args.repo_id, args.private, args.token, args.revision, message)
    print(f"uploaded {args.folder} to {args.repo_id}: {url}")


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; the exit code is 2 for bad input, 1 for a failed upload."""
    try:
        with tempfile.TemporaryDirectory() as new:
            main(parse(argv), Path(new) / "model")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(cli())
