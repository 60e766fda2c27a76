"""What iBOT and DINOv2 share: the student's softmax against the targets of an EMA teacher, on CLS and on the hidden patches."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from .base import Objective, ObjectiveInputs, ObjectiveSizes, TeacherOptions, Tokens, check_positive
from .functional import masked_patch_loss, multi_crop_loss
from .heads import TokenHeads
from .masking import MaskedPatches


@dataclass(frozen=True)
class DistillationOptions(TeacherOptions):
    """Options of the heads and of the student's softmax.

    Args:
        num_prototypes, bottleneck_dim: K and the width before the prototypes, of each head.
        student_temperature: of the student's softmax.
    """

    num_prototypes: int = 65536
    bottleneck_dim: int = 256
    student_temperature: float = 0.1

    def check(self) -> None:
        super().check()
        check_positive(self, "num_prototypes", "bottleneck_dim", "student_temperature")


class SelfDistillation(Objective):
    """Reads CLS and patch features of the global views, and CLS features of the local crops; a subclass makes the teacher's targets.

    `teacher/entropy` is the mean entropy of the CLS targets in nats: ln K means that the teacher prefers nothing, 0 that it is certain.
    """

    uses_teacher = True
    uses_masks = True
    uses_local_crops = True

    def __init__(self, sizes: ObjectiveSizes, options: DistillationOptions, shared_head: bool):
        super().__init__()
        dims = (sizes.invariant_dim, sizes.projector_dim, options.bottleneck_dim, options.num_prototypes)
        self.head = TokenHeads(*dims, shared=shared_head or sizes.max_masked == 0)
        self.max_masked, self.num_prototypes = sizes.max_masked, options.num_prototypes
        self.student_temperature = options.student_temperature

    @abstractmethod
    def targets(
        self, teacher: Tokens, head: nn.Module, masked: MaskedPatches | None, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The teacher's features and its `TokenHeads` -> probabilities for CLS (V, B, K), and for the hidden patches (B, M, K) if any."""

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        assert inputs.teacher is not None and teacher_head is not None
        masked = None if inputs.masks is None else MaskedPatches.of(inputs.masks, self.max_masked)
        student = self.head(inputs.invariant.cls, inputs.local, None if masked is None else masked.take(inputs.invariant.patches))
        with torch.no_grad():
            cls_targets, patch_targets = self.targets(inputs.teacher, teacher_head, masked, inputs.teacher_temperature)
        terms = {"ssl/cls": multi_crop_loss(cls_targets, student.cls, student.local, self.student_temperature)}
        if masked is not None:
            assert patch_targets is not None
            terms["ssl/patch"] = masked_patch_loss(
                patch_targets, student.patches, masked.weights, self.student_temperature, len(cls_targets)
            )
        terms["teacher/entropy"] = torch.special.entr(cls_targets).sum(dim=-1).mean()
        return terms

    def uninformed_values(self, batch_size: int) -> dict[str, float]:
        return {"ssl/cls": math.log(self.num_prototypes)}
