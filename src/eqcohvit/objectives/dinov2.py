"""DINOv2 (arXiv:2304.07193, section 4): self-distillation as in iBOT, with the KoLeo regularizer on CLS."""

from __future__ import annotations

from dataclasses import dataclass

from .base import choice
from .distillation import DistillationOptions, SelfDistillation


@dataclass(frozen=True)
class DINOv2Options(DistillationOptions):
    """Defaults: the run of ViT-L/16 on ImageNet-1k of https://github.com/facebookresearch/dinov2.

    They are from its configs/ssl_default_config.yaml. That run has targets by centering and one head for CLS and
    patches. The models that were released, trained on more data, have `targets=sinkhorn,heads=separate`, as in section
    4 of the paper. The center of the patches is the mean over the hidden patches of all processes, each patch counting
    alike; the official code takes the mean of the processes' means.
    """

    teacher_momentum: float = 0.992
    centered_patches: str = choice("hidden", "all")
    koleo_weight: float = 0.1


class DINOv2(SelfDistillation):
    """Targets by centering, the same head for CLS and patches, and CLS features that keep apart."""

    Options = DINOv2Options
