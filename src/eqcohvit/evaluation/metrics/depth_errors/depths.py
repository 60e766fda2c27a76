"""Errors of depth maps, without the `evaluate` library."""

import numpy as np


def depth_errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Errors of depth maps of one shape over the pixels whose true depth is finite and above 0 (Eigen et al.,
    arXiv:1406.2283, section 4).

    Returns:
        RMSE: root of the mean squared error, in the unit of the depth. AbsRel: mean of |error| / true depth. delta1:
        share of pixels whose ratio to the true depth, and its inverse, are below 1.25; a prediction of 0 or less is no
        hit.

    Raises:
        ValueError: shapes differ, or no pixel has a true depth.
    """
    predicted, true = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if predicted.shape != true.shape:
        raise ValueError(f"prediction and reference must have the same shape, got {predicted.shape} and {true.shape}")
    valid = np.isfinite(true) & (true > 0)
    if not valid.any():
        raise ValueError("no pixel of the reference has a depth")
    predicted, true = predicted[valid], true[valid]
    with np.errstate(divide="ignore"):
        ratio = np.maximum(predicted / true, true / predicted)
    return {
        "RMSE": float(np.sqrt(np.mean((predicted - true) ** 2))),
        "AbsRel": float(np.mean(np.abs(predicted - true) / true)),
        "delta1": float(np.mean((ratio < 1.25) & (predicted > 0))),
    }
