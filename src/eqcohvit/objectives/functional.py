"""Losses on embeddings of the invariant part: tensors in, scalars out, in float32 on the batch gathered from all
processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F

from .distributed import all_max, all_sum, gather

_TINY = torch.finfo(torch.float32).tiny


P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function of tensors without autocast, which would do its matrix products in half precision."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(arg.device for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


@in_float32
def vicreg_terms(
    first: torch.Tensor, end: torch.Tensor, invariance_weight: float, variance_weight: float, covariance_weight: float
) -> dict[str, torch.Tensor]:
    """The three weighted terms of VICReg (arXiv:2105.04906, equations 1 to 6) for embeddings (B, d) of both views.

    The variance term has half the hinge of each view, see `variance_penalty`.
    """
    first, end = gather(first.float()), gather(end.float())
    return {
        "ssl/invariance": invariance_weight * F.mse_loss(first, end),
        "ssl/variance": variance_weight * variance_penalty(first, end),
        "ssl/covariance": covariance_weight * (covariance_penalty(first) + covariance_penalty(end)),
    }


def variance_penalty(*views: torch.Tensor) -> torch.Tensor:
    """Half the sum of the views' hinges, which keep each dimension's standard deviation at 1 or above.

    views: gathered embeddings (B, d) of each.

    Equation 6 of arXiv:2105.04906 sums the hinges of both views (equation 1). The official code halves each one
    (https://github.com/facebookresearch/vicreg, main_vicreg.py), as does SIE's
    (https://github.com/facebookresearch/SIE): the published weights and results belong to the halves, so they are used
    here. Twice the weight gives the term of the paper's equation.
    """
    hinges = [F.relu(1 - (embeddings.var(dim=0) + 1e-4).sqrt()).mean() for embeddings in views]
    return torch.stack(hinges).sum() / 2


@in_float32
def covariance_penalty(embeddings: torch.Tensor) -> torch.Tensor:
    """Sum of the squared off-diagonal covariances over the dimension, of gathered embeddings (B, d) (equation 4).

    The squares of the Gram matrix (B, B) have the same sum as those of the covariances (d, d), so the smaller one of
    both is computed.
    """
    centered = embeddings - embeddings.mean(dim=0)
    num_embeddings, dim = centered.shape
    if num_embeddings < dim:
        gram = centered @ centered.T / (num_embeddings - 1)
        variances = centered.square().sum(dim=0) / (num_embeddings - 1)
        return (gram.square().sum() - variances.square().sum()) / dim
    covariance = centered.T @ centered / (num_embeddings - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / dim


@in_float32
def nt_xent(first: torch.Tensor, end: torch.Tensor, temperature: float) -> torch.Tensor:
    """Normalized temperature-scaled cross entropy of SimCLR (arXiv:2002.05709, equation 1) for embeddings (B, d) of
    both views.

    Each of the 2 B embeddings of the gathered batch finds its partner among the 2 B - 1 others.
    """
    first, end = gather(F.normalize(first.float(), dim=-1)), gather(F.normalize(end.float(), dim=-1))
    embeddings = torch.cat([first, end])
    similarity = embeddings @ embeddings.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(len(embeddings), device=embeddings.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


def softmax_targets(logits: torch.Tensor, center: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """The teacher's targets by centering (arXiv:2104.14294, section 3.1): logits (..., K), center (K,) -> probabilities
    (..., K)."""
    return ((logits.float() - center) / temperature).softmax(dim=-1)


@torch.no_grad()
def update_center(
    center: torch.Tensor, logits: torch.Tensor, momentum: float, valid: torch.Tensor | None = None
) -> None:
    """Move the center (K,) in place towards the mean of the logits (..., K) of all processes (arXiv:2104.14294,
    equation 4).

    With `valid` (...) in {0, 1} the mean is over the logits with 1. The center stays where it is if there are none.
    """
    rows = logits.float().flatten(0, -2)
    counted = rows.new_ones(len(rows)) if valid is None else valid.flatten().to(rows.dtype)
    count = all_sum(counted.sum())
    mean = all_sum((rows * counted[:, None]).sum(dim=0)) / count.clamp_min(1)
    center.lerp_(mean, (1 - momentum) * (count > 0))


@torch.no_grad()
def sinkhorn_targets(
    logits: torch.Tensor, valid: torch.Tensor, temperature: float | torch.Tensor, num_iterations: int = 3
) -> torch.Tensor:
    """The teacher's targets by Sinkhorn-Knopp (arXiv:2006.09882, section 3.1): every prototype gets an equal share of
    the batch.

    logits (M, K) of this process, valid (M,) in {0, 1}: rows with 0 are padding and take no part. Shares are equal over
    the rows of all processes. Returns probabilities (M, K), each valid row summing to 1.
    """
    logits = logits.float() / temperature
    scores = torch.exp(logits - all_max(logits.amax().reshape(1))) * valid[:, None]
    count = all_sum(valid.float().sum()).clamp_min(1)
    for _ in range(num_iterations):
        scores = scores / (all_sum(scores.sum(dim=0)).clamp_min(_TINY) * scores.shape[1])
        scores = scores / (scores.sum(dim=1, keepdim=True).clamp_min(_TINY) * count)
    return scores * count


def cross_entropy(targets: torch.Tensor, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross entropy (...) of target probabilities (..., K) and student logits (..., K) at its temperature."""
    return -(targets * (logits.float() / temperature).log_softmax(dim=-1)).sum(dim=-1)


@in_float32
def multi_crop_loss(
    targets: torch.Tensor, logits: torch.Tensor, local_logits: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """DINO's loss on CLS (arXiv:2104.14294, equation 3): every student view against every other view of the teacher.

    targets (V, B, K) of the teacher's global views, logits (V, B, K) of the student's same views, local_logits (L, B,
    K) of its local crops or None -> the mean over the V (V - 1) + L V pairs and the batch.
    """
    log_probabilities = (logits.float() / temperature).log_softmax(dim=-1)
    if local_logits is not None:
        log_probabilities = torch.cat([log_probabilities, (local_logits.float() / temperature).log_softmax(dim=-1)])
    pairs = -torch.einsum("tbk,sbk->ts", targets, log_probabilities) / targets.shape[1]
    num_views = len(targets)
    same = torch.eye(num_views, len(log_probabilities), dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0).sum() / (num_views * (len(log_probabilities) - 1))


def masked_patch_loss(
    targets: torch.Tensor, logits: torch.Tensor, weights: torch.Tensor, temperature: float, num_views: int
) -> torch.Tensor:
    """iBOT's loss on hidden patches (arXiv:2111.07832, equation 2): mean over each view's hidden patches, then over all
    views.

    targets, logits (M, K) for the hidden patches of a batch of `num_views` views, all images together; weights (M,): 1
    over the number of hidden patches of the patch's view, 0 for padding. A view without hidden patches counts with a
    loss of 0.
    """
    return (cross_entropy(targets, logits, temperature) * weights).sum() / num_views


@in_float32
def koleo_loss(features: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """KoLeo regularizer (arXiv:1806.03198; DINOv2, section 4): minus the mean log distance to the nearest neighbor on
    the sphere.

    features (B, d). `eps` is added where the official code adds it (https://github.com/facebookresearch/dinov2,
    loss/koleo_loss.py): to each coordinate of the difference, as `torch.nn.PairwiseDistance` does, and to the distance.
    Equal features give a finite loss.

    The official code takes the CLS token of the backbone, and seeks neighbors among the images of one process. The
    features here come from the invariant part, because no SSL loss may reach the equivariant one. Neighbors are
    sought among the images of all processes, which makes the loss independent of how the batch is split.
    """
    features = gather(F.normalize(features.float(), dim=-1, eps=eps))
    with torch.no_grad():
        similarity = features @ features.T
        similarity.fill_diagonal_(-2)
        nearest = similarity.argmax(dim=1)
    distance = torch.linalg.vector_norm(features - features[nearest] + eps, dim=-1)
    return -torch.log(distance + eps).mean()
