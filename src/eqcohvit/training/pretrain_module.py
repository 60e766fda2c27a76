"""The method of the paper as one module: views in, named loss terms out (section 3,
`L_total = L_SSL + lambda * L_recon`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from ..hub.decoders_eqcohvit import reconstruction_losses
from ..hub.modeling_eqcohvit import EqCohViTForPreTraining, EqCohViTModel, pool_tokens
from ..objectives import Objective, ObjectiveInputs, Tokens
from ..objectives.separation import Separation
from ..transforms import Views
from .health import rankme
from .schedules import StepValues
from .sharding import set_whole, whole
from .teacher import Teacher

_Result = TypeVar("_Result")


class PretrainModule(nn.Module):
    """Encoder, decoders, objective and teacher together, so that one wrapper (DDP, mixed precision) and one checkpoint
    cover them all.

    Args:
        model: encoder with its split head and decoders; what is exported in the end.
        objective: the SSL loss on the invariant part, with its own heads.
        recon_weight: lambda. At 0 the decoders are left out: the pure SSL baseline.
        recon_from: if patches are hidden from the student, the decoders read the features of a second pass over the
            `"unmasked"` views, or those of the `"masked"` ones. scripts/recipes/README.md gives the reason.
        invariant_rank: number of directions of the tokens that the invariant part reads, those most alike in both views
            (`objectives.separation`); 0 leaves the part as the SSL loss makes it, as in the paper.
        separation_start: optimizer steps before this restriction begins.
    """

    def __init__(
        self,
        model: EqCohViTForPreTraining,
        objective: Objective,
        recon_weight: float,
        recon_from: str = "unmasked",
        invariant_rank: int = 0,
        separation_start: int = 0,
    ):
        super().__init__()
        if recon_weight < 0:
            raise ValueError(f"recon_weight must not be negative, got {recon_weight}")
        if recon_from not in ("masked", "unmasked"):
            raise ValueError(f"recon_from must be masked or unmasked, got {recon_from!r}")
        self.model = model
        self.objective = objective
        self.recon_weight = recon_weight
        self.recon_from = recon_from
        self.teacher = Teacher(model.eqcohvit, objective.head) if objective.uses_teacher else None
        if invariant_rank > model.config.invariant_dim:
            raise ValueError(
                f"invariant_rank must be at most d_inv, {model.config.invariant_dim}, got {invariant_rank}"
            )
        self.separation = None
        if invariant_rank:
            self.separation = Separation(model.config.hidden_size, invariant_rank, separation_start)
        if recon_weight == 0:
            model.decoders.requires_grad_(False)

    def parts(self) -> dict[str, nn.Module]:
        """Modules that hold all trained parameters, each in one of them: what is clipped apart
        (`optim.clip_gradients`)."""
        return {"encoder": self.model.eqcohvit, "objective": self.objective, "decoders": self.model.decoders}

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of the layers that sharding gathers one by one; Accelerate reads it."""
        return sorted({type(module).__name__ for module in self.model.modules()} & set(self.model._no_split_modules))

    def call(self, function: Callable[[], _Result]) -> _Result:
        """`function()`; a place for a wrapper that gathers weights before and frees them after it
        (`sharding.with_weights`)."""
        return function()

    def forward(self, views: Views, values: StepValues) -> dict[str, torch.Tensor]:
        """The views of B images and the values of the step -> terms.

        `loss` is what to minimize; `ssl/...` sum up to the SSL loss; `recon/u_k` (`recon/v2` for the final state) are
        the mean squared errors before the weight; `std/...` are the parts' mean standard deviations over the batch,
        near 0 when a part has collapsed. In a step that is logged also `rank/...`, the effective ranks of the parts of
        this process's images (`health.rankme`).
        """
        # A tensor, because a graph would be compiled for each number.
        temperature = torch.full((), values.teacher_temperature, device=views.first.device)
        terms, pooled, tokens = self._compute(views, temperature, values.backbone_factor > 0)
        if self.separation is not None and self.training:
            assert tokens is not None
            self.separation.update(*tokens)
            terms["separation/correlation"] = self.separation.correlation.float()
        if values.is_logged:
            with torch.no_grad():
                terms |= {f"rank/{part}": rankme(features) for part, features in pooled.items()}
        return terms

    def compile(self, **kwargs: Any) -> None:
        """Compile what every step computes by `torch.compile`, in place; logged steps share the graph."""
        self._compute = torch.compile(self._compute, **kwargs)

    def _compute(
        self, views: Views, teacher_temperature: torch.Tensor, backbone_learns: bool
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor | None]:
        """All terms but the ranks, the pooled parts (2 B, d), and for the separation the backbone's tokens, CLS and
        mean, (2, B, 2, D). The backbone gets gradients only if it learns."""
        images = torch.cat([views.first, views.end])
        masks = None if views.masks is None else views.masks.transpose(0, 1)
        to_invariant, to_equivariant = parts_of_head(self.model.eqcohvit)
        tokens = self._run_backbone(images, masks, backbone_learns)
        equivariant = None
        if self.recon_weight > 0 and (masks is None or self.recon_from == "masked"):
            equivariant = to_equivariant(tokens)
        inputs = ObjectiveInputs(
            invariant=self._tokens(tokens, to_invariant),
            equivariant=self._tokens(tokens, to_equivariant) if equivariant is None else self._tokens(equivariant),
            images=images.unflatten(0, (2, -1)),
            parameters=views.parameters,
            local=None if views.local is None else to_invariant(self._local_cls(views.local, backbone_learns)),
            masks=masks,
            teacher=self._teach(images),
            teacher_temperature=teacher_temperature,
        )
        terms = self.objective(inputs, self.teacher.head if self.teacher else None)
        loss = torch.stack([value for name, value in terms.items() if name.startswith("ssl/")]).sum()
        if self.recon_weight > 0:
            if equivariant is None:
                equivariant = to_equivariant(self._run_backbone(images, None, backbone_learns))
            errors = self._reconstruction_errors(equivariant, views)
            loss = loss + self.recon_weight * torch.stack(list(errors.values())).mean()
            terms |= errors
        with torch.no_grad():
            mean = self._patches(tokens).mean(dim=1)
            pooled = {"invariant": inputs.invariant.cls.flatten(0, 1), "equivariant": to_equivariant(mean)}
            terms |= {f"std/{part}": features.float().std(dim=0).mean() for part, features in pooled.items()}
            cls_and_mean = None
            if self.separation is not None:
                cls_and_mean = torch.stack([self._pool(tokens), mean], dim=1).unflatten(0, (2, -1))
        return {"loss": loss, **terms}, {part: features.detach() for part, features in pooled.items()}, cls_and_mean

    def _local_cls(self, crops: torch.Tensor, backbone_learns: bool) -> torch.Tensor:
        """Local crops (B, L, 3, h, h) -> the backbone's CLS tokens (L, B, D)."""
        tokens = self._run_backbone(crops.transpose(0, 1).flatten(0, 1), None, backbone_learns)
        return self._pool(tokens).unflatten(0, (crops.shape[1], -1))

    def _run_backbone(self, images: torch.Tensor, masks: torch.Tensor | None, learns: bool) -> torch.Tensor:
        """Tokens (n, P + N, D) of images (n, 3, h, h), hidden where masks (V, n / V, N) are true."""
        kwargs = {} if masks is None else {"bool_masked_pos": masks.flatten(0, 1)}
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self.model.eqcohvit._run_backbone(images, **kwargs).last_hidden_state

    @torch.no_grad()
    def _teach(self, images: torch.Tensor) -> Tokens | None:
        if self.teacher is None:
            return None
        encoder = self.teacher.encoder
        return self._tokens(encoder._run_backbone(images).last_hidden_state, parts_of_head(encoder)[0])

    def _pool(self, features: torch.Tensor) -> torch.Tensor:
        return pool_tokens(features, self.model.eqcohvit.num_prefix_tokens, "cls")

    def _tokens(self, features: torch.Tensor, project: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Tokens:
        """Features (V * B, P + N, d), or tokens (V * B, P + N, D) and their projection."""
        cls = self._pool(features)
        cls = cls if project is None else project(cls)
        return Tokens(cls.unflatten(0, (2, -1)), self._patches(features).unflatten(0, (2, -1)), project)

    def _patches(self, features: torch.Tensor) -> torch.Tensor:
        return pool_tokens(features, self.model.eqcohvit.num_prefix_tokens, "patches")

    def _reconstruction_errors(self, equivariant: torch.Tensor, views: Views) -> dict[str, torch.Tensor]:
        config = self.model.config
        assert views.intermediates is not None  # rendered with every batch that is trained on
        first, end = equivariant.chunk(2)
        height, width = views.first.shape[-2:]
        reconstructions = self.model.reconstruct(first, end, (height, width))
        errors = reconstruction_losses(reconstructions, views.intermediates).mean(dim=0)
        names = [f"recon/u_{k}" for k in range(1, config.num_intermediates + 1)] + ["recon/v2"] * config.include_final
        # Copies, because sharding warns about views of tensors.
        return {name: error.clone() for name, error in zip(names, errors, strict=True)}

    def after_step(self, step: int, teacher_momentum: float) -> None:
        """Separate the parts and move the teacher; `step` is the one that was just finished, counted from 0."""
        if self.separation is not None:
            weight = self.model.eqcohvit.feature_head.weight.detach()
            every_row = whole(weight)
            self.separation.apply_to(every_row[: self.model.config.invariant_dim], step)
            set_whole(weight, every_row)
        if self.teacher:
            self.teacher.update(self.model.eqcohvit, self.objective.head, teacher_momentum)


def parts_of_head(encoder: EqCohViTModel) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """The maps from the backbone's tokens (..., D) to their invariant part (..., d_inv) and their equivariant part
    (..., d_equi).

    A head of thousands of dimensions takes a tenth of a pass, so that each part is computed only for what reads it.
    """
    head = encoder.feature_head
    parts = slice(None, encoder.config.invariant_dim), slice(encoder.config.invariant_dim, None)
    return [lambda tokens, rows=rows: F.linear(tokens, head.weight[rows], head.bias[rows]) for rows in parts]
