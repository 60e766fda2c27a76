import colorsys
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from torch.utils.flop_counter import FlopCounterMode

from eqcohvit.transforms import ops, resize


@pytest.fixture
def images():
    return torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def to_pil(image):
    return Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())


def from_pil(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def quantized(images):
    return (images * 255).round() / 255


@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        (ops.adjust_brightness, ImageEnhance.Brightness),
        (ops.adjust_contrast, ImageEnhance.Contrast),
        (ops.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_color_factors_agree_with_pil(images, operation, enhancer):
    images = quantized(images)
    factors = torch.tensor([0.0, 0.6, 1.0, 1.4])
    result = operation(images, factors)
    for image, factor, ours in zip(images, factors.tolist(), result, strict=True):
        theirs = from_pil(enhancer(to_pil(image)).enhance(factor))
        assert (ours - theirs).abs().max() <= 2.1 / 255  # PIL rounds the gray level and the result


def test_adjust_hue_turns_primary_colors_into_each_other():
    red, green, blue = (torch.eye(3)[i][:, None, None].expand(3, 2, 2) for i in range(3))
    turned = ops.adjust_hue(torch.stack([red, green, blue, red]), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 6]))
    yellow = torch.tensor([1.0, 1.0, 0.0])[:, None, None].expand(3, 2, 2)
    assert torch.allclose(turned, torch.stack([green, blue, red, yellow]), atol=1e-6)


def test_adjust_hue_agrees_with_colorsys():
    levels = torch.tensor([0.0, 0.3, 0.3001, 0.7, 1.0])
    images = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 5, 25)
    ours = ops.adjust_hue(images, torch.tensor([0.3]))
    for before, after in zip(images.flatten(2)[0].T.tolist(), ours.flatten(2)[0].T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + 0.3) % 1, saturation, value), abs=1e-5)


def test_adjust_hue_full_turn_and_zero_are_the_identity(images):
    assert torch.allclose(ops.adjust_hue(images, torch.tensor([0.0, 1.0, -1.0, 2.0])), images, atol=1e-5)


def test_solarize_inverts_bright_pixels_of_chosen_images(images):
    result = ops.solarize(images, torch.tensor([True, False, True, False]))
    assert torch.equal(result[1], images[1])
    assert result[0].max() < 0.5 + 1e-6
    bright = images[0] >= 0.5
    assert torch.allclose(result[0][bright], 1 - images[0][bright])
    assert torch.equal(result[0][~bright], images[0][~bright])


def test_adjust_color_shares_a_given_pivot(images):
    factors = torch.tensor([[1.2, 0.7, 1.3, 0.05]]).expand(4, 4)
    whole = ops.adjust_color(images, factors)
    part = ops.adjust_color(images[..., :10], factors, ops.luminance(images).mean(dim=(1, 2, 3)))
    assert torch.allclose(part, whole[..., :10], atol=1e-6)


ORDERS = list(itertools.permutations(range(4)))


def test_jitter_color_applies_the_operations_in_each_order(images):
    factors = [1.3, 0.6, 1.7, 0.15]
    operations = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_hue)
    result, _ = ops.jitter_color(
        images[:1].expand(24, -1, -1, -1), torch.tensor([factors]).expand(24, 4), torch.tensor(ORDERS)
    )
    for order, ours in zip(ORDERS, result, strict=True):
        expected = images[:1]
        for operation in order:
            expected = operations[operation](expected, torch.tensor([factors[operation]]))
        assert torch.allclose(ours, expected[0], atol=1e-5), order
    assert len({round(ours.sum().item(), 3) for ours in result}) == 24  # that they differ


def test_jitter_color_of_one_image_is_that_of_many(images):
    """On a CPU what changes none of the images is left out."""
    factors = torch.tensor([[1.3, 0.6, 1.7, 0.15], [1.0, 0.6, 1.0, 0.0], [1.0, 1.0, 1.0, 0.15], [1.0, 1.0, 1.0, 0.0]])
    orders = torch.tensor(ORDERS[::6])
    together, _ = ops.jitter_color(images, factors, orders)
    for i in range(4):
        alone, _ = ops.jitter_color(images[i : i + 1], factors[i : i + 1], orders[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-6)


def test_jitter_color_of_a_part_shares_the_pivots_of_the_whole(images):
    factors, orders = torch.tensor([[1.3, 0.6, 1.7, 0.15]]).expand(4, 4), torch.tensor(ORDERS[::6])
    whole, pivots = ops.jitter_color(images, factors, orders)
    part, _ = ops.jitter_color(images[..., :10], factors, orders, pivots)
    assert torch.allclose(part, whole[..., :10], atol=1e-6)


def test_jitter_color_without_a_change_is_the_identity(images):
    neutral = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(4, 4)
    assert torch.allclose(ops.jitter_color(images, neutral, torch.tensor(ORDERS[::6]))[0], images, atol=1e-6)


def resized(images, top_left, size, number, width_factor=1.0):
    """Rows and columns of a square part by `resize.bicubic_filter`."""
    begin, length = torch.tensor([float(top_left)]).expand(len(images)), torch.tensor([float(size)]).expand(len(images))
    centers = begin[:, None] + (torch.arange(number) + 0.5) * size / number
    width = (length / number).clamp_min(1)
    nothing = (torch.zeros_like(width), width)
    bounds = (size / number, max(1.0, size / number))
    axis_filter = resize.bicubic_filter(centers, width, (begin, begin + length), images.shape[-1], bounds, nothing)
    rows = resize.apply_filter(images.permute(0, 2, 1, 3), axis_filter, number)
    return resize.apply_filter(rows.permute(0, 3, 2, 1), axis_filter, number).permute(0, 2, 3, 1)


@pytest.mark.parametrize("group", [4, 16, 1000])
@pytest.mark.parametrize(
    ("top_left", "size", "number"), [(0, 24, 24), (3, 17, 40), (5, 19, 7), (0, 24, 5), (20, 4, 30), (7, 1, 9)]
)
def test_bicubic_filter_is_the_antialiased_resize_of_torch(images, monkeypatch, group, top_left, size, number):
    monkeypatch.setattr(resize, "_GROUP", group)
    part = images[..., top_left : top_left + size, top_left : top_left + size]
    expected = F.interpolate(part, (number, number), mode="bicubic", antialias=True)
    assert torch.allclose(resized(images, top_left, size, number), expected, atol=1e-5)


def test_apply_filter_gives_each_view_of_an_image_its_own_weights(images):
    centers = torch.tensor(
        [[2.5, 3.5], [7.5, 9.5], [0.5, 1.5], [20.5, 23.5]]
    )  # of two views of two images, at the pixels' own places
    ones, ends = torch.ones(4), (torch.zeros(4), torch.full((4,), 24.0))
    axis_filter = resize.bicubic_filter(centers, ones, ends, 24, (3.0, 1.0), (torch.zeros(4), ones))
    out = resize.apply_filter(images[:2].permute(0, 2, 1, 3), axis_filter, 2)
    for i, rows in enumerate(([2, 3], [7, 9], [0, 1], [20, 23])):
        assert torch.allclose(out[i], images[i // 2].transpose(0, 1)[rows], atol=1e-5)


def test_magnification_of_zoom_rotation_and_homography():
    angle = torch.tensor(0.7)
    rotation = ops.affine([[angle.cos(), -angle.sin(), 0.3], [angle.sin(), angle.cos(), 0], [0, 0, 1]], torch.zeros(1))
    zoom = ops.affine([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]], torch.zeros(1))
    assert torch.allclose(ops.magnification(rotation), torch.ones(1), atol=1e-6)
    assert torch.allclose(ops.magnification(ops.compose(rotation, zoom)), torch.tensor([2.0]), atol=1e-5)
    homography = torch.tensor([[1.1, 0.2, 0.3], [-0.1, 0.9, 0.2], [0.2, -0.3, 1.2]]).double()

    def place(x):
        x, y, w = homography @ torch.cat([x, torch.ones(1).double()])
        return torch.stack([x / w, y / w])

    jacobian = torch.autograd.functional.jacobian(place, torch.zeros(2).double())
    assert ops.magnification(homography).item() == pytest.approx(
        abs(torch.linalg.det(jacobian).item()) ** -0.5, rel=1e-5
    )


@pytest.mark.parametrize("border", ops.BORDERS)
def test_maps_are_composed_without_matrix_products(border):
    """A GPU would round those to TF32 where the training loop allows it, a tenth of a pixel."""
    with FlopCounterMode(display=False) as counter:
        ops.sampling_grid(identity(2), ops.compose(identity(2), identity(2)), 8, border)
    assert counter.get_total_flops() == 0


def test_gaussian_blur_agrees_with_the_closed_form_in_the_middle():
    impulse = torch.zeros(1, 1, 33, 33)
    impulse[0, 0, 16, 16] = 1
    sigma = 1.7
    x = torch.arange(33) - 16.0
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    assert torch.allclose(
        ops.gaussian_blur(impulse, torch.tensor([sigma]))[0, 0], torch.outer(kernel, kernel), atol=1e-5
    )


def test_gaussian_blur_of_each_image_by_its_own_sigma(images):
    sigma = torch.tensor([0.0, 0.7, 1.3, 2.0])
    together = ops.gaussian_blur(images, sigma)
    for image, s, blurred in zip(images, sigma, together, strict=True):
        assert torch.allclose(ops.gaussian_blur(image[None], s[None])[0], blurred, atol=1e-5)
    assert torch.equal(together[0], images[0])


def test_gaussian_blur_mirrors_the_image_at_its_border(images):
    mirrored = torch.cat([images.flip(-1), images, images.flip(-1)], dim=-1)
    mirrored = torch.cat([mirrored.flip(-2), mirrored, mirrored.flip(-2)], dim=-2)
    sigma = torch.full((4,), 1.5)
    assert torch.allclose(
        ops.gaussian_blur(images, sigma), ops.gaussian_blur(mirrored, sigma)[..., 24:48, 24:48], atol=1e-6
    )


def test_gaussian_blur_is_near_pils(images):
    smooth = ops.gaussian_blur(
        images, torch.full((4,), 2.0)
    )  # PIL approximates a Gaussian by box filters, edges extended
    ours = ops.gaussian_blur(quantized(smooth), torch.full((4,), 1.5))[0, :, 6:-6, 6:-6]
    theirs = from_pil(to_pil(smooth[0]).filter(ImageFilter.GaussianBlur(1.5)))[:, 6:-6, 6:-6]
    assert (ours - theirs).abs().max() < 0.02


def test_gaussian_blur_keeps_constants_and_zero_is_the_identity(images):
    assert torch.allclose(
        ops.gaussian_blur(torch.full((2, 3, 8, 8), 0.3), torch.tensor([0.5, 30.0])), torch.tensor(0.3)
    )
    assert torch.allclose(ops.gaussian_blur(images, torch.zeros(4)), images, atol=1e-6)


def identity(batch=1):
    return torch.eye(3).expand(batch, 1, 3, 3)


def motion(matrix):
    return torch.tensor(matrix, dtype=torch.float32).reshape(1, 1, 3, 3)


def test_sampling_identity_reads_the_image_itself(images):
    for border in ops.BORDERS:
        grid, coverage = ops.sampling_grid(identity(4), identity(4), 24, border)
        assert torch.allclose(ops.sample(images, grid)[:, 0], images, atol=1e-5)
        assert (coverage is None) == (border != "zeros")
        assert coverage is None or torch.allclose(coverage, torch.ones(()), atol=1e-5)


def test_sampling_crop_reads_the_right_quarter(images):
    upper_left = motion([[0.5, 0, -0.5], [0, 0.5, -0.5], [0, 0, 1]])
    grid, _ = ops.sampling_grid(upper_left.expand(4, 1, 3, 3), identity(4), 12, "canvas")
    assert torch.allclose(ops.sample(images, grid)[:, 0], images[..., :12, :12], atol=1e-5)


@pytest.mark.parametrize("border", ops.BORDERS)
def test_sampling_grid_follows_the_matrices_point_by_point(border):
    generator = torch.Generator().manual_seed(0)
    crop = torch.eye(3) + torch.cat(
        [0.2 * torch.randn(2, 3, 2, 3, generator=generator), torch.zeros(2, 3, 1, 3)], dim=2
    )
    motion = torch.eye(3) + 0.1 * torch.randn(2, 3, 3, 3, generator=generator)
    grid, _ = ops.sampling_grid(crop, motion, 6, border)
    x, y = (2 * 4 + 1) / 6 - 1, (2 * 1 + 1) / 6 - 1  # the pixel in column 4 and row 1
    moved = motion @ torch.tensor([x, y, 1.0])
    moved = moved[..., :2] / moved[..., 2:]
    if border == "reflection":
        moved = torch.where(moved.abs() > 1, moved.sign() * 2 - moved, moved)
    expected = (crop[..., :2, :2] @ moved[..., None])[..., 0] + crop[..., :2, 2]
    assert torch.allclose(grid[:, :, 1, 4], expected, atol=1e-5)
    affine = torch.cat([motion[..., :2, :], torch.eye(3)[2].expand(2, 3, 1, 3)], dim=-2)
    plain, fast = (ops.sampling_grid(crop, affine, 6, border, projective)[0] for projective in (True, False))
    assert torch.allclose(plain, fast, atol=1e-6)


def test_borders_fill_what_a_shift_leaves_open(images):
    size, shift = 12, 4  # the view is the middle 12 x 12 of 24 x 24; its content moves 4 pixels to the right
    crop = motion([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]]).expand(4, 1, 3, 3)
    moved = motion([[1, 0, -2 * shift / size], [0, 1, 0], [0, 0, 1]]).expand(4, 1, 3, 3)
    view = images[..., 6:18, 6:18]
    results = {}
    for border in ops.BORDERS:
        grid, coverage = ops.sampling_grid(crop, moved, size, border)
        results[border] = ops.sample(images, grid)[:, 0] * (1 if coverage is None else coverage[:, 0])
        assert torch.allclose(results[border][..., shift:], view[..., :-shift], atol=1e-5)
    assert torch.allclose(results["canvas"][..., :shift], images[..., 6:18, 2:6], atol=1e-5)
    assert torch.allclose(results["zeros"][..., :shift], torch.zeros(()), atol=1e-5)
    assert torch.allclose(results["reflection"][..., :shift], view[..., :shift].flip(-1), atol=1e-5)


def test_sample_renders_several_views_in_their_order(images):
    half_turn = motion([[-1, 0, 0], [0, -1, 0], [0, 0, 1]]).expand(4, 1, 3, 3)
    grid, _ = ops.sampling_grid(
        identity(4).expand(4, 2, 3, 3), torch.cat([identity(4), half_turn], dim=1), 24, "canvas"
    )
    views = ops.sample(images, grid)
    assert views.shape == (4, 2, 3, 24, 24)
    assert torch.allclose(views[:, 0], images, atol=1e-5) and torch.allclose(
        views[:, 1], images.flip(-1, -2), atol=1e-5
    )


def test_unknown_border_is_refused():
    with pytest.raises(ValueError, match="unknown border 'wrap'; known: canvas, zeros, reflection"):
        ops.sampling_grid(identity(), identity(), 4, "wrap")


def test_affine_stacks_numbers_and_tensors():
    a = torch.tensor([math.pi, 2.0])
    assert torch.equal(
        ops.affine([[1, a, 0], [0, 1, 0], [0, 0, 1]], a)[:, 0], torch.tensor([[1, math.pi, 0], [1, 2.0, 0]])
    )
