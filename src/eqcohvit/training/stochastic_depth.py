"""Stochastic depth that leaves the dropped samples out of a layer instead of computing them and multiplying by zero."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Up to this rate samples are dropped one by one, as in https://github.com/facebookresearch/dinov2: leaving out so few
# of them saves nothing.
_HIGHEST_RATE_OF_SINGLE_DRAWS = 0.1


def leave_out_dropped(backbone: nn.Module) -> None:
    """Make the layers of a DINO backbone whose `drop_path` has a rate above 0.1 compute only the kept samples, in
    place.

    Each residual branch takes a share 1 - rate of the batch, rounded down, but at least one sample, drawn again in
    every pass, and its output is scaled by the batch's size over theirs (arXiv:2304.07193, section 5, "efficient
    stochastic depth"). So the number of dropped samples is fixed, and shapes do not depend on the draw. Evaluation,
    parameters and their names stay as they are."""
    for layer in backbone.modules():
        if getattr(getattr(layer, "drop_path", None), "drop_prob", 0.0) > _HIGHEST_RATE_OF_SINGLE_DRAWS:
            layer.__class__ = _thinned(type(layer))


@functools.cache
def _thinned(layer_class: type) -> type:
    """A layer class of transformers whose residual branches compute a share of the samples."""

    def forward(
        self: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if not self.training:
            return layer_class.forward(self, hidden_states, attention_mask=attention_mask, **kwargs)

        def attend(states: torch.Tensor) -> torch.Tensor:
            return self.layer_scale1(self.attention(self.norm1(states), attention_mask=attention_mask, **kwargs)[0])

        def transform(states: torch.Tensor) -> torch.Tensor:
            return self.layer_scale2(self.mlp(self.norm2(states)))

        rate = self.drop_path.drop_prob
        return add_for_some(add_for_some(hidden_states, attend, rate), transform, rate)

    # The name stays, because sharding finds the layers by it.
    return type(layer_class.__name__, (layer_class,), {"forward": forward, "__module__": layer_class.__module__})


def add_for_some(states: torch.Tensor, branch: Callable[[torch.Tensor], torch.Tensor], rate: float) -> torch.Tensor:
    """states (B, N, D) + branch(states) for a share 1 - `rate` of the samples, scaled so that the mean over all draws
    equals the full branch."""
    num_kept = max(1, int(len(states) * (1 - rate)))
    kept = torch.randperm(len(states), device=states.device)[:num_kept]
    return states.index_add(0, kept, branch(states[kept]).to(states.dtype), alpha=len(states) / num_kept)
