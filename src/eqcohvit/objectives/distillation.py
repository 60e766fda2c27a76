"""What iBOT and DINOv2 share: the student's logits against the teacher's targets, as named terms."""

from __future__ import annotations

import torch

from .functional import masked_patch_loss, multi_crop_loss
from .heads import HeadOutputs
from .masking import MaskedPatches


def distillation_terms(
    student: HeadOutputs,
    cls_targets: torch.Tensor,
    patch_targets: torch.Tensor | None,
    masked: MaskedPatches | None,
    temperature: float,
) -> dict[str, torch.Tensor]:
    """The student's logits, the teacher's probabilities for CLS (V, B, K) and for the hidden patches (B, M, K) -> terms.

    `teacher/entropy` is the mean entropy of the CLS targets in nats: ln K means that the teacher prefers nothing, 0 that it is certain.
    """
    terms = {"ssl/cls": multi_crop_loss(cls_targets, student.cls, student.local, temperature)}
    if masked is not None:
        assert patch_targets is not None and student.patches is not None
        terms["ssl/patch"] = masked_patch_loss(patch_targets, student.patches, masked.weights, temperature, len(cls_targets))
    terms["teacher/entropy"] = torch.special.entr(cls_targets).sum(dim=-1).mean()
    return terms
