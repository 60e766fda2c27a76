"""The method of the paper as one module: views in, named loss terms out (section 3, `L_total = L_SSL + lambda * L_recon`)."""

from __future__ import annotations

import torch
from torch import nn

from ..hub.modeling_eqcohvit import EqCohViTForPreTraining, pool_tokens, reconstruction_losses
from ..objectives import Objective


class PretrainModule(nn.Module):
    """Encoder, decoders and objective together, so that one wrapper (DDP, mixed precision) covers all that is trained.

    Args:
        model: encoder with its split head and decoders; what is exported in the end.
        objective: the SSL loss on the invariant part, with its own heads.
        recon_weight: lambda. At 0 the decoders are left out: the pure SSL baseline.
    """

    def __init__(self, model: EqCohViTForPreTraining, objective: Objective, recon_weight: float):
        super().__init__()
        if recon_weight < 0:
            raise ValueError(f"recon_weight must not be negative, got {recon_weight}")
        self.model, self.objective, self.recon_weight = model, objective, recon_weight
        if recon_weight == 0:
            model.decoders.requires_grad_(False)

    def forward(self, first: torch.Tensor, end: torch.Tensor, intermediates: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Views v1, v2 (B, 3, H, H) and targets (B, K, 3, H, H) -> terms.

        `loss` is what to minimise; `ssl/...` sum up to the SSL loss; `recon/u_k` are the mean squared errors of the K states before the
        weight; `std/...` are the parts' mean standard deviations over the batch, near 0 when a part has collapsed.
        """
        config = self.model.config
        outputs = self.model.eqcohvit(torch.cat([first, end]))
        pooled = pool_tokens(outputs.invariant_features, config.num_prefix_tokens, "cls")
        terms = self.objective(*pooled.chunk(2))
        loss = torch.stack(list(terms.values())).sum()
        if self.recon_weight > 0:
            reconstructions = self.model.reconstruct(*outputs.equivariant_features.chunk(2), first.shape[-2:])
            errors = reconstruction_losses(reconstructions, intermediates)
            loss = loss + self.recon_weight * errors.mean()
            terms |= {f"recon/u_{k}": error for k, error in enumerate(errors.unbind(), start=1)}
        with torch.no_grad():
            equivariant = pool_tokens(outputs.equivariant_features, config.num_prefix_tokens, "mean")
            terms["std/invariant"] = pooled.float().std(dim=0).mean()
            terms["std/equivariant"] = equivariant.float().std(dim=0).mean()
        return {"loss": loss, **terms}
