import dataclasses
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from eqcohvit import EqCohViTConfig
from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_module
from eqcohvit.training.schedules import StepValues
from eqcohvit.transforms import BlockMasking, Views

TEACHERS = [name for name, objective in OBJECTIVES.items() if objective.uses_teacher]
VALUES = StepValues(1e-3, 1e-3, 0.0, teacher_momentum=0.9, teacher_temperature=0.05)


def make_module(
    objective="vicreg",
    recon_weight=3.0,
    recon_from="masked",
    options="",
    backbone_type="dinov2",
    backbone=None,
    path="rotation",
    invariant_rank=0,
    **config,
):
    """A tiny module through `build_module`; `backbone` and `config` are further fields of both configurations."""
    teacher = objective in TEACHERS
    args = PretrainArguments(
        objective=objective,
        objective_options=",".join(
            filter(None, ("num_prototypes=12,bottleneck_dim=8,mask_probability=1" if teacher else "", options))
        ),
        recon_weight=recon_weight,
        recon_from=recon_from,
        projector_dim=16,
        path=path,
        invariant_rank=invariant_rank,
        invariant_rank_start=0.0,
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "use_mask_token": teacher}
    sizes |= {"mlp_ratio": 2} if backbone_type.startswith("dinov2") else {"intermediate_size": 32}
    config = EqCohViTConfig.from_preset(
        "micro",
        16,
        4,
        backbone_type,
        sizes | (backbone or {}),
        feature_dim=14,
        equivariant_dim=6,
        decoder_dim=16,
        path=path,
        **config,
    )
    torch.manual_seed(0)
    return build_module(args, EqCohViTForPreTraining(config))


def make_views(batch=6, num_targets=2, masks=True, local=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (((), 16), ((), 16), ((num_targets,), 16), ((local,), 8))
    first, end, targets, crops = (
        torch.randn(batch, *shape, 3, size, size, generator=generator) for shape, size in shapes
    )
    hidden = torch.rand(batch, 2, 16, generator=generator) < 0.3
    hidden[0] = False
    return Views(first, end, targets, torch.rand(batch, 1), crops if local else None, hidden if masks else None)


@pytest.mark.parametrize("backbone_type", ["dinov2", "vit_mae"])
def test_layers_that_sharding_gathers_one_by_one_are_those_of_the_backbone(backbone_type):
    module = make_module("vicreg", backbone_type=backbone_type)
    names = {type(layer).__name__ for layer in module.modules()}
    assert len(module._no_split_modules) == 2 and names > set(module._no_split_modules)


def views_for(module, **kwargs):
    """Views with what the objective asks for, and nothing else."""
    return make_views(masks=module.objective.uses_teacher, local=2 * module.objective.uses_local_crops, **kwargs)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_is_the_ssl_terms_plus_the_weighted_mean_reconstruction(objective):
    module = make_module(objective, num_intermediates=3)
    terms = module(views_for(module, num_targets=3), VALUES)
    ssl = sum(value for name, value in terms.items() if name.startswith("ssl/"))
    recon = [terms[f"recon/u_{k}"] for k in (1, 2, 3)]
    assert torch.allclose(terms["loss"], ssl + 3.0 * sum(recon) / 3)


@pytest.mark.parametrize("decoder_context", ["none", "cls", "mean"])
@pytest.mark.parametrize("objective", ["vicreg", "ibot"])
def test_reconstruction_gradient_reaches_only_the_equivariant_rows_of_the_head(objective, decoder_context):
    module = make_module(objective, decoder_context=decoder_context)
    terms = module(views_for(module), VALUES)
    (terms["recon/u_1"] + terms["recon/u_2"]).backward()
    gradient = module.model.eqcohvit.feature_head.weight.grad
    assert torch.equal(gradient[:8], torch.zeros_like(gradient[:8]))
    assert (gradient[8:].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("objective", ["vicreg", "simclr", "ibot", "dinov2"])
def test_ssl_gradient_reaches_only_the_invariant_rows_of_the_head(objective):
    module = make_module(objective)
    terms = module(views_for(module), VALUES)
    sum(value for name, value in terms.items() if name.startswith("ssl/")).backward()
    gradient = module.model.eqcohvit.feature_head.weight.grad
    assert torch.equal(gradient[8:], torch.zeros_like(gradient[8:]))
    assert gradient[:8].abs().sum() > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("autocast", [False, True])
def test_every_trainable_parameter_gets_a_gradient(objective, autocast):
    module = make_module(objective, decoder_context="mean")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        terms = module(views_for(module), VALUES)
    assert all(value.dtype == torch.float32 for value in terms.values())
    terms["loss"].backward()
    assert [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ] == []


@pytest.mark.parametrize("decoder_context", ["none", "cls", "mean"])
def test_decoders_get_a_gradient_with_every_context(decoder_context):
    module = make_module(decoder_context=decoder_context)
    module(make_views(masks=False, local=0), VALUES)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in module.model.decoders.parameters())


def test_without_weight_the_decoders_are_left_out():
    module = make_module(recon_weight=0.0)
    terms = module(make_views(masks=False, local=0), VALUES)
    assert not any(name.startswith("recon/") for name in terms)
    terms["loss"].backward()
    assert all(not p.requires_grad and p.grad is None for p in module.model.decoders.parameters())


def test_module_loss_equals_the_models_own_reconstruction_loss():
    module, views = make_module(), make_views(masks=False)
    terms = module(views, VALUES)
    own = module.model(views.first, views.end, views.intermediates)
    assert torch.allclose(own.loss, (terms["recon/u_1"] + terms["recon/u_2"]) / 2, atol=1e-6)


def test_final_state_is_one_more_target():
    module = make_module(include_final=True)
    terms = module(views_for(module, num_targets=3), VALUES)
    assert torch.allclose(terms["loss"], sum(v for k, v in terms.items() if k.startswith("ssl/")) + sum(
        terms[name] for name in ("recon/u_1", "recon/u_2", "recon/v2")
    ))  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_on_one_batch_lowers_both_losses(objective):
    # A center that moves changes the targets, so that the loss need not fall.
    module = make_module(objective, options="center_momentum=1" if objective == "ibot" else "")
    views = views_for(module)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(40):
        terms = module(views, VALUES)
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: value.item() for name, value in terms.items()})
    ssl = [sum(value for name, value in terms.items() if name.startswith("ssl/")) for terms in history]
    assert history[-1]["recon/u_1"] < 0.9 * history[0]["recon/u_1"]
    assert ssl[-1] < 0.9 * ssl[0]


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match="recon_weight must not be negative, got -1"):
        make_module(recon_weight=-1)


@pytest.mark.parametrize("recon_from", ["masked", "unmasked"])
@pytest.mark.parametrize("objective", ["vicreg", "ibot"])
def test_backbone_that_does_not_learn_gets_no_gradient_and_keeps_nothing_for_it(objective, recon_from):
    module = make_module(objective, recon_from=recon_from)
    views = views_for(module)
    seen = []
    module.model.eqcohvit.backbone.register_forward_hook(lambda *a: seen.append(a[2].last_hidden_state.requires_grad))
    values = dataclasses.replace(VALUES, backbone_factor=0.0)
    terms = module(views, values)
    terms["loss"].backward()
    assert seen and not any(seen)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert not any(".backbone." in name for name in gradients)

    learns = make_module(objective, recon_from=recon_from)
    expected = learns(views, VALUES)
    expected["loss"].backward()
    assert all(torch.equal(terms[name], value) for name, value in expected.items())
    others = {n: p.grad for n, p in learns.named_parameters() if p.grad is not None and ".backbone." not in n}
    assert others.keys() == gradients.keys()
    assert all(torch.equal(gradients[name], gradient) for name, gradient in others.items())


def test_decoders_can_read_the_unmasked_views():
    views = make_views()
    unmasked, masked = (make_module("ibot", recon_from=where)(views, VALUES) for where in ("unmasked", "masked"))
    plain = make_module("ibot").model(views.first, views.end, views.intermediates)
    assert torch.allclose((unmasked["recon/u_1"] + unmasked["recon/u_2"]) / 2, plain.loss, atol=1e-6)
    assert not torch.allclose(masked["recon/u_1"], unmasked["recon/u_1"], atol=1e-6)
    assert torch.equal(masked["ssl/patch"], unmasked["ssl/patch"])


@pytest.mark.parametrize("objective", TEACHERS)
@pytest.mark.parametrize(
    ("probability", "recon_from", "passes"), [(0, "unmasked", 1), (0.5, "unmasked", 2), (0.5, "masked", 1)]
)
def test_both_views_are_encoded_again_only_for_decoders_that_read_unmasked_views(
    objective, probability, recon_from, passes
):
    module = make_module(objective, recon_from=recon_from, options=f"mask_probability={probability}")
    sizes = []
    module.model.eqcohvit.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    module(make_views(masks=probability > 0, local=0), VALUES)
    assert sizes == [12] * passes


@pytest.mark.parametrize("objective", TEACHERS)
def test_no_shape_of_a_compiled_step_depends_on_the_masks(objective):
    """None, one or both views of an image may be masked: compiled once, it serves each draw. Uncompiled, a CPU's heads
    read about as many rows as patches are hidden."""
    eager = make_module(objective, options="mask_probability=0.5")
    compiled = make_module(objective, options="mask_probability=0.5")
    graphs = CompileCounter()
    torch._dynamo.reset()
    compiled.compile(backend=graphs)
    keys = torch.arange(6)
    rows = []
    numbers = set()
    eager.objective.head.cls.prototypes.register_forward_pre_hook(
        lambda _, args: rows.append(args[0].shape[:-1].numel())
    )
    for epoch in range(6):
        masks = BlockMasking(min_patches=1).sample(
            0, keys=keys, epochs=torch.full_like(keys, epoch), stream=3, grid_size=4
        )
        numbers.add(masks.any(dim=-1).sum().item())
        views = dataclasses.replace(make_views(local=0), masks=masks)
        terms = compiled(views, VALUES)
        expected = eager(views, VALUES)
        assert all(torch.allclose(terms[name], value, rtol=1e-5) for name, value in expected.items())
        assert rows == [12 + 8 * math.ceil(masks.sum().item() / 8)]  # CLS and patches, by one head
        rows.clear()
    assert len(numbers) > 2 and graphs.frame_count == 1


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_separation_changes_the_invariant_rows_of_the_head_alone(objective):
    module = make_module(objective, invariant_rank=3).train()
    module(views_for(module), VALUES)
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    module.after_step(0, teacher_momentum=1.0)
    changed = {name for name, p in module.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"eqcohvit.feature_head.weight"}
    head, old = module.model.eqcohvit.feature_head.weight, before["eqcohvit.feature_head.weight"]
    assert torch.equal(head[8:], old[8:]) and not torch.equal(head[:8], old[:8])  # 14 dimensions, 6 of them equivariant
    assert torch.linalg.matrix_rank(head[:8]) == 3


def test_gradients_do_not_depend_on_the_separation():
    gradients = []
    for invariant_rank in (0, 3):
        module = make_module(invariant_rank=invariant_rank).train()
        module(views_for(module), VALUES)["loss"].backward()
        gradients.append({name: p.grad for name, p in module.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
