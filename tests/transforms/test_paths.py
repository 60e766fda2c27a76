import math

import pytest
import torch
from PIL import Image

from eqcohvit.transforms import PATHS, intermediate_fractions, make_path, ops
from eqcohvit.transforms.paths import Rotation, homography, path_reach

ALL = [*PATHS, "rotation:2", "rotation+color_jitter", "zoom+perspective+gaussian_blur"]


@pytest.fixture
def images():
    noise = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ops.gaussian_blur(noise, torch.full((5,), 2.0, dtype=torch.float64))


def drawn(name, batch=5):
    path = make_path(name)
    uniforms = torch.rand(batch, path.num_parameters, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return path.sample(uniforms)


@pytest.mark.parametrize("name", ALL)
def test_path_at_zero_is_the_identity(name, images):
    assert torch.allclose(drawn(name).at(0.0)(images), images, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_path_parameters_fill_their_ranges(name):
    path = make_path(name)
    low, high = torch.tensor(path.limits).T
    ends = path.sample(torch.stack([torch.zeros(path.num_parameters), torch.ones(path.num_parameters)])).parameters
    assert torch.allclose(ends, torch.stack([low, high]))
    assert len(path.parameter_names) == len(path.limits) == path.num_parameters


@pytest.mark.parametrize("name", ALL)
def test_path_at_t_is_the_end_of_the_path_with_scaled_parameters(name, images):
    sampled = drawn(name)
    scaled = type(sampled)(sampled.path, sampled.parameters * 0.37)
    assert torch.allclose(sampled.at(0.37)(images), scaled.at(1.0)(images), atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_path_takes_a_fraction_per_image(name, images):
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    together = drawn(name).at(t)(images)
    for i in range(5):
        assert torch.allclose(together[i], drawn(name).at(t[i].item())(images)[i], atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_path_is_differentiable_in_parameters_and_fraction(name, images):
    sampled = drawn(name)
    parameters = sampled.parameters.clone().requires_grad_()
    t = torch.full((5,), 0.6, dtype=torch.float64, requires_grad=True)
    (sampled.path.at(parameters, t)(images) ** 2).sum().backward()
    assert parameters.grad.isfinite().all() and (parameters.grad.abs().sum(dim=0) > 0).all()
    assert t.grad.isfinite().all() and t.grad.abs().sum() > 0


def test_rotation_by_90_degrees_equals_rot90(images):
    path = Rotation()
    for quarter_turns in (1, 2, 3):
        angle = torch.full((5, 1), quarter_turns * math.pi / 2, dtype=torch.float64)
        assert torch.allclose(path.at(angle, 1.0)(images), images.rot90(quarter_turns, (-2, -1)), atol=1e-6)


def test_rotation_agrees_with_pil(images):
    image = (images[0] * 255).round().byte()
    theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).rotate(20, resample=Image.Resampling.BILINEAR)
    theirs = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).reshape(32, 32, 3).permute(2, 0, 1) / 255
    ours = Rotation().at(torch.tensor([[math.radians(20)]], dtype=torch.float64), 1.0)(image[None] / 255.0)[0]
    assert (ours - theirs)[:, 6:-6, 6:-6].abs().max() < 0.01


def test_rotation_is_a_one_parameter_group():
    angle = torch.tensor([[0.7]], dtype=torch.float64)
    third, whole = Rotation().at(angle, 1 / 3), Rotation().at(angle, 1.0)
    assert torch.allclose(third.then(third).then(third).matrix, whole.matrix)


def test_translation_moves_right_and_down_by_a_fraction_of_the_side(images):
    parameters = torch.tensor([[4 / 32, 8 / 32]], dtype=torch.float64).expand(5, 2)
    moved = make_path("translation").at(parameters, 1.0)(images)
    assert torch.allclose(moved[..., 8:, 4:], images[..., :-8, :-4], atol=1e-6)
    assert torch.allclose(moved[..., :8, :], torch.zeros((), dtype=torch.float64), atol=1e-6)
    half = make_path("translation").at(parameters, 0.5)(images)
    assert torch.allclose(half[..., 4:, 2:], images[..., :-4, :-2], atol=1e-6)


def test_translation_range_is_10_of_224_pixels():
    assert make_path("translation").limits == ((-10 / 224, 10 / 224),) * 2


def test_se2_rotates_first_and_translates_then(images):
    angle, shift = (
        torch.full((5, 1), math.pi / 2, dtype=torch.float64),
        torch.tensor([[8 / 32, 0.0]], dtype=torch.float64).expand(5, 2),
    )
    moved = make_path("se2").at(torch.cat([angle, shift], dim=1), 1.0)(images)
    assert torch.allclose(moved[..., 8:], images.rot90(1, (-2, -1))[..., :-8], atol=1e-6)


def test_zoom_by_two_shows_the_middle(images):
    zoomed = make_path("zoom").at(torch.full((5, 1), math.log(2), dtype=torch.float64), 1.0)(images)
    # Every second pixel of the zoomed image lies a quarter of a pixel beside one of the original: smooth images agree
    # closely.
    middle = torch.nn.functional.interpolate(
        images[..., 8:24, 8:24], scale_factor=2, mode="bilinear", align_corners=False
    )
    assert torch.allclose(zoomed[..., 2:-2, 2:-2], middle[..., 2:-2, 2:-2], atol=1e-6)


def test_perspective_moves_the_corners_to_where_the_parameters_say():
    parameters = drawn("perspective").parameters
    corners = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    for t in (0.5, 1.0):
        matrix = make_path("perspective").at(parameters, t).matrix
        moved = corners + 2 * t * parameters.reshape(5, 4, 2)
        back = torch.cat([moved, torch.ones(5, 4, 1, dtype=torch.float64)], dim=-1) @ matrix.transpose(1, 2)
        assert torch.allclose(back[..., :2] / back[..., 2:], corners.expand(5, 4, 2), atol=1e-9)


def test_homography_of_equal_points_is_the_identity():
    square = torch.tensor([[[-1.0, -1], [1, -1], [1, 1], [-1, 1]]])
    assert torch.allclose(homography(square, square), torch.eye(3)[None], atol=1e-6)


def test_color_jitter_at_one_applies_the_factors(images):
    parameters = torch.tensor([[0.3, -0.2, 0.4, 0.05]], dtype=torch.float64).expand(5, 4)
    expected = ops.adjust_color(images, torch.tensor([[1.3, 0.8, 1.4, 0.05]], dtype=torch.float64).expand(5, 4))
    assert torch.equal(make_path("color_jitter").at(parameters, 1.0)(images), expected)


def test_gaussian_blur_at_t_has_t_times_sigma(images):
    sigma = torch.full((5, 1), 1.8, dtype=torch.float64)
    of_32_pixels = 0.6 * 32 / 224  # stated for an image of 224
    expected = ops.gaussian_blur(images, torch.full((5,), of_32_pixels, dtype=torch.float64))
    assert torch.allclose(make_path("gaussian_blur").at(sigma, 1 / 3)(images), expected)


def test_composition_applies_the_parts_in_their_order(images):
    both = drawn("rotation+zoom")
    rotation, zoom = make_path("rotation"), make_path("zoom")
    first = rotation.at(both.parameters[:, :1], 0.5)
    second = zoom.at(both.parameters[:, 1:], 0.5)
    assert torch.allclose(both.at(0.5).matrix, first.matrix @ second.matrix)
    assert both.path.parameter_names == ("rotation.angle", "zoom.log_scale")


def test_intermediate_fractions_are_equidistant():
    assert intermediate_fractions(2) == pytest.approx([1 / 3, 2 / 3])
    assert intermediate_fractions(1) == [0.5]


def test_factor_scales_the_ranges_of_its_part():
    path = make_path("rotation:0.5+translation")
    assert path.name == "rotation:0.5+translation"
    assert path.limits[0] == pytest.approx((-math.radians(22.5), math.radians(22.5)))
    assert path.limits[1:] == make_path("translation").limits
    assert make_path("rotation").limits[0][1] == pytest.approx(math.radians(45))  # the class keeps its own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rotate", "unknown path 'rotate'; known: rotation, translation, se2"),
        ("rotation+rotation:2", "names the same transformation twice"),
        ("rotation:0", "factor of a path must be a positive number, as in rotation:2, got 'rotation:0'"),
        ("se2+zoom:inf", "got 'zoom:inf'"),
        ("rotation:", "got 'rotation:'"),
        ("rotation:two", "got 'rotation:two'"),
    ],
)
def test_make_path_refuses(name, message):
    with pytest.raises(ValueError, match=message):
        make_path(name)


def test_reach_of_paths():
    assert path_reach(make_path("color_jitter")) == 1
    assert path_reach(make_path("rotation")) == pytest.approx(2**0.5, abs=1e-3)
    assert path_reach(make_path("translation")) == pytest.approx(1 + 20 / 224, abs=1e-3)
    assert path_reach(make_path("zoom")) == pytest.approx(1.5, abs=1e-3)
    assert path_reach(make_path("perspective:5")) == 3


@pytest.mark.parametrize("name", ["rotation", "rotation:2", "translation", "se2", "zoom"])
def test_the_inverse_takes_every_motion_back(name):
    sampled = drawn(name)
    back = sampled.path.at(sampled.path.inverse(sampled.parameters), 1.0).matrix
    assert torch.allclose(sampled.at(1.0).matrix @ back, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_a_quarter_turn_and_a_shift_are_undone_by_the_turn_back_and_the_turned_shift():
    """Counter-clockwise, then 0.1 to the right. Turned back clockwise, this shift to the right points down: undone by
    0.1 upward, where y counts downward."""
    found = make_path("se2").inverse(torch.tensor([[math.pi / 2, 0.1, 0.0]]))
    assert torch.allclose(found, torch.tensor([[-math.pi / 2, 0.0, -0.1]]), atol=1e-7)


@pytest.mark.parametrize("name", ["color_jitter", "gaussian_blur", "perspective", "rotation+zoom"])
def test_other_families_have_no_inverse(name):
    sampled = drawn(name)
    assert sampled.path.inverse(sampled.parameters) is None
