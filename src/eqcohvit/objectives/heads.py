"""Projection heads that the objectives put on the invariant part; training state, not part of the released model."""

from __future__ import annotations

import torch
from torch import nn

from .distributed import all_sum, world_size


class SyncedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the batch of all processes, on any device; in one process plain `nn.BatchNorm1d`."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, d) -> (B, d)."""
        if world_size() == 1 or not self.training:
            return super().forward(features)
        values = features.float()
        count = len(values) * world_size()
        mean = all_sum(values.sum(dim=0)) / count
        variance = all_sum((values - mean).square().sum(dim=0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        normalised = (values - mean) * torch.rsqrt(variance + self.eps)
        return (normalised * self.weight + self.bias).to(features.dtype)


def projector(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """MLP with batch normalisation and ReLU between its linear layers: (B, in_dim) -> (B, out_dim)."""
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(in_dim, hidden_dim, bias=False), SyncedBatchNorm(hidden_dim), nn.ReLU()]
        in_dim = hidden_dim
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))
