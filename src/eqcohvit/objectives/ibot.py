"""iBOT (arXiv:2111.07832): self-distillation on CLS across the views, and on patches that are hidden from the student.

With `mask_probability=0` it is DINO (arXiv:2104.14294).
"""

from __future__ import annotations

from dataclasses import dataclass

from .distillation import DistillationOptions, SelfDistillation


@dataclass(frozen=True)
class IBOTOptions(DistillationOptions):
    """Defaults: arXiv:2111.07832, section 4.1, and https://github.com/bytedance/ibot (pre-training of ViT-S/16).

    The official smallest block is (g // 3)^2 of g x g patches, 16 at 14 x 14: for more patches set
    `min_masked_patches`. The gain of the prototypes is trained for ViT-S; larger models have `norm_last_layer=true`.
    """

    num_prototypes: int = 8192
    min_masked_patches: int = 16


class IBOT(SelfDistillation):
    """Targets by centering, the same head for CLS and patches."""

    Options = IBOTOptions
