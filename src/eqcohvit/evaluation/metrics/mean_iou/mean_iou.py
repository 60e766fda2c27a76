"""Intersection over union of label maps, of each class and as a mean."""

import datasets
import numpy as np

import evaluate

from .confusion import confusion_matrix, iou_scores

_DESCRIPTION = """\
Intersection over union of label maps, of each class and as a mean.
All pixels of all images are counted together, |A and B| / |A or B| per class. The mean is over the classes that occur
in predictions or references (PASCAL VOC). Pixels whose reference is `ignore_index` do not count."""

_INPUTS_DESCRIPTION = """
Args:
    predictions, references: class indices of images, (H, W) each; images may differ in size.
    num_labels: number of classes; all values but `ignore_index` lie in 0 .. num_labels - 1.
    ignore_index: reference value of pixels that do not count; default: 255.
Returns:
    mean_iou, overall_accuracy: in [0, 1]. per_class_iou: one number per class, NaN for a class that does not occur.
"""

_MAP = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))


class MeanIoU(evaluate.Metric):
    """The metric that `evaluate.load` gives for this folder; `description` and `inputs_description` say what it takes
    and returns."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": _MAP, "references": _MAP}),
            reference_urls=["https://doi.org/10.1007/s11263-009-0275-4"],
        )

    def _compute(self, predictions, references, num_labels, ignore_index=255):
        pairs = list(zip(predictions, references, strict=True))
        if not pairs:
            raise ValueError("expected at least one label map, got none")
        counts = (confusion_matrix(predicted, true, num_labels, ignore_index) for predicted, true in pairs)
        return iou_scores(sum(counts, start=np.zeros((num_labels, num_labels), dtype=np.int64)))
