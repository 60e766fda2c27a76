import math

import pytest
import torch

from controls import ALL_CONTROLS, CONTROLS, list_choices
from eqcohvit.transforms import PATHS, make_path


def test_controls_cover_every_path_and_all_its_parameters():
    assert set(CONTROLS) == set(PATHS) - {"se2"}  # se2 is a rotation and a translation
    for name, controls in CONTROLS.items():
        assert (
            sum(len(control.to_parameters(control.neutral)) for control in controls) == make_path(name).num_parameters
        )


@pytest.mark.parametrize("control", ALL_CONTROLS, ids=lambda control: control.name)
def test_control_is_inverted_and_starts_within_its_range(control):
    for value in (control.low, control.start, control.high):
        assert control.low <= value <= control.high
        assert control.from_parameters(control.to_parameters(value)) == pytest.approx(value)


@pytest.mark.parametrize("name", CONTROLS)
def test_control_ranges_lie_within_the_path_s_own(name):
    ends = [
        [parameter for control in CONTROLS[name] for parameter in control.to_parameters(edge(control))]
        for edge in (_low, _high)
    ]
    for low, high, parameters in zip(
        *torch.tensor(make_path(name).limits).T.tolist(), zip(*ends, strict=True), strict=True
    ):
        if name != "gaussian_blur":  # its slider goes down to no blur at all
            assert all(low - 1e-6 <= parameter <= high + 1e-6 for parameter in parameters)


def _low(control):
    return control.low


def _high(control):
    return control.high


def test_choice_turns_degrees_and_percents_into_the_path_s_units():
    choices = list_choices("se2+color_jitter")
    assert list(choices)[:4] == ["rotation", "translation", "color_jitter", "se2+color_jitter"]
    assert [choice.trained for choice in choices.values()] == [True] * 4 + [False] * 3
    whole = choices["se2+color_jitter"].parameters(
        {"angle": 30, "shift_x": 2, "shift_y": -4, "brightness": 20, "hue": 36}
    )
    assert whole[0].tolist() == pytest.approx([math.pi / 6, 0.02, -0.04, 0.2, 0, 0, 0.1])
    alone = choices["rotation"].parameters({"angle": 30, "shift_x": 2, "brightness": 20})
    assert alone[0].tolist() == pytest.approx([math.pi / 6, 0, 0, 0, 0, 0, 0])


def test_choice_spans_name_the_parameters_of_their_sliders():
    choices = list_choices("translation+perspective+zoom")
    assert choices["zoom"].spans() == {"zoom": slice(10, 11)}
    assert choices["translation+perspective+zoom"].spans()["tilt"] == slice(2, 10)


def test_neutral_values_are_the_identity():
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for choice in list_choices("se2").values():
        moved = choice.path.at(choice.parameters({}), 1.0)(images)
        assert torch.allclose(moved, images, atol=1e-5), choice.key


@pytest.mark.parametrize("value", [45.1, math.nan, "30", None, True])
def test_choice_refuses_values_outside_of_the_slider(value):
    with pytest.raises(ValueError, match="angle must be a number from -45 to 45, got"):
        list_choices("rotation")["rotation"].parameters({"angle": value})
