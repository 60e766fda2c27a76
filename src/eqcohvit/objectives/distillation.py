"""Self-distillation, as in iBOT and DINOv2: the student's softmax against the targets of an EMA teacher.

It acts on CLS across the views, and on the patches that are hidden from the student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from .base import Objective, ObjectiveInputs, ObjectiveSizes, TeacherOptions, Tokens, check_positive, choice
from .functional import koleo_loss, masked_patch_loss, multi_crop_loss, sinkhorn_targets, softmax_targets, update_center
from .heads import TokenHeads
from .masking import MaskedPatches, hidden_patches_capacity


@dataclass(frozen=True)
class DistillationOptions(TeacherOptions):
    """Options of the heads, of the student's softmax and of the teacher's targets.

    Args:
        num_prototypes, bottleneck_dim: K and the width before the prototypes, of each head.
        student_temperature: of the student's softmax.
        heads: one `shared` head for CLS and patches, or `separate` ones.
        norm_last_layer: whether the prototypes' gain stays 1; else it is trained.
        targets: from the teacher's logits by `centering` (arXiv:2104.14294, section 3.1) or by `sinkhorn`
            (arXiv:2006.09882, section 3.1).
        center_momentum: of the centers of the teacher's logits.
        centered_patches: the center of the patches is the mean of `all`, or only of the `hidden` patches.
        sinkhorn_iterations: of Sinkhorn-Knopp.
        koleo_weight: of the KoLeo regularizer on the CLS features, for each global view.
    """

    num_prototypes: int = 65536
    bottleneck_dim: int = 256
    student_temperature: float = 0.1
    heads: str = choice("shared", "separate")
    norm_last_layer: bool = False
    targets: str = choice("centering", "sinkhorn")
    center_momentum: float = 0.9
    centered_patches: str = choice("all", "hidden")
    sinkhorn_iterations: int = 3
    koleo_weight: float = 0.0

    def check(self) -> None:
        super().check()
        check_positive(self, "num_prototypes", "bottleneck_dim", "student_temperature", "sinkhorn_iterations")
        if not 0 <= self.center_momentum <= 1:
            raise ValueError(f"center_momentum must lie between 0 and 1, got {self.center_momentum}")


class SelfDistillation(Objective):
    """Reads CLS and patch features of the global views, and CLS features of the local crops.

    `teacher/entropy` is the mean entropy of the CLS targets in nats: ln K means that the teacher prefers nothing, 0
    that it is certain.
    """

    Options = DistillationOptions
    uses_teacher = True
    uses_local_crops = True

    def __init__(self, sizes: ObjectiveSizes, options: DistillationOptions):
        super().__init__()
        self.options = options
        self.head = TokenHeads(
            shared=options.heads == "shared" or options.mask_probability == 0,
            in_dim=sizes.invariant_dim,
            hidden_dim=sizes.projector_dim,
            bottleneck_dim=options.bottleneck_dim,
            num_prototypes=options.num_prototypes,
            norm_last_layer=options.norm_last_layer,
        )
        if options.targets == "centering":
            self.register_buffer("cls_center", torch.zeros(options.num_prototypes))
            self.register_buffer("patch_center", torch.zeros(options.num_prototypes))

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        assert inputs.teacher is not None and teacher_head is not None
        options = self.options
        masked = None
        num_views = inputs.invariant.cls.shape[0] * inputs.invariant.cls.shape[1]
        if inputs.masks is not None:
            masked = MaskedPatches.of(inputs.masks, hidden_patches_capacity(num_views, inputs.masks.shape[-1], options))
        student = self.head(
            inputs.invariant.cls,
            inputs.local,
            None if masked is None else inputs.invariant.some_patches(masked.indices),
        )
        with torch.no_grad():
            make_targets = self._sinkhorn if options.targets == "sinkhorn" else self._center
            cls_targets, patch_targets = make_targets(inputs.teacher, teacher_head, masked, inputs.teacher_temperature)
        terms = {"ssl/cls": multi_crop_loss(cls_targets, student.cls, student.local, options.student_temperature)}
        if masked is not None:
            assert patch_targets is not None
            terms["ssl/patch"] = masked_patch_loss(
                patch_targets, student.patches, masked.weights, options.student_temperature, num_views
            )
        if options.koleo_weight > 0:
            koleo = torch.stack([koleo_loss(view) for view in inputs.invariant.cls])
            terms["ssl/koleo"] = options.koleo_weight * koleo.sum()
        terms["teacher/entropy"] = torch.special.entr(cls_targets).sum(dim=-1).mean()
        return terms

    def _center(
        self, teacher: Tokens, head: nn.Module, masked: MaskedPatches | None, temperature: float | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The teacher's features and its `TokenHeads` -> probabilities for CLS (V, B, K) and the hidden patches (M, K).

        The latter are None without masks. The centers come from the steps before. This step's logits move them
        afterwards.
        """
        momentum = self.options.center_momentum
        counts_all = self.options.centered_patches == "all"
        if masked is None:
            logits = head(teacher.cls, None, None)
        elif counts_all:
            logits = head(teacher.cls, None, teacher.every_patch(), chosen=masked.indices)
        else:
            logits = head(teacher.cls, None, teacher.some_patches(masked.indices))
        cls_targets = softmax_targets(logits.cls, self.cls_center, temperature)
        if self.training:
            update_center(self.cls_center, logits.cls, momentum)
        if masked is None:
            return cls_targets, None
        patch_targets = softmax_targets(logits.patches, self.patch_center, temperature)
        if self.training and counts_all:  # as many patches in every process, so their means have the mean of all
            update_center(self.patch_center, logits.patch_mean[None], momentum)
        elif self.training:
            update_center(self.patch_center, logits.patches, momentum, masked.valid)
        return cls_targets, patch_targets

    def _sinkhorn(
        self, teacher: Tokens, head: nn.Module, masked: MaskedPatches | None, temperature: float | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `_center`; every prototype gets an equal share of the batch's CLS tokens and of its hidden patches."""
        iterations = self.options.sinkhorn_iterations
        logits = head(teacher.cls, None, None if masked is None else teacher.some_patches(masked.indices))
        views = logits.cls.shape[:2]
        every = torch.ones(views.numel(), device=logits.cls.device)
        cls_targets = sinkhorn_targets(logits.cls.flatten(0, 1), every, temperature, iterations).unflatten(0, views)
        if masked is None:
            return cls_targets, None
        return cls_targets, sinkhorn_targets(logits.patches, masked.valid, temperature, iterations)

    def uninformed_values(self, batch_size: int) -> dict[str, float]:
        return {"ssl/cls": math.log(self.options.num_prototypes)}
