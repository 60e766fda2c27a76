"""Train a head for a dense or geometric task on a pretrained ViT, ours or one of transformers, and score it.

    python -m eqcohvit.commands.finetune --task segmentation --model runs/photos/model --num_labels 11 \\
        --ignore_label 11 --data_files 'camvid/train-*.parquet' --test_data_files 'camvid/val-*.parquet' \\
        --output_dir runs/camvid
    python -m eqcohvit.commands.finetune --task segmentation --model facebook/dinov2-small --train head --head linear \\
        --dataset_name zhoubolei/scene_parse_150 --test_split validation --num_labels 150 --reduce_labels \\
        --output_dir runs/ade20k

The run's folder holds metrics.jsonl, pictures/, checkpoints/, model/ and results.json. `--random_weights` is the
control: the same run on the same backbone without its pretraining.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import NoReturn

from ..cli import CommandParser, Registry
from ..downstream.options import TASK_HEADS, TRAINABLE, FinetuneSettings, TaskOptions
from ..training.signals import StopSignals, exit_code, leave

_USAGE = "python -m eqcohvit.commands.finetune --task TASK --model MODEL [settings]"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings of a command line; a `ValueError` for a flag that does not exist."""
    parser = CommandParser(__doc__, _USAGE)
    parser.add_argument("--task", required=True, choices=list(TASK_HEADS), help="what to learn")
    text = "folder or repository of the encoder: ours, or a transformers ViT"
    parser.add_argument("--model", required=True, help=text)
    text = "head: frozen backbone; lora: adapters in it; default: all"
    parser.add_argument("--train", default="all", choices=TRAINABLE, help=text)
    text = "control: the backbone without its trained weights"
    parser.add_argument("--random_weights", action="store_true", help=text)
    heads = "; ".join(f"{name}: {', '.join(own)}" for name, own in TASK_HEADS.items())
    parser.add_argument("--head", help=f"{heads}; default: the first one")
    text = "folder of the run; default: %(default)s"
    parser.add_argument("--output_dir", type=os.path.expanduser, default="outputs/finetune", help=text)
    text = "'latest' of output_dir, or the path of a checkpoint folder"
    parser.add_argument("--resume_from_checkpoint", help=text)
    _add_data(parser)
    _add_training(parser)
    return parser.parse_args(argv)


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data and task")
    group.add_argument("--dataset_name", help="Hub id, local folder or builder")
    group.add_argument("--dataset_config_name", help="configuration of the dataset")
    group.add_argument("--dataset_split", default="train", help="split to train on; default: train")
    group.add_argument("--test_split", help="split of dataset_name to test on; default: every tenth row is held out")
    group.add_argument("--data_files", help="files to train on: a glob, or several separated by commas")
    group.add_argument("--test_data_files", help="files to test on; default: every tenth row is held out")
    group.add_argument("--train_dir", help="folder tree of images, for tasks without annotations")
    TaskOptions.add_flags(group)
    group.add_argument("--max_test_samples", type=int, help="test only on the first rows")
    group.add_argument("--num_workers", type=int, default=0, help="processes that decode images; default: 0")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    defaults = FinetuneSettings()
    text = "images a step and device; default: %(default)s"
    group.add_argument("--per_device_train_batch_size", type=int, default=defaults.batch_size, help=text)
    for name, text in (
        ("max_steps", "optimizer steps"),
        ("learning_rate", "peak learning rate of the head"),
        ("backbone_lr_scale", "ratio of the backbone's learning rate to the head's"),
        ("weight_decay", "weight decay of matrices"),
        ("warmup_steps", "steps of linear warm-up"),
        ("lora_rank", "rank of the adapters"),
        ("logging_steps", "steps between progress lines"),
        ("save_steps", "steps between checkpoints"),
        ("seed", "seed of weights, order and augmentation"),
    ):
        default = getattr(defaults, name)
        group.add_argument(f"--{name}", type=type(default), default=default, help=f"{text}; default: %(default)s")
    precisions = Registry("training", "PRECISIONS").names()
    text = "default: the launcher's, else bf16 on GPUs that have it, else no"
    group.add_argument("--mixed_precision", choices=precisions, help=text)


def _run(argv: list[str] | None, stop: StopSignals) -> None:
    args = parse(argv)
    from ..downstream.run import finetune
    from ..registration import register

    register()
    command = shlex.join(["python", "-m", "eqcohvit.commands.finetune", *(sys.argv[1:] if argv is None else argv)])
    finetune(args, stop, command)


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments. The exit codes are those of pretraining."""
    return exit_code(lambda stop: _run(argv, stop))


def entry() -> NoReturn:
    """The command `eqcohvit-finetune`."""
    leave(cli())


if __name__ == "__main__":
    entry()
