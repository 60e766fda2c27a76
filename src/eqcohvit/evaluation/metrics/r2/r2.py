"""Coefficient of determination of transformation parameters (arXiv:2503.18753, section 4)."""

import datasets

import evaluate

from .coefficients import r2_per_parameter

_DESCRIPTION = """\
Coefficient of determination R2 = 1 - RSS / TSS: the share of the variance of the true values that the predictions
explain. 1 is perfect, 0 is predicting the mean of the true values, and worse predictions are negative (not clipped)."""

_INPUTS_DESCRIPTION = """
Args:
    predictions: (N, P) numbers, P parameters of N samples.
    references: (N, P) true values.
Returns:
    r2: mean over the parameters, which makes their units irrelevant.
    r2_per_parameter: list of P numbers; NaN for a parameter that does not vary.
Example:
    >>> r2 = evaluate.load("r2")
    >>> r2.compute(predictions=[[1.0], [2.0], [5.0]], references=[[1.0], [2.0], [3.0]])
    {'r2': -1.0, 'r2_per_parameter': [-1.0]}
"""

_CITATION = """\
@article{wang2025equivariance,
  title = {Self-Supervised Learning Based on Transformed Image Reconstruction for Equivariance-Coherent Feature
    Representation},
  author = {Wang, Q. and Quercia, A. and Bruns, B. and Morrison, A. and Scharr, H. and Krajsek, K.},
  journal = {arXiv:2503.18753}, year = {2025}}"""


class R2(evaluate.Metric):
    """The metric that `evaluate.load` gives for this folder; `description` and `inputs_description` say what it takes
    and returns."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("float64")),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2503.18753"],
        )

    def _compute(self, predictions, references):
        values = r2_per_parameter(predictions, references)
        return {"r2": float(values.mean()), "r2_per_parameter": values.tolist()}
