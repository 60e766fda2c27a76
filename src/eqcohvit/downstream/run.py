"""One fine-tuning run from its settings: checks, training, saving, scoring."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from transformers.utils import logging as transformers_logging

from ..evaluation.pictures import save_sheet
from ..evaluation.results import format_table, versions, write_results
from ..evaluation.rows import SOURCE_FLAGS, Rows, open_train_and_test
from ..files import FINETUNE_SETTINGS_FILE, write_text_whole
from ..training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    on_main_process,
    read_state,
    remove_unfinished,
    set_later_aside,
)
from ..training.run_lock import LOCK_FILE, lock_run
from ..training.signals import RunFailed, StopSignals
from . import task_class
from .backbones import EncoderFolder, find_backbone
from .base import DenseTask, evaluate_task, spread
from .finetune import Finetuning, make_accelerator
from .options import FinetuneSettings, TaskOptions
from .saved import save_finetuned

NUM_PICTURES = 6
_MAY_CHANGE_ON_RESUME = {
    "resume_from_checkpoint",
    "output_dir",
    "max_test_samples",
    "num_workers",
    "logging_steps",
    "save_steps",
}


def finetune(args: argparse.Namespace, stop: StopSignals, command: str) -> None:
    """Train, save and test the model of one task.

    Args:
        args: the settings of `commands.finetune`.
        command: what was typed, for results.json.

    Raises:
        ValueError: a setting or the data cannot be used; nothing has been written.
        RunFailed: a checkpoint cannot be read or written.
    """
    try:
        _finetune(args, stop, command)
    except CheckpointError as error:
        raise RunFailed(str(error)) from error


def _finetune(args: argparse.Namespace, stop: StopSignals, command: str) -> None:
    # ------------------------------------------------------------------ all checks, before anything is written
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    started = time.time()
    output_dir = Path(args.output_dir)
    settings = _settings(args)
    accelerator = make_accelerator(settings.mixed_precision)
    checkpoint = on_main_process(accelerator, lambda: check_output_dir(output_dir, args))
    encoder = EncoderFolder.open(args.model)
    task, train, test = _open_task(args, encoder)

    # ------------------------------------------------------------------ training
    on_main_process(accelerator, lambda: open_run(output_dir, args, checkpoint))
    stop.connect()
    torch.manual_seed(args.seed)
    model = task.build(encoder, args.random_weights)
    look = _looks(task, test, output_dir)
    parts = (task, model, find_backbone(model), train)
    model = Finetuning(accelerator, stop, *parts, settings, output_dir, checkpoint, look).train()
    if not accelerator.is_main_process:
        accelerator.end_training()
        return

    # ------------------------------------------------------------------ saving and scoring
    save_finetuned(output_dir / "model", task, model)
    trained = time.time()
    with stop.interruptible():  # everything is saved: a resumed run tests again
        values, _ = evaluate_task(task, model, test, args.max_test_samples, args.num_workers)
    name = "random weights" if args.random_weights else args.model
    results = {
        "task": task.name,
        "protocol": task.protocol,
        "settings": {**vars(args), "head": task.head, "image_size": task.image_size},
        "command": command,
        "versions": versions(),
        "seconds": {"training": round(trained - started, 1), "testing": round(time.time() - trained, 1)},
        "rows": [
            {"encoder": name, "part": "backbone", "metric": metric, "values": [value]}
            for metric, value in values.items()
        ],
    }
    write_results(output_dir / "results.json", results)
    print(format_table([["encoder", *values], [name, *(f"{value:.4g}" for value in values.values())]]))
    places = {"model": "model", "pictures": "pictures", "numbers": "results.json"}
    print(", ".join(f"{what} in {output_dir / place}" for what, place in places.items()))


def _settings(args: argparse.Namespace) -> FinetuneSettings:
    names = {field.name for field in dataclasses.fields(FinetuneSettings)} & set(vars(args))
    values = {name: getattr(args, name) for name in names}
    settings = FinetuneSettings(batch_size=args.per_device_train_batch_size, **values)
    settings.check()
    if args.max_test_samples is not None and args.max_test_samples < 1:
        raise ValueError(f"max_test_samples must be at least 1, got {args.max_test_samples}")
    return settings


def _open_task(args: argparse.Namespace, encoder: EncoderFolder) -> tuple[DenseTask, Rows, Rows]:
    """The task, and checked rows to train on and to test on."""
    kind = task_class(args.task)
    sources = {name: getattr(args, name) for name in SOURCE_FLAGS}
    train, test = open_train_and_test(**sources, default=kind.default_rows)
    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(TaskOptions)}
    task = kind.from_options(TaskOptions(**options), encoder, train)
    task.check_rows(train, "train")
    task.check_rows(test, "test")
    return task, train, test


def _looks(task: DenseTask, test: Rows, output_dir: Path) -> Callable[[int, torch.nn.Module], None]:
    """A function that draws predictions for a few test rows into pictures/step-N.png."""
    shown = [test[index] for index in spread(len(test), NUM_PICTURES)]

    def look(step: int, model: torch.nn.Module) -> None:
        _, pictures = evaluate_task(task, model, shown)
        save_sheet(output_dir / "pictures" / f"step-{step}.png", task.picture_titles, pictures)

    return look


def check_output_dir(output_dir: Path, args: argparse.Namespace) -> Path | None:
    """The checkpoint to resume from, if there is one and the settings ask for it.

    Raises:
        ValueError: the folder holds another run, or this one with other settings.
    """
    checkpoint = find_checkpoint(output_dir, args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    path = output_dir / FINETUNE_SETTINGS_FILE
    if not path.exists():
        if output_dir.is_dir() and any(path.name != LOCK_FILE for path in output_dir.iterdir()):
            raise ValueError(f"{output_dir} is not empty and holds no run: give another --output_dir")
        return checkpoint
    if not args.resume_from_checkpoint:
        allowed = "give another --output_dir, or --resume_from_checkpoint latest"
        raise ValueError(f"{output_dir} holds another run: {allowed}")
    saved = json.loads(path.read_text())
    differences = [
        f"{name} was {saved[name]!r}, is {value!r}"
        for name, value in vars(args).items()
        if name not in _MAY_CHANGE_ON_RESUME and name in saved and saved[name] != value
    ]
    if differences:
        raise ValueError(f"cannot resume with other settings: {'; '.join(differences)}")
    return checkpoint


def open_run(output_dir: Path, args: argparse.Namespace, checkpoint: Path | None) -> None:
    """Make the folder of the run and write its settings."""
    try:
        lock_run(output_dir)
        write_text_whole(output_dir / FINETUNE_SETTINGS_FILE, json.dumps(vars(args), indent=1) + "\n")
        remove_unfinished(output_dir)
    except OSError as error:
        raise ValueError(f"cannot write to output_dir {output_dir}: {error.strerror or error}") from None
    if checkpoint is not None:
        set_later_aside(output_dir, read_state(checkpoint)["step"])
    elif args.resume_from_checkpoint:
        print(f"no checkpoint in {output_dir} yet: starting from the beginning")
