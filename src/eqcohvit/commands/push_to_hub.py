"""Upload a model folder (weights, code, image processor, card) to the Hub in one commit.

    python scripts/push_to_hub.py --folder runs/photos/model --repo_id user/name

The token comes from HF_TOKEN or `hf auth login`. If the connection breaks, run the command again: files that have
arrived are not sent again. `--dry_run` prints the files and the card, and sends nothing.

The card gets the name of the repository. With `--run_dir runs/photos` it is written again from the files of the run
(config.yaml, metrics.jsonl, results.json). With `--training_state runs/photos/checkpoints/step-N` others can continue
the run, with `python scripts/pretrain.py --resume_from_checkpoint user/name --output_dir runs/continued`.

`--space` uploads the demo instead, with the model of --folder (default: the released checkpoint), and `--metric` one of
the metrics; each is a whole Space.

    python scripts/push_to_hub.py --space --repo_id user/demo
    python scripts/push_to_hub.py --metric r2 --repo_id user/r2
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..cli import CommandParser, exit_code_of
from ..files import CARD_FILE, PLACEHOLDER, STATE_FILE, STATE_FOLDER
from ..publish.spaces import ROOT, demo_files, metric_files, metric_names

_USAGE = "python -m eqcohvit.commands.push_to_hub --folder FOLDER --repo_id USER/NAME [settings]"
_RELEASED = ROOT / "model_cards" / "eqcohvit-photos-small"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command line; a `ValueError` for flags that do not fit."""
    parser = CommandParser(__doc__, _USAGE)

    def path(text: str) -> Path:
        return Path(text).expanduser()

    parser.add_argument("--folder", type=path, help="a model folder, the folder of a run, or a checkpoint")
    parser.add_argument("--repo_id", required=True, help="repository, user/name; created if it is missing")
    parser.add_argument("--dry_run", action="store_true", help="print the files and the card, and send nothing")
    parser.add_argument("--run_dir", type=path, help="folder of the run from which the card is written again")
    parser.add_argument("--dataset", help="Hub id of the training images, for the card, if local files were read")
    parser.add_argument("--training_state", type=path, help="a checkpoint of the run, to upload with the model")
    parser.add_argument("--space", action="store_true", help="upload the demo with the model in it")
    parser.add_argument("--metric", choices=metric_names(), help="upload this metric")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--token", help="access token; default: HF_TOKEN, or the one of `hf auth login`")
    parser.add_argument("--revision", help="branch; default: main")
    parser.add_argument("--commit_message", help="default: Upload model, Upload Space, or Upload metric")
    args = parser.parse_args(argv)
    if args.folder is None and not args.metric:
        if not args.space:
            parser.error("the following arguments are required: --folder")
        args.folder = _RELEASED
    if (args.space or args.metric) and (args.run_dir or args.training_state):
        parser.error("--space and --metric take neither --run_dir nor --training_state")
    if args.space and args.metric:
        parser.error("--space and --metric exclude each other")
    if args.dataset and not args.run_dir:
        parser.error("--dataset needs --run_dir")
    return args


def model_files(args: argparse.Namespace, folder: Path) -> Mapping[str, Path | bytes]:
    """The files of the model repository, by path: those of the folder, with the card and the training state."""
    from ..publish.card import read_run, read_template, rename_card, render_card
    from ..publish.folder import check_model_folder, files_of

    if args.training_state is not None and not (args.training_state / STATE_FILE).is_file():
        raise ValueError(
            f"no checkpoint at {args.training_state}: expected a folder such as runs/photos/checkpoints/step-N"
        )
    check_model_folder(folder)
    files: dict[str, Path | bytes] = dict(files_of(folder))
    if args.training_state is not None:
        files = {name: path for name, path in files.items() if not name.startswith(f"{STATE_FOLDER}/")}
        files |= {f"{STATE_FOLDER}/{name}": path for name, path in files_of(args.training_state).items()}
    if args.run_dir is not None:
        run = read_run(args.run_dir) | {"repo_id": args.repo_id, "dataset": args.dataset}
        files[CARD_FILE] = render_card(read_template(), run, run["results"]).encode()
    elif CARD_FILE in files:
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
        files[CARD_FILE] = rename_card(card, args.repo_id).encode()
    return files


def describe(files: Mapping[str, Path | bytes], repo_id: str) -> str:
    """What `--dry_run` prints: each file with its size, the card, and how to go on."""
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    lines = [f"would upload {len(sizes)} files ({sum(sizes.values()) / 1e6:.1f} MB) to {repo_id}:"]
    lines += [f"{size:12,d}  {name}" for name, size in sorted(sizes.items())]
    card = files.get(CARD_FILE)
    if card is not None:
        text = card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")
        lines += ["", f"{CARD_FILE}:", text.rstrip()]
    lines += ["", f"Nothing was uploaded to {repo_id}. Without --dry_run the same command uploads it."]
    if repo_id == PLACEHOLDER:
        lines.append(f"Replace {repo_id} with your own repository first: name/model.")
    return "\n".join(lines)


def main(args: argparse.Namespace, new: Path) -> None:
    """Collect the files and upload them. The model of a checkpoint is first written as a model folder to `new`."""
    from transformers.utils import logging

    from ..publish.folder import model_folder_of
    from ..publish.upload import check_repo_id, push_files
    from ..registration import register

    register()
    logging.disable_progress_bar()
    check_repo_id(args.repo_id)
    files: Mapping[str, Path | bytes]
    what = "metric" if args.metric else "Space" if args.space else "model"
    if args.metric:
        files = metric_files(args.metric)
    elif args.space:
        files = demo_files(model_folder_of(args.folder, new))
    else:
        files = model_files(args, model_folder_of(args.folder, new))
    if args.dry_run:
        print(describe(files, args.repo_id))
        return
    message = args.commit_message or f"Upload {what}"
    kind = "model" if what == "model" else "space"
    url = push_files(files, args.repo_id, kind, args.private, args.token, args.revision, message)
    print(f"uploaded {len(files)} files to the {what} {args.repo_id}: {url}")


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments. The exit code is 2 for bad input and 1 for a failed upload."""
    with tempfile.TemporaryDirectory() as new:
        return exit_code_of(lambda: main(parse(argv), Path(new) / "model"))


if __name__ == "__main__":
    sys.exit(cli())
