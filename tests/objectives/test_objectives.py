import copy
import dataclasses

import pytest
import torch

from eqcohvit.objectives import OBJECTIVES, ObjectiveInputs, ObjectiveSizes, Tokens, parse_options

PATCHES, DIM = 16, 8
OPTIONS = {"ibot": "num_prototypes=12,bottleneck_dim=6", "dinov2": "num_prototypes=12,bottleneck_dim=6"}


def make_objective(name, options=""):
    torch.manual_seed(0)
    sizes = ObjectiveSizes(
        invariant_dim=DIM, equivariant_dim=6, projector_dim=16, patch_size=4, parameter_limits=((-1.0, 1.0),)
    )
    text = ",".join(filter(None, (OPTIONS.get(name, ""), options)))
    return OBJECTIVES[name](sizes, parse_options(OBJECTIVES[name].Options, text))


def make_inputs(batch=6, same=False, local=2):
    generator = torch.Generator().manual_seed(0)

    def tokens(dim):
        cls, patches = (
            torch.randn(2, batch, dim, generator=generator),
            torch.randn(2, batch, PATCHES, dim, generator=generator),
        )
        if same:
            cls, patches = cls[:1].expand_as(cls).clone(), patches[:1].expand_as(patches).clone()
        return Tokens(cls.requires_grad_(), patches.requires_grad_())

    masks = (
        torch.rand(2, batch, PATCHES, generator=generator).argsort(dim=-1)
        < torch.tensor([0, 3, 8, 5, 1, 2])[:batch, None]
    )
    return ObjectiveInputs(
        invariant=tokens(DIM),
        equivariant=tokens(6),
        images=torch.randn(2, batch, 3, 16, 16, generator=generator),
        parameters=torch.rand(batch, 1, generator=generator),
        local=torch.randn(local, batch, DIM, generator=generator) if local else None,
        masks=masks,
        teacher=tokens(DIM),
        teacher_temperature=0.05,
    )


def run(objective, inputs):
    return objective(inputs, objective.head if objective.uses_teacher else None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_gives_finite_scalar_terms_and_gradients(name):
    objective, inputs = make_objective(name), make_inputs()
    terms = run(objective, inputs)
    assert any(key.startswith("ssl/") for key in terms)
    assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
    sum(value for key, value in terms.items() if key.startswith("ssl/")).backward()
    assert (inputs.invariant.cls.grad.abs().sum(dim=(1, 2)) > 0).all()
    assert [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    if objective.uses_teacher:
        assert inputs.teacher.cls.grad is None and inputs.teacher.patches.grad is None


@pytest.mark.parametrize("name", ["vicreg", "simclr"])
def test_objective_prefers_equal_views(name):
    objective = make_objective(name)
    losses = [sum(run(objective, make_inputs(same=same)).values()) for same in (True, False)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.uses_teacher])
def test_only_hidden_patches_are_learned_from(name):
    inputs = make_inputs()
    run(make_objective(name), inputs)["ssl/patch"].backward()
    touched = inputs.invariant.patches.grad.abs().sum(dim=-1) > 0
    assert torch.equal(touched, inputs.masks)


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.uses_teacher])
def test_patch_features_of_the_view_itself_are_the_target(name):
    """The patch loss of a student that says what the teacher says is below that of one that speaks of other patches."""
    objective, inputs = make_objective(name, "student_temperature=0.05"), make_inputs()
    shuffled = Tokens(inputs.teacher.cls, inputs.teacher.patches.flip(2))
    right, wrong = (
        run(objective.eval(), ObjectiveInputs(**{**vars(inputs), "invariant": student, "local": None}))["ssl/patch"]
        for student in (inputs.teacher, shuffled)
    )
    assert right < wrong


@pytest.mark.parametrize("heads", ["shared", "separate"])
@pytest.mark.parametrize("targets", ["centering", "sinkhorn"])
def test_ibot_and_dinov2_are_one_class_with_other_defaults(targets, heads):
    options = f"targets={targets},heads={heads},koleo_weight=0.3,centered_patches=all,norm_last_layer=true"
    ibot, dinov2 = (make_objective(name, options) for name in ("ibot", "dinov2"))
    assert (ibot.head.patch is None) == (heads == "shared")
    assert set(dict(ibot.named_buffers())) == ({"cls_center", "patch_center"} if targets == "centering" else set())
    for _ in range(2):  # in the second step with centers that have moved
        terms = run(ibot, make_inputs())
        assert set(terms) == {"ssl/cls", "ssl/patch", "ssl/koleo", "teacher/entropy"}
        assert all(torch.equal(value, terms[name]) for name, value in run(dinov2, make_inputs()).items())


def test_defaults_are_those_of_the_published_runs():
    ibot, dinov2 = (OBJECTIVES[name].Options() for name in ("ibot", "dinov2"))
    for options in (ibot, dinov2):
        assert (options.targets, options.heads, options.norm_last_layer) == ("centering", "shared", False)
    assert (ibot.num_prototypes, ibot.min_masked_patches, ibot.koleo_weight, ibot.teacher_momentum) == (
        8192,
        16,
        0,
        0.996,
    )
    assert (dinov2.num_prototypes, dinov2.min_masked_patches, dinov2.koleo_weight) == (65536, 4, 0.1)
    assert (ibot.centered_patches, dinov2.centered_patches, dinov2.teacher_momentum) == ("all", "hidden", 0.992)


def test_patch_center_of_hidden_patches_by_hand():
    objective, inputs = make_objective("dinov2", "center_momentum=0"), make_inputs()
    run(objective, inputs)
    logits = objective.head.cls(inputs.teacher.patches[inputs.masks])
    assert torch.allclose(objective.patch_center, logits.mean(dim=0), atol=1e-6)


def test_centers_stay_in_evaluation():
    objective = make_objective("dinov2").eval()
    run(objective, make_inputs())
    assert objective.cls_center.abs().sum() == objective.patch_center.abs().sum() == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_prototype=3", "got 'num_prototype=3'; did you mean 'num_prototypes'"),
        ("num_prototypes", "must be name=value pairs"),
        ("num_prototypes=many", "num_prototypes must be a value of type int, got 'many'"),
        ("norm_last_layer=maybe", "norm_last_layer must be true or false, got 'maybe'"),
        ("targets=sinkhron", "targets must be one of centering, sinkhorn, got 'sinkhron'; did you mean 'sinkhorn'"),
        ("heads=both", "heads must be one of shared, separate, got 'both'$"),
        ("head=shared", "got 'head=shared'; did you mean 'heads'"),
        ("min_masked_patches=0", "min_masked_patches must be positive and finite, got 0"),
        ("teacher_momentum=2", "teacher_momentum must lie between 0 and 1, got 2.0"),
        ("teacher_temperature=0", "teacher_temperature must be positive and finite, got 0.0"),
        ("num_prototypes=0", "num_prototypes must be positive and finite, got 0"),
        ("center_momentum=-1", "center_momentum must lie between 0 and 1, got -1.0"),
    ],
)
def test_parse_options_refuses_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_options(OBJECTIVES["ibot"].Options, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vicreg", "variance_weight=-1", "variance_weight must be at least 0 and finite, got -1.0"),
        ("sie", "equivariance_weight=nan", "equivariance_weight must be at least 0 and finite, got nan"),
        ("cross_attention", "invariance_weight=inf", "invariance_weight must be at least 0 and finite, got inf"),
        ("dinov2", "koleo_weight=-0.1", "koleo_weight must be at least 0 and finite, got -0.1"),
        ("simclr", "temperature=nan", "temperature must be positive and finite, got nan"),
        ("ibot", "teacher_temperature_steps=-1", "teacher_temperature_steps must be at least 0 and finite, got -1"),
    ],
)
def test_options_that_would_spoil_the_loss_are_refused(name, text, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse_options(OBJECTIVES[name].Options, text)


def test_parse_options_reads_each_type():
    options = parse_options(
        OBJECTIVES["ibot"].Options, "num_prototypes = 7, norm_last_layer=true ,teacher_momentum=0.5,heads=separate"
    )
    assert (options.num_prototypes, options.norm_last_layer, options.teacher_momentum, options.heads) == (
        7,
        True,
        0.5,
        "separate",
    )
    assert parse_options(OBJECTIVES["ibot"].Options, "") == OBJECTIVES["ibot"].Options()


def test_uninformed_values_are_those_of_equal_embeddings():
    for name in ("vicreg", "simclr"):
        objective, inputs = make_objective(name), make_inputs()
        features = torch.ones(2, 6, DIM)
        terms = objective(dataclasses.replace(inputs, invariant=Tokens(features, inputs.invariant.patches)))
        for term, value in objective.uninformed_values(6).items():
            assert terms[term].item() == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
def test_uninformed_value_is_that_of_a_student_without_preference(name):
    objective, inputs = make_objective(name), make_inputs()
    teacher_head = copy.deepcopy(objective.head)
    with torch.no_grad():
        objective.head.cls.mlp[-1].weight.zero_()  # every feature is 0, and so is every logit
    assert objective(inputs, teacher_head)["ssl/cls"].item() == pytest.approx(
        objective.uninformed_values(6)["ssl/cls"], rel=1e-5
    )


def test_vicreg_starts_near_its_start_value():
    sizes = ObjectiveSizes(invariant_dim=64, equivariant_dim=6, projector_dim=256, patch_size=4)
    torch.manual_seed(0)
    objective = OBJECTIVES["vicreg"](sizes, OBJECTIVES["vicreg"].Options())
    views = torch.randn(2, 512, 64)
    terms = objective(dataclasses.replace(make_inputs(), invariant=Tokens(views, views[:, :, None])))
    assert terms["ssl/variance"].item() == pytest.approx(objective.start_values(512)["ssl/variance"], rel=0.03)
