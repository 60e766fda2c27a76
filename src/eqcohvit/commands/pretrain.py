"""Pretrain an equivariance-coherent ViT (arXiv:2503.18753).

    python scripts/pretrain.py                                           # embedded sprites, small model, minutes on two CPU cores
    accelerate launch scripts/pretrain.py --train_dir ~/photos --output_dir runs/photos
    accelerate launch scripts/pretrain.py --config cifar10_vicreg
    accelerate launch scripts/pretrain.py --init_from facebook/dinov2-small --train_dir ~/photos --output_dir runs/continued

Each setting of a recipe is also a flag; `--help` explains them. The run's folder holds report.html (curves, what the
parts know, pictures), metrics.jsonl, samples/, checkpoints/ and model/.
"""

from __future__ import annotations

import os
import shlex
import sys

from ..data import TooManyBadImages
from ..evaluation.guard import AccuracyFell
from ..training.arguments import parse_arguments
from ..training.checkpoint import CheckpointError
from ..training.pretrain import Pretraining
from ..training.signals import StopSignals, exit_code, leave
from ..training.start_settings import complete_settings


def main(argv: list[str] | None, stop: StopSignals) -> None:
    """Train with the settings of the command line."""
    command = shlex.join(["python", "scripts/pretrain.py", *(sys.argv[1:] if argv is None else argv)])
    Pretraining(parse_arguments(argv, complete_settings), stop, command).train()


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; the exit code is 2 for bad input, 1 for a run that had to stop, 75 after a
    signal (`signals`)."""
    # Large tensors of a CPU in pages of 2 MiB, where Linux offers them: a step of a ViT-S/16 takes 4 to 8 % less. Read
    # at the first one.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return exit_code(lambda stop: main(argv, stop), failures=(TooManyBadImages, AccuracyFell, CheckpointError))


if __name__ == "__main__":
    leave(cli())
