import pytest
import torch

from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_model, build_module


def settings(**kwargs):
    sizes = {"image_size": 16, "feature_dim": 16, "equivariant_dim": 8, "decoder_dim": 16, "projector_dim": 16}
    return PretrainArguments(**sizes | kwargs)


@pytest.mark.parametrize("backbone", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
@pytest.mark.parametrize(("schedule", "rates"), [("uniform", [0.3, 0.3, 0.3, 0.3]), ("linear", [0.0, 0.1, 0.2, 0.3])])
def test_stochastic_depth_is_the_same_in_all_layers_or_rises_to_the_last(backbone, schedule, rates):
    model = build_model(settings(backbone=backbone, drop_path_rate=0.3, drop_path_schedule=schedule))  # four layers
    found = [
        module.drop_prob for module in model.eqcohvit.backbone.modules() if type(module).__name__.endswith("DropPath")
    ]
    assert found == pytest.approx(rates)
    assert model.config.backbone_config.drop_path_rate == 0.3


def test_the_first_layer_of_a_linear_schedule_drops_nothing_and_the_last_half_of_the_samples():
    torch.manual_seed(0)
    layers = (
        build_model(settings(drop_path_rate=0.5, drop_path_schedule="linear")).train().eqcohvit.backbone.encoder.layer
    )
    states = torch.randn(400, 3, 128)
    dropped = [(layer.drop_path(states) == 0).all(dim=(1, 2)).float().mean().item() for layer in layers]
    assert dropped == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2], abs=0.08) and dropped[0] == 0


def test_linear_schedule_without_stochastic_depth_changes_nothing():
    model = build_model(settings(drop_path_schedule="linear"))
    assert not any(hasattr(module, "drop_prob") for module in model.modules())


@pytest.mark.parametrize(("value", "start", "is_trained"), [(0.0, 1.0, False), (1.0, 1.0, True), (1e-5, 1e-5, True)])
def test_layer_scale_of_0_means_none(value, start, is_trained):
    args = settings(layerscale_value=value, objective="ibot", objective_options="num_prototypes=8")
    module = build_module(args, build_model(args))
    scales = {name: p for name, p in module.model.named_parameters() if name.endswith("lambda1")}
    assert len(scales) == 8  # two a layer
    assert all(p.requires_grad == is_trained and torch.allclose(p, torch.tensor(start)) for p in scales.values())
    assert not {id(p) for p in scales.values()} & {
        id(p) for p in module.teacher.parameters()
    }  # so that checkpoints hold both


@pytest.mark.parametrize(
    ("changes", "rank"),
    [({}, 1), ({"invariant_rank": 0}, None), ({"invariant_rank": 3}, 3), ({"recon_weight": 0.0}, None),
     ({"recon_weight": 0.0, "invariant_rank": 3}, 3),
     ({"feature_dim": 1608}, 16)],  # 1,600 invariant dimensions read a backbone of 128
)  # fmt: skip
def test_by_default_the_invariant_part_reads_an_eighth_of_its_dimensions_if_there_is_a_task(changes, rank):
    args = settings(**changes)  # 8 invariant dimensions
    separation = build_module(args, build_model(args)).separation
    assert (None if separation is None else separation.rank) == rank


@pytest.mark.parametrize(("share", "start"), [(0.0, 0), (0.6, 6)])
def test_restriction_of_the_invariant_part_begins_after_its_share_of_the_steps(share, start):
    args = settings(invariant_rank=3, invariant_rank_start=share, max_steps=10)
    module = build_module(args, build_model(args))
    head = module.model.eqcohvit.feature_head.weight
    tokens = torch.randn(2, 64, 2, head.shape[1])
    module.separation.update(*tokens)
    ranks = []
    for step in (max(start - 1, 0), start):
        module.after_step(step, teacher_momentum=0.9)
        ranks.append(torch.linalg.matrix_rank(head[:8].detach(), rtol=1e-4).item())
    assert ranks == [3 if start == 0 else 8, 3]
