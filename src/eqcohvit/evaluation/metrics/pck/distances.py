"""Which keypoints are correct, without the `evaluate` library."""

import numpy as np
from numpy.typing import ArrayLike


def correct_keypoints(
    predicted: ArrayLike, true: ArrayLike, visible: ArrayLike, size: float, threshold: float
) -> np.ndarray:
    """Which of the visible keypoints (K, 2) lie within `threshold` times `size` of the true ones: booleans, one per
    visible keypoint.

    PCK (doi:10.1109/TPAMI.2012.261) is the mean over all keypoints of all instances; `size` is the longer side of the
    instance's box.
    """
    predicted, true, visible = (np.asarray(values) for values in (predicted, true, visible))
    if predicted.shape != true.shape or visible.shape != true.shape[:1] or true.shape[1:] != (2,):
        raise ValueError(
            f"expected keypoints (K, 2), (K, 2) and (K,), got {predicted.shape}, {true.shape} and {visible.shape}"
        )
    distances = np.linalg.norm(predicted - true, axis=-1)
    return distances[visible.astype(bool)] <= threshold * size
