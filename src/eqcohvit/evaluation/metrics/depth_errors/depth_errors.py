"""RMSE, AbsRel and delta1 of depth maps."""

import datasets

import evaluate

from .depths import depth_errors

_DESCRIPTION = """\
RMSE, AbsRel and delta1 of depth maps.
Each is the mean over the images of its mean over their pixels with a depth. Pixels with a reference of 0 or NaN do not
count."""

_INPUTS_DESCRIPTION = """
Args:
    predictions, references: depths, (H, W) each, in one unit; images may differ in size.
Returns:
    RMSE: in that unit. AbsRel: mean of |error| / depth. delta1: share of pixels whose ratio to the true depth is below
        1.25.
"""

_MAP = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))


class DepthErrors(evaluate.Metric):
    """The metric that `evaluate.load` gives for this folder; `description` and `inputs_description` say what it takes
    and returns."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": _MAP, "references": _MAP}),
            reference_urls=["https://arxiv.org/abs/1406.2283"],
        )

    def _compute(self, predictions, references):
        errors = [depth_errors(*pair) for pair in zip(predictions, references, strict=True)]
        if not errors:
            raise ValueError("expected at least one depth map, got none")
        return {name: sum(one[name] for one in errors) / len(errors) for name in ("RMSE", "AbsRel", "delta1")}
