"""Signs that a run learns nothing, and what to do about each."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

_NEAR = 0.01  # share of a term's uninformed value within which it counts as sitting there
_LEAST_STD = 1e-3
_LEAST_RANK = 1.5
_LEAST_ENTROPY = 0.02


def rankme(features: torch.Tensor) -> torch.Tensor:
    """Effective rank of features (B, d), a scalar between 1 and min(B, d) (RankMe, arXiv:2210.02885, equation 3).

    The exponential of the entropy of the singular values divided by their sum: 1 if all rows are multiples of one
    vector, r if the features spread evenly over r orthogonal directions. It is 0 if all features are 0, and NaN if one
    is not finite.
    """
    features = features.float()
    values = torch.linalg.svdvals(features.nan_to_num(0.0, 0.0, 0.0))
    total = values.sum()
    rank = torch.special.entr(values / total.clamp_min(1e-12)).sum().exp() * (total > 0)
    return torch.where(features.isfinite().all(), rank, torch.nan)


class HealthWatch:
    """Reads the logged means and warns once per ongoing problem.

    Args:
        uninformed: value of each loss term for features that carry no information (`Objective.uninformed_values`).
        first_step: no warnings before this step, because all runs start with such features.
    """

    def __init__(self, uninformed: dict[str, float], first_step: int):
        self.uninformed = uninformed
        self.first_step = first_step
        self._known: set[str] = set()

    def warnings(self, step: int, means: dict[str, float]) -> list[str]:
        """The problems that are new at this step, one line each."""
        found = dict(self._troubles(means)) if step >= self.first_step else {}
        new = [text for name, text in found.items() if name not in self._known]
        self._known = set(found)
        return [f"warning at step {step}: {text}" for text in new]

    def _troubles(self, means: dict[str, float]) -> Iterator[tuple[str, str]]:
        for name, value in self.uninformed.items():
            if name in means and abs(means[name] - value) < _NEAR * value:
                yield (
                    name,
                    (
                        f"{name} sits at {means[name]:.4g}, its value for features that tell nothing ({value:.4g}); "
                        "try a lower learning_rate, more warmup_steps, or a sharper teacher "
                        "(objective_options teacher_temperature)"
                    ),
                )
        for part in ("invariant", "equivariant"):
            std, rank = means.get(f"std/{part}", math.inf), means.get(f"rank/{part}", math.inf)
            if std < _LEAST_STD or rank < _LEAST_RANK:
                cure = (
                    "try a lower learning_rate or a larger batch"
                    if part == "invariant"
                    else "raise recon_weight: without a reconstruction nothing trains this part"
                )
                if std < _LEAST_STD:
                    yield part, f"the {part} part has collapsed, it is the same for all images (std {std:.3g}); {cure}"
                else:
                    yield part, f"the {part} part has collapsed onto one direction (rank {rank:.3g}); {cure}"
        if means.get("teacher/entropy", math.inf) < _LEAST_ENTROPY:
            yield (
                "teacher",
                (
                    f"the teacher puts all images on one prototype (entropy {means['teacher/entropy']:.3g} nats); "
                    "try a higher teacher_temperature or a slower center (objective_options center_momentum)"
                ),
            )
