"""SIE (arXiv:2302.10283), a baseline that knows g: VICReg on split embeddings, with a predictor that moves the
equivariant half along g.

The weights are those of the command in the README of https://github.com/facebookresearch/SIE, which trains a ResNet-18
on 3DIEBench: 2000 epochs, batch 1024, Adam at 1e-3, 256 of 512 features equivariant, expanders of 2048 units in all.
arXiv:2503.18753 compares with a ViT-S/16 of 800 epochs on ImageNet-1k. The equivariant part is trained by the
predictor; for that comparison leave the reconstruction out (`recon_weight` 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .base import Objective, ObjectiveInputs, ObjectiveOptions, ObjectiveSizes
from .distributed import gather
from .functional import covariance_penalty, variance_penalty
from .heads import projector


@dataclass(frozen=True)
class SIEOptions(ObjectiveOptions):
    """The weights of that command; its `--equi-factor 0.45` (the default there is 4.5) is a factor on the weight of the
    invariance.

    As there, the variance term has half the hinge of each view and of the prediction (`functional.variance_penalty`).
    """

    invariance_weight: float = 10.0
    equivariance_weight: float = 4.5
    variance_weight: float = 10.0
    covariance_weight: float = 1.0


class HyperPredictor(nn.Module):
    """A linear map of embeddings whose weights a hypernetwork makes from the parameters of g (the paper, figure 2).

    The hypernetwork is linear in the parameters, scaled to [-1, 1]. It has a bias, unlike theirs, because here the
    identity has the parameters 0 (a unit quaternion there); it starts at the identity map.
    """

    def __init__(self, dim: int, parameter_limits: tuple[tuple[float, float], ...]):
        super().__init__()
        self.dim = dim
        low, high = torch.tensor(parameter_limits).unbind(dim=-1)
        self.register_buffer("center", (low + high) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)
        self.hypernetwork = nn.Linear(len(parameter_limits), dim * dim)
        nn.init.normal_(self.hypernetwork.weight, std=dim**-0.5)
        with torch.no_grad():
            self.hypernetwork.bias.copy_(torch.eye(dim).flatten())

    def forward(self, embeddings: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) of the first view, parameters (B, P) of g -> predicted embeddings (B, dim) of the end
        view."""
        weights = self.hypernetwork((parameters - self.center) / self.reach).unflatten(1, (self.dim, self.dim))
        return torch.einsum("bij,bj->bi", weights, embeddings)


class SIE(Objective):
    """Reads the CLS features of both parts, and the parameters of g.

    Invariance and equivariance act on the expanded parts, variance and covariance on both together, so that neither
    repeats what the other holds. `projector_dim` is shared out in proportion to the widths of the parts.
    """

    Options = SIEOptions

    def __init__(self, sizes: ObjectiveSizes, options: SIEOptions):
        super().__init__()
        share = sizes.equivariant_dim / (sizes.invariant_dim + sizes.equivariant_dim)
        equivariant_width = max(1, round(share * sizes.projector_dim))
        invariant_width = max(1, sizes.projector_dim - equivariant_width)
        self.invariant_expander = projector(sizes.invariant_dim, invariant_width, invariant_width, num_layers=3)
        self.equivariant_expander = projector(sizes.equivariant_dim, equivariant_width, equivariant_width, num_layers=3)
        self.predictor = HyperPredictor(equivariant_width, sizes.parameter_limits)
        self.options = options

    def forward(self, inputs: ObjectiveInputs, teacher_head: nn.Module | None = None) -> dict[str, torch.Tensor]:
        options = self.options
        invariant = self.invariant_expander(inputs.invariant.cls.flatten(0, 1)).float().chunk(2)
        equivariant = self.equivariant_expander(inputs.equivariant.cls.flatten(0, 1)).float().chunk(2)
        predicted = self.predictor(equivariant[0], inputs.parameters)
        whole = [gather(torch.cat(parts, dim=1)) for parts in zip(invariant, equivariant, strict=True)]
        return {
            "ssl/invariance": options.invariance_weight * F.mse_loss(*invariant),
            "ssl/equivariance": options.equivariance_weight * F.mse_loss(predicted.float(), equivariant[1]),
            "ssl/variance": options.variance_weight * variance_penalty(*whole, gather(predicted.float())),
            "ssl/covariance": options.covariance_weight * torch.stack([*map(covariance_penalty, whole)]).sum(),
        }
