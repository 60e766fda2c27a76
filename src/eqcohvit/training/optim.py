"""AdamW with the usual rules for weight decay, learning rates per layer and clipping; `set_step` sets the
values of each step."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..objectives.heads import Prototypes
from .arguments import CLIPPING
from .schedules import StepValues
from .sharding import own_part, sum_over_shards

_BACKBONE = re.compile(r"(?:^|\.)backbone\.(.+)")
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


def make_optimizer(
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    patch_embed_lr_scale: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW on the trainable parameters; vectors (biases, norms, scales of LayerScale) are not decayed.

    All else is, including tokens and position embeddings, as in the official code of DINO, iBOT, DINOv2
    (`get_params_groups` there) and VICReg (`exclude_bias_and_norm`).

    Each group has an `lr_scale` (`learning_rate_scales`), and says whether it `is_backbone`, `is_last_layer` (the
    prototypes of a head) and `is_decayed`, which `set_step` reads.
    """
    scales = learning_rate_scales(module, layer_decay, patch_embed_lr_scale)
    last_layers = {id(p) for part in module.modules() if isinstance(part, Prototypes) for p in part.parameters()}
    groups: dict[tuple[bool, bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = (_BACKBONE.search(name) is not None, id(parameter) in last_layers, parameter.ndim >= 2, scales[name])
            groups.setdefault(key, []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": learning_rate * scale,
            "weight_decay": weight_decay if is_decayed else 0.0,
            "lr_scale": scale,
            "is_backbone": is_backbone,
            "is_last_layer": is_last_layer,
            "is_decayed": is_decayed,
        }
        for (is_backbone, is_last_layer, is_decayed, scale), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=learning_rate, fused=next(module.parameters()).is_cuda)


def learning_rate_scales(module: nn.Module, layer_decay: float, patch_embed_lr_scale: float = 1.0) -> dict[str, float]:
    """Layer-wise decay (arXiv:2106.08254, section 3.2): layer_decay ^ (number of layers between a parameter and the
    heads).

    In a backbone of L blocks, block i (from 0) has the factor layer_decay ^ (L - i), what comes before the blocks
    layer_decay ^ (L + 1), and the last norm and all heads 1. The patch embedding has one more factor
    (https://github.com/facebookresearch/dinov2: 0.2).
    """
    depths = {name: _depth(name) for name, _ in module.named_parameters()}
    top = 1 + max((depth for depth in depths.values() if depth is not None), default=0)
    scales = {name: layer_decay ** (top - (top if depth is None else depth)) for name, depth in depths.items()}
    return {
        name: scale * (patch_embed_lr_scale if "patch_embeddings." in name else 1.0) for name, scale in scales.items()
    }


def _depth(name: str) -> int | None:
    """0 for the embeddings of a backbone, 1 + i for its block i, None for what comes after the blocks."""
    inside = _BACKBONE.search(name)
    block = _LAYER.search(inside[1]) if inside else None
    if block:
        return 1 + int(block[1])
    return 0 if inside and "embeddings" in inside[1] else None


def set_step(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Give each parameter group the learning rate and the weight decay of the step.

    At a rate of 0 AdamW leaves a parameter bit by bit as it is, decay included. So a frozen last layer needs no other
    graph, wrapper or checkpoint than a trained one."""
    for group in optimizer.param_groups:
        rate = values.last_layer_learning_rate if group["is_last_layer"] else values.learning_rate
        group["lr"] = rate * group["lr_scale"] * (values.backbone_factor if group["is_backbone"] else 1.0)
        group["weight_decay"] = values.weight_decay if group["is_decayed"] else 0.0


@torch.no_grad()
def clip_gradients(parts: Mapping[str, nn.Module], clipping: str, max_norm: float) -> dict[str, torch.Tensor]:
    """Clip the gradients of each part separately, in place; returns `grad_norm/<part>`, its norm before.

    Called once per optimizer step, after gradients are summed over batches and processes and, with fp16, unscaled. A
    part without gradients is left out.

    So the decoders' gradient does not scale the gradients of the encoder or the objective's heads. The encoder's norm
    still includes the reconstruction's gradient that flows through the features: with `"module"`, a reconstruction with
    a large weight leaves the SSL gradient in the encoder a smaller share of `max_norm`.

    Args:
        parts: modules that share no parameter (`PretrainModule.parts`).
        clipping: `"none"`; `"module"`, the norm of each part (as in https://github.com/facebookresearch/dinov2,
            `train/train.py`); `"parameter"`, the norm of each parameter (as in https://github.com/bytedance/ibot,
            `utils.clip_gradients`).
        max_norm: what these norms are clipped to.

    Raises:
        ValueError: an unknown `clipping`.
    """
    if clipping not in CLIPPING:
        raise ValueError(f"clipping must be one of {', '.join(CLIPPING)}, got {clipping!r}")
    norms = {}
    for name, part in parts.items():
        shards = [p.grad for p in part.parameters() if p.grad is not None]
        if not shards:
            continue
        gradients = [own_part(shard) for shard in shards]
        each = torch.stack([norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)])
        if isinstance(shards[0], DTensor):
            each = sum_over_shards(each.square(), shards[0]).sqrt()
        norm = torch.linalg.vector_norm(each)
        if clipping != "none":
            factors = max_norm / ((each if clipping == "parameter" else norm.expand_as(each)) + 1e-6)
            torch._foreach_mul_(gradients, list(factors.clamp(max=1).unbind()))
        norms[f"grad_norm/{name}"] = norm
    return norms
