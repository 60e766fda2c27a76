"""Percentage of correct keypoints (PCK)."""

import datasets
import numpy as np

import evaluate

from .distances import correct_keypoints

_DESCRIPTION = """\
Percentage of correct keypoints (PCK).
The share of the labeled keypoints of all instances whose distance from the true place is at most `threshold` times the
size of their instance."""

_INPUTS_DESCRIPTION = """
Args:
    predictions: keypoints (K, 2) of each instance, in pixels.
    references: (K, 3): x, y, and a number above 0 where the keypoint is labeled.
    sizes: of the instances, in pixels; usually the longer side of the box.
    threshold: as a fraction of the size; default: 0.1.
Returns:
    pck: in [0, 1].
"""

_MAP = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))


class PCK(evaluate.Metric):
    """The metric that `evaluate.load` gives for this folder; `description` and `inputs_description` say what it takes
    and returns."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": _MAP, "references": _MAP}),
            reference_urls=["https://doi.org/10.1109/TPAMI.2012.261"],
        )

    def _compute(self, predictions, references, sizes, threshold=0.1):
        found = [
            correct_keypoints(
                predicted, [point[:2] for point in true], [point[2] > 0 for point in true], size, threshold
            )
            for predicted, true, size in zip(predictions, references, sizes, strict=True)
        ]
        if not any(map(len, found)):
            raise ValueError("expected a labeled keypoint in the references, got none")
        return {"pck": float(np.concatenate(found).mean())}
