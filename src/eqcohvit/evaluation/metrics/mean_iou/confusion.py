"""Pixel counts and intersection over union, without the `evaluate` library."""

from typing import TypedDict

import numpy as np


class IoUScores(TypedDict):
    """Fractions; a class that no pixel has or is given counts as nan."""

    mean_iou: float
    overall_accuracy: float
    per_class_iou: list[float]


def confusion_matrix(predicted: np.ndarray, true: np.ndarray, num_labels: int, ignore_index: int = 255) -> np.ndarray:
    """Pixel counts, int64 (num_labels, num_labels): row the true class, column the predicted one.

    Raises:
        ValueError: shapes differ, or a value is not a class.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    if predicted.shape != true.shape:
        raise ValueError(f"prediction and reference must have the same shape, got {predicted.shape} and {true.shape}")
    counted = true != ignore_index
    for name, values in (("reference", true[counted]), ("prediction", predicted[counted])):
        if values.size and (values.min() < 0 or values.max() >= num_labels):
            raise ValueError(
                f"{name} has the value {values.max() if values.min() >= 0 else values.min()}, expected 0 "
                f".. {num_labels - 1}"
            )
    pairs = true[counted].astype(np.int64) * num_labels + predicted[counted].astype(np.int64)
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)


def iou_scores(confusion: np.ndarray) -> IoUScores:
    """Confusion matrix (C, C) -> mean_iou, overall_accuracy, per_class_iou."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    total = confusion.sum()
    per_class = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
    return {
        "mean_iou": float(np.nanmean(per_class)) if total else float("nan"),
        "overall_accuracy": float(hits.sum() / total) if total else float("nan"),
        "per_class_iou": per_class.tolist(),
    }
