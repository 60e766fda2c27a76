"""Nearest pictures with features that are known by hand: one part holds the color of a picture, the other its angle."""

import pytest
import torch
from PIL import Image

from controls import list_choices
from neighbors import NUM_POSES, NUM_SHOWN, OWN, Gallery, poses
from walk import Canvas

CHOICE = list_choices("rotation")["rotation"]
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class KnownModel:
    """Pictures are of one color above white. The invariant part is the color, the equivariant part the horizon's
    slope, with a trace of the color."""

    side = 32

    def canvas(self, pictures, path):
        pixels = [
            torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(96, 96, 3) for picture in pictures
        ]
        return Canvas(torch.stack(pixels).permute(0, 3, 1, 2).float() / 255, 0.7)

    def pooled(self, images):
        color = images[:, :, 3:6, 14:18].mean(dim=(2, 3))
        dark = 1 - images.mean(dim=1)
        slope = dark[:, :, 24:].mean(dim=(1, 2)) - dark[:, :, :8].mean(dim=(1, 2))
        angle = torch.stack([slope, slope.abs() - 0.1], dim=-1)
        return {"invariant": color, "equivariant": torch.cat([angle, 0.01 * color], dim=-1)}


class KnownProbe:
    """Says the slope itself, which has the sign of the angle."""

    limits = torch.tensor([[-1.0, 1.0]])

    def read(self, part, pooled, black):
        return (pooled - pooled[:1])[:, :1]


def halves(color):
    picture = Image.new("RGB", (96, 96), "white")
    picture.paste(color, (0, 0, 96, 48))
    return picture


@pytest.fixture(scope="module")
def gallery():
    return Gallery(KnownModel(), KnownProbe(), {name: halves(color) for name, color in COLORS.items()})


def search(gallery, name, color, angle, black=False, choice=CHOICE):
    from walk import views

    model = KnownModel()
    canvas = model.canvas([halves(color)], choice.path)
    parameters = choice.parameters({"angle": angle})
    ends = views(canvas, choice.path, parameters.expand(2, -1), torch.tensor([0.0, 1.0]), 32, black)[0]
    return gallery.search(name, canvas, choice, parameters[0], model.pooled(ends), black)


def test_invariant_part_finds_the_same_thing_in_other_poses(gallery):
    found = search(gallery, "green", COLORS["green"], 0.0)["invariant"]
    assert [neighbor.name for neighbor in found.nearest] == ["green"] * NUM_SHOWN and found.num_same == NUM_SHOWN
    assert all(neighbor.values["angle"] != 0 for neighbor in found.nearest)


def test_equivariant_part_finds_other_things_in_the_same_pose(gallery):
    found = search(gallery, "green", COLORS["green"], 33.75)["equivariant"]
    assert {neighbor.name for neighbor in found.nearest} == {"red", "blue"} and found.num_same == 0
    assert [neighbor.values["angle"] for neighbor in found.nearest] == pytest.approx([33.75, 33.75])
    assert found.distance == pytest.approx(0, abs=1e-6) and found.chance > 0.3


def test_without_training_the_direction_of_the_change_decides(gallery):
    untrained = list_choices("zoom")["rotation"]
    found = search(gallery, "green", COLORS["green"], 33.75, choice=untrained)["equivariant"]
    assert {neighbor.name for neighbor in found.nearest} == {"red", "blue"}
    assert all(neighbor.values["angle"] > 0 for neighbor in found.nearest)


def test_an_own_picture_is_among_the_things(gallery):
    found = search(gallery, OWN, (255, 255, 0), 20.0)["invariant"]
    assert {neighbor.name for neighbor in found.nearest} == {OWN}
    assert found.nearest[0].image.shape == (3, 96, 96)


def test_distance_by_chance_is_that_of_all_poses(gallery):
    found = search(gallery, "green", COLORS["green"], 45.0)["equivariant"]
    assert found.chance == pytest.approx(0.5)  # poses from -45 to 45 degrees, seen from an end


@pytest.mark.parametrize("name", ["rotation", "se2", "se2+color_jitter", "zoom"])
def test_poses_cover_the_range_of_each_slider_and_move_nothing_else(name):
    for choice in list_choices(name).values():
        moves = poses(choice)
        assert moves.shape == (NUM_POSES, choice.path.num_parameters) and len(moves.unique(dim=0)) == NUM_POSES
        for index in range(choice.path.num_parameters):
            control = choice.controls.get(index)
            ends = [control.unit.parameter(edge) for edge in (control.low, control.high)] if control else [0, 0]
            assert [moves[:, index].min(), moves[:, index].max()] == pytest.approx(ends, abs=1e-6)
