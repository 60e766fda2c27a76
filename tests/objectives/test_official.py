"""Losses, centers, heads, schedules and masks against numbers that the official implementations gave for these inputs.

`official.json` names repository, commit, file and function of each case. An input is a standard normal array by its
seed, times a scale, in float32; the official losses ran on it in float64, KoLeo at small distances in float32, as in
training. Gradients are compared by their norm, and by their product with a standard normal array (the probe).
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eqcohvit.objectives import OBJECTIVES, ObjectiveInputs, ObjectiveSizes, Tokens, parse_options
from eqcohvit.objectives.functional import koleo_loss, nt_xent, sinkhorn_targets, vicreg_terms
from eqcohvit.objectives.heads import DINOHead, HeadOutputs
from eqcohvit.training.schedules import linear_warmup, warmup_cosine
from eqcohvit.transforms import BlockMasking
from eqcohvit.transforms.masks import block_masks

OFFICIAL = json.loads(Path(__file__).with_name("official.json").read_text())
CASES = OFFICIAL["cases"]


def normal(seed, *shape, scale=1.0):
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    return torch.from_numpy((scale * values).astype(np.float32))


def leaf(seed, *shape, scale=1.0):
    return normal(seed, *shape, scale=scale).requires_grad_()


def assert_close(ours, official, tolerance=1e-6):
    ours = torch.as_tensor(ours, dtype=torch.float64).detach()
    official = torch.as_tensor(official, dtype=torch.float64)
    assert torch.allclose(ours, official, rtol=tolerance, atol=1e-9), (ours, official)


def assert_same_gradients(loss, leaves, official, tolerance=1e-5):
    """Norm and probe of the loss's gradient in each leaf; probe i has the seed 1000 + i."""
    gradients = torch.autograd.grad(loss, leaves)
    for i, (gradient, norm, probe) in enumerate(zip(gradients, official["norms"], official["probes"], strict=True)):
        gradient = gradient.double()
        assert gradient.norm().item() == pytest.approx(norm, rel=tolerance), i
        product = (gradient * normal(1000 + i, *gradient.shape).double()).sum().item()
        assert product == pytest.approx(probe, abs=2 * tolerance * norm), i


def test_every_case_names_where_its_numbers_come_from():
    assert np.allclose(
        np.random.Generator(np.random.PCG64(1)).standard_normal(3), OFFICIAL["generator"]["first_of_seed_1"]
    )
    for source in OFFICIAL["sources"].values():
        assert source["repository"].startswith("https://github.com/") and len(source["commit"]) == 40
    for case in CASES.values():
        assert case["source"] in OFFICIAL["sources"] and case["file"] and case["function"]


def test_vicreg():
    case = CASES["vicreg"]
    first = leaf(1, 32, 16, scale=0.5)
    end = leaf(2, 32, 16, scale=0.8)
    terms = vicreg_terms(first, end, invariance_weight=25.0, variance_weight=25.0, covariance_weight=1.0)
    for name, value in case["terms"].items():
        assert_close(terms[f"ssl/{name}"], value)
    total = sum(terms.values())
    assert_close(total, case["total"])
    assert_same_gradients(total, (first, end), case["gradients"])


@pytest.mark.parametrize("name", ["nt_xent", "nt_xent_solo"])
def test_nt_xent(name):
    first = leaf(3, 16, 12)
    end = leaf(4, 16, 12)
    loss = nt_xent(first, end, temperature=0.2)
    assert_close(loss, CASES[name]["value"])
    assert_same_gradients(loss, (first, end), CASES[name]["gradients"])


def test_sie():
    """24 images, 10 + 6 dimensions, no expanders, and a linear hypernetwork without bias on two parameters."""
    case = CASES["sie"]
    sizes = ObjectiveSizes(
        invariant_dim=10, equivariant_dim=6, projector_dim=16, patch_size=4, parameter_limits=((-1.0, 1.0), (-1.0, 1.0))
    )
    objective = OBJECTIVES["sie"](sizes, OBJECTIVES["sie"].Options())
    objective.invariant_expander = objective.equivariant_expander = nn.Identity()
    with torch.no_grad():
        objective.predictor.hypernetwork.weight.copy_(normal(7, 36, 2, scale=0.3))
        objective.predictor.hypernetwork.bias.zero_()
    first = leaf(5, 24, 16, scale=0.5)
    end = leaf(6, 24, 16, scale=0.7)
    cls = torch.stack([first, end])
    inputs = ObjectiveInputs(
        invariant=Tokens(cls[..., :10], cls[..., None, :10]),
        equivariant=Tokens(cls[..., 10:], cls[..., None, 10:]),
        images=torch.empty(2, 24, 3, 4, 4),
        parameters=normal(8, 24, 2),
    )
    terms = objective(inputs)
    official = case["terms"]
    assert_close(terms["ssl/invariance"], 10 * official["repr_loss_inv"])
    assert_close(terms["ssl/equivariance"], 4.5 * official["repr_loss_equi"])
    assert_close(terms["ssl/variance"], 10 * (official["std_loss"] + official["pred_std_loss"]))
    assert_close(terms["ssl/covariance"], official["cov_loss"])
    total = sum(terms.values())
    assert_close(total, case["total"])
    assert_same_gradients(total, (first, end, objective.predictor.hypernetwork.weight), case["gradients"])


class LogitsHead(nn.Module):
    """In place of `TokenHeads`: the features are the logits."""

    def forward(self, cls, local, patches, chosen=None):
        if chosen is None:
            return HeadOutputs(cls, local, patches)
        rows = patches.flatten(0, -2)
        return HeadOutputs(cls, local, rows[chosen], rows.mean(dim=0))


BATCH, PATCHES, PROTOTYPES, LOCAL = 6, 16, 10, 3
NUM_HIDDEN = (0, 3, 7, 5, 0, 2, 9, 1, 4, 0, 6, 2)  # of the images of the first view, then of the second


def distillation_steps(name, options, temperature, masked=True):
    """Three steps of an objective on logits: (terms, leaves) of each, and the objective with its centers."""
    sizes = ObjectiveSizes(invariant_dim=PROTOTYPES, equivariant_dim=2, projector_dim=4, patch_size=4)
    text = f"num_prototypes={PROTOTYPES},bottleneck_dim=4,{options}"
    objective = OBJECTIVES[name](sizes, parse_options(OBJECTIVES[name].Options, text))
    objective.head = LogitsHead()
    steps = []
    for step in range(3):
        student = leaf(20 + step, 2 * BATCH, PROTOTYPES)
        patches = leaf(40 + step, 2 * BATCH, PATCHES, PROTOTYPES)
        local = leaf(25 + step, LOCAL * BATCH, PROTOTYPES)
        teacher = normal(30 + step, 2 * BATCH, PROTOTYPES)
        teacher_patches = normal(50 + step, 2 * BATCH, PATCHES, PROTOTYPES)
        order = (
            np.random.Generator(np.random.PCG64(60 + step)).random((2 * BATCH, PATCHES)).argsort(axis=1).argsort(axis=1)
        )
        masks = torch.from_numpy(order < np.array(NUM_HIDDEN)[:, None])
        inputs = ObjectiveInputs(
            invariant=Tokens(student.unflatten(0, (2, BATCH)), patches.unflatten(0, (2, BATCH))),
            equivariant=Tokens(torch.empty(2, BATCH, 2), torch.empty(2, BATCH, PATCHES, 2)),
            images=torch.empty(2, BATCH, 3, 4, 4),
            parameters=torch.empty(BATCH, 1),
            local=local.unflatten(0, (LOCAL, BATCH)),
            masks=masks.unflatten(0, (2, BATCH)) if masked else None,
            teacher=Tokens(teacher.unflatten(0, (2, BATCH)), teacher_patches.unflatten(0, (2, BATCH))),
            teacher_temperature=temperature,
        )
        steps.append((objective(inputs, objective.head), (student, patches, local)))
    return steps, objective


def test_dino():
    """2 global and 3 local crops; the official student's logits are one array, of which the first are the global
    ones."""
    case = CASES["dino"]
    sizes = ObjectiveSizes(invariant_dim=PROTOTYPES, equivariant_dim=2, projector_dim=4, patch_size=4)
    options = parse_options(OBJECTIVES["ibot"].Options, f"num_prototypes={PROTOTYPES},mask_probability=0")
    objective = OBJECTIVES["ibot"](sizes, options)
    objective.head = LogitsHead()
    for step in range(3):
        student = leaf(20 + step, (2 + LOCAL) * BATCH, PROTOTYPES)
        views = student.unflatten(0, (2 + LOCAL, BATCH))
        teacher = normal(30 + step, 2 * BATCH, PROTOTYPES).unflatten(0, (2, BATCH))
        inputs = ObjectiveInputs(
            invariant=Tokens(views[:2], views[:2, :, None]),
            equivariant=Tokens(views[:2], views[:2, :, None]),
            images=torch.empty(2, BATCH, 3, 4, 4),
            parameters=torch.empty(BATCH, 1),
            local=views[2:],
            teacher=Tokens(teacher, teacher[:, :, None]),
            teacher_temperature=0.04,
        )
        loss = objective(inputs, objective.head)["ssl/cls"]
        assert_close(loss, case["values"][step])
        assert_same_gradients(loss, (student,), case["gradients"][step])
    assert_close(objective.cls_center, case["center"])


def test_ibot():
    case = CASES["ibot"]
    steps, objective = distillation_steps(
        "ibot", "mask_probability=1,mask_ratio=0.5,mask_ratio_variance=0.1", temperature=0.04
    )
    for (terms, leaves), values, gradients in zip(steps, case["values"], case["gradients"], strict=True):
        assert_close(terms["ssl/cls"], values["cls"])
        assert_close(terms["ssl/patch"], values["patch"])
        assert_same_gradients(terms["ssl/cls"] + terms["ssl/patch"], leaves, gradients)
    assert_close(objective.cls_center, case["center"])
    assert_close(objective.patch_center, case["patch_center"])


@pytest.mark.parametrize("targets", ["centering", "sinkhorn"])
def test_dinov2(targets):
    case = CASES[f"dinov2_{targets}"]
    options = f"targets={targets},mask_probability=1,mask_ratio=0.5,mask_ratio_variance=0.1"
    steps, objective = distillation_steps("dinov2", options, temperature=0.05)
    for (terms, leaves), values, gradients in zip(steps, case["values"], case["gradients"], strict=True):
        for name in ("cls", "patch", "koleo"):
            assert_close(terms[f"ssl/{name}"], values[name])
        assert_same_gradients(terms["ssl/cls"] + terms["ssl/patch"] + terms["ssl/koleo"], leaves, gradients)
    if targets == "centering":
        assert_close(objective.cls_center, case["center"])
        assert_close(objective.patch_center, case["patch_center"])


def test_sinkhorn():
    case = CASES["sinkhorn"]
    targets = sinkhorn_targets(normal(70, 14, 10), torch.ones(14), temperature=0.05)
    assert_close(targets[0], case["targets_of_row_0"], tolerance=1e-5)  # exponentials of 1 / 0.05, in float32 there too
    assert_close(targets.sum(dim=0), case["column_sums"], tolerance=1e-5)
    assert_close(targets.sum(dim=1), case["row_sums"])


def test_koleo():
    case = CASES["koleo"]
    features = leaf(80, 32, 24)
    loss = koleo_loss(features)
    assert_close(loss, case["value"])
    assert_same_gradients(loss, (features,), case["gradients"])


@pytest.mark.parametrize("scale", CASES["koleo_close"]["scales"])
def test_koleo_of_features_that_are_close_together(scale):
    case = CASES["koleo_close"]["scales"][scale]
    features = (normal(81, 1, 24) + normal(82, 32, 24, scale=float(scale))).requires_grad_()
    loss = koleo_loss(features)
    assert_close(loss, case["value"])
    assert_same_gradients(loss, (features,), case["gradients"], tolerance=1e-6)


@pytest.mark.parametrize(("name", "norm_last_layer"), [("head_trained_gain", False), ("head_fixed_gain", True)])
def test_head(name, norm_last_layer):
    case = CASES[name]
    head = DINOHead(12, 16, 8, 14, norm_last_layer)
    assert case["initial_gain"] == [1.0]
    if head.prototypes.gain is not None:
        assert head.prototypes.gain.unique().tolist() == case["initial_gain"]
    linear = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for i, layer in enumerate(linear):
            layer.weight.copy_(normal(90 + i, *layer.weight.shape, scale=0.2))
            layer.bias.copy_(normal(95 + i, *layer.bias.shape, scale=0.1))
        head.prototypes.weight.copy_(normal(98, 14, 8, scale=0.02))
    features = leaf(99, 20, 12)
    logits = head(features)
    loss = F.cross_entropy(logits / 0.1, torch.arange(20) % 14)
    assert_close(logits.norm(), case["logits_norm"])
    assert_close(loss, case["loss"])
    leaves = [features, linear[0].weight, *head.prototypes.parameters()]
    assert_same_gradients(loss, leaves, case["gradients"])


def test_cosine_schedules():
    for name in ("schedules", "schedules_ibot", "schedules_vicreg"):
        case = CASES[name]
        max_steps = case["settings"]["max_steps"]
        warmup_steps = case["settings"]["warmup_steps"]
        ends = {"weight_decay": (0.04, 0.4), "teacher_momentum": (0.992 if name == "schedules" else 0.996, 1.0)}
        for value, (start, end) in ends.items():
            if value in case["values"]:
                ours = [warmup_cosine(step, max_steps, 0, start, end) for step in case["steps"]]
                assert_close(ours, case["values"][value])
        peak, final = {"schedules": (4e-3, 1e-6), "schedules_ibot": (5e-4, 1e-6), "schedules_vicreg": (1.6, 1.6e-3)}[
            name
        ]
        for step, rate in zip(case["steps"], case["values"]["learning_rate"], strict=True):
            ours = warmup_cosine(step, max_steps, warmup_steps, peak, final)
            # The official warm-up starts at a rate of 0, ours one step further.
            assert (
                math.isclose(ours, rate, rel_tol=1e-6)
                if step >= warmup_steps
                else 0 <= ours - rate <= 1.001 * peak / warmup_steps
            )


def test_teacher_temperature():
    case = CASES["schedules"]
    num_steps = case["settings"]["teacher_temperature_steps"]
    ours = [linear_warmup(step, num_steps, 0.04, 0.07) for step in case["temperature_steps"]]
    assert_close(ours, case["values"]["teacher_temperature"])


@pytest.mark.parametrize(("name", "min_patches"), [("masks_dinov2", 4), ("masks_ibot", 16)])
def test_masks(name, min_patches):
    """Of 14 x 14 patches: how many are hidden, in how many blocks, and how far they hang together."""
    case = CASES[name]
    keys = torch.arange(2000)
    masks = (
        BlockMasking(probability=1.0, min_patches=min_patches)
        .sample(0, keys=keys, epochs=torch.zeros_like(keys), stream=3, grid_size=14)
        .flatten(0, 1)
    )
    shares = masks.float().mean(dim=1)
    assert shares.mean().item() == pytest.approx(case["mean_share"], abs=0.0055)  # 3 standard deviations
    assert shares.std().item() == pytest.approx(case["std_share"], abs=0.004)
    quantiles = torch.quantile(shares, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    assert quantiles == pytest.approx(case["quantiles_5_25_50_75_95"], abs=0.012)
    grid = masks.unflatten(1, (14, 14))
    neighbors = grid[:, :, 1:][grid[:, :, :-1]].float().mean().item()
    assert neighbors == pytest.approx(case["share_of_hidden_right_neighbors"], abs=0.006)
    generator = np.random.Generator(np.random.PCG64(3))
    draws = torch.from_numpy(generator.random((600, 12, 10, 4))).float()
    target = torch.from_numpy(196 * generator.uniform(0.1, 0.5, 600)).floor().long()
    counts = torch.stack([block_masks(draws[:, :number], target, 14, min_patches).sum(dim=1) for number in range(13)])
    num_blocks = (counts.diff(dim=0) > 0).sum(dim=0).float().mean().item()
    assert num_blocks == pytest.approx(case["mean_blocks"], abs=0.24)


def test_masked_views_of_an_image():
    keys = torch.arange(6000)
    masks = BlockMasking(min_patches=16, num_blocks=1).sample(
        0, keys=keys, epochs=torch.zeros_like(keys), stream=3, grid_size=14
    )
    numbers = masks.any(dim=-1).sum(dim=1).bincount() / len(keys)
    assert numbers.tolist() == pytest.approx(CASES["masks_ibot"]["shares_of_0_1_2_masked_views"], abs=0.02)
