"""Region similarity J and contour accuracy F of binary masks, as DAVIS counts them."""

import datasets

import evaluate

from .masks import contour_accuracy, region_similarity

_DESCRIPTION = """\
Region similarity J and contour accuracy F of binary masks, as DAVIS counts them.
J is the intersection over union. F is the harmonic mean of precision and recall of the boundary pixels, which count as
found within a tolerance of 0.8 % of the image's diagonal, rounded up. Each is the mean over the given masks."""

_INPUTS_DESCRIPTION = """
Args:
    predictions, references: binary masks, (H, W) each: one for each object and frame.
    tolerance: of the boundary, as a fraction of the diagonal; default: 0.008.
Returns:
    j, f: means over the masks; j_and_f: their mean.
"""

_MAP = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))


class DavisJAndF(evaluate.Metric):
    """The metric that `evaluate.load` gives for this folder; `description` and `inputs_description` say what it takes
    and returns."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": _MAP, "references": _MAP}),
            reference_urls=["https://doi.org/10.1109/CVPR.2016.85"],
        )

    def _compute(self, predictions, references, tolerance=0.008):
        pairs = list(zip(predictions, references, strict=True))
        if not pairs:
            raise ValueError("expected at least one mask, got none")
        region = sum(region_similarity(*pair) for pair in pairs) / len(pairs)
        contour = sum(contour_accuracy(*pair, tolerance) for pair in pairs) / len(pairs)
        return {"j": region, "f": contour, "j_and_f": (region + contour) / 2}
