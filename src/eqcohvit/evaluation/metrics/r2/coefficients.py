"""The mathematics of the metric, without the `evaluate` library."""

import numpy as np
from numpy.typing import ArrayLike


def r2_per_parameter(predictions: ArrayLike, references: ArrayLike) -> np.ndarray:
    """1 - RSS / TSS of each column (arXiv:2503.18753, section 4): two arrays (N, P) -> (P,); NaN for a column that does
    not vary.

    Raises:
        ValueError: the shapes differ, or samples or parameters are missing.
    """
    predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if predictions.shape != references.shape or predictions.ndim != 2:
        raise ValueError(
            f"expected two arrays (N, P) of the same shape, got {predictions.shape} and {references.shape}"
        )
    if not references.size:
        raise ValueError(f"expected at least one sample and one parameter, got arrays of shape {references.shape}")
    residual = ((references - predictions) ** 2).sum(axis=0)
    total = ((references - references.mean(axis=0)) ** 2).sum(axis=0)
    return 1 - residual / np.where(total > 0, total, np.nan)


def pooled_r2(predictions: ArrayLike, references: ArrayLike) -> float:
    """1 - RSS / TSS over all numbers of two arrays (N, P) at once, about their one mean.

    SIE's evaluation (arXiv:2302.10283) reports this: differences between the means of the columns count as variance.
    """
    predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    return float(1 - ((references - predictions) ** 2).sum() / ((references - references.mean()) ** 2).sum())
