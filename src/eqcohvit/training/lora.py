"""Low-rank adapters (LoRA, arXiv:2106.09685) in the backbone: an existing encoder is adapted at a fraction of the
training memory.

The backbone's own weights stay as they are, so that they need neither gradients nor optimizer state, and a teacher can
share them.
"""

from __future__ import annotations

import copy

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel


def add_lora(backbone: PreTrainedModel, rank: int) -> None:
    """Adapters, in place, beside all linear layers of the backbone; everything else is frozen except a mask token.

    The adapters are scaled by 2, and start at 0: the backbone's outputs do not change.
    """
    linear = [name for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), backbone)
    for name, parameter in backbone.named_parameters():
        if name.endswith("mask_token"):  # a checkpoint seldom has a trained one
            parameter.requires_grad_(True)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with the adapters merged into the weights, which computes the same; the model itself if it has no
    adapters."""
    if not any(isinstance(layer, LoraLayer) for layer in model.modules()):
        return model
    model = copy.deepcopy(model)
    for name, layer in [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]:
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    for module in model.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config
    return model.requires_grad_(True)
