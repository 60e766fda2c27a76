"""What does an encoder know? Tasks on frozen features, beside raw pixels and random weights: a table, a page, JSON.

    python -m eqcohvit.commands.evaluate --model runs/a/model --task r2 knn --output runs/a/results.json
    python -m eqcohvit.commands.evaluate --model runs/a/model facebook/dinov2-small --task r2 --transform all --full \\
        --data_files 'data/train-*.parquet' --test_data_files 'data/test-*.parquet' --output runs/a/results.json
    python -m eqcohvit.commands.evaluate --suite r2 --model runs/a/model timm/vit_small_patch16_224.augreg_in1k \\
        --data_files 'data/train-*.parquet' --test_data_files 'data/test-*.parquet' --output suite/results.json
    python -m eqcohvit.commands.evaluate --model runs/a/model --target_columns pose hue --quaternion_columns pose \\
        --group_column object --data_files 'renders/*.parquet' --output runs/a/renders.json
    python -m eqcohvit.commands.evaluate --model runs/a/model --task video_segmentation \\
        --data_files 'davis/*.parquet' --output runs/a/davis.json

Without data flags, the embedded sprites are used. Test sprites are never trained on. Features and fitted probes are
cached: another task on the same features takes seconds, and an interrupted command continues where it was. By default
an evaluation is quick, about a minute for a model on a laptop; --full takes longer and gives narrower intervals.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import CommandParser, Registry, add_setting, as_call, as_flags, check_names
from ..downstream.options import TASK_HEADS, TaskOptions
from ..files import message_of
from ..training.output import safe_output

if TYPE_CHECKING:
    from ..evaluation.results import Row
    from ..evaluation.run import Task

_USAGE = "python -m eqcohvit.commands.evaluate --model MODEL [MODEL ...] [settings]"
_FROZEN = Registry("evaluation", "FROZEN_TASKS")
_VIDEO = Registry("evaluation", "VIDEO_ROWS")
_PATHS = Registry("transforms", "PATHS")
_AT_LEAST_ONE = ("max_samples", "max_test_samples", "seeds", "k", "max_steps", "frame_size", "max_frames", "top_k")
_NOT_NEGATIVE = ("cache_gb", "radius", "context_frames", "num_workers")


# --------------------------------------------------------------------------------------------------------------- flags


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings of a command line.

    Raises:
        ValueError: a setting that does not exist or cannot work.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    from ..evaluation.feature_cache import DEFAULT_CACHE
    from ..evaluation.suite import apply_size

    args.cache_dir = args.cache_dir or str(DEFAULT_CACHE)
    if args.suite:
        _apply_suite(args, parser)
    apply_size(vars(args))
    _check(args)
    return args


def make_parser() -> CommandParser:
    """The parser with all flags."""
    parser = CommandParser(__doc__, _USAGE)
    _add_common(parser)
    _add_pooled_tasks(parser)
    _add_columns(parser)
    _add_dense_tasks(parser)
    _add_data(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    tasks = (*_FROZEN.names(), *TASK_HEADS, *_VIDEO.names())
    suites = Registry("evaluation", "SUITES").names()
    models = "folders or repositories: ours, any transformers vision model, or timm/NAME for a model of timm"
    parser.add_argument("--model", nargs="+", required=True, help=models)
    text = f"default: r2; any of {', '.join(tasks)}"
    parser.add_argument("--task", nargs="+", default=["r2"], choices=tasks, metavar="TASK", help=text)
    text = (
        "the whole protocol instead of the quick one: strict and paper, cls_mean and grid, 3 "
        "seeds, 4,096 + 2,048 images"
    )
    parser.add_argument("--full", action="store_true", help=text)
    text = "results.json to write; the page and its plots go into the same folder"
    parser.add_argument("--output", type=os.path.expanduser, metavar="FILE", help=text)
    text = "benchmark with fixed settings, to compare models; leave out the flags that it fixes"
    parser.add_argument("--suite", choices=suites, help=text)
    text = "results.json files of earlier runs of the suite on the same images; their models are in the table too"
    parser.add_argument("--beside", nargs="+", default=[], metavar="FILE", help=text)
    text = "seeds of each probe or head; default: 1, with --full 3"
    parser.add_argument("--seeds", type=int, help=text)
    text = "last, all, or indices of hidden states; default: last"
    parser.add_argument("--layer", nargs="+", default=["last"], help=text)
    text = "folder of cached features; default: eqcohvit/features in the cache of Hugging Face"
    parser.add_argument("--cache_dir", type=os.path.expanduser, metavar="DIR", help=text)
    text = "gigabytes to keep there; the features used longest ago are removed; default: 20"
    parser.add_argument("--cache_gb", type=float, default=20, help=text)
    text = "run code that comes with the repository of a model"
    parser.add_argument("--trust_remote_code", action="store_true", help=text)


def _add_pooled_tasks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(f"transformations and pooled features ({', '.join(_FROZEN.names())})")
    text = f"{', '.join(_PATHS.names())}, joined by +, or all; default: rotation"
    group.add_argument("--transform", nargs="+", default=["rotation"], help=text)
    protocols = Registry("evaluation", "PROTOCOLS").names()
    text = "paper: empty borders after the transformation; strict: real pixels; default: strict, with --full both"
    group.add_argument("--protocol", nargs="+", choices=protocols, help=text)
    heads = Registry("evaluation", "R2_HEADS").names()
    text = "regressors of r2; pretraining uses kernel, which is slow above 2,000 images; default: mlp linear"
    group.add_argument("--head", nargs="+", default=["mlp", "linear"], choices=heads, help=text)
    poolings = Registry("evaluation", "POOLINGS").names()
    text = "how tokens become a vector; the first one leads the table, knn and linear use only it; default: cls_mean, "
    text += "with --full also grid"
    group.add_argument("--pooling", nargs="+", choices=poolings, help=text)
    group.add_argument("--k", type=int, default=20, help="neighbors of knn; default: 20")
    text = "temperature of the weights exp(similarity / temperature) of knn; default: 0.07"
    group.add_argument("--temperature", type=float, default=0.07, help=text)


def _add_columns(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns of numbers as targets (r2)")
    text = "regress these columns instead of transformations: numbers, or lists of numbers of one length"
    group.add_argument("--target_columns", nargs="+", metavar="COLUMN", help=text)
    text = "object or scene of a picture: whole groups are held out, and changes within a group are regressed too"
    group.add_argument("--group_column", metavar="COLUMN", help=text)
    text = "target columns that hold rotations as quaternions (x, y, z, w)"
    group.add_argument("--quaternion_columns", nargs="+", default=[], metavar="COLUMN", help=text)
    text = "target columns that start again after a period, such as yaw=360 or hue=1; regressed as cosine and sine"
    group.add_argument("--circular_columns", nargs="+", default=[], metavar="COLUMN=PERIOD", help=text)


def _add_dense_tasks(parser: argparse.ArgumentParser) -> None:
    text = (
        "a fine-tuned model is scored as it is; for an encoder, a head is fitted on the frozen backbone for each seed"
    )
    group = parser.add_argument_group(f"dense tasks ({', '.join(TASK_HEADS)})", text)
    own = [field for field in dataclasses.fields(TaskOptions) if field.name not in ("head", "image_column")]
    for field in own:
        add_setting(group, field)
    parser.set_defaults(**{field.name: field.default for field in own})
    group.add_argument("--max_steps", type=int, default=500, help="steps to fit a head; default: 500")

    text = "columns image, annotation, sequence, frame"
    group = parser.add_argument_group(f"videos ({', '.join(_VIDEO.names())})", text)
    group.add_argument("--frame_size", type=int, default=480, help="shorter side of the frames in pixels; default: 480")
    group.add_argument("--max_frames", type=int, help="use only the first frames of each video")
    text = "recent frames that labels come from, in addition to the first frame; default: 7"
    group.add_argument("--context_frames", type=int, default=7, help=text)
    text = "in patches: those farther away along x or y do not count; default: 12"
    group.add_argument("--radius", type=int, default=12, help=text)
    group.add_argument("--top_k", type=int, default=5, help="most similar patches that count; default: 5")


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="Hub id, local folder or builder")
    group.add_argument("--dataset_config_name", help="configuration of the dataset")
    text = "split that probes and heads are fitted on; default: train"
    group.add_argument("--dataset_split", default="train", help=text)
    text = "split of dataset_name that they are tested on; default: some of dataset_split is held out"
    group.add_argument("--test_split", help=text)
    text = "files that probes and heads are fitted on: a glob, or several separated by commas"
    group.add_argument("--data_files", help=text)
    text = "files that they are tested on; default: some of data_files is held out"
    group.add_argument("--test_data_files", help=text)
    group.add_argument("--train_dir", help="folder tree of images instead of a dataset")
    group.add_argument("--image_column", help="image column, if there are several")
    text = "label column; with train_dir 'folder', whose name is the class"
    group.add_argument("--label_column", help=text)
    text = "images to fit probes and heads on; default: 1024, with --full 4096, or the suite's number"
    group.add_argument("--max_samples", type=int, help=text)
    text = "images to test them on; default: 512, with --full 2048, or the suite's number"
    group.add_argument("--max_test_samples", type=int, help=text)
    group.add_argument("--num_workers", type=int, default=0, help="processes that decode images; default: 0")


# -------------------------------------------------------------------------------------------------------------- checks


def _apply_suite(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Set the flags that the suite fixes; raise a `ValueError` if one of them was given another value."""
    from ..evaluation.suite import SUITES

    suite = SUITES[args.suite]
    for name, value in suite.fixed().items():
        given: Any = getattr(args, name)
        if given not in (parser.get_default(name), value):
            advice = "leave it out, or give --task without --suite"
            raise ValueError(f"suite {args.suite} fixes {name} to {value}, got {given}: {advice}")
        setattr(args, name, value)
    if args.target_columns:
        raise ValueError(f"suite {args.suite} regresses transformations: give target_columns without --suite")
    for name in ("max_samples", "max_test_samples"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(suite, name))


def _check(args: argparse.Namespace) -> None:
    """Raise a `ValueError` for the first flag that cannot work, and replace `--transform all` by the names."""
    from ..transforms import make_path

    for name in _AT_LEAST_ONE:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    for name in _NOT_NEGATIVE:
        if getattr(args, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(args, name)}")
    if args.temperature <= 0:
        raise ValueError(f"temperature must be positive, got {args.temperature}")
    if args.beside and not args.suite:
        raise ValueError("beside needs a suite, so that all files have the same settings: give --suite r2")
    _check_columns(args)
    args.transform = list(_PATHS.names()) if "all" in args.transform else args.transform
    for name in args.transform:
        make_path(name)
    if args.output and Path(args.output).is_dir():
        raise ValueError(f"output must be a file such as results.json, got the folder {args.output}")
    if args.output:
        _check_writable("output", Path(args.output))
    _check_writable("cache_dir", Path(args.cache_dir))


def _check_columns(args: argparse.Namespace) -> None:
    """Raise a `ValueError` if the flags of target columns contradict each other."""
    from ..evaluation.latents import parse_circular

    circular = parse_circular(args.circular_columns)
    for flag, columns in (("quaternion_columns", args.quaternion_columns), ("circular_columns", list(circular))):
        unknown = [column for column in columns if column not in (args.target_columns or [])]
        if unknown:
            raise ValueError(f"{flag} must be among target_columns, got {', '.join(unknown)}")
    both = [column for column in args.quaternion_columns if column in circular]
    if both:
        raise ValueError(f"a column is either a quaternion or circular, got both for {', '.join(both)}")
    if args.group_column and not args.target_columns:
        raise ValueError("group_column needs target_columns")
    if args.target_columns and args.task != ["r2"]:
        raise ValueError(f"target_columns works only with --task r2, got {' '.join(args.task)}")


def _check_writable(name: str, path: Path) -> None:
    """Raise a `ValueError` if a file could not be written, now instead of after hours of work."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{name} {path} cannot be written: {parent} is not a writable folder")


# ----------------------------------------------------------------------------------------------------------------- run


def chosen_tasks(args: argparse.Namespace) -> list[Task]:
    """The functions of the tasks. Supervised ones are imported only if they are used."""
    from ..evaluation.latent_tasks import latent_r2
    from ..evaluation.run import FROZEN_TASKS
    from ..evaluation.video_tasks import VIDEO_ROWS

    if args.target_columns:
        return [latent_r2]
    known = {**FROZEN_TASKS, **VIDEO_ROWS}
    if any(name in TASK_HEADS for name in args.task):
        from ..downstream.tasks import SUPERVISED_ROWS

        known |= SUPERVISED_ROWS
    return [known[name] for name in args.task]


def run(args: argparse.Namespace, command: str) -> list[Row]:
    """Evaluate with these settings; returns the rows of the tables."""
    from ..data import TooManyBadImages
    from ..evaluation.run import run_evaluation
    from ..registration import register

    register()
    try:
        return run_evaluation(args, command, chosen_tasks(args))
    except TooManyBadImages as error:
        raise ValueError(str(error)) from error


def evaluate_from_python(**settings: Any) -> list[Row]:
    """What `eqcohvit.evaluate` does."""
    check_names(settings, [action.dest for action in make_parser()._actions])
    return run(parse(as_flags(settings)), as_call("evaluate", settings))


@safe_output()
def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments.

    The exit code is 2 for bad input, 1 if data cannot be read, and 130 after an interruption.
    """
    command = shlex.join(["python", "-m", "eqcohvit.commands.evaluate", *(sys.argv[1:] if argv is None else argv)])
    try:
        run(parse(argv), command)
        return 0
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {message_of(error, 2000)}", file=sys.stderr)
        return 2
    except OSError as error:  # of the network or the disk
        print(f"error: {message_of(error, 2000)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: finished features are kept, and the same command continues from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(cli())
