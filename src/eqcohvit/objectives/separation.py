"""Separation: the invariant part reads only what both views of an image have most in common. Our addition to
arXiv:2503.18753.

The projector behind the invariant part can hide the transformation from the SSL loss, so the features before it need
not be invariant. And as long as their linear head has full rank, a probe can read every direction of the backbone's
tokens from them, however small its variance. So the head itself is restricted:

    x, y    pooled tokens of the first and of the end view, centered
    S_t     covariance of the tokens, S_w covariance of their difference, halved
    S_w v = (1 - rho) S_t v      rho is the correlation of the direction v between both views

This is linear discriminant analysis in which the two views of an image are a class; rho are the views' canonical
correlations. The invariant rows W of the feature head may read only the r directions V with the largest correlation.
After each optimizer step they are projected onto these directions. From time to time they become W = U V^T, where U is
the nearest matrix with orthonormal columns: the features then have variance 1 along each of the r directions and are
uncorrelated, so that none of them can fade. No loss term is added, and the equivariant part and the backbone keep what
the reconstruction needs.

The restriction begins late in training. All along it would leave the SSL loss a gradient in r directions only, and the
backbone would learn less: its nearest neighbors become worse (scripts/recipes/README.md, "The split").

The number of directions is fixed, not their correlation. A threshold would starve itself: fewer directions get the SSL
loss's gradient, the others lose their correlation, and in the end a single direction is left.
"""

from __future__ import annotations

import torch
from torch import nn

from .distributed import all_sum

SHARE_BEFORE = 0.6  # of the steps of a run, before the restriction begins
_RIDGE = 1e-4  # relative to the variance of each dimension; directions of less variance count as uncorrelated


class Separation(nn.Module):
    """Running covariances of pooled tokens, and the restriction of the invariant rows that follows from them.

    The covariances are exponential averages over steps and sums over all processes, in float64, so that two processes
    equal one.

    Args:
        dim: width D of the backbone's tokens.
        rank: number r of directions that the invariant part may read.
        start: optimizer steps before the restriction begins; the averages are kept from the first step.
        momentum: of the averages.
        steps_between: optimizer steps between two choices of the directions; the latest ones hold after every step.

    Raises:
        ValueError: `rank` does not lie between 1 and D.
    """

    def __init__(self, dim: int, rank: int, start: int = 0, momentum: float = 0.99, steps_between: int = 10):
        super().__init__()
        if not 1 <= rank <= dim:
            raise ValueError(
                f"invariant_rank must lie between 1 and the width of the backbone, {dim}, or be 0 (off), got {rank}"
            )
        self.rank = rank
        self.start = start
        self.momentum = momentum
        self.steps_between = steps_between
        self.register_buffer("total", torch.zeros(dim, dim, dtype=torch.float64))
        self.register_buffer("within", torch.zeros(dim, dim, dtype=torch.float64))
        self.register_buffer("projection", torch.eye(dim, dtype=torch.float64))
        self.register_buffer(
            "correlation", torch.tensor(0.0, dtype=torch.float64)
        )  # the smallest among the chosen directions
        self.register_buffer("num_updates", torch.tensor(0))

    @torch.no_grad()
    def update(self, first: torch.Tensor, end: torch.Tensor) -> None:
        """Add a batch of pooled tokens of both views, each (B, T, D) for T ways of pooling, to the averages."""
        count = all_sum(torch.tensor(float(len(first)), dtype=torch.float64, device=first.device))
        views = torch.stack([first, end]).double()
        mean = all_sum(views.sum(dim=1, keepdim=True)) / count
        first, end = (views - mean).flatten(1, 2)
        degrees = (count - 1).clamp_min(1) * views.shape[2]
        total = all_sum(first.T @ first + end.T @ end) / (2 * degrees)
        difference = first - end
        within = all_sum(difference.T @ difference) / (2 * degrees)
        self.num_updates += 1
        # The plain mean at first, so that the zeros at the start do not count.
        weight = (1 / self.num_updates.double()).clamp_min(1 - self.momentum)
        self.total.lerp_(total, weight)
        self.within.lerp_(within, weight)

    @torch.no_grad()
    def apply_to(self, weight: torch.Tensor, step: int) -> None:
        """Restrict the invariant rows of the feature head, (d_inv, D), in place, unless it is too early; `step` counts
        optimizer steps from 0."""
        if step < self.start:
            return
        if step == self.start or step % self.steps_between == 0:
            weight.copy_(self._renew(weight.double()))
        else:
            weight.copy_(weight.double() @ self.projection)

    def _renew(self, rows: torch.Tensor) -> torch.Tensor:
        """Choose the directions by the averages; the rows (d_inv, D) as U V^T."""
        variance = self.total.diagonal()
        ridge = torch.diag(_RIDGE * variance.clamp_min(1e-12 * variance.mean()))
        total = self.total + ridge
        factor = torch.linalg.cholesky(total)
        half = torch.linalg.solve_triangular(factor, self.within + ridge, upper=False)
        whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
        shares, vectors = torch.linalg.eigh(
            (whitened + whitened.T) / 2
        )  # ascending: the most correlated direction first
        directions = torch.linalg.solve_triangular(factor.T, vectors[:, : self.rank], upper=True)  # V^T S_t V = 1
        basis = torch.linalg.qr(directions).Q
        self.projection.copy_(basis @ basis.T)
        self.correlation.copy_(1 - shares[self.rank - 1])
        left, _, right = torch.linalg.svd(rows @ total @ directions, full_matrices=False)
        return left @ right @ directions.T
