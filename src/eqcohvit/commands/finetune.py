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

from typing import NoReturn

from ..cli import CommandParser, add_settings, typed
from ..downstream.options import FinetuneArguments
from ..training.signals import StopSignals, exit_code, leave

_USAGE = "python -m eqcohvit.commands.finetune --task TASK --model MODEL [settings]"
# Titles in --help, by the first setting below each.
_GROUPS = {"image_size": "task", "dataset_name": "data", "per_device_train_batch_size": "training"}


def parse(argv: list[str] | None = None) -> FinetuneArguments:
    """The settings of a command line: flags, then the settings of the run to resume, then defaults.

    Raises:
        ValueError: the settings of the run cannot be read, or a flag does not exist.
    """
    parser = CommandParser(__doc__, _USAGE)
    add_settings(parser, FinetuneArguments, _GROUPS)
    given = vars(parser.parse_args(argv))
    args = FinetuneArguments(**given)
    if args.resume_from_checkpoint == "latest":
        args = FinetuneArguments(**FinetuneArguments.of_run(args.output_dir) | given)
    return args


def _run(argv: list[str] | None, stop: StopSignals) -> None:
    args = parse(argv)
    from ..downstream.run import finetune
    from ..registration import register

    register()
    finetune(args, stop, typed("finetune", argv))


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments. The exit codes are those of pretraining."""
    return exit_code(lambda stop: _run(argv, stop))


def entry() -> NoReturn:
    """The command `eqcohvit-finetune`."""
    leave(cli())


if __name__ == "__main__":
    entry()
