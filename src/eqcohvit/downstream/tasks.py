"""The supervised tasks of an evaluation: scores of fine-tuned models, and of heads fitted on a frozen backbone."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..evaluation.context import Evaluation, short_names
from ..evaluation.features import RANDOM
from ..evaluation.results import Row
from ..evaluation.rows import SOURCE_FLAGS, Rows, open_train_and_test
from ..evaluation.video_tasks import picture_figure, title_of
from ..loading import find_model
from . import task_class
from .backbones import EncoderFolder
from .base import TASK_FILE, DenseTask, evaluate_task
from .options import TASK_HEADS, FinetuneArguments, TaskOptions
from .saved import load_finetuned


def supervised_rows(evaluation: Evaluation, name: str) -> list[Row]:
    """Scores of fine-tuned models and of encoders.

    For an encoder, and for its random weights, heads are fitted on the frozen backbone first.
    """
    settings = evaluation.settings
    rows = []
    sources = {flag: settings[flag] for flag in SOURCE_FLAGS}
    train, test = open_train_and_test(**sources, default=task_class(name).default_rows)
    train = train.select(range(min(len(train), settings["max_samples"])))
    for path, shown in zip(evaluation.models, short_names(evaluation.models), strict=True):
        if (Path(find_model(path)) / TASK_FILE).is_file():
            task, model = load_finetuned(path)
            if task.name != name:
                raise ValueError(f"{path} was fine-tuned for {task.name}, not for {name}")
            task.check_rows(test, "test")
            rows += _score(evaluation, task, {shown: [model]}, test)
            continue
        encoder = EncoderFolder.open(path)
        task = task_class(name).from_options(_options(settings, TASK_HEADS[name][-1]), encoder, train)
        for part, part_rows in (("train", train), ("test", test)):
            task.check_rows(part_rows, part)
        random = RANDOM if len(evaluation.models) == 1 else f"{RANDOM} ({shown})"
        fitted = {
            label: [fit_head(task, encoder, is_random, train, settings, seed) for seed in range(evaluation.seeds)]
            for label, is_random in ((shown, False), (random, True))
        }
        rows += _score(evaluation, task, fitted, test)
    return rows


def fit_head(
    task: DenseTask, encoder: EncoderFolder, is_random: bool, rows: Rows, settings: dict[str, Any], seed: int
) -> PreTrainedModel:
    """A head trained on the frozen backbone with the default settings of fine-tuning."""
    from ..training.signals import StopSignals
    from .finetune import open_accelerator, train

    torch.manual_seed(seed)
    model = task.build(encoder, is_random)
    with tempfile.TemporaryDirectory() as folder:
        args = FinetuneArguments(
            task=task.name,
            model=encoder.name,
            train="head",
            output_dir=folder,
            num_workers=settings["num_workers"],
            max_steps=settings["max_steps"],
            save_steps=settings["max_steps"],
            seed=seed,
        )
        return train(args, open_accelerator(args), StopSignals(), task, model, rows)


def _options(settings: dict[str, Any], head: str) -> TaskOptions:
    names = {field.name for field in dataclasses.fields(TaskOptions)} - {"head"}
    return TaskOptions(head=head, **{name: settings[name] for name in names})


def _score(evaluation: Evaluation, task: DenseTask, models: dict[str, list[PreTrainedModel]], test: Rows) -> list[Row]:
    rows = []
    settings = evaluation.settings
    for label, seeds in models.items():
        scores = []
        for model in seeds:
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            values, pictures = evaluate_task(task, model, test, settings["max_test_samples"], settings["num_workers"])
            scores.append(values)
        caption = f"{title_of(task.name)}: predictions of {label}. {task.protocol}."
        evaluation.figures.append(
            picture_figure(f"{task.name}_{len(evaluation.figures)}", caption, task.picture_titles, pictures)
        )
        protocol = {"task": task.name, "head": task.head, "image_size": task.image_size, "seeds": len(seeds)}
        rows += [
            Row(
                label,
                "backbone",
                f"{title_of(task.name)} {metric}",
                [values[metric] for values in scores],
                settings=protocol,
            )
            for metric in scores[0]
        ]
    return rows


# Task -> function of an `Evaluation` that returns rows.
SUPERVISED_ROWS: dict[str, Callable[[Evaluation], list[Row]]] = {
    name: partial(supervised_rows, name=name) for name in TASK_HEADS
}
