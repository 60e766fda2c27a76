"""Mean corner error of homographies."""

import datasets

import evaluate

from .corners import corner_error

_DESCRIPTION = """\
Mean corner error of homographies.
The mean Euclidean distance between the predicted and the true corners of a patch (or between the displacements of its
corners)."""

_INPUTS_DESCRIPTION = """
Args:
    predictions, references: corners, (4, 2) each, in pixels.
Returns:
    mean_corner_error: in pixels.
"""

_MAP = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))


class CornerError(evaluate.Metric):
    """The metric that `evaluate.load` gives for this folder; `description` and `inputs_description` say what it takes
    and returns."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": _MAP, "references": _MAP}),
            reference_urls=["https://arxiv.org/abs/1606.03798"],
        )

    def _compute(self, predictions, references):
        return {"mean_corner_error": corner_error(predictions, references)}
