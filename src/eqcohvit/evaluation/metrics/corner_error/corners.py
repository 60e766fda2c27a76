"""Distance of the corners of homographies, without the `evaluate` library."""

import numpy as np


def corner_error(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean Euclidean distance, in the unit of the input, of the corners (..., 4, 2) of homographies (arXiv:1606.03798,
    section 4)."""
    predicted, true = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if predicted.shape != true.shape or predicted.shape[-2:] != (4, 2):
        raise ValueError(
            f"expected two arrays of corners (..., 4, 2) of the same shape, got {predicted.shape} and {true.shape}"
        )
    if not predicted.size:
        raise ValueError("expected at least one homography, got none")
    return float(np.linalg.norm(predicted - true, axis=-1).mean())
