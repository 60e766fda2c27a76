"""Kernel ridge regression on pairs of features: nearly what an MLP finds, in closed form, fast enough to repeat while a
model trains."""

from __future__ import annotations

import numpy as np
import torch

from .probes import standardize

_WIDTHS = (0.1, 0.3, 1.0)  # gamma of exp(-gamma |x - x'|^2 / d), for standardized inputs of d dimensions
_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # relative to the number of samples


def kernel_regression(
    original: torch.Tensor,
    moved: torch.Tensor | None,
    targets: torch.Tensor,
    test_original: torch.Tensor,
    test_moved: torch.Tensor | None,
) -> torch.Tensor:
    """Predict targets from the features o of an image and g of its transformed version by ridge regression with a
    Gaussian kernel.

    The inputs are [o, g - o]. Leaving out each of the N samples in turn, in closed form, chooses the kernel's width and
    the penalty, or the mean of the targets. The angle of a rotation depends on both features together, which a linear
    regression does not see: on the strict pairs of a trained model it finds an R2 of 0.1 where this finds 0.6.

    Args:
        original, moved: (N, d) to fit on; None for `moved` where the targets are of one image.
        targets: (N, P).
        test_original, test_moved: (M, d) to test on.

    Returns:
        Predictions (M, P).
    """
    train_x, test_x = standardize(_inputs(original, moved), _inputs(test_original, test_moved))
    count, dim = train_x.shape
    mean = targets.double().mean(dim=0)
    spread = targets.double().std(dim=0).clamp_min(1e-12)
    y = (targets.double() - mean) / spread
    distances = torch.cdist(torch.cat([train_x, test_x]), train_x).double().square() / dim
    identity = torch.eye(count, dtype=distances.dtype, device=distances.device)
    best_error = y.square().mean().item() * (count / (count - 1)) ** 2  # of the mean of all others
    best = torch.zeros(len(test_x), y.shape[1], dtype=distances.dtype, device=distances.device)
    for width in _WIDTHS:
        kernel = torch.exp(-width * distances)
        for penalty in _PENALTIES:
            factor, failed = torch.linalg.cholesky_ex(kernel[:count] + penalty * count * identity)
            if failed.item():
                continue
            inverse = torch.cholesky_inverse(factor)
            weight = inverse @ y
            error = (weight / inverse.diagonal()[:, None]).square().mean().item()
            if error < best_error:
                best_error = error
                best = kernel[count:] @ weight
    return (best * spread + mean).to(targets.dtype)


def _inputs(original: torch.Tensor, moved: torch.Tensor | None) -> torch.Tensor:
    return original if moved is None else torch.cat([original, moved - original], dim=-1)


def _draw(values: torch.Tensor, seed: int) -> torch.Tensor:
    """Those of one seed where each has its own, (S, N, d), else all, (N, d)."""
    return values[seed] if values.ndim == 3 else values


def kernel_regress(
    original: torch.Tensor,
    moved: torch.Tensor | None,
    targets: torch.Tensor,
    test_original: torch.Tensor,
    test_moved: torch.Tensor | None,
    num_seeds: int,
) -> dict[str, np.ndarray]:
    """`"kernel"` (S, M, P): predictions for S draws of g; `"chosen"` (S,): the name of the probe. Arguments as of
    `probes.regress_pair`."""
    found = []
    for seed in range(num_seeds):
        fit = _draw(original, seed), None if moved is None else _draw(moved, seed), _draw(targets, seed)
        test = _draw(test_original, seed), None if test_moved is None else _draw(test_moved, seed)
        found.append(kernel_regression(*fit, *test).cpu().numpy())
    return {"kernel": np.stack(found), "chosen": np.array(["kernel ridge"] * num_seeds)}
