"""Region similarity and contour accuracy of binary masks, without the `evaluate` library."""

import numpy as np
from scipy.ndimage import distance_transform_edt


def region_similarity(predicted: np.ndarray, true: np.ndarray) -> float:
    """J of DAVIS: intersection over union of two binary masks (H, W); 1 where both are empty (doi:10.1109/CVPR.2016.85,
    section 4)."""
    predicted, true = _two_masks(predicted, true)
    union = (predicted | true).sum()
    return float((predicted & true).sum() / union) if union else 1.0


def contour_accuracy(predicted: np.ndarray, true: np.ndarray, tolerance: float = 0.008) -> float:
    """F of DAVIS: harmonic mean of precision and recall of the boundary pixels of two binary masks (H, W) (same
    source).

    A boundary pixel is found where the other mask has one within `tolerance` of the image's diagonal, rounded up to
    whole pixels. Two masks without boundary agree (1); one without boundary and one with disagree (0).
    """
    predicted, true = _two_masks(predicted, true)
    radius = np.ceil(tolerance * np.hypot(*true.shape))
    edges, true_edges = mask_boundary(predicted), mask_boundary(true)
    if not edges.any() or not true_edges.any():
        return float(edges.any() == true_edges.any())
    precision = (np.asarray(distance_transform_edt(~true_edges))[edges] <= radius).mean()
    recall = (np.asarray(distance_transform_edt(~edges))[true_edges] <= radius).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """Boundary pixels of a binary mask (H, W): those that differ from their right, lower or lower right neighbor."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def _two_masks(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = np.asarray(predicted).astype(bool), np.asarray(true).astype(bool)
    if predicted.shape != true.shape or predicted.ndim != 2:
        raise ValueError(
            f"expected two masks (height, width) of the same shape, got {predicted.shape} and {true.shape}"
        )
    if not true.size:
        raise ValueError(f"expected masks of at least one pixel, got the shape {true.shape}")
    return predicted, true
