"""Pretrain an equivariance-coherent ViT (arXiv:2503.18753).

    python -m eqcohvit.commands.pretrain          # embedded sprites and a small model: minutes on two CPU cores
    python -m eqcohvit.commands.pretrain --train_dir ~/photos --output_dir runs/photos
    python -m eqcohvit.commands.pretrain --config cifar10_vicreg
    python -m eqcohvit.commands.pretrain --init_from facebook/dinov2-small --train_dir ~/photos
    accelerate launch --multi_gpu -m eqcohvit.commands.pretrain --config imagenet1k_vicreg_vits16

Every setting of a recipe is also a flag. The run's folder holds report.html (curves, what the parts know, pictures),
metrics.jsonl, samples/, checkpoints/ and model/.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

from .. import cli as settings_cli
from ..training.arguments import PretrainArguments, completed, read_arguments
from ..training.output import say_once
from ..training.run_lock import release_runs
from ..training.signals import RunFailed, StopRequested, StopSignals, exit_code, leave


def parse(argv: list[str] | None = None) -> PretrainArguments:
    """The settings of a command line, not yet checked."""
    return read_arguments(argv, "pretrain", __doc__ or "")


def run(args: PretrainArguments, stop: StopSignals, command: str) -> Path:
    """Train with these settings; returns the model folder."""
    from ..registration import register
    from ..training.data_settings import settings_of_images
    from ..training.pretrain import pretrain
    from ..training.start_settings import complete_settings

    # Large tensors of a CPU in pages of 2 MiB, where Linux offers them: a step of a ViT-S/16 takes 4 to 8 % less. Read
    # at the first one.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    register()
    return pretrain(completed(args, complete_settings, settings_of_images), stop, command)


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; the exit code is 2 for bad input, 1 for a run that had to stop, 75 after a
    signal (`signals`)."""
    return exit_code(lambda stop: _run_or_fail(argv, stop))


def _run_or_fail(argv: list[str] | None, stop: StopSignals) -> None:
    args = parse(argv)
    say_once(f"starting a run in {args.output_dir}: loading torch and transformers")
    from ..data import TooManyBadImages
    from ..evaluation.guard import AccuracyFell

    try:
        run(args, stop, settings_cli.typed("pretrain", argv))
    except (TooManyBadImages, AccuracyFell) as error:
        raise RunFailed(str(error)) from error


def pretrain_from_python(config: str | None = None, **settings: Any) -> Path:
    """What `eqcohvit.pretrain` does."""
    given = settings_cli.given_settings(settings, PretrainArguments)
    values = (settings_cli.load_recipe(config, PretrainArguments) if config else {}) | given
    args = PretrainArguments(**values)
    args.given = frozenset(values)
    command = settings_cli.as_call("pretrain", {"config": config, **values} if config else values)
    try:
        with StopSignals() as stop:
            return run(args, stop, command)
    except StopRequested:  # a notebook was interrupted; all finished steps are saved
        raise KeyboardInterrupt from None
    finally:
        release_runs()


def entry() -> NoReturn:
    """The command `eqcohvit-pretrain`."""
    leave(cli())


if __name__ == "__main__":
    entry()
