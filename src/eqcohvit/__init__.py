"""Equivariance-coherent self-supervised vision transformers (arXiv:2503.18753) for Hugging Face Transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
# They read their flags before they import torch, and register the model themselves.
_LIGHT_COMMANDS = ("pretrain", "evaluate", "finetune")


def _runs_a_light_command() -> bool:
    """Whether this process was started as one of these commands: as a module, an installed entry, or a script."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # Python is looking for the module
        return any(f"{__name__}.commands.{name}" in sys.orig_argv for name in _LIGHT_COMMANDS)
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    return Path(program).stem in [f"{__name__}-{name}" for name in _LIGHT_COMMANDS] or (
        Path(program).resolve() in [scripts / f"{name}.py" for name in _LIGHT_COMMANDS]
    )


if TYPE_CHECKING or not _runs_a_light_command():
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


__all__ = [
    "PIPELINE_TASK",
    "EqCohViTBackbone",
    "EqCohViTConfig",
    "EqCohViTFeatureExtractionPipeline",
    "EqCohViTForImageClassification",
    "EqCohViTForPreTraining",
    "EqCohViTImageProcessorPil",
    "EqCohViTModel",
    "pool_tokens",
    "pretrain",
    "split_features",
]
