import pytest

from eqcohvit.training.arguments import parse_arguments
from eqcohvit.training.schedules import backbone_warmup, linear_warmup, step_values, warmup_cosine


def test_warmup_cosine_by_hand():
    def lr(step):
        return warmup_cosine(step, max_steps=110, warmup_steps=10, peak=1.0, final=0.1)

    assert lr(0) == pytest.approx(0.1) and lr(4) == pytest.approx(0.5) and lr(9) == pytest.approx(1.0)
    assert lr(10) == pytest.approx(1.0)
    assert lr(60) == pytest.approx(0.55)  # half of the way: the mean of peak and final
    assert lr(110) == pytest.approx(0.1) and lr(500) == pytest.approx(0.1)


def test_backbone_warmup_by_hand():
    factors = [backbone_warmup(step, head_warmup_steps=2, warmup_steps=4) for step in range(8)]
    assert factors == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [backbone_warmup(step, 0, 4) for step in range(3)] == [1, 1, 1]
    assert [backbone_warmup(step, 2, 0) for step in range(3)] == [0, 0, 1]


def test_linear_warmup_by_hand():
    assert [linear_warmup(step, 5, 0.04, 0.08) for step in (0, 1, 4, 5, 9)] == pytest.approx(
        [0.04, 0.05, 0.08, 0.08, 0.08]
    )
    assert [linear_warmup(step, 1, 0.04, 0.08) for step in (0, 1)] == [0.04, 0.08]
    assert linear_warmup(0, 0, 0.04, 0.08) == 0.08


def test_step_values_of_a_teacher_by_hand():
    flags = (
        "--objective ibot --max_steps 100 --warmup_steps 10 --learning_rate 0.1 --weight_decay 0.04 "
        "--weight_decay_end 0.4"
    )
    options = "teacher_momentum=0.9,teacher_temperature_steps=21,freeze_last_layer_steps=5,num_prototypes=8"
    args = parse_arguments([*flags.split(), "--objective_options", options])
    start, later, half = (step_values(step, args) for step in (0, 10, 50))
    assert start.learning_rate == pytest.approx(0.01) and start.last_layer_learning_rate == 0
    assert later.last_layer_learning_rate == later.learning_rate == pytest.approx(0.1)
    assert later.teacher_temperature == pytest.approx(0.055) and half.teacher_temperature == pytest.approx(0.07)
    assert start.teacher_momentum == pytest.approx(0.9) and half.teacher_momentum == pytest.approx(0.95)
    assert half.weight_decay == pytest.approx(0.22) and start.weight_decay == pytest.approx(0.04)


def test_step_values_without_a_teacher_keep_the_weight_decay():
    args = parse_arguments(["--weight_decay", "0.1"])
    assert {step_values(step, args).weight_decay for step in (0, 300, 700)} == {0.1}
