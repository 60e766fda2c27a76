"""DINOv2 (arXiv:2304.07193, section 4): iBOT with Sinkhorn-Knopp targets, a head for each kind of token, and KoLeo."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from .base import Objective, ObjectiveInputs, ObjectiveSizes, TeacherOptions, check_positive
from .distillation import distillation_terms
from .functional import koleo_loss, sinkhorn_targets
from .heads import TokenHeads
from .masking import MaskedPatches


@dataclass(frozen=True)
class DINOv2Options(TeacherOptions):
    """Defaults: arXiv:2304.07193, section 4, and https://github.com/facebookresearch/dinov2 (ViT-L/16 on ImageNet-1k).

    Args:
        num_prototypes, bottleneck_dim: K and the width before the prototypes, of both heads.
        student_temperature: of the student's softmax.
        sinkhorn_iterations: of the teacher's targets.
        koleo_weight: of the KoLeo regulariser on the CLS features, for each global view.
    """

    teacher_momentum: float = 0.992
    num_prototypes: int = 65536
    bottleneck_dim: int = 256
    student_temperature: float = 0.1
    sinkhorn_iterations: int = 3
    koleo_weight: float = 0.1

    def check(self) -> None:
        super().check()
        check_positive(self, "num_prototypes", "bottleneck_dim", "student_temperature", "sinkhorn_iterations")


class DINOv2(Objective):
    """Reads CLS and patch features of the global views, and CLS features of the local crops."""

    Options = DINOv2Options
    uses_teacher = True
    uses_masks = True
    uses_local_crops = True

    def __init__(self, sizes: ObjectiveSizes, options: DINOv2Options):
        super().__init__()
        dims = (sizes.invariant_dim, sizes.projector_dim, options.bottleneck_dim, options.num_prototypes)
        self.head = TokenHeads(*dims, shared=sizes.max_masked == 0)
        self.options, self.max_masked = options, sizes.max_masked

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        assert inputs.teacher is not None and teacher_head is not None
        options, temperature = self.options, inputs.teacher_temperature
        masked = None if inputs.masks is None else MaskedPatches.of(inputs.masks, self.max_masked)
        hidden = None if masked is None else masked.take(inputs.invariant.patches)
        student = self.head(inputs.invariant.cls, inputs.local, hidden)
        patch_targets = None
        with torch.no_grad():
            teacher = teacher_head(inputs.teacher.cls, None, None if masked is None else masked.take(inputs.teacher.patches))
            every = torch.ones(teacher.cls.shape[:2], device=teacher.cls.device).flatten()
            cls_targets = sinkhorn_targets(teacher.cls.flatten(0, 1), every, temperature, options.sinkhorn_iterations)
            cls_targets = cls_targets.unflatten(0, teacher.cls.shape[:2])
            if masked is not None:
                patch_targets = sinkhorn_targets(
                    teacher.patches.flatten(0, 1), masked.valid.flatten(), temperature, options.sinkhorn_iterations
                ).unflatten(0, teacher.patches.shape[:2])
        terms = distillation_terms(student, cls_targets, patch_targets, masked, options.student_temperature)
        if options.koleo_weight > 0:
            terms["ssl/koleo"] = options.koleo_weight * torch.stack([koleo_loss(view) for view in inputs.invariant.cls]).sum()
        return terms

    def uninformed_values(self, batch_size: int) -> dict[str, float]:
        return {"ssl/cls": math.log(self.options.num_prototypes)}
