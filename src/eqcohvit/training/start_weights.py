"""Load starting weights into a model; raise an error on the first name or shape that does not match."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, PreTrainedModel

from ..files import first_line
from ..hub.configuration_eqcohvit import FAMILIES
from ..hub.modeling_eqcohvit import EqCohViTForPreTraining, EqCohViTModel
from ..loading import check_loaded, load_whole, read_config, resize_positions
from .start import Start, Weights, part_of


def load_vit(source: str) -> tuple[PreTrainedModel, list[str]]:
    """A transformers ViT, and the names of the tensors of the source that it does not have, such as those of a head.

    Raises:
        ValueError: it cannot be loaded, or is of no known family.
    """
    read_config(source, types=tuple(FAMILIES))
    try:
        model, info = AutoModel.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"no weights at {source}: {first_line(error)}") from None
    check_loaded(model, info, source)
    return model, sorted(info["unexpected_keys"])


def backbone_weights(vit: PreTrainedModel) -> Weights:
    """The tensors of a ViT without those of a pooler, which no feature depends on."""
    return {key: tensor for key, tensor in vit.state_dict().items() if not key.startswith("pooler.")}


def fill(module: nn.Module, weights: Weights, source: str) -> None:
    """Load the tensors. Names and shapes must match on both sides; only a mask token may be missing or left over,
    because one side may be made without masking.

    Raises:
        ValueError: names the first tensor that does not fit, with the expected and the found shape.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    missing = [key for key in expected if key not in found and not key.endswith("mask_token")]
    left_over = [key for key in found if key not in expected and not key.endswith("mask_token")]
    changed = [key for key in expected if key in found and found[key] != expected[key]]
    wrong = missing or left_over or changed
    if wrong:
        name = min(wrong)
        problem = f"expected {name} of shape {expected.get(name)}, found {found.get(name, 'nothing of that name')}"
        if name in left_over:
            problem = f"found {name} of shape {found[name]}, which has no place"
        raise ValueError(f"{source}: {problem} ({len(wrong)} such tensors)")
    module.load_state_dict({key: weights[key] for key in weights if key in expected}, strict=False)


def fill_model(model: EqCohViTForPreTraining, start: Start, heads: bool) -> None:
    """Load the backbone's weights and, with `heads`, the feature head and decoders of a source that has them."""
    weights = _split_weights(start, heads) if start.is_split else backbone_weights(load_vit(start.source)[0])
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
