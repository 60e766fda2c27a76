"""Build the parts of a run from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..files import WEIGHTS_FILE
from ..hub.modeling_eqcohvit import EqCohViTForPreTraining, start_positions
from ..loading import resize_positions
from ..objectives import OBJECTIVES, ObjectiveSizes
from ..preprocessing import Preprocessing, read_preprocessing
from ..transforms import ViewRenderer, make_path
from .arguments import PretrainArguments
from .lora import add_lora
from .pretrain_module import PretrainModule
from .start import Start, open_start, part_of, read_checkpoint_config
from .start_weights import fill, fill_model
from .stochastic_depth import leave_out_dropped


def build(
    args: PretrainArguments, checkpoint: Path | None = None, report: Callable[[str], None] = print
) -> tuple[PretrainModule, ViewRenderer]:
    """The module that a run trains and the renderer of its views. New weights are drawn from torch's random state.

    Args:
        checkpoint: a checkpoint of the run itself, which the caller loads afterwards. It describes the model, so that
            `args.init_from` is not needed again.
        report: called with a line that says what was taken from `args.init_from`.

    Raises:
        ValueError: a tensor of the source does not fit; the message has the expected and the found shape.
    """
    start = open_start(args.init_from) if args.init_from and checkpoint is None else None
    module = build_module(args, build_model(args, start, checkpoint))
    preprocessing = Preprocessing(args.image_size)
    if start is not None:
        preprocessing = start.preprocessing
    elif checkpoint is not None:
        preprocessing = read_preprocessing(str(checkpoint), read_checkpoint_config(checkpoint))
    if start is not None:
        report(f"starting from {start.name}: {', '.join(taken_parts(module, start, args))}; all else is new")
    return module, build_renderer(args, preprocessing.mean, preprocessing.std)


def build_model(
    args: PretrainArguments, start: Start | None = None, checkpoint: Path | None = None
) -> EqCohViTForPreTraining:
    """The model, newly initialized or with the weights of `start`; with adapters if the run trains adapters."""
    if checkpoint is not None:
        config = read_checkpoint_config(checkpoint)
    else:
        config = args.model_config(start.backbone_config.to_dict() if start else None)
    model = EqCohViTForPreTraining(config)
    start_positions(model.eqcohvit)
    if args.drop_path_schedule == "linear":
        make_drop_path_linear(model.eqcohvit.backbone)
    leave_out_dropped(model.eqcohvit.backbone)
    if start is not None:
        fill_model(model, start, args.init_heads)
    if args.peft == "lora":
        add_lora(model.eqcohvit.backbone, args.lora_rank)
    if args.freeze_backbone:
        model.eqcohvit.backbone.requires_grad_(False)
    return model


def build_saved_model(args: PretrainArguments, checkpoint: Path) -> EqCohViTForPreTraining:
    """The model of a checkpoint with its weights, on the CPU; torch's random state does not change."""
    with torch.random.fork_rng():
        model = build_model(args, checkpoint=checkpoint)
    fill(model, part_of(load_file(checkpoint / WEIGHTS_FILE), "model."), str(checkpoint))
    return model


def make_drop_path_linear(backbone: nn.Module) -> None:
    """Let stochastic depth rise linearly from 0 in the first layer to the configured rate in the last.

    The rule of arXiv:1603.09382, section 3, of timm and of iBOT; DINOv2 was trained with one rate
    (`drop_path_uniform: true`).
    """
    # One per layer, none at a rate of 0.
    layers: list[Any] = [module for module in backbone.modules() if hasattr(module, "drop_prob")]
    for index, layer in enumerate(layers):
        layer.drop_prob = layer.drop_prob * index / max(1, len(layers) - 1)


def freeze_layer_scale(backbone: nn.Module) -> None:
    """Do not train the scales of the residual branches: they stay 1 in a new backbone, which has no effect (iBOT)."""
    for name, parameter in backbone.named_parameters():
        if name.endswith("lambda1"):
            parameter.requires_grad_(False)


def taken_parts(module: PretrainModule, start: Start, args: PretrainArguments) -> list[str]:
    """Load the objective's heads and the teacher if `start` has them; return the names of all parts that it has."""
    parts = ["backbone"]
    if start.is_split and args.init_heads:
        parts.append("feature head and decoders")
    if args.init_heads and start.objective == args.objective:
        fill(module.objective, start.state_weights("objective."), start.name)
        parts.append("the objective's heads")
        teacher = resize_positions(start.state_weights("teacher."), module.model.config)
        if module.teacher is not None and module.teacher.state_dict().keys() == teacher.keys():
            fill(module.teacher, teacher, start.name)
            parts.append("teacher")
        elif module.teacher is not None:  # the adapters differ: it begins as a copy of the student
            module.teacher.reset(module.model.eqcohvit, module.objective.head)
    return parts


def build_module(args: PretrainArguments, model: EqCohViTForPreTraining) -> PretrainModule:
    """The model with a newly initialized objective, and a teacher that starts as a copy of both."""
    config = model.config
    sizes = ObjectiveSizes(
        invariant_dim=config.invariant_dim,
        equivariant_dim=config.equivariant_dim,
        projector_dim=args.projector_dim,
        patch_size=config.square_patch_size,
        parameter_limits=make_path(args.path).limits,
    )
    objective = OBJECTIVES[args.objective](sizes, args.parsed_objective_options())
    start = int(args.invariant_rank_start * args.max_steps)
    rank = args.separation_rank(config.invariant_dim, config.hidden_size)
    module = PretrainModule(model, objective, args.recon_weight, args.recon_from, rank, start)
    # After the teacher is made: it shares weights that are frozen by then, and it must stay whole.
    if args.layerscale_value == 0:
        freeze_layer_scale(model.eqcohvit.backbone)
    return module


def build_renderer(
    args: PretrainArguments,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> ViewRenderer:
    """The renderer of a batch's views, normalized with a mean and a standard deviation per channel."""
    return ViewRenderer(
        make_path(args.path),
        args.image_size,
        args.num_intermediates,
        args.augmentation,
        args.border,
        mean=tuple(image_mean),
        std=tuple(image_std),
        include_final=args.include_final,
        local_crops=args.multi_crop(),
        masking=args.masking(),
        patch_size=args.patch_size,
        seed=args.seed,
    )
