"""The supervised tasks of an evaluation: scores of fine-tuned models, and of heads fitted on a frozen backbone."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..evaluation.context import Evaluation, short_names
from ..evaluation.features import RANDOM
from ..evaluation.results import Row
from ..evaluation.rows import Rows, open_train_and_test
from ..evaluation.settings import AnnotationSettings, EvaluationSettings
from ..evaluation.video_tasks import picture_figure, title_of
from ..loading import find_model
from . import DENSE_TASKS, task_class
from .backbones import EncoderFolder
from .base import TASK_FILE, DenseTask, evaluate_task
from .options import FinetuneArguments, TaskOptions
from .saved import load_finetuned


def supervised_rows(evaluation: Evaluation, name: str) -> list[Row]:
    """Scores of fine-tuned models and of encoders.

    For an encoder, and for its random weights, heads are fitted on the frozen backbone first.
    """
    settings = evaluation.settings
    rows = []
    train, test = open_train_and_test(settings, task_class(name).default_rows)
    train = train.select(range(min(len(train), settings.max_samples)))
    for path, shown in zip(settings.model, short_names(settings.model), strict=True):
        if (Path(find_model(path)) / TASK_FILE).is_file():
            task, model = load_finetuned(path)
            if task.name != name:
                raise ValueError(f"{path} was fine-tuned for {task.name}, not for {name}")
            task.check_rows(test, "test")
            rows += _score(evaluation, task, {shown: [model]}, test)
            continue
        encoder = EncoderFolder.open(path)
        task = task_class(name).from_options(_options(settings, name), encoder, train)
        for part, part_rows in (("train", train), ("test", test)):
            task.check_rows(part_rows, part)
        random = RANDOM if len(settings.model) == 1 else f"{RANDOM} ({shown})"
        fitted = {
            label: [fit_head(task, encoder, is_random, train, settings, seed) for seed in range(settings.seeds)]
            for label, is_random in ((shown, False), (random, True))
        }
        rows += _score(evaluation, task, fitted, test)
    return rows


def fit_head(
    task: DenseTask, encoder: EncoderFolder, is_random: bool, rows: Rows, settings: EvaluationSettings, seed: int
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
            num_workers=settings.num_workers,
            max_steps=settings.max_steps,
            save_steps=settings.max_steps,
            seed=seed,
        )
        return train(args, open_accelerator(args), StopSignals(), task, model, rows)


def _options(settings: EvaluationSettings, task: str) -> TaskOptions:
    """The options of the command, with the last head of the task: the simplest one."""
    own = {field.name: getattr(settings, field.name) for field in dataclasses.fields(AnnotationSettings)}
    return TaskOptions(head=DENSE_TASKS[task].heads[-1], **own)


def _score(evaluation: Evaluation, task: DenseTask, models: dict[str, list[PreTrainedModel]], test: Rows) -> list[Row]:
    rows = []
    settings = evaluation.settings
    for label, seeds in models.items():
        scores = []
        for model in seeds:
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            values, pictures = evaluate_task(task, model, test, settings.max_test_samples, settings.num_workers)
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
    name: partial(supervised_rows, name=name) for name in DENSE_TASKS
}
