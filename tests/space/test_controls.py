import math

import pytest
import torch

from controls import UNITS, all_controls, list_choices
from eqcohvit.transforms import PATHS, TransformationPath, make_path

EVERY_PATH = [*PATHS, "se2:0.5", "se2+color_jitter", "rotation+color_jitter+gaussian_blur"]
CONTROLS = all_controls(list_choices("se2"))


@pytest.mark.parametrize("name", EVERY_PATH)
def test_choices_of_any_path_have_a_slider_for_each_parameter(name):
    choices = list_choices(name)
    for choice in choices.values():
        assert all(0 <= index < choice.path.num_parameters for index in choice.controls)
        assert len({control.name for control in choice.controls.values()}) == len(choice.controls)
    assert list(choices[name].controls) == list(range(make_path(name).num_parameters))


def test_trained_choices_come_first_and_the_others_say_so():
    choices = list(list_choices("se2+color_jitter").values())
    assert [choice.key for choice in choices[:4]] == ["rotation", "translation", "color_jitter", "se2+color_jitter"]
    assert [choice.trained for choice in choices] == [True] * 4 + [False] * 3
    assert [choice.label.startswith("Not trained on: ") for choice in choices] == [False] * 4 + [True] * 3
    assert choices[3].label == "Together: rotation + translation + color jitter"


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control_starts_within_its_range_and_its_unit_is_inverted(control):
    assert control.low <= control.start <= control.high and control.start != control.neutral
    for value in (control.low, control.start, control.high):
        assert control.unit.show(control.unit.parameter(value)) == pytest.approx(value)


@pytest.mark.parametrize("name", EVERY_PATH)
def test_slider_ranges_lie_within_the_path_s_own_and_reach_its_ends(name):
    choice = list_choices(name)[name]
    for index, control in choice.controls.items():
        low, high = choice.path.limits[index]
        ends = [control.unit.parameter(control.low), control.unit.parameter(control.high)]
        assert low - 1e-6 <= ends[0] < ends[1] <= high + 1e-6
        step = (high - low) / 40
        assert ends[0] < low + step and ends[1] > high - step


def test_the_angle_reaches_45_degrees_on_both_sides():
    (angle,) = list_choices("rotation")["rotation"].controls.values()
    assert (angle.low, angle.high) == (-45, 45)


def test_choice_turns_degrees_and_percents_into_the_path_s_units():
    choices = list_choices("se2+color_jitter")
    values = {"angle": 30, "shift_x": 2, "shift_y": -4, "brightness": 20, "hue": 36}
    whole = choices["se2+color_jitter"].parameters(values)
    assert whole[0].tolist() == pytest.approx([math.pi / 6, 0.02, -0.04, 0.2, 0, 0, 0.1])
    alone = choices["rotation"].parameters({"angle": 30, "shift_x": 2, "brightness": 20})
    assert alone[0].tolist() == pytest.approx([math.pi / 6, 0, 0, 0, 0, 0, 0])
    assert choices["rotation"].values(whole[0]) == pytest.approx({"angle": 30})
    assert list_choices("zoom")["zoom"].parameters({"scale": 1.5})[0].tolist() == pytest.approx([math.log(1.5)])


def test_values_have_their_unit():
    choices = list_choices("se2")
    shown = {control.name: control.text(control.low) for control in all_controls(choices)}
    assert shown["angle"] == "−45°" and shown["shift_x"] == "−4.4 %" and shown["scale"] == "0.67×"
    assert shown["sigma"] == "0.1 px" and shown["hue"] == "−36°" and shown["top_left_x"] == "−10.0 %"


def test_sliders_without_values_change_nothing():
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for choice in list_choices("se2").values():
        moved = choice.path.at(choice.parameters({}), 1.0)(images)
        assert torch.allclose(moved, images, atol=1e-5), choice.key


@pytest.mark.parametrize("value", [45.1, math.nan, "30", None, True])
def test_choice_refuses_values_outside_of_the_slider(value):
    with pytest.raises(ValueError, match="angle must be a number from -45 to 45, got"):
        list_choices("rotation")["rotation"].parameters({"angle": value})


class Stretch(TransformationPath):
    """A path as a user may register it: without units, and with a parameter that has the name of another path's."""

    name = "stretch"
    parameter_names = ("width", "angle")
    limits = ((-0.2, 0.3), (0.0, 2.0))

    def at(self, parameters, t):
        return make_path("rotation").at(parameters[:, :1], t)


def test_a_newly_registered_path_gets_sliders(monkeypatch):
    monkeypatch.setitem(PATHS, "stretch", Stretch)
    trained = list_choices("stretch")["stretch"]
    assert [(c.name, c.low, c.high) for c in trained.controls.values()] == [("width", -0.2, 0.3), ("angle", 0, 2)]
    assert trained.parameters({"width": 0.25})[0].tolist() == pytest.approx([0.25, 0])
    beside = list_choices("se2")
    assert [c.name for c in beside["stretch"].controls.values()] == ["width", "stretch_angle"]
    assert beside["stretch"].label == "Not trained on: stretch"
    assert beside["rotation"].controls[0].name == "angle"


def test_units_of_every_path_are_known():
    for path in map(make_path, PATHS):
        assert len(path.units) == path.num_parameters and set(path.units) <= set(UNITS), path.name
