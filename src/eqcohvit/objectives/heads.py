"""Projection heads that the objectives put on the invariant part; training state, not part of the released model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .distributed import all_sum, world_size


class SyncedBatchNorm(nn.BatchNorm1d):
    """Batch normalization over the batch of all processes, on any device; in one process plain `nn.BatchNorm1d`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, d) -> (B, d)."""
        if world_size() == 1 or not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        values = input.float()
        count = len(values) * world_size()
        mean = all_sum(values.sum(dim=0)) / count
        variance = all_sum((values - mean).square().sum(dim=0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        normalized = (values - mean) * torch.rsqrt(variance + self.eps)
        return (normalized * self.weight + self.bias).to(input.dtype)


def projector(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """MLP with batch normalization and ReLU between its linear layers: (B, in_dim) -> (B, out_dim)."""
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(in_dim, hidden_dim, bias=False), SyncedBatchNorm(hidden_dim), nn.ReLU()]
        in_dim = hidden_dim
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))


class Prototypes(nn.Module):
    """The last layer of a DINO head, with weight normalization: cosines with K prototypes, times a gain of each.

    The gain, (K, 1), begins with 1. It stays 1 if `norm_last_layer`, else it is trained, as in
    https://github.com/facebookresearch/dinov2 and for the ViT-S of https://github.com/bytedance/ibot.

    In float32, also under autocast: the temperatures stretch what rounding would do to a cosine.
    """

    def __init__(self, in_dim: int, num_prototypes: int, norm_last_layer: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prototypes, in_dim))
        self.gain = None if norm_last_layer else nn.Parameter(torch.ones(num_prototypes, 1))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., in_dim) -> (..., K)."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(features.float(), dim=-1), self._scaled())

    def rows_and_mean(self, features: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, in_dim) -> the results of `forward` for the chosen rows (R, K), and the mean (K,) of all M results, which
        are not computed."""
        with torch.autocast(features.device.type, enabled=False):
            units, scaled = F.normalize(features.float(), dim=-1), self._scaled()
            return F.linear(units[rows], scaled), F.linear(units.mean(dim=0), scaled)

    def _scaled(self) -> torch.Tensor:
        """Prototypes of length 1 times their gains. One kernel, where separate operations on (K, in_dim) would be most
        of a small batch's step."""
        weight = self.weight.float()
        gain = weight.new_ones(len(weight), 1) if self.gain is None else self.gain.float()
        return torch._weight_norm(weight, gain, 0)


class DINOHead(nn.Module):
    """MLP of three layers with GELU to a bottleneck, then prototypes (arXiv:2104.14294, section 3.1): (..., in_dim) ->
    (..., K)."""

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, num_prototypes: int, norm_last_layer: bool):
        super().__init__()
        widths = (in_dim, hidden_dim, hidden_dim, bottleneck_dim)
        layers: list[nn.Module] = []
        for width, next_width in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width, next_width), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = Prototypes(bottleneck_dim, num_prototypes, norm_last_layer)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.prototypes(self.mlp(features))

    def rows_and_mean(self, features: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (R, K) of the chosen rows of features (M, in_dim), and the mean (K,) of the logits of all rows."""
        return self.prototypes.rows_and_mean(self.mlp(features), rows)


@dataclass(frozen=True)
class HeadOutputs:
    """Logits: cls (V, B, K), local (L, B, K) or None, patches (..., K) or None.

    If only some patches were chosen, `patches` is theirs, and `patch_mean` (K,) is the mean of all patches.
    """

    cls: torch.Tensor
    local: torch.Tensor | None
    patches: torch.Tensor | None
    patch_mean: torch.Tensor | None = None


class TokenHeads(nn.Module):
    """Heads for CLS and for patch features: one for both, or one for each."""

    def __init__(
        self,
        shared: bool,
        in_dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        num_prototypes: int,
        norm_last_layer: bool,
    ):
        super().__init__()
        self.cls = DINOHead(in_dim, hidden_dim, bottleneck_dim, num_prototypes, norm_last_layer)
        self.patch = None if shared else DINOHead(in_dim, hidden_dim, bottleneck_dim, num_prototypes, norm_last_layer)

    def forward(
        self,
        cls: torch.Tensor,
        local: torch.Tensor | None,
        patches: torch.Tensor | None,
        chosen: torch.Tensor | None = None,
    ) -> HeadOutputs:
        """Features -> logits: CLS (V, B, d) of the global views and (L, B, d) of the local crops, patches (..., d).

        `chosen` (R,) are indices into the flattened patches: of the others, only the mean of their logits is computed.
        """
        every = cls if local is None else torch.cat([cls, local])
        patch_logits = patch_mean = None
        if patches is not None and chosen is None and self.patch is None:  # the prototypes are scaled once
            tokens = [every.flatten(0, 1), patches.flatten(0, -2)]
            of_tokens, of_patches = self.cls(torch.cat(tokens)).split([len(rows) for rows in tokens])
            logits = of_tokens.unflatten(0, every.shape[:2])
            patch_logits = of_patches.unflatten(0, patches.shape[:-1])
        else:
            logits = self.cls(every)
            head = self.patch or self.cls
            if chosen is not None:
                assert patches is not None
                patch_logits, patch_mean = head.rows_and_mean(patches.flatten(0, -2), chosen)
            elif patches is not None:
                patch_logits = head(patches)
        of_local = None if local is None else logits[len(cls) :]
        return HeadOutputs(logits[: len(cls)], of_local, patch_logits, patch_mean)
