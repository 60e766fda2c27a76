"""iBOT (arXiv:2111.07832): self-distillation on CLS across the views, and on the patches that are hidden from the student.

With `mask_probability=0` it is DINO (arXiv:2104.14294).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from .base import Objective, ObjectiveInputs, ObjectiveSizes, TeacherOptions, check_positive
from .distillation import distillation_terms
from .functional import softmax_targets, update_center
from .heads import TokenHeads
from .masking import MaskedPatches


@dataclass(frozen=True)
class IBOTOptions(TeacherOptions):
    """Defaults: arXiv:2111.07832, section 4.1, and https://github.com/bytedance/ibot (pre-training of ViT-S/16).

    Args:
        num_prototypes, bottleneck_dim: K and the width before the prototypes.
        shared_head: one head for CLS and patches, or one for each.
        student_temperature: of the student's softmax.
        center_momentum: of the centres of the teacher's logits.
    """

    num_prototypes: int = 8192
    bottleneck_dim: int = 256
    shared_head: bool = True
    student_temperature: float = 0.1
    center_momentum: float = 0.9

    def check(self) -> None:
        super().check()
        check_positive(self, "num_prototypes", "bottleneck_dim", "student_temperature")
        if not 0 <= self.center_momentum <= 1:
            raise ValueError(f"center_momentum must lie between 0 and 1, got {self.center_momentum}")


class IBOT(Objective):
    """Reads CLS and patch features of the global views, and CLS features of the local crops."""

    Options = IBOTOptions
    uses_teacher = True
    uses_masks = True
    uses_local_crops = True

    def __init__(self, sizes: ObjectiveSizes, options: IBOTOptions):
        super().__init__()
        shared = options.shared_head or sizes.max_masked == 0
        self.head = TokenHeads(sizes.invariant_dim, sizes.projector_dim, options.bottleneck_dim, options.num_prototypes, shared)
        self.options, self.max_masked = options, sizes.max_masked
        self.register_buffer("cls_center", torch.zeros(options.num_prototypes))
        self.register_buffer("patch_center", torch.zeros(options.num_prototypes))

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        assert inputs.teacher is not None and teacher_head is not None
        options, temperature = self.options, inputs.teacher_temperature
        masked = None if inputs.masks is None else MaskedPatches.of(inputs.masks, self.max_masked)
        hidden = None if masked is None else masked.take(inputs.invariant.patches)
        student = self.head(inputs.invariant.cls, inputs.local, hidden)
        patch_targets = None
        with torch.no_grad():
            teacher = teacher_head(inputs.teacher.cls, None, None if masked is None else inputs.teacher.patches)
            cls_targets = softmax_targets(teacher.cls, self.cls_center, temperature)
            if masked is not None:
                patch_targets = softmax_targets(masked.take(teacher.patches), self.patch_center, temperature)
            if self.training:
                update_center(self.cls_center, teacher.cls, options.center_momentum)
                if masked is not None:
                    update_center(self.patch_center, teacher.patches, options.center_momentum)
        return distillation_terms(student, cls_targets, patch_targets, masked, options.student_temperature)

    def uninformed_values(self, batch_size: int) -> dict[str, float]:
        return {"ssl/cls": math.log(self.options.num_prototypes)}
