"""One evaluation from its settings: opens models and images, runs the tasks, writes results, report and tables."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from operator import length_hint

from transformers.utils import logging as transformers_logging

from ..data import FolderSource, SpritesSource, open_source
from . import tasks
from .context import Evaluation
from .feature_cache import prune_cache
from .figures import figures_of_rows
from .images import TEST_SPRITES, ProbeImages, check_test_data
from .r2_tasks import r2
from .reconstruction import reconstruction
from .report import protocol_notes, write_report
from .results import Row, findings, format_tables, interval_note, training_seeds, versions, write_results
from .retrieval import retrieval
from .settings import EvaluationSettings
from .suite import PROTOCOL_VERSION, check_comparable, describe_size, read_beside, rows_beside

Task = Callable[[Evaluation], list[Row]]
# A new task on pooled features is one entry here.
FROZEN_TASKS: dict[str, Task] = {
    "r2": r2,
    "knn": tasks.knn,
    "linear": tasks.linear,
    "disentanglement": tasks.disentanglement,
    "retrieval": retrieval,
    "reconstruction": reconstruction,
}


def run_evaluation(settings: EvaluationSettings, command: str, chosen: Sequence[Task]) -> list[Row]:
    """Run the tasks, print their tables, and write results, report and plots; returns the rows.

    Args:
        settings: checked and complete, as `commands.evaluate` makes them.
        command: what was typed, for results.json.
        chosen: the tasks.
    """
    transformers_logging.disable_progress_bar()
    started = time.time()
    evaluation = Evaluation(settings, lambda: open_images(settings))
    version = {"protocol_version": PROTOCOL_VERSION, "suite": settings.suite}
    beside: list[Row] = []
    if settings.beside:
        others = read_beside(settings.beside)
        evaluation.open()  # a difference is an error before the work starts
        check_comparable({"this command": version | evaluation.facts()} | others)
        beside = rows_beside(others, [encoder.name for encoder in evaluation.model_encoders])
    if tasks.knn in chosen or tasks.linear in chosen:
        tasks.check_labels(evaluation.samples)  # before other tasks take their time
    rows: list[Row] = []
    for task in chosen:
        rows += [row for row in evaluation.run(task) if row not in rows]
    rows += training_seeds(rows)
    prune_cache(settings.cache_dir, settings.cache_gb * 1e9)
    shown = [*rows, *beside]
    places = ""
    values = dataclasses.asdict(settings)
    if settings.output:  # before anything is printed, because a closed pipe ends the command
        seconds = round(time.time() - started, 1)
        measured = {"settings": values, "seconds": seconds, **evaluation.facts(), "versions": versions()}
        results = {"command": command, **version, **measured, "rows": rows}
        write_results(settings.output, results)
        page = write_report(settings.output, results, shown, [*figures_of_rows(shown), *evaluation.figures])
        places = f"\nReport: {page}   Numbers: {settings.output}"
    _print(shown, describe_size(values | _counts(evaluation)))
    if places:
        print(places)
    return shown


def _counts(evaluation: Evaluation) -> dict[str, int]:
    """The numbers of images that a folder has for the settings, if pooled features were read."""
    protocol = evaluation.facts()["protocol"]
    names = {"max_samples": "train_images", "max_test_samples": "test_images"}
    names |= {"train_draws": "train_draws", "test_draws": "test_draws"}
    return {setting: protocol[name] for setting, name in names.items() if name in protocol}


def _print(rows: list[Row], measured: str) -> None:
    """Tables of the headline rows, and how they were measured, in 80 columns."""
    headline = [row for row in rows if row.headline]
    print(f"{format_tables(headline)}\n")
    notes = [*findings(rows), *protocol_notes(headline), *measured.splitlines()]
    if interval_note(headline):
        notes += ["", interval_note(headline)]
    print("\n".join(textwrap.fill(note, 80, subsequent_indent="  ") for note in notes))


def open_images(settings: EvaluationSettings) -> ProbeImages:
    """The images to fit on and to test on."""
    check_test_data(settings)
    dataset = (settings.dataset_name, settings.dataset_config_name)
    columns = (settings.train_dir, settings.image_column, settings.label_column)
    train = open_source(*dataset, settings.dataset_split, settings.data_files, *columns)
    test = train
    if isinstance(train, FolderSource):
        print(train.summary, file=sys.stderr)
    if isinstance(train, SpritesSource):
        test = SpritesSource(offset=TEST_SPRITES)
    elif settings.test_data_files or settings.test_split:
        split = settings.test_split or settings.dataset_split
        test = open_source(*dataset, split, settings.test_data_files or settings.data_files, *columns)
    num_train = settings.max_samples
    num_test = settings.max_test_samples
    num_images = length_hint(train)
    if test is train and num_images:
        num_test = num_held_out(num_images, num_test, quick=not (settings.full or settings.suite))
        num_train = min(num_train, num_images - num_test)
    return ProbeImages(train, test, num_train, num_test, settings.num_workers)


def num_held_out(num_images: int, num_test: int, quick: bool) -> int:
    """Images of a folder to test on: `num_test`, but at most a third if the evaluation is quick or none were left."""
    if quick or num_images <= num_test:
        return min(num_test, max(1, num_images // 3))
    return num_test
