"""The feature head on the tokens that are read gives the losses, and all weights the gradients, of the head on all."""

import pytest
import torch

from eqcohvit.hub.modeling_eqcohvit import pool_tokens
from eqcohvit.objectives import ObjectiveInputs, Tokens
from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_model, build_module
from eqcohvit.training.schedules import StepValues
from eqcohvit.transforms import Views

VALUES = StepValues(1e-3, 1e-3, 0.0, teacher_momentum=0.9, teacher_temperature=0.05)
TEACHER = "num_prototypes=12,bottleneck_dim=8"


def make_module(objective, options="", backbone="dinov2", recon_from="unmasked", recon_weight=2.0):
    """A tiny module; the same weights for the same arguments."""
    args = PretrainArguments(
        objective=objective, backbone=backbone, image_size=16, patch_size=4, feature_dim=24, equivariant_dim=8,
        decoder_dim=16, projector_dim=16, objective_options=options, model_preset="micro", recon_from=recon_from,
        recon_weight=recon_weight, decoder_patch_dropout=0.0, invariant_rank=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return build_module(args, build_model(args)).train()


def make_views(module):
    """Views of 6 images with what the objective reads."""
    generator = torch.Generator().manual_seed(0)
    views = (((), 16), ((), 16), ((2,), 16), ((3,), 8))
    first, end, targets, crops = (torch.randn(6, *more, 3, size, size, generator=generator) for more, size in views)
    masks = torch.rand(6, 2, 16, generator=generator) < 0.3
    has_teacher = module.objective.uses_teacher
    return Views(first, end, targets, torch.rand(6, 1), crops if has_teacher else None, masks if has_teacher else None)


def loss_of_whole_heads(module, views):
    """The terms by the model's own forward, whose head computes both parts of all tokens."""
    encoder = module.model.eqcohvit
    prefix = encoder.num_prefix_tokens
    images = torch.cat([views.first, views.end])

    def tokens(features):
        cls, patches = (pool_tokens(features, prefix, kind).unflatten(0, (2, -1)) for kind in ("cls", "patches"))
        return Tokens(cls, patches)

    masks = None if views.masks is None else views.masks.transpose(0, 1)
    outputs = encoder(images, **({} if masks is None else {"bool_masked_pos": masks.flatten(0, 1)}))
    local, teacher = None, None
    if views.local is not None:
        crops = encoder(views.local.transpose(0, 1).flatten(0, 1)).invariant_features
        local = pool_tokens(crops, prefix, "cls").unflatten(0, (3, -1))
    if module.teacher is not None:
        with torch.no_grad():
            teacher = tokens(module.teacher.encoder(images).invariant_features)
    invariant, equivariant = (tokens(getattr(outputs, f"{part}_features")) for part in ("invariant", "equivariant"))
    inputs = ObjectiveInputs(
        invariant, equivariant, images.unflatten(0, (2, -1)), views.parameters, local, masks, teacher, 0.05
    )
    terms = module.objective(inputs, module.teacher.head if module.teacher else None)
    loss = sum(value for name, value in terms.items() if name.startswith("ssl/"))
    read = outputs
    if masks is not None and module.recon_from == "unmasked":
        read = encoder(images)
    if module.recon_weight > 0:
        states = module.model.reconstruct(*read.equivariant_features.chunk(2), (16, 16))
        errors = (states - views.intermediates).square().mean(dim=(0, 2, 3, 4))
        terms |= {f"recon/u_{k + 1}": error for k, error in enumerate(errors)}
        loss = loss + module.recon_weight * errors.mean()
    pooled = {"invariant": invariant.cls, "equivariant": equivariant.patches.mean(dim=2)}
    terms |= {f"std/{part}": features.flatten(0, 1).std(dim=0).mean() for part, features in pooled.items()}
    return {"loss": loss, **terms}


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "vicreg"},
        {"objective": "vicreg", "backbone": "ijepa"},  # without CLS, which is the mean of the patches
        {"objective": "vicreg", "recon_weight": 0.0},
        {"objective": "sie", "recon_weight": 0.0},
        {"objective": "cross_attention", "recon_weight": 0.0},
        {"objective": "cross_attention"},
        {"objective": "ibot", "options": TEACHER, "recon_from": "masked"},
        {"objective": "dinov2", "options": TEACHER},
        {"objective": "dinov2", "options": f"{TEACHER},targets=sinkhorn,heads=separate"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_losses_and_gradients_are_those_of_the_whole_head(settings):
    module, whole = make_module(**settings), make_module(**settings)
    views = make_views(module)
    found, expected = module(views, VALUES), loss_of_whole_heads(whole, views)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-6), name
    found["loss"].backward()
    expected["loss"].backward()
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert gradients.keys() == {name for name, p in module.named_parameters() if p.grad is not None}
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in module.named_parameters():
        assert name not in gradients or torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5 * scale)
