"""One fine-tuning run from its settings: checks, training, saving, scoring."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch

from ..evaluation.pictures import save_sheet, with_height
from ..evaluation.results import format_table, versions, write_results
from ..evaluation.rows import Rows, open_train_and_test
from ..files import MODEL_FOLDER, RESULTS_FILE
from ..training.checkpoint import on_main_process
from ..training.run_folder import check_output_dir, open_run
from ..training.signals import StopSignals
from . import task_class
from .backbones import EncoderFolder
from .base import NUM_PICTURES, DenseTask, evaluate_task, spread
from .finetune import open_accelerator, train
from .options import FinetuneArguments
from .saved import save_finetuned


def finetune(args: FinetuneArguments, stop: StopSignals, command: str) -> None:
    """Train, save and test the model of one task.

    Args:
        command: what was typed, for results.json.

    Raises:
        ValueError: a setting or the data cannot be used; nothing has been written.
        StopRequested: a signal has stopped the run; all finished steps are saved.
        CheckpointError: a checkpoint cannot be written.
    """
    # ------------------------------------------------------------------ all checks, before anything is written
    datasets.disable_progress_bars()
    started = time.time()
    output_dir = Path(args.output_dir)
    args.check()
    accelerator = open_accelerator(args)
    on_main_process(accelerator, lambda: check_output_dir(output_dir, args))
    encoder = EncoderFolder.open(args.model)
    task, train_rows, test_rows = open_task(args, encoder)

    # ------------------------------------------------------------------ training
    checkpoint = on_main_process(accelerator, lambda: open_run(output_dir, args))
    stop.connect()
    torch.manual_seed(args.seed)
    model = task.build(encoder, args.random_weights)
    draw = picture_drawer(task, test_rows, output_dir)
    model = train(args, accelerator, stop, task, model, train_rows, checkpoint, draw)
    if not accelerator.is_main_process:
        accelerator.end_training()
        return

    # ------------------------------------------------------------------ saving and scoring
    save_finetuned(output_dir / MODEL_FOLDER, task, model)
    trained = time.time()
    with stop.interruptible():  # everything is saved: a resumed run tests again
        values, _ = evaluate_task(task, model, test_rows, args.max_test_samples, args.num_workers)
    name = "random weights" if args.random_weights else args.model
    results = {
        "task": task.name,
        "protocol": task.protocol,
        "settings": {**args.to_dict(), "head": task.head, "image_size": task.image_size},
        "command": command,
        "versions": versions(),
        "seconds": {"training": round(trained - started, 1), "testing": round(time.time() - trained, 1)},
        "rows": [
            {"encoder": name, "part": "backbone", "metric": metric, "values": [value]}
            for metric, value in values.items()
        ],
    }
    write_results(output_dir / RESULTS_FILE, results)
    print(format_table([["encoder", *values], [name, *(f"{value:.4g}" for value in values.values())]]))
    places = {"model": MODEL_FOLDER, "pictures": "pictures", "numbers": RESULTS_FILE}
    print(", ".join(f"{what} in {output_dir / place}" for what, place in places.items()))


def open_task(args: FinetuneArguments, encoder: EncoderFolder) -> tuple[DenseTask, Rows, Rows]:
    """The task, and checked rows to train on and to test on."""
    kind = task_class(args.task)
    train_rows, test_rows = open_train_and_test(args, kind.default_rows)
    task = kind.from_options(args, encoder, train_rows)
    task.check_rows(train_rows, "train")
    task.check_rows(test_rows, "test")
    return task, train_rows, test_rows


def picture_drawer(task: DenseTask, test_rows: Rows, output_dir: Path) -> Callable[[int, torch.nn.Module], None]:
    """A function that draws predictions for a few test rows into pictures/step-N.png."""
    shown = [test_rows[index] for index in spread(len(test_rows), NUM_PICTURES)]

    def draw(step: int, model: torch.nn.Module) -> None:
        _, pictures = evaluate_task(task, model, shown)
        rows = [[with_height(picture) for picture in row] for row in pictures]
        save_sheet(output_dir / "pictures" / f"step-{step}.png", task.picture_titles, rows)

    return draw
