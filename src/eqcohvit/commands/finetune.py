"""Train a head for a dense or geometric task on a pretrained ViT, ours or a plain one of transformers, and score it.

    python scripts/finetune.py --task segmentation --model runs/photos/model --num_labels 11 --ignore_label 11 \\
        --data_files 'camvid/train-*.parquet' --test_data_files 'camvid/val-*.parquet' --output_dir runs/camvid
    python scripts/finetune.py --task segmentation --model facebook/dinov2-small --train head --head linear \\
        --dataset_name zhoubolei/scene_parse_150 --test_split validation --num_labels 150 --reduce_labels \\
        --output_dir runs/ade20k

The run's folder holds metrics.jsonl, pictures/, checkpoints/, model/ and results.json. `--random_weights` is the
control: the same run on the same backbone without its pretraining.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import NoReturn

import datasets
import torch
from transformers.utils import logging as transformers_logging

from ..downstream import TASKS, save_finetuned
from ..downstream.backbones import EncoderFolder, find_backbone
from ..downstream.base import TaskOptions, evaluate_task, spread
from ..downstream.finetune import TRAINABLE, FinetuneSettings, Finetuning, make_accelerator
from ..evaluation.pictures import save_sheet
from ..evaluation.results import format_table, versions, write_results
from ..evaluation.rows import SOURCE_FLAGS, open_train_and_test
from ..files import FINETUNE_SETTINGS_FILE, write_text_whole
from ..training.arguments import PRECISIONS
from ..training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    on_main_process,
    read_state,
    remove_unfinished,
    set_later_aside,
)
from ..training.run_lock import LOCK_FILE, lock_run
from ..training.signals import StopSignals, exit_code, leave

NUM_PICTURES = 6
_MAY_CHANGE_ON_RESUME = {
    "resume_from_checkpoint",
    "output_dir",
    "max_test_samples",
    "num_workers",
    "logging_steps",
    "save_steps",
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command line; `SystemExit` with code 2 for ones that do not exist."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--task", required=True, choices=list(TASKS), help="what to learn")
    parser.add_argument(
        "--model", required=True, help="folder or repository of the encoder: ours, or a transformers ViT"
    )
    parser.add_argument(
        "--random_weights", action="store_true", help="control: the backbone without its trained weights"
    )
    parser.add_argument(
        "--train", default="all", choices=TRAINABLE, help="head: frozen backbone; lora: adapters in it; default: all"
    )
    heads = "; ".join(f"{name}: {', '.join(task.heads)}" for name, task in TASKS.items())
    parser.add_argument("--head", help=f"{heads}; default: the first")

    parser.add_argument("--dataset_name", help="Hub id, local folder or builder")
    parser.add_argument("--dataset_config_name", help="configuration of the dataset")
    parser.add_argument("--dataset_split", default="train", help="split to train on; default: train")
    parser.add_argument("--test_split", help="split of dataset_name to test on; default: every tenth row is held out")
    parser.add_argument("--data_files", help="files to train on: a glob, or several separated by commas")
    parser.add_argument("--test_data_files", help="files to test on; default: every tenth row is held out")
    parser.add_argument("--train_dir", help="folder tree of images, for tasks without annotations")
    TaskOptions.add_flags(parser)
    parser.add_argument("--max_test_samples", type=int, help="test on the first rows only")

    defaults = FinetuneSettings()
    parser.add_argument(
        "--max_steps", type=int, default=defaults.max_steps, help="optimizer steps; default: %(default)s"
    )
    parser.add_argument(
        "--per_device_train_batch_size",
        type=int,
        default=defaults.batch_size,
        help="images a step; default: %(default)s",
    )
    parser.add_argument(
        "--learning_rate",
        type=float,
        default=defaults.learning_rate,
        help="peak learning rate of the head; default: %(default)s",
    )
    text = "learning rate of the backbone over the head's; default: %(default)s"
    parser.add_argument("--backbone_lr_scale", type=float, default=defaults.backbone_lr_scale, help=text)
    parser.add_argument(
        "--weight_decay",
        type=float,
        default=defaults.weight_decay,
        help="weight decay of matrices; default: %(default)s",
    )
    parser.add_argument(
        "--warmup_steps", type=int, default=defaults.warmup_steps, help="steps of linear warm-up; default: %(default)s"
    )
    parser.add_argument(
        "--lora_rank", type=int, default=defaults.lora_rank, help="rank of the adapters; default: %(default)s"
    )
    text = "default: the launcher's, else bf16 on GPUs that have it, else no"
    parser.add_argument("--mixed_precision", choices=PRECISIONS, help=text)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images; default: 0")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation; default: 0")
    parser.add_argument(
        "--logging_steps",
        type=int,
        default=defaults.logging_steps,
        help="steps between progress lines; default: %(default)s",
    )
    parser.add_argument(
        "--save_steps", type=int, default=defaults.save_steps, help="steps between checkpoints; default: %(default)s"
    )
    parser.add_argument(
        "--output_dir",
        type=os.path.expanduser,
        default="outputs/finetune",
        help="folder of the run; default: %(default)s",
    )
    parser.add_argument("--resume_from_checkpoint", help="'latest' of output_dir, or the path of a checkpoint folder")
    return parser.parse_args(argv)


def main(args: argparse.Namespace, stop: StopSignals, argv: list[str]) -> None:
    """Train, save and test the model of one task."""
    # ------------------------------------------------------------------ what can be wrong is found before anything is written
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    started, output_dir = time.time(), Path(args.output_dir)
    names = {field.name for field in dataclasses.fields(FinetuneSettings)} & set(vars(args))
    settings = FinetuneSettings(
        batch_size=args.per_device_train_batch_size, **{name: getattr(args, name) for name in names}
    )
    settings.check()
    if args.max_test_samples is not None and args.max_test_samples < 1:
        raise ValueError(f"max_test_samples must be at least 1, got {args.max_test_samples}")
    accelerator = make_accelerator(settings.mixed_precision)
    checkpoint = on_main_process(accelerator, lambda: check_output_dir(output_dir, args))
    encoder = EncoderFolder.open(args.model)
    task_class = TASKS[args.task]
    sources = {name: getattr(args, name) for name in SOURCE_FLAGS}
    rows = dict(zip(("train", "test"), open_train_and_test(**sources, default=task_class.default_rows), strict=True))
    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(TaskOptions)}
    task = task_class.from_options(TaskOptions(**options), encoder, rows["train"])
    for part, part_rows in rows.items():
        task.check_rows(part_rows, part)

    # ------------------------------------------------------------------ train
    on_main_process(accelerator, lambda: open_run(output_dir, args, checkpoint))
    stop.connect()
    torch.manual_seed(args.seed)
    model = task.build(encoder, args.random_weights)
    shown = [rows["test"][index] for index in spread(len(rows["test"]), NUM_PICTURES)]

    def look(step: int, trained: torch.nn.Module) -> None:
        _, pictures = evaluate_task(task, trained, shown)
        save_sheet(output_dir / "pictures" / f"step-{step}.png", task.picture_titles, pictures)

    parts = (task, model, find_backbone(model), rows["train"])
    model = Finetuning(accelerator, stop, *parts, settings, output_dir, checkpoint, look).train()
    if not accelerator.is_main_process:
        accelerator.end_training()
        return

    # ------------------------------------------------------------------ save and score
    save_finetuned(output_dir / "model", task, model)
    trained = time.time()
    with stop.interruptible():  # all is saved: a resumed run tests again
        values, _ = evaluate_task(task, model, rows["test"], args.max_test_samples, args.num_workers)
    name = "random weights" if args.random_weights else args.model
    results = {
        "task": task.name,
        "protocol": task.protocol,
        "settings": {**vars(args), "head": task.head, "image_size": task.image_size},
        "command": shlex.join(["python", "scripts/finetune.py", *argv]),
        "versions": versions(),
        "seconds": {"training": round(trained - started, 1), "testing": round(time.time() - trained, 1)},
        "rows": [
            {"encoder": name, "part": "backbone", "metric": metric, "values": [value]}
            for metric, value in values.items()
        ],
    }
    write_results(output_dir / "results.json", results)
    print(format_table([["encoder", *values], [name, *(f"{value:.4g}" for value in values.values())]]))
    print(
        f"model in {output_dir / 'model'}, pictures in {output_dir / 'pictures'}, numbers in {output_dir / 'results.json'}"
    )


def check_output_dir(output_dir: Path, args: argparse.Namespace) -> Path | None:
    """The checkpoint to go on from, if that is asked for and there is one.

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
        raise ValueError(
            f"{output_dir} holds another run: give another --output_dir, or --resume_from_checkpoint latest"
        )
    saved, given = json.loads(path.read_text()), vars(args)
    changed = [
        name for name in given if name not in _MAY_CHANGE_ON_RESUME and name in saved and saved[name] != given[name]
    ]
    if changed:
        differences = "; ".join(f"{name} was {saved[name]!r}, is {given[name]!r}" for name in changed)
        raise ValueError(f"cannot resume with other settings: {differences}")
    return checkpoint


def open_run(output_dir: Path, args: argparse.Namespace, checkpoint: Path | None) -> None:
    """Make the folder with the run's settings in it."""
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


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; exit codes as those of scripts/pretrain.py."""
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda stop: main(parse(argv), stop, given), failures=(CheckpointError,))


def entry() -> NoReturn:
    """The command `eqcohvit-finetune`."""
    leave(cli())


if __name__ == "__main__":
    entry()
