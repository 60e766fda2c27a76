import torch
from tests.training.test_pretrain_module import VALUES, make_module, views_for


def states(module):
    student = {
        **module.model.eqcohvit.state_dict(prefix="encoder."),
        **module.objective.head.state_dict(prefix="head."),
    }
    return student, module.teacher.state_dict()


def test_teacher_starts_as_the_student_and_is_frozen():
    module = make_module("ibot", backbone={"drop_path_rate": 0.5}).train()
    student, teacher = states(module)
    assert student.keys() == teacher.keys() and all(torch.equal(student[name], teacher[name]) for name in student)
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert not any(part.training for part in module.teacher.modules()) and module.model.training


def test_teacher_moves_by_exactly_its_share():
    module = make_module("ibot")
    module(views_for(module), VALUES)["loss"].backward()
    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1).step()
    before = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    student, _ = states(module)
    module.after_step(0, 0.75)
    for name, value in module.teacher.state_dict().items():
        assert torch.allclose(value, 0.75 * before[name] + 0.25 * student[name], atol=1e-7), name


def test_teacher_of_momentum_one_stays_and_of_zero_follows():
    module = make_module("dinov2")
    with torch.no_grad():
        for p in module.model.eqcohvit.parameters():
            p.add_(1.0)
    before = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    module.after_step(0, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in module.teacher.state_dict().items())
    module.after_step(0, 0.0)
    student, teacher = states(module)
    assert all(torch.equal(student[name], teacher[name]) for name in student)


def test_teacher_sees_the_whole_views_without_stochastic_depth():
    module = make_module("ibot", backbone={"drop_path_rate": 0.5}).train()
    views = views_for(module)
    seen = []
    module.teacher.encoder.backbone.register_forward_hook(
        lambda _module, args, kwargs, _out: seen.append((args[0], kwargs)), with_kwargs=True
    )
    module(views, VALUES)
    module(views, VALUES)
    assert torch.equal(seen[0][0], torch.cat([views.first, views.end])) and seen[0][1] == {}
    first, second = (module.teacher.encoder(views.first).last_hidden_state for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
