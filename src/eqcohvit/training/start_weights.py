"""Load starting weights into a model; raise an error on the first name or shape that does not match."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel

from ..files import first_line
from ..hub.configuration_eqcohvit import FAMILIES
from ..hub.modeling_eqcohvit import EqCohViTForPreTraining, EqCohViTModel
from ..loading import check_loaded, load_whole, resize_positions
from ..preprocessing import Preprocessing, read_preprocessing
from .start import Start, Weights, part_of, read_config


@dataclass(frozen=True)
class Entry:
    """What happened to one key of the source, or where one key of the target came from."""

    action: str  # "copied", "split", "dropped" or "new"
    source: str | None
    targets: tuple[str, ...]
    shape: tuple[int, ...]


def read_transformers(source: str) -> tuple[dict, Weights, list[Entry], Preprocessing]:
    """Configuration, tensors, report and preprocessing of a transformers ViT."""
    config = read_config(source)
    if config.model_type not in FAMILIES:
        raise ValueError(f"{source}: expected a model_type of {', '.join(FAMILIES)}, found {config.model_type!r}")
    try:
        model, info = AutoModel.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"no weights at {source}: {first_line(error)}") from None
    check_loaded(model, info, source)
    weights = {}
    report = [Entry("dropped", key, (), ()) for key in sorted(info["unexpected_keys"])]
    for key, tensor in model.state_dict().items():
        kept = not key.startswith("pooler.")
        report.append(Entry("copied" if kept else "dropped", key, (key,) if kept else (), tuple(tensor.shape)))
        if kept:
            weights[key] = tensor
    return config.to_dict(), weights, report, read_preprocessing(source, config)


def fill(module: nn.Module, weights: Weights, source: str, report: list[Entry] | None = None) -> None:
    """Load the tensors. Names and shapes must match on both sides; only a mask token may be missing or left over.

    Raises:
        ValueError: names the first tensor that does not fit, with the expected and the found shape.
    """
    weights = dict(weights)
    report = [] if report is None else report
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    for key in [key for key in weights if key not in expected and key.endswith("mask_token")]:
        weights.pop(key)  # the backbone was made without masking
        for index, entry in enumerate(report):
            if key in entry.targets:
                report[index] = dataclasses.replace(entry, action="dropped", targets=())
    for key in [key for key in expected if key not in weights and key.endswith("mask_token")]:
        report.append(Entry("new", None, (key,), expected.pop(key)))
    problems: list[tuple[set[str], Callable[[str], str]]] = [
        (
            expected.keys() - weights.keys(),
            lambda key: f"expected {key} of shape {expected[key]}, found nothing of that name",
        ),
        (
            weights.keys() - expected.keys(),
            lambda key: f"found {key} of shape {tuple(weights[key].shape)}, which has no place",
        ),
        (
            {key for key in expected if key in weights and tuple(weights[key].shape) != expected[key]},
            lambda key: f"expected {key} of shape {expected[key]}, found {tuple(weights[key].shape)}",
        ),
    ]
    for keys, describe in problems:
        if keys:
            raise ValueError(f"{source}: {describe(sorted(keys)[0])} ({len(keys)} such tensors)")
    module.load_state_dict(weights, strict=False)


def fill_model(model: EqCohViTForPreTraining, start: Start, heads: bool) -> None:
    """Load the backbone's weights and, with `heads`, the feature head and decoders of a source that has them."""
    weights = _split_weights(start, heads) if start.is_split else read_transformers(start.source)[1]
    weights = resize_positions(weights, model.config)
    if start.is_split and heads:
        fill(model, weights, start.name)
    else:
        fill(model.eqcohvit.backbone, part_of(weights, "eqcohvit.backbone.") if start.is_split else weights, start.name)


def _split_weights(start: Start, heads: bool) -> Weights:
    if start.is_checkpoint:
        weights = start.state_weights("model.")
        if any(".lora_A." in key for key in weights):
            raise ValueError(
                f"{start.name} is a checkpoint of a LoRA run: "
                "start from its model folder, where the adapters are merged"
            )
        return weights
    if not heads:
        weights = load_whole(EqCohViTModel, start.source, dtype=torch.float32).state_dict()
        return {f"eqcohvit.{key}": tensor for key, tensor in weights.items()}
    try:
        return load_whole(EqCohViTForPreTraining, start.source, dtype=torch.float32).state_dict()
    except ValueError as error:
        hint = "; --no-init_heads begins with new heads and decoders" if " first decoders." in str(error) else ""
        raise ValueError(f"{error}{hint}") from None
