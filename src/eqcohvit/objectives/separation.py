"""Separation: the invariant part reads only what both views of an image have in common. Our addition to arXiv:2503.18753.

The projector behind the invariant part can hide the transformation from the SSL loss, so the features before it need not be
invariant. And as long as their linear head has full rank, a probe can read every direction of the backbone's tokens from them, however
small its variance. So the head itself is restricted:

    x, y    pooled tokens of the first and of the end view, centered
    S_t     covariance of the tokens, S_w covariance of their difference, halved
    S_w v = (1 - rho) S_t v      rho is the correlation of the direction v between both views (linear discriminant analysis in which
                                 the two views of an image are a class; the canonical correlations of the views)

Directions whose correlation is below a threshold are removed from the invariant rows of the feature head, by a projection after each
optimizer step. The features are then functions of the correlated directions alone, whatever the SSL loss asks for. Nothing else
changes: no gradient, no loss term, and the equivariant part and the backbone keep what the reconstruction needs.
"""

from __future__ import annotations

import torch
from torch import nn

from .distributed import all_sum

_RIDGE = 1e-4  # relative to the variance of each dimension; directions of less variance count as uncorrelated


class Separation(nn.Module):
    """Running covariances of pooled tokens, and the projection that they give.

    The covariances are exponential averages over steps and sums over all processes, in float64, so that two processes equal one.

    Args:
        dim: width D of the backbone's tokens.
        min_correlation: smallest correlation between both views, in (0, 1), of a direction that the invariant part may read.
        momentum: of the averages.
        steps_between: optimizer steps between two new projections; the latest one is applied after every step.

    Raises:
        ValueError: `min_correlation` does not lie between 0 and 1.
    """

    def __init__(self, dim: int, min_correlation: float, momentum: float = 0.99, steps_between: int = 10):
        super().__init__()
        if not 0 < min_correlation < 1:
            raise ValueError(f"separation must lie between 0 (off) and 1, got {min_correlation}")
        self.min_correlation = min_correlation
        self.momentum = momentum
        self.steps_between = steps_between
        self.register_buffer("total", torch.zeros(dim, dim, dtype=torch.float64))
        self.register_buffer("within", torch.zeros(dim, dim, dtype=torch.float64))
        self.register_buffer("projection", torch.eye(dim, dtype=torch.float64))
        self.register_buffer("num_kept", torch.tensor(dim))
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
        """Project the invariant rows of the feature head, (d_inv, D), in place; `step` counts optimizer steps from 0.

        Their norm stays as it is: the directions drift while the backbone learns, and each projection would take a little of the rows.
        """
        if step % self.steps_between == 0:
            self._renew()
        projected = weight.double() @ self.projection
        scale = weight.double().norm() / projected.norm().clamp_min(1e-12)
        weight.copy_(projected * scale)

    def _renew(self) -> None:
        """Solve the generalized eigenvalue problem of the averages."""
        variance = self.total.diagonal()
        ridge = torch.diag(_RIDGE * variance.clamp_min(1e-12 * variance.mean()))
        total = self.total + ridge
        factor = torch.linalg.cholesky(total)
        half = torch.linalg.solve_triangular(factor, self.within + ridge, upper=False)
        whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
        shares, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)  # ascending: the most correlated direction first
        keep = 1 - shares >= self.min_correlation
        keep[0] = True
        # The nearest head (in the Frobenius norm) whose rows are combinations of the kept directions. The oblique projection along the
        # others would amplify directions of little variance each time that the averages change.
        directions = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
        basis = torch.linalg.qr(directions).Q * keep
        self.projection.copy_(basis @ basis.T)
        self.num_kept.copy_(keep.sum())
