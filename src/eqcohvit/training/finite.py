"""Stop a run at the step whose batch gives a number that is not finite, before that step can change the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from ..data import Batch
from .sharding import of_all_processes, own_part

_FOLDER = "nonfinite"
_SHOWN = 3  # names in the message; the file has them all


def check_step(
    accelerator: Accelerator,
    output_dir: Path,
    step: int,
    terms: dict[str, torch.Tensor],
    batches: Sequence[Batch],
    module: nn.Module,
) -> None:
    """Raise if a term or a gradient norm is not finite. Called after the backward pass and before the optimizer.

    Each step reads one flag. On a GPU this waits for the backward pass, which only delays the launch of the next
    kernels. In return the current batch is known to be the cause, the weights are still those that produced the terms,
    and no checkpoint can hold broken ones.

    Args:
        step: number of this step, from 1.
        terms: scalars by name.
        batches: what this step has seen so far; saved with the values of the terms to `output_dir/nonfinite/`.

    Raises:
        FloatingPointError: on all processes at once; names the terms, and weights and gradients that are not finite.
    """
    finite = torch.stack([value.detach().float() for value in terms.values()]).isfinite().all()
    broken = (~finite).float()
    if accelerator.num_processes > 1:
        broken = accelerator.reduce(broken, reduction="sum")
    if broken.item() == 0:
        return
    values = {name: value.item() for name, value in terms.items()}
    report = {
        "step": step,
        "terms": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
        "not_finite": [name for name, value in values.items() if not math.isfinite(value)],
        "weights_not_finite": nonfinite_weights(module),
        "gradients_not_finite": [
            n for n, p in module.named_parameters() if p.grad is not None and not own_part(p.grad).isfinite().all()
        ],
    }
    path = save_batches(output_dir / _FOLDER / f"step-{step}-rank-{accelerator.process_index}", batches, report)
    terms_text = ", ".join(report["not_finite"]) or "a term of another process"
    if report["weights_not_finite"]:
        names = _first(report["weights_not_finite"])
        cause = f"the weights were not finite before this step ({names}): the step before it was too large"
    else:
        cause = "the weights were still finite"
    raise FloatingPointError(
        f"{terms_text} not finite at step {step}; {cause}. The batch is in {path}. Start again with --init_from of an "
        "earlier checkpoint and a lower learning_rate or max_grad_norm (with clip_gradients other than none)"
    )


def nonfinite_weights(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers with a number that is not finite, in the part that this process holds."""
    parts = {name: own_part(tensor) for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    return [name for name, part in parts.items() if not part.isfinite().all()]


def check_weights(module: nn.Module, step: int) -> None:
    """Raise a `FloatingPointError` on all processes if any weight is not finite: its checkpoint would be useless."""
    names = of_all_processes(nonfinite_weights(module))
    if names:
        raise FloatingPointError(
            f"weights not finite after step {step} ({_first(names)}), so that no checkpoint is written; "
            "try a lower learning_rate"
        )


def save_batches(path: Path, batches: Sequence[Batch], report: dict) -> Path:
    """Write `path`.safetensors (canvases, sizes, keys, epochs, labels) and `path`.json (the report, with keys and
    epochs to read)."""
    tensors = {
        name: torch.cat([getattr(batch, name) for batch in batches]).cpu().contiguous()
        for name in ("canvases", "sizes", "keys", "epochs", "labels")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_suffix(".safetensors"))
    readable = {**report, "keys": tensors["keys"].tolist(), "epochs": tensors["epochs"].tolist()}
    path.with_suffix(".json").write_text(json.dumps(readable, indent=1) + "\n")
    return path.with_suffix(".safetensors")


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
