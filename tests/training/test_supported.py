"""Every objective on every path with every backbone family trains: the table of what is supported.

The quick set has each pair of (objective, path), (objective, backbone) and (path, backbone) once; the whole product is
slow.
"""

import itertools

import pytest
import torch
from tests.training.test_pretrain_module import VALUES, make_module

from eqcohvit.hub.configuration_eqcohvit import FAMILIES
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.transforms import PATHS, BlockMasking, MultiCrop, ViewRenderer, make_path

NAMES, PATH_NAMES = list(OBJECTIVES), list(PATHS)
CASES = list(itertools.product(NAMES, PATH_NAMES, FAMILIES))
QUICK = {
    (NAMES[(i + j) % len(NAMES)], path, backbone)
    for i, backbone in enumerate(FAMILIES)
    for j, path in enumerate(PATH_NAMES)
}
EXTRA = {"dinov2_with_registers": {"num_register_tokens": 2}, "dinov3_vit": {"num_register_tokens": 2}}


def cases():
    return [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow, id="-".join(case)) for case in CASES]


def test_quick_set_has_every_pair():
    for first, second in itertools.combinations(range(3), 2):
        assert {(case[first], case[second]) for case in QUICK} == {(case[first], case[second]) for case in CASES}


@pytest.mark.parametrize(("objective", "path", "backbone"), cases())
def test_combination_trains(objective, path, backbone):
    masks = OBJECTIVES[objective].uses_teacher and backbone != "vit_mae"  # whose encoder has no mask token
    module = make_module(
        objective,
        backbone_type=backbone,
        backbone={"use_mask_token": masks, **EXTRA.get(backbone, {})},
        options="mask_probability=0" if OBJECTIVES[objective].uses_teacher and not masks else "",
        path=path,
    )
    renderer = ViewRenderer(
        make_path(path),
        image_size=16,
        augmentation="small",
        local_crops=MultiCrop(2, 8) if OBJECTIVES[objective].uses_local_crops else None,
        masking=BlockMasking() if masks else None,
        patch_size=4,
    )
    canvases = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    for step in range(3):
        keys = torch.arange(4) + 4 * step
        views = renderer(canvases, sizes=torch.full((4, 2), 20), keys=keys, epochs=torch.zeros_like(keys))
        terms = module(views, VALUES)
        assert all(value.isfinite() for value in terms.values()), terms
        head = module.model.eqcohvit.feature_head.weight
        (of_recon,) = torch.autograd.grad(terms["recon/u_1"] + terms["recon/u_2"], head, retain_graph=True)
        invariant_dim = module.model.config.invariant_dim
        assert not of_recon[:invariant_dim].any() and of_recon[invariant_dim:].abs().sum(dim=1).all()
        optimizer.zero_grad()
        terms["loss"].backward()
        assert [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
        optimizer.step()
        module.after_step(0, VALUES.teacher_momentum)
