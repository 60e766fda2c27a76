"""Equivariance-coherent self-supervised vision transformers (arXiv:2503.18753) for Hugging Face Transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def _runs_a_command() -> bool:
    """Whether this process is one of our commands: a module, an installed entry, or a script of the repository.

    Commands read their flags before they import torch, and register the model themselves.
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # Python is looking for the module
        return any(argument.startswith(f"{__name__}.commands.") for argument in sys.orig_argv)
    entries = [f"{__name__}-{name}" for name in ("pretrain", "evaluate", "finetune", "push")]
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    return Path(program).stem in entries or Path(program).resolve().parent == scripts


if TYPE_CHECKING:
    from .evaluation.results import Row

if TYPE_CHECKING or not _runs_a_command():
    from .hub.configuration_eqcohvit import EqCohViTConfig
    from .hub.image_processing_eqcohvit import EqCohViTImageProcessorPil
    from .hub.modeling_eqcohvit import (
        EqCohViTBackbone,
        EqCohViTForImageClassification,
        EqCohViTForPreTraining,
        EqCohViTModel,
        pool_tokens,
        split_features,
    )
    from .hub.pipeline_eqcohvit import EqCohViTFeatureExtractionPipeline
    from .registration import PIPELINE_TASK, register

    register()


def pretrain(**settings: Any) -> Path:
    """Pretrain a model, as `python -m eqcohvit.commands.pretrain` does; returns the model folder.

    Args:
        settings: any settings of `eqcohvit.training.arguments.PretrainArguments`, such as `train_dir`, `output_dir`
            and `max_steps`; `config` is the name or the path of a recipe that they override.

    Raises:
        ValueError: a setting that cannot work.
    """
    from .commands.pretrain import pretrain_from_python

    return pretrain_from_python(**settings)


def evaluate(**settings: Any) -> list[Row]:
    """Evaluate models, as `python -m eqcohvit.commands.evaluate` does; prints the tables and returns their rows.

    Args:
        settings: any flags of the command by their names, such as `model`, `task`, `train_dir` and `output`; a list for
            several values.

    Returns:
        A row for each number, with `encoder`, `part`, `metric`, `mean`, and `half` of the 95 % interval.

    Raises:
        ValueError: a setting that cannot work.
    """
    from .commands.evaluate import evaluate_from_python

    return evaluate_from_python(**settings)


__all__ = [
    "PIPELINE_TASK",
    "EqCohViTBackbone",
    "EqCohViTConfig",
    "EqCohViTFeatureExtractionPipeline",
    "EqCohViTForImageClassification",
    "EqCohViTForPreTraining",
    "EqCohViTImageProcessorPil",
    "EqCohViTModel",
    "evaluate",
    "pool_tokens",
    "pretrain",
    "split_features",
]
