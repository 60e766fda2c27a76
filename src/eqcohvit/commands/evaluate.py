"""What does an encoder know? Tasks on frozen features per part, beside raw pixels and random weights, as a table, a
report and JSON.

    python scripts/evaluate.py --model outputs/pretrain/model --task r2 knn --output results.json
    python scripts/evaluate.py --model runs/a/model --task video_segmentation --data_files 'davis/*.parquet' --output runs/a/davis.json
    python scripts/evaluate.py --suite r2 --model runs/a/model facebook/dinov2-small timm/vit_small_patch16_224.augreg_in1k \\
        --data_files 'data/train-*.parquet' --test_data_files 'data/test-*.parquet' --output suite/results.json
    python scripts/evaluate.py --model runs/a/model --task r2 --target_columns pose hue --quaternion_columns pose --group_column object \\
        --data_files 'renders/*.parquet' --output runs/a/renders.json
    python scripts/evaluate.py --model runs/a/model facebook/dinov2-small --task r2 --transform all \\
        --data_files 'data/train-*.parquet' --test_data_files 'data/test-*.parquet' --output runs/a/results.json

Without data flags: the embedded sprites (test sprites are never trained on). Features and fitted probes are cached:
another task on the same features takes seconds, and an interrupted command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from transformers.utils import logging as transformers_logging

from ..data import FolderSource, SpritesSource, TooManyBadImages, open_source
from ..downstream import TASKS as SUPERVISED_TASKS
from ..downstream import TaskOptions
from ..downstream.tasks import DENSE_TASKS
from ..evaluation import tasks
from ..evaluation.context import Evaluation
from ..evaluation.feature_cache import DEFAULT_CACHE, prune_cache
from ..evaluation.features import POOLINGS
from ..evaluation.figures import figures_of_rows
from ..evaluation.images import TEST_SPRITES, ProbeImages, check_test_data
from ..evaluation.latent_tasks import latent_r2
from ..evaluation.latents import parse_circular
from ..evaluation.pairs import PROTOCOLS
from ..evaluation.r2_tasks import ALL_HEADS, HEADS, r2
from ..evaluation.report import protocol_notes, write_report
from ..evaluation.results import INTERVAL, Row, format_table, tables, training_seeds, versions, write_results
from ..evaluation.suite import PROTOCOL_VERSION, SUITES, check_comparable, read_beside, rows_beside
from ..training.output import safe_output
from ..transforms import PATHS, make_path

# Name -> function of an Evaluation that returns rows. A new task is one entry here, and its flags in `parse`.
TASKS: dict[str, Callable[[Evaluation], list[Row]]] = {
    "r2": r2,
    "knn": tasks.knn,
    "linear": tasks.linear,
    "disentanglement": tasks.disentanglement,
    **DENSE_TASKS,
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command line; `SystemExit` with code 2 for ones that do not exist."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    models = "folders or repositories: ours, any transformers vision model, or timm/NAME for a model of timm"
    parser.add_argument("--model", nargs="+", required=True, help=models)
    suites = "benchmark with fixed settings, to compare models by; leave out the flags that it fixes"
    parser.add_argument("--suite", choices=list(SUITES), help=suites)
    beside = "results.json files of earlier runs of the suite on the same images, whose models stand in the table too"
    parser.add_argument("--beside", nargs="+", default=[], metavar="FILE", help=beside)
    parser.add_argument(
        "--task",
        nargs="+",
        default=["r2"],
        choices=list(TASKS),
        metavar="TASK",
        help=f"{', '.join(TASKS)}; default: r2",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of each probe or head; default: 3")
    parser.add_argument(
        "--layer", nargs="+", default=["last"], help="last, all, or indices of hidden states; default: last"
    )
    parser.add_argument(
        "--output",
        type=os.path.expanduser,
        help="results.json to write; results.html and plots go into the same folder",
    )
    kept = f"where features are kept; default: {DEFAULT_CACHE}"
    parser.add_argument("--cache_dir", type=os.path.expanduser, default=str(DEFAULT_CACHE), help=kept)
    parser.add_argument(
        "--cache_gb", type=float, default=20, help="gigabytes kept there; what was used longest ago goes; default: 20"
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the code that comes with a model's repository"
    )

    group = parser.add_argument_group("transformations and pooled features (r2, knn, linear, disentanglement)")
    group.add_argument(
        "--transform",
        nargs="+",
        default=["rotation"],
        help=f"{', '.join(PATHS)}, joined by +, or all; default: rotation",
    )
    protocols = "paper: empty borders after the transformation; strict: real pixels there; default: both"
    group.add_argument("--protocol", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS, help=protocols)
    heads = "regressors of r2; kernel is what pretraining watches, slow above 2,000 images; default: mlp linear"
    group.add_argument("--head", nargs="+", default=list(HEADS), choices=ALL_HEADS, help=heads)
    poolings = "how tokens become a vector; the first one leads the table, knn and linear take it alone; default: cls_mean grid"
    group.add_argument("--pooling", nargs="+", default=["cls_mean", "grid"], choices=POOLINGS, help=poolings)
    group.add_argument("--k", type=int, default=20, help="neighbours of knn; default: 20")
    group.add_argument(
        "--temperature",
        type=float,
        default=0.07,
        help="of the weights exp(similarity / temperature) of knn; default: 0.07",
    )

    group = parser.add_argument_group("columns of numbers as targets (r2)")
    columns = "regress these columns in place of transformations: numbers, or lists of numbers of one length"
    group.add_argument("--target_columns", nargs="+", metavar="COLUMN", help=columns)
    pairs = "object or scene of a picture: whole groups are held out, and the change between two pictures of a group is regressed too"
    group.add_argument("--group_column", metavar="COLUMN", help=pairs)
    quaternions = (
        "target columns that are rotations as quaternions (x, y, z, w); a change is the rotation between the two"
    )
    group.add_argument("--quaternion_columns", nargs="+", default=[], metavar="COLUMN", help=quaternions)
    circular = "target columns that start again after a period, such as yaw=360 or hue=1; regressed as cosine and sine"
    group.add_argument("--circular_columns", nargs="+", default=[], metavar="COLUMN=PERIOD", help=circular)

    group = parser.add_argument_group(
        "dense tasks",
        f"{', '.join(SUPERVISED_TASKS)}:\na model folder of scripts/finetune.py is scored as it is; for an encoder a head is fitted on the "
        "frozen backbone, once for each seed",
    )
    TaskOptions.add_flags(group, leave_out=["image_column"])
    group.add_argument("--max_steps", type=int, default=500, help="steps to fit a head; default: 500")

    group = parser.add_argument_group(
        "videos", "video_segmentation, part_propagation: columns image, annotation, sequence, frame"
    )
    group.add_argument("--frame_size", type=int, default=480, help="shorter side of the frames in pixels; default: 480")
    group.add_argument("--max_frames", type=int, help="first frames of each video only")
    group.add_argument(
        "--context_frames", type=int, default=7, help="last frames that labels come from, besides the first; default: 7"
    )
    group.add_argument(
        "--radius", type=int, default=12, help="patches further away, along x or y, do not count; default: 12"
    )
    group.add_argument("--top_k", type=int, default=5, help="most similar patches that do; default: 5")

    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="Hub id, local folder or builder")
    group.add_argument("--dataset_config_name", help="configuration of the dataset")
    group.add_argument(
        "--dataset_split", default="train", help="split that probes and heads are fitted on; default: train"
    )
    group.add_argument(
        "--test_split", help="split of dataset_name that they are tested on; by default held out from dataset_split"
    )
    group.add_argument(
        "--data_files", help="files that probes and heads are fitted on: a glob, or several separated by commas"
    )
    group.add_argument("--test_data_files", help="files that they are tested on; by default held out from data_files")
    group.add_argument("--train_dir", help="folder tree of images instead of a dataset")
    group.add_argument("--image_column", help="image column, where there are several")
    group.add_argument("--label_column", help="label column; with train_dir 'folder', whose name is the class")
    group.add_argument(
        "--max_samples", type=int, help="images to fit probes and heads on; default: 4096, or the suite's"
    )
    group.add_argument("--max_test_samples", type=int, help="images to test them on; default: 2048, or the suite's")
    group.add_argument("--num_workers", type=int, default=0, help="processes that decode images; default: 0")
    args = parser.parse_args(argv)
    if args.suite:
        apply_suite(args, parser)
    args.max_samples = 4096 if args.max_samples is None else args.max_samples
    args.max_test_samples = 2048 if args.max_test_samples is None else args.max_test_samples
    check(args)
    return args


def apply_suite(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Set the flags that the suite fixes; raise a `ValueError` where one was given another value."""
    suite = SUITES[args.suite]
    for name, value in suite.fixed().items():
        given = getattr(args, name)
        if given not in (parser.get_default(name), value):
            raise ValueError(
                f"suite {args.suite} fixes {name} to {value}, got {given}: leave it out, or give --task without --suite"
            )
        setattr(args, name, value)
    if args.target_columns:
        raise ValueError(f"suite {args.suite} regresses transformations: give target_columns without --suite")
    for name in ("max_samples", "max_test_samples"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(suite, name))


def check(args: argparse.Namespace) -> None:
    """Raise a `ValueError` for the first flag that cannot work, and replace `--transform all` by the names."""
    for name in ("max_samples", "max_test_samples", "seeds", "k", "max_steps", "frame_size", "max_frames", "top_k"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    for name in ("cache_gb", "radius", "context_frames", "num_workers"):
        if getattr(args, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(args, name)}")
    if args.temperature <= 0:
        raise ValueError(f"temperature must be positive, got {args.temperature}")
    if args.beside and not args.suite:
        raise ValueError("beside needs a suite, whose settings are the same in all files: give --suite r2")
    check_columns(args)
    args.transform = list(PATHS) if "all" in args.transform else args.transform
    for name in args.transform:
        make_path(name)
    if args.output and Path(args.output).is_dir():
        raise ValueError(f"output must be a file like results.json, got the folder {args.output}")
    if args.output:
        check_writable("output", Path(args.output))
    check_writable("cache_dir", Path(args.cache_dir))


def check_columns(args: argparse.Namespace) -> None:
    """Raise a `ValueError` where the flags of target columns contradict each other."""
    circular = parse_circular(args.circular_columns)
    for flag, columns in (("quaternion_columns", args.quaternion_columns), ("circular_columns", list(circular))):
        unknown = [column for column in columns if column not in (args.target_columns or [])]
        if unknown:
            raise ValueError(f"{flag} must be among target_columns, got {', '.join(unknown)}")
    both = [column for column in args.quaternion_columns if column in circular]
    if both:
        raise ValueError(f"a column is a quaternion or circular, got both for {', '.join(both)}")
    if args.group_column and not args.target_columns:
        raise ValueError("group_column needs target_columns")
    if args.target_columns and args.task != ["r2"]:
        raise ValueError(f"target_columns needs --task r2 alone, got {' '.join(args.task)}")


def check_writable(name: str, path: Path) -> None:
    """Raise a `ValueError` now, and not after hours of work, where a file could not be written."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{name} {path} cannot be written: {there} is no folder that one may write to")


def open_samples(args: argparse.Namespace) -> ProbeImages:
    """The sources of fitting and testing images."""
    check_test_data(
        args.dataset_name, args.dataset_split, args.test_split, args.data_files, args.test_data_files, args.train_dir
    )
    given = (args.dataset_name, args.dataset_config_name)
    columns = (args.train_dir, args.image_column, args.label_column)
    train = open_source(*given, args.dataset_split, args.data_files, *columns)
    test = train
    if isinstance(train, FolderSource):
        print(train.summary, file=sys.stderr)
    if isinstance(train, SpritesSource):
        test = SpritesSource(offset=TEST_SPRITES)
    elif args.test_data_files or args.test_split:
        test = open_source(
            *given, args.test_split or args.dataset_split, args.test_data_files or args.data_files, *columns
        )
    return ProbeImages(train, test, args.max_samples, args.max_test_samples, args.num_workers)


def main(args: argparse.Namespace, argv: list[str] | None = None) -> None:
    """Run the tasks, print their tables, and write results, report and plots."""
    transformers_logging.disable_progress_bar()
    started = time.time()
    evaluation = Evaluation(
        models=args.model,
        open_samples=lambda: open_samples(args),
        seeds=args.seeds,
        layers=args.layer,
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
        settings=vars(args),
    )
    version = {"protocol_version": PROTOCOL_VERSION, "suite": args.suite}
    beside: list[Row] = []
    if args.beside:
        others = read_beside(args.beside)
        evaluation.open()  # so that a difference is known before the work
        check_comparable({"this command": version | evaluation.facts()} | others)
        beside = rows_beside(others, [encoder.name for encoder in evaluation.model_encoders])
    rows: list[Row] = []
    for name in args.task:
        task = latent_r2 if args.target_columns else TASKS[name]
        rows += [row for row in evaluation.run(task) if row not in rows]
    rows += training_seeds(rows)
    prune_cache(args.cache_dir, args.cache_gb * 1e9)
    shown = [*rows, *beside]
    headline = [row for row in shown if row.headline]
    places = ""
    if args.output:
        seconds = round(time.time() - started, 1)
        command = shlex.join(["python", "scripts/evaluate.py", *(sys.argv[1:] if argv is None else argv)])
        measured = {"settings": vars(args), "seconds": seconds, **evaluation.facts(), "versions": versions()}
        results = {"command": command, **version, **measured, "rows": rows}
        write_results(args.output, results)
        page = write_report(args.output, results, shown, [*figures_of_rows(shown), *evaluation.figures])
        places = f"\nReport: {page}   Numbers: {args.output}"
    # written first: what is printed may go nowhere
    print("\n\n".join(map(format_table, tables(headline))))
    notes = protocol_notes(headline)
    if notes:
        print("\n" + "\n".join(notes))
    if any(row.half is not None for row in headline):
        print(f"\n{INTERVAL}")
    if places:
        print(places)


@safe_output()
def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; the exit code is 2 for bad input, 1 where data cannot be read, 130 after an
    interruption."""
    try:
        main(parse(argv), argv)
    except (ValueError, FileNotFoundError, TooManyBadImages) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # of the network, the disk, or data that cannot be read
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: finished chunks of features are kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(cli())
