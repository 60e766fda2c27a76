"""DINOv2 (arXiv:2304.07193, section 4): iBOT with Sinkhorn-Knopp targets, a head for each kind of token, and KoLeo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .base import ObjectiveInputs, ObjectiveSizes, Tokens, check_positive
from .distillation import DistillationOptions, SelfDistillation
from .functional import koleo_loss, sinkhorn_targets
from .masking import MaskedPatches


@dataclass(frozen=True)
class DINOv2Options(DistillationOptions):
    """Defaults: arXiv:2304.07193, section 4, and https://github.com/facebookresearch/dinov2 (ViT-L/16 on ImageNet-1k).

    Args:
        sinkhorn_iterations: of the teacher's targets.
        koleo_weight: of the KoLeo regulariser on the CLS features, for each global view.
    """

    teacher_momentum: float = 0.992
    sinkhorn_iterations: int = 3
    koleo_weight: float = 0.1

    def check(self) -> None:
        super().check()
        check_positive(self, "sinkhorn_iterations")


class DINOv2(SelfDistillation):
    """Targets in which every prototype has an equal share of the batch, and CLS features that keep apart."""

    Options = DINOv2Options

    def __init__(self, sizes: ObjectiveSizes, options: DINOv2Options):
        super().__init__(sizes, options, shared_head=False)
        self.sinkhorn_iterations, self.koleo_weight = options.sinkhorn_iterations, options.koleo_weight

    def targets(
        self, teacher: Tokens, head: nn.Module, masked: MaskedPatches | None, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = head(teacher.cls, None, None if masked is None else masked.take(teacher.patches))
        every = torch.ones(logits.cls.shape[:2], device=logits.cls.device)
        cls_targets = self._shared_out(logits.cls, every, temperature)
        return cls_targets, None if masked is None else self._shared_out(logits.patches, masked.valid, temperature)

    def _shared_out(self, logits: torch.Tensor, valid: torch.Tensor, temperature: float) -> torch.Tensor:
        """Logits (A, B, K), valid (A, B) -> probabilities (A, B, K)."""
        targets = sinkhorn_targets(logits.flatten(0, 1), valid.flatten(), temperature, self.sinkhorn_iterations)
        return targets.unflatten(0, logits.shape[:2])

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        terms = super().forward(inputs, teacher_head)
        if self.koleo_weight > 0:
            terms["ssl/koleo"] = self.koleo_weight * torch.stack([koleo_loss(view) for view in inputs.invariant.cls]).sum()
        return terms
