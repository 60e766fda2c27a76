"""The mathematics of the metric, without the `evaluate` library."""

import numpy as np


def r2_per_parameter(predictions, references):
    """1 - RSS / TSS of each column: two arrays (N, P) -> (P,)."""
    predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    residual = ((references - predictions) ** 2).sum(axis=0)
    total = ((references - references.mean(axis=0)) ** 2).sum(axis=0)
    return 1 - residual / np.where(total > 0, total, np.nan)
