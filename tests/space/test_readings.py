import pytest

from controls import list_choices
from readings import Reading, read, verdict

CHOICE = list_choices("rotation")["rotation"]
(ANGLE,) = CHOICE.controls.values()


def reading(equivariant=0.9, invariant=0.1, said=(30.0, 0.0), true=30.0):
    parts = ("equivariant", "invariant")
    r2 = dict(zip(parts, (equivariant, invariant), strict=True))
    return Reading(ANGLE, true, dict(zip(parts, said, strict=True)), r2, dict.fromkeys(parts, 5.0))


@pytest.mark.parametrize(
    ("r2", "said", "sentence"),
    [
        (0.9, 28.2, "follows: off by 2°"),
        (0.9, 38.9, "follows: off by 9°"),  # a tenth of the range
        (0.9, 20.0, "roughly follows: off by 10°"),
        (0.9, 5.0, "misses: off by 25°"),
        (0.1, 5.0, "cannot tell"),
        (0.1, 29.0, "cannot tell"),  # near by chance
    ],
)
def test_sentence_says_how_far_off_a_part_is_and_whether_it_can_tell(r2, said, sentence):
    assert reading(equivariant=r2, said=(said, 0.0)).sentence("equivariant") == sentence


@pytest.mark.parametrize(
    ("equivariant", "invariant", "text"),
    [
        (0.9, 0.1, "The equivariant part follows the angle. The invariant part cannot tell."),
        (0.5, -0.2, "The equivariant part roughly follows the angle. The invariant part cannot tell."),
        (0.9, 0.5, "The equivariant part follows the angle. The invariant part roughly follows it."),
        (0.9, 0.8, "The two parts of this model do not differ here: both follow."),
        (0.1, 0.0, "The two parts of this model do not differ here: both cannot tell."),
        (0.65, 0.75, "The two parts of this model do not differ here: about the same."),
        (0.1, 0.9, "The equivariant part cannot tell the angle; the invariant part follows it. "
         "This model's parts are the wrong way around here."),
    ],
)  # fmt: skip
def test_verdict_compares_the_parts(equivariant, invariant, text):
    assert verdict(CHOICE, [reading(equivariant, invariant)]) == text


def test_readings_are_in_the_units_of_the_sliders(model, probe, make_picture):
    choice = list_choices(model.config.path)["rotation"]
    walk = model.walk(model.canvas([make_picture(0)], choice.path), choice, {"angle": -25})
    (found,) = read(choice, walk, probe)
    assert found.true == pytest.approx(-25)
    radians = probe.read("equivariant", walk.pooled["equivariant"])[-1, 0].item()
    assert found.said["equivariant"] == pytest.approx(57.29578 * radians, rel=1e-4)
    assert found.r2["invariant"] == probe.r2["strict.invariant"][0]
    (black,) = read(choice, walk, probe, black=True)
    assert black.r2["invariant"] == probe.r2["black.invariant"][0]


def test_a_transformation_without_training_has_no_readings(model, probe, make_picture):
    choice = list_choices(model.config.path)["zoom"]
    walk = model.walk(model.canvas([make_picture(0)], choice.path), choice, {"scale": 1.3})
    assert read(choice, walk, probe) == []
