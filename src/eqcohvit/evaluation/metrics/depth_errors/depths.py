"""Errors of depth maps, without the `evaluate` library."""

import numpy as np


def depth_errors(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray | None = None) -> dict[str, float]:
    """Errors of depth maps of one shape, in the unit of the depth, over the valid pixels (Eigen et al., arXiv:1406.2283, section 4).

    Returns:
        RMSE: root of the mean squared error. AbsRel: mean of |error| / true depth. delta1: share of pixels whose ratio to the true depth,
        or its inverse, is below 1.25.
    """
    predicted, true = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if predicted.shape != true.shape:
        raise ValueError(f"prediction and reference must have the same shape, got {predicted.shape} and {true.shape}")
    valid = np.isfinite(true) & (true > 0) if valid is None else np.asarray(valid, dtype=bool)
    if not valid.any():
        raise ValueError("no pixel of the reference has a depth")
    predicted, true = predicted[valid], true[valid]
    with np.errstate(divide="ignore"):
        ratio = np.maximum(predicted / true, true / predicted)
    return {
        "RMSE": float(np.sqrt(np.mean((predicted - true) ** 2))),
        "AbsRel": float(np.mean(np.abs(predicted - true) / true)),
        "delta1": float(np.mean(ratio < 1.25)),
    }
