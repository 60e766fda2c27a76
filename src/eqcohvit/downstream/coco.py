"""Average precision of boxes, masks and keypoints as in COCO, through pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# How far annotators differ, for each of COCO's 17 keypoints (https://cocodataset.org/#keypoints-eval).
COCO_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
OTHER_SIGMA = 0.025  # for keypoints of other data: the value of COCO's eyes


class PrecisionScore:
    """Collects what `average_precision` compares; `add` of a subclass appends to `truth` and `found`."""

    kind: Literal["bbox", "segm", "keypoints"] = "bbox"

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self.images: list[dict[str, Any]] = []
        self.truth: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def next_image(self, width: int, height: int) -> int:
        """The number of another image."""
        number = len(self.images) + 1
        self.images.append({"id": number, "width": width, "height": height})
        return number

    def result(self) -> dict[str, float]:
        """Average precision over all images."""
        return average_precision(self.images, self.truth, self.found, self.num_labels, self.kind)


def average_precision(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    num_labels: int,
    kind: Literal["bbox", "segm", "keypoints"] = "bbox",
) -> dict[str, float]:
    """AP over IoU or OKS thresholds .50 to .95, and AP at .50 and .75.

    Args:
        images: `id`, `width`, `height` of each.
        annotations, predictions: in COCO's result format, `category_id` 0 .. num_labels - 1; predictions have a
            `score`. For `"keypoints"` x, y, v of each keypoint, for `"segm"` a `segmentation`.
        kind: `"bbox"`, `"segm"` or `"keypoints"`.
    """
    names = {"AP": 0, "AP50": 1, "AP75": 2}
    if not predictions or not annotations:
        return dict.fromkeys(names, 0.0)
    numbered = [{"iscrowd": 0, **annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables
        truth: Any = COCO()  # its type annotations are too narrow
        truth.dataset = {
            "images": images,
            "annotations": numbered,
            "categories": [{"id": i, "name": str(i)} for i in range(num_labels)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(prediction) for prediction in predictions]), kind)
        if kind == "keypoints":
            count = len(annotations[0]["keypoints"]) // 3
            evaluation.params.kpt_oks_sigmas = COCO_SIGMAS if count == len(COCO_SIGMAS) else np.full(count, OTHER_SIGMA)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: max(0.0, float(evaluation.stats[index])) for name, index in names.items()}
