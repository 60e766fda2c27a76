"""Losses on embeddings of the invariant part: tensors in, scalars out, in float32 on the batch gathered from all processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .distributed import gather


def vicreg_terms(
    first: torch.Tensor, end: torch.Tensor, invariance_weight: float, variance_weight: float, covariance_weight: float
) -> dict[str, torch.Tensor]:
    """The three weighted terms of VICReg (arXiv:2105.04906, equations 1 to 6) for embeddings (B, d) of both views."""
    first, end = gather(first.float()), gather(end.float())
    return {
        "ssl/invariance": invariance_weight * F.mse_loss(first, end),
        "ssl/variance": variance_weight * (_variance(first) + _variance(end)),
        "ssl/covariance": covariance_weight * (_covariance(first) + _covariance(end)),
    }


def _variance(embeddings: torch.Tensor) -> torch.Tensor:
    """Hinge that keeps each dimension's standard deviation at 1 or above."""
    return F.relu(1 - (embeddings.var(dim=0) + 1e-4).sqrt()).mean()


def _covariance(embeddings: torch.Tensor) -> torch.Tensor:
    """Sum of the squared off-diagonal covariances over the dimension."""
    centred = embeddings - embeddings.mean(dim=0)
    covariance = centred.T @ centred / (len(centred) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / embeddings.shape[1]


def nt_xent(first: torch.Tensor, end: torch.Tensor, temperature: float) -> torch.Tensor:
    """Normalised temperature-scaled cross entropy of SimCLR (arXiv:2002.05709, equation 1) for embeddings (B, d) of both views.

    Each of the 2 B embeddings of the gathered batch finds its partner among the 2 B - 1 others.
    """
    first, end = gather(F.normalize(first.float(), dim=-1)), gather(F.normalize(end.float(), dim=-1))
    embeddings = torch.cat([first, end])
    similarity = embeddings @ embeddings.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(embeddings), device=embeddings.device).roll(len(first))
    return F.cross_entropy(similarity, partner)
