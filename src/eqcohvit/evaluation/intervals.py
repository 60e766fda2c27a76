"""95 % intervals of scores, over the seeds of the probe, the drawn transformations, and the test images.

The half-width of the interval around a mean over S seeds is sqrt(a^2 + b^2). Each seed of a probe has its own split of
the samples, its own initial weights and its own draw of the transformations: a is Student's t times the standard error
over the seeds. b is 1.96 times the standard deviation of the mean under a bootstrap of the test images, which all seeds
share. So part of the noise of the draws counts twice, which is the safe side. The interval covers neither training
seeds nor the choice of the images to fit on. Of few images, each under several draws, whole images are resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

NORMAL = 1.959964
# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom.
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_RESAMPLES = 1000


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t."""
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    z = NORMAL  # Cornish and Fisher's expansion, within .002 from 11 degrees on
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def seeds_half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of independent values; None for a single one."""
    if len(values) < 2:
        return None
    return student(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5


def half_width(values: Sequence[float], resampled: np.ndarray, num_images: int | None = None) -> float:
    """Half of the 95 % interval (see above).

    Args:
        values: one for each seed.
        resampled: their mean for each resample of the test images.
        num_images: of few test images, their number n, at least 2: the bootstrap finds only (n - 1) / n of their
            variance, and Student's t with n - 1 degrees of freedom takes the place of 1.96.
    """
    seeds = seeds_half_width(values) or 0.0
    quantile = NORMAL
    if num_images is not None:
        quantile = student(num_images - 1) * (num_images / (num_images - 1)) ** 0.5
    return float(np.hypot(seeds, quantile * resampled.std(ddof=1)))


def resamples(count: int) -> np.ndarray:
    """How often each of `count` test images comes in each resample: (1000, count)."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)


def r2_resampled(predictions: ArrayLike, references: ArrayLike, num_draws: int = 1) -> np.ndarray:
    """R2 of each parameter, mean over the seeds, for each resample of the test images: two (S, M, P) -> (1000, P).

    `num_draws` adjacent ones of the M samples belong to one image and come together.
    """
    predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    count = references.shape[1]
    weights = resamples(count // num_draws).repeat(num_draws, axis=1)
    scores = []
    for predicted, true in zip(predictions, references, strict=True):
        centered = true - true.mean(axis=0)  # against cancellation
        residual = weights @ (true - predicted) ** 2
        total = weights @ centered**2 - (weights @ centered) ** 2 / count
        scores.append(1 - residual / np.where(total > 0, total, np.nan))
    return np.mean(scores, axis=0)


def accuracy_resampled(correct: ArrayLike) -> np.ndarray:
    """Accuracy, mean over the seeds, for each resample of the test images: right or wrong (S, M) -> (1000,)."""
    correct = np.asarray(correct, dtype=np.float64)
    return resamples(correct.shape[1]) @ correct.mean(axis=0) / correct.shape[1]
