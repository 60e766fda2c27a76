"""From checked settings to the parts of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..hub.modeling_eqcohvit import EqCohViTForPreTraining, start_positions
from ..objectives import OBJECTIVES, ObjectiveSizes
from ..transforms import MultiCrop, ViewRenderer, make_path
from .arguments import PretrainArguments
from .checkpoint import read_state
from .lora import add_lora
from .pretrain_module import PretrainModule
from .start import Start, normalisation, open_start, read_checkpoint_config
from .start_weights import fill, fill_model, grid_of, resize_positions


def build(
    args: PretrainArguments, checkpoint: Path | None = None, report: Callable[[str], None] = print
) -> tuple[PretrainModule, ViewRenderer]:
    """What a run trains, from the global random state where its weights are new, and what draws its views.

    Args:
        checkpoint: of the run itself, to be loaded afterwards: it knows the model without the source that the run began with.
        report: is told what was taken from `args.init_from`.

    Raises:
        ValueError: a tensor of the source does not fit; the message has the expected and the found shape.
    """
    start = open_start(args.init_from) if args.init_from and checkpoint is None else None
    module = build_module(args, build_model(args, start, checkpoint))
    mean_std = (start.image_mean, start.image_std) if start else normalisation(read_state(checkpoint) if checkpoint else {})
    if start is not None:
        report(f"starting from {start.name}: {', '.join(taken_parts(module, start, args))}; all else is new")
    return module, build_renderer(args, *mean_std)


def build_model(args: PretrainArguments, start: Start | None = None, checkpoint: Path | None = None) -> EqCohViTForPreTraining:
    """The model, freshly initialised or with the weights of `start`, and with adapters where the run trains those."""
    if checkpoint is not None:
        config = read_checkpoint_config(checkpoint)
    else:
        config = args.model_config(start.backbone_config.to_dict() if start else None)
    model = EqCohViTForPreTraining(config)
    start_positions(model.eqcohvit)
    if start is not None:
        fill_model(model, start, args.init_heads)
    if args.peft == "lora":
        add_lora(model.eqcohvit.backbone, args.lora_rank)
    return model


def taken_parts(module: PretrainModule, start: Start, args: PretrainArguments) -> list[str]:
    """Load the objective's heads and the teacher where the training state of `start` has them; names all that comes from there."""
    parts = ["backbone"]
    if start.is_split and args.init_heads:
        parts.append("feature head and decoders")
    if args.init_heads and start.objective == args.objective:
        fill(module.objective, start.state_weights("objective."), start.name)
        parts.append("the objective's heads")
        teacher = resize_positions(start.state_weights("teacher."), *grid_of(module.model.config))
        if module.teacher is not None and module.teacher.state_dict().keys() == teacher.keys():
            fill(module.teacher, teacher, start.name)
            parts.append("teacher")
        elif module.teacher is not None:  # of other adapters: it begins as a copy of the student
            module.teacher.reset(module.model.eqcohvit, module.objective.head)
    return parts


def build_module(args: PretrainArguments, model: EqCohViTForPreTraining) -> PretrainModule:
    """The model with a freshly initialised objective, and a teacher that starts as a copy of both."""
    config, masking = model.config, args.masking()
    num_patches = (config.square_image_size // config.square_patch_size) ** 2
    sizes = ObjectiveSizes(
        invariant_dim=config.invariant_dim,
        equivariant_dim=config.equivariant_dim,
        projector_dim=args.projector_dim,
        patch_size=config.square_patch_size,
        max_masked=masking.max_masked(num_patches) if masking else 0,
        parameter_limits=make_path(args.path, args.path_magnitude).limits,
    )
    objective = OBJECTIVES[args.objective](sizes, args.parsed_objective_options())
    return PretrainModule(model, objective, args.recon_weight, args.recon_from, masking.max_masked_views if masking else 0, args.separation)


def build_renderer(
    args: PretrainArguments, image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN, image_std: Sequence[float] = IMAGENET_DEFAULT_STD
) -> ViewRenderer:
    """What draws the views of a batch, normalised with a mean and a standard deviation per channel."""
    return ViewRenderer(
        make_path(args.path, args.path_magnitude),
        args.image_size,
        args.num_intermediates,
        args.augmentation,
        args.border,
        mean=tuple(image_mean),
        std=tuple(image_std),
        include_final=args.include_final,
        local_crops=MultiCrop(args.local_crops_number, args.local_crops_size) if args.local_crops_number else None,
        masking=args.masking(),
        patch_size=args.patch_size,
        seed=args.seed,
    )
