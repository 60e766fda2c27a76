"""Optimizer and schedules, as pure functions of the step."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

_BACKBONE = re.compile(r"(?:^|\.)backbone\.(.+)")
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_NOT_DECAYED = ("position_embeddings", "cls_token", "mask_token", "register_tokens")


def make_optimizer(
    module: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW on the trainable parameters; biases, norms, tokens and position embeddings are not decayed.

    Each group has an `lr_scale` (`learning_rate_scales`) and `is_backbone`, which `set_learning_rate` reads.
    """
    scales = learning_rate_scales(module, layer_decay)
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.endswith(_NOT_DECAYED)
            key = (_BACKBONE.search(name) is not None, scales[name], 0.0 if exempt else weight_decay)
            groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale, "is_backbone": is_backbone, "lr": learning_rate * scale}
        for (is_backbone, scale, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=learning_rate, betas=betas, fused=next(module.parameters()).is_cuda)


def learning_rate_scales(module: nn.Module, layer_decay: float) -> dict[str, float]:
    """Layer-wise decay (arXiv:2106.08254, section 3.2): layer_decay ^ (number of layers between a parameter and the heads).

    In a backbone of L blocks, block i (from 0) has the factor layer_decay ^ (L - i), what comes before the blocks
    layer_decay ^ (L + 1), and the last norm and all heads 1.
    """
    depths = {name: _depth(name) for name, _ in module.named_parameters()}
    top = 1 + max((depth for depth in depths.values() if depth is not None), default=0)
    return {name: layer_decay ** (top - (top if depth is None else depth)) for name, depth in depths.items()}


def _depth(name: str) -> int | None:
    """0 for the embeddings of a backbone, 1 + i for its block i, None for what comes after the blocks."""
    inside = _BACKBONE.search(name)
    block = _LAYER.search(inside[1]) if inside else None
    if block:
        return 1 + int(block[1])
    return 0 if inside and "embeddings" in inside[1] else None


def warmup_cosine(step: int, max_steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Linear from 0 to `peak` over `warmup_steps`, then a half cosine to `final` at `max_steps`; step counts from 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * min(1.0, progress)))


def backbone_warmup(step: int, head_warmup_steps: int, warmup_steps: int) -> float:
    """Factor of the backbone's learning rate: 0 while the heads warm up alone, then linear to 1 over `warmup_steps`."""
    if step < head_warmup_steps:
        return 0.0
    return min(1.0, (step - head_warmup_steps + 1) / warmup_steps) if head_warmup_steps and warmup_steps else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float, backbone_factor: float = 1.0) -> None:
    """Give each parameter group this learning rate times its `lr_scale`, and times `backbone_factor` where it is of the backbone.

    At a rate of 0 AdamW leaves a parameter bit by bit as it is, decay included: a frozen backbone that needs no other graph, wrapper or
    checkpoint than a trained one.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"] * (backbone_factor if group["is_backbone"] else 1.0)
