"""The EMA teacher: an encoder and an objective head that follow the student's, without gradients."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..hub.modeling_eqcohvit import EqCohViTModel


class Teacher(nn.Module):
    """Copies of the student's encoder (backbone and feature head) and of the objective's head (arXiv:2104.14294,
    section 3.1).

    A part of the trained module, so that checkpoints hold it, but frozen and always in evaluation mode: no stochastic
    depth, no dropout. All processes start from the same student and average the same students, so that their teachers
    stay equal without communication. What the student does not train, such as the weights beside LoRA adapters, is
    shared with it instead of copied.
    """

    def __init__(self, encoder: EqCohViTModel, head: nn.Module):
        super().__init__()
        shared = {id(p): p for part in (encoder, head) for p in part.parameters() if not p.requires_grad}
        self.encoder = copy.deepcopy(encoder, dict(shared))
        self.head = copy.deepcopy(head, dict(shared))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def reset(self, encoder: EqCohViTModel, head: nn.Module) -> None:
        """Start again from the student."""
        self.encoder.load_state_dict(encoder.state_dict())
        self.head.load_state_dict(head.state_dict())

    @torch.no_grad()
    def update(self, encoder: EqCohViTModel, head: nn.Module, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, in one multi-tensor launch; buffers are copied."""
        for mine, theirs in ((self.encoder, encoder), (self.head, head)):
            students = dict(theirs.named_parameters())
            own = {name: p for name, p in mine.named_parameters() if p is not students[name]}
            torch._foreach_lerp_(list(own.values()), [students[name].detach() for name in own], 1 - momentum)
            buffers = dict(theirs.named_buffers())
            for name, buffer in mine.named_buffers():
                buffer.copy_(buffers[name])
