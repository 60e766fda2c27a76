"""iBOT (arXiv:2111.07832): self-distillation on CLS across the views, and on the patches that are hidden from the student.

With `mask_probability=0` it is DINO (arXiv:2104.14294).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .base import ObjectiveSizes, Tokens
from .distillation import DistillationOptions, SelfDistillation
from .functional import softmax_targets, update_center
from .masking import MaskedPatches


@dataclass(frozen=True)
class IBOTOptions(DistillationOptions):
    """Defaults: arXiv:2111.07832, section 4.1, and https://github.com/bytedance/ibot (pre-training of ViT-S/16).

    Args:
        shared_head: one head for CLS and patches, or one for each.
        center_momentum: of the centres of the teacher's logits.
    """

    num_prototypes: int = 8192
    shared_head: bool = True
    center_momentum: float = 0.9

    def check(self) -> None:
        super().check()
        if not 0 <= self.center_momentum <= 1:
            raise ValueError(f"center_momentum must lie between 0 and 1, got {self.center_momentum}")


class IBOT(SelfDistillation):
    """Targets by centring the teacher's logits; the centre of the patches is that of all of them, hidden or not."""

    Options = IBOTOptions

    def __init__(self, sizes: ObjectiveSizes, options: IBOTOptions):
        super().__init__(sizes, options, options.shared_head)
        self.center_momentum = options.center_momentum
        self.register_buffer("cls_center", torch.zeros(options.num_prototypes))
        self.register_buffer("patch_center", torch.zeros(options.num_prototypes))

    def targets(
        self, teacher: Tokens, head: nn.Module, masked: MaskedPatches | None, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, patch_targets = head(teacher.cls, None, None if masked is None else teacher.patches), None
        cls_targets = softmax_targets(logits.cls, self.cls_center, temperature)
        if masked is not None:
            patch_targets = softmax_targets(masked.take(logits.patches), self.patch_center, temperature)
        if self.training:
            update_center(self.cls_center, logits.cls, self.center_momentum)
            if masked is not None:
                update_center(self.patch_center, logits.patches, self.center_momentum)
        return cls_targets, patch_targets
