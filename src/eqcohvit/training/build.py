"""From checked settings to the parts of a run."""

from __future__ import annotations

from ..hub.modeling_eqcohvit import EqCohViTForPreTraining, start_positions
from ..objectives import OBJECTIVES, ObjectiveSizes
from ..transforms import MultiCrop, ViewRenderer, make_path
from .arguments import PretrainArguments
from .pretrain_module import PretrainModule


def build_model(args: PretrainArguments) -> EqCohViTForPreTraining:
    """A freshly initialised model, from the global random state."""
    model = EqCohViTForPreTraining(args.model_config())
    start_positions(model.eqcohvit)
    return model


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
    return PretrainModule(model, objective, args.recon_weight, args.recon_from)


def build_renderer(args: PretrainArguments) -> ViewRenderer:
    """What draws the views of a batch."""
    return ViewRenderer(
        make_path(args.path, args.path_magnitude),
        args.image_size,
        args.num_intermediates,
        args.augmentation,
        args.border,
        include_final=args.include_final,
        local_crops=MultiCrop(args.local_crops_number, args.local_crops_size) if args.local_crops_number else None,
        masking=args.masking(),
        patch_size=args.patch_size,
        seed=args.seed,
    )
