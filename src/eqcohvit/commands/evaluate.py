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

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import (
    CommandParser,
    add_settings,
    as_call,
    check_choices,
    check_numbers,
    exit_code_of,
    given_settings,
    registered,
    typed,
)
from ..evaluation.settings import DENSE_TASKS, FROZEN_TASKS, VIDEO_TASKS, EvaluationSettings
from ..training.output import safe_output

if TYPE_CHECKING:
    from ..evaluation.results import Row
    from ..evaluation.run import Task

_USAGE = "python -m eqcohvit.commands.evaluate --model MODEL [MODEL ...] [settings]"
_DENSE = f"dense tasks ({', '.join(DENSE_TASKS)})"
# Titles in --help, by the first setting below each.
_GROUPS = {
    "model": "evaluation",
    "transform": f"transformations and pooled features ({', '.join(FROZEN_TASKS)})",
    "target_columns": "columns of numbers as targets (r2)",
    "max_steps": _DENSE,
    "image_size": _DENSE,
    "frame_size": f"videos ({', '.join(VIDEO_TASKS)}): columns image, annotation, sequence, frame",
    "dataset_name": "data",
    "label_column": "data",
}
_POSITIVE = (
    "max_samples max_test_samples seeds k temperature max_steps frame_size max_frames top_k image_size max_depth "
    "depth_scale"
)
_NOT_NEGATIVE = ("cache_gb", "radius", "context_frames", "num_workers")


def parse(argv: Sequence[str] | None = None) -> EvaluationSettings:
    """The settings of a command line.

    Raises:
        ValueError: a setting that does not exist or cannot work.
    """
    parser = CommandParser(__doc__, _USAGE)
    add_settings(parser, EvaluationSettings, _GROUPS)
    given = vars(parser.parse_args(argv))
    return completed(EvaluationSettings(**given), given)


# -------------------------------------------------------------------------------------------------------------- checks


def completed(settings: EvaluationSettings, given: Iterable[str]) -> EvaluationSettings:
    """The settings, checked, with those that the suite or the size decides.

    Args:
        given: names of the settings that were given.

    Raises:
        ValueError: a setting that cannot work.
    """
    from ..evaluation.feature_cache import DEFAULT_CACHE
    from ..evaluation.suite import with_size

    check_choices(settings)
    if settings.suite:
        settings = _with_suite(settings, settings.suite, given)
    settings = with_size(settings)
    transform = list(registered("transforms", "PATHS")) if "all" in settings.transform else settings.transform
    settings = replace(settings, transform=transform, cache_dir=settings.cache_dir or str(DEFAULT_CACHE))
    _check(settings)
    return settings


def _with_suite(settings: EvaluationSettings, name_of_suite: str, given: Iterable[str]) -> EvaluationSettings:
    """The settings with those that the suite fixes; raise a `ValueError` if one of them was given another value."""
    from ..evaluation.suite import SUITES

    suite = SUITES[name_of_suite]
    for name, value in suite.fixed().items():
        own = getattr(settings, name)
        if name in given and own != value:
            advice = "leave it out, or give --task without --suite"
            raise ValueError(f"suite {name_of_suite} fixes {name} to {value}, got {own}: {advice}")
    if settings.target_columns:
        raise ValueError(f"suite {name_of_suite} regresses transformations: give target_columns without --suite")
    most = ("max_samples", "max_test_samples")
    counts = {name: getattr(suite, name) for name in most if getattr(settings, name) is None}
    return replace(settings, **suite.fixed(), **counts)


def _check(settings: EvaluationSettings) -> None:
    """Raise a `ValueError` for the first setting that cannot work."""
    from ..transforms import make_path

    if not settings.model:
        raise ValueError("model is missing: give at least one folder or repository")
    check_numbers(settings, _POSITIVE.split(), _NOT_NEGATIVE)
    if settings.beside and not settings.suite:
        raise ValueError("beside needs a suite, so that all files have the same settings: give --suite r2")
    _check_columns(settings)
    for name in settings.transform:
        make_path(name)
    if settings.output and Path(settings.output).is_dir():
        raise ValueError(f"output must be a file such as results.json, got the folder {settings.output}")
    if settings.output:
        _check_writable("output", Path(settings.output))
    _check_writable("cache_dir", Path(settings.cache_dir))


def _check_columns(settings: EvaluationSettings) -> None:
    """Raise a `ValueError` if the flags of target columns contradict each other."""
    from ..evaluation.latents import parse_circular

    circular = parse_circular(settings.circular_columns)
    for flag, columns in (("quaternion_columns", settings.quaternion_columns), ("circular_columns", list(circular))):
        unknown = [column for column in columns if column not in settings.target_columns]
        if unknown:
            raise ValueError(f"{flag} must be among target_columns, got {', '.join(unknown)}")
    both = [column for column in settings.quaternion_columns if column in circular]
    if both:
        raise ValueError(f"a column is either a quaternion or circular, got both for {', '.join(both)}")
    if settings.group_column and not settings.target_columns:
        raise ValueError("group_column needs target_columns")
    if settings.target_columns and settings.task != ["r2"]:
        raise ValueError(f"target_columns works only with --task r2, got {' '.join(settings.task)}")


def _check_writable(name: str, path: Path) -> None:
    """Raise a `ValueError` if a file could not be written, now instead of after hours of work."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{name} {path} cannot be written: {parent} is not a writable folder")


# ----------------------------------------------------------------------------------------------------------------- run


def chosen_tasks(settings: EvaluationSettings) -> list[Task]:
    """The functions of the tasks. Supervised ones are imported only if they are used."""
    from ..evaluation.latent_tasks import latent_r2
    from ..evaluation.run import FROZEN_TASKS
    from ..evaluation.video_tasks import VIDEO_ROWS

    if settings.target_columns:
        return [latent_r2]
    known = {**FROZEN_TASKS, **VIDEO_ROWS}
    if any(name in DENSE_TASKS for name in settings.task):
        from ..downstream.tasks import SUPERVISED_ROWS

        known |= SUPERVISED_ROWS
    return [known[name] for name in settings.task]


def run(settings: EvaluationSettings, command: str) -> list[Row]:
    """Evaluate with these settings; returns the rows of the tables."""
    from ..data import TooManyBadImages
    from ..evaluation.run import run_evaluation
    from ..registration import register

    register()
    try:
        return run_evaluation(settings, command, chosen_tasks(settings))
    except TooManyBadImages as error:
        raise ValueError(str(error)) from error


def evaluate_from_python(**settings: Any) -> list[Row]:
    """What `eqcohvit.evaluate` does."""
    given = given_settings(settings, EvaluationSettings)
    return run(completed(EvaluationSettings(**given), given), as_call("evaluate", settings))


@safe_output()
def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments.

    The exit code is 2 for bad input, 1 if data cannot be read, and 130 after an interruption.
    """
    try:
        return exit_code_of(lambda: run(parse(argv), typed("evaluate", argv)))
    except KeyboardInterrupt:
        print("interrupted: finished features are kept, and the same command continues from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(cli())
