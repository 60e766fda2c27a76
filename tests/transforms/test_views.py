import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eqcohvit.data import decode_image
from eqcohvit.transforms import (
    AUGMENTATIONS,
    BlockMasking,
    MultiCrop,
    Transformation,
    ViewRenderer,
    make_path,
    ops,
    resize,
    training_canvas_size,
)
from eqcohvit.transforms import canvases as canvases_module
from eqcohvit.transforms.augmentations import ViewParameters, sample_view
from eqcohvit.transforms.random import uniforms
from eqcohvit.transforms.render import render as render_states
from eqcohvit.transforms.resize import resized_crop, resized_region

SIZE, CANVAS, BATCH = 24, 32, 6


@pytest.fixture
def canvases():
    noise = torch.rand(BATCH, 3, CANVAS, CANVAS, generator=torch.Generator().manual_seed(0))
    smooth = ops.gaussian_blur(noise, torch.full((BATCH,), 2.0))
    low, high = smooth.amin(dim=(1, 2, 3), keepdim=True), smooth.amax(dim=(1, 2, 3), keepdim=True)
    return ((smooth - low) / (high - low) * 255).to(torch.uint8)


def samples(rows=slice(None), epoch=0, sizes=None):
    """What the views of the batch depend on, except the canvases."""
    keys = torch.arange(BATCH)[rows]
    sizes = torch.full((BATCH, 2), CANVAS) if sizes is None else sizes
    return {"sizes": sizes[rows], "keys": keys, "epochs": torch.full_like(keys, epoch)}


def render(canvases, path="rotation", rows=slice(None), epoch=0, sizes=None, **kwargs):
    renderer = ViewRenderer(make_path(path), SIZE, **kwargs)
    return renderer(canvases[rows], **samples(rows, epoch, sizes)), renderer


def test_views_shapes_and_normalization(canvases):
    views, renderer = render(canvases, num_intermediates=3)
    assert views.first.shape == views.end.shape == (BATCH, 3, SIZE, SIZE)
    assert views.intermediates.shape == (BATCH, 3, 3, SIZE, SIZE)
    assert views.parameters.shape == (BATCH, 1)
    assert torch.allclose(
        renderer.normalize(torch.zeros(3, 1, 1)).flatten(), -torch.tensor(renderer.mean) / torch.tensor(renderer.std)
    )


def test_path_only_first_view_is_the_whole_image(canvases):
    views, renderer = render(canvases)
    whole = F.interpolate(canvases.float() / 255, size=SIZE, mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(views.first, renderer.normalize(whole), atol=1e-4)


def test_path_only_first_view_of_a_photograph_is_its_central_square():
    """Photographs of 48 x 24 and of 24 x 48 pixels, gray but for a white square of 24 in their middle."""
    for height, width in ((24, 48), (48, 24)):
        photo = torch.full((height, width, 3), 90, dtype=torch.uint8)
        top, left = (height - 24) // 2, (width - 24) // 2
        photo[top : top + 24, left : left + 24] = 255
        canvas, size, _ = decode_image(Image.fromarray(photo.numpy()), 48)
        renderer = ViewRenderer(make_path("rotation"), 24)
        keys = torch.zeros(1, dtype=torch.long)
        views = renderer(torch.as_tensor(canvas)[None], sizes=torch.tensor([size]), keys=keys, epochs=keys)
        white = renderer.normalize(torch.ones(3, 1, 1))
        assert torch.allclose(views.first[0, :, 2:-2, 2:-2], white.expand(3, 20, 20), atol=1e-3)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("border", ops.BORDERS)
def test_views_do_not_depend_on_the_batch_around_them(canvases, augmentation, border):
    together, _ = render(canvases, augmentation=augmentation, border=border)
    alone, _ = render(canvases, rows=slice(3, 4), augmentation=augmentation, border=border)
    for name in ("first", "end", "intermediates", "parameters"):
        assert torch.allclose(getattr(together, name)[3:4], getattr(alone, name), atol=1e-5)


@pytest.mark.parametrize("path", ["rotation", "rotation+gaussian_blur"])
def test_rendering_in_parts_gives_the_same_views(canvases, monkeypatch, path):
    """On a CPU the batch is rendered in parts that fit its cache."""
    whole, _ = render(canvases, path, augmentation="vicreg")
    monkeypatch.setattr(canvases_module, "_CACHED_VALUES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    parts, _ = render(canvases, path, augmentation="vicreg")
    for name in ("first", "end", "intermediates"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5)


@pytest.mark.parametrize("border", ops.BORDERS)
def test_groups_of_outputs_change_no_view(canvases, monkeypatch, border):
    """A GPU computes all outputs of an axis together, from all pixels of the canvas."""
    sizes = torch.tensor([[CANVAS // 2, 3 * CANVAS]]).expand(BATCH, 2)
    arguments = {"sizes": sizes, "augmentation": "vicreg", "border": border, "local_crops": MultiCrop(2, 8)}
    monkeypatch.setattr(resize, "_GROUP", 4)
    grouped, _ = render(canvases, "se2", **arguments)
    monkeypatch.setattr(resize, "_GROUP", 1000)
    whole, _ = render(canvases, "se2", **arguments)
    for name in ("first", "end", "intermediates", "local"):
        assert torch.allclose(getattr(grouped, name), getattr(whole, name), atol=1e-4), name


def test_base_blur_is_in_pixels_of_the_view(canvases):
    augmentation = dataclasses.replace(
        AUGMENTATIONS["path_only"][0], crop_scale=(0.5, 0.5), blur_probability=1.0, blur_sigma=(20.0, 20.0)
    )
    renderers = [ViewRenderer(make_path("rotation"), SIZE) for _ in range(2)]
    renderers[0].augmentations = [augmentation] * 2
    renderers[1].augmentations = [dataclasses.replace(augmentation, blur_probability=0.0)] * 2
    blurred, sharp = (renderer(canvases, **samples()).first for renderer in renderers)
    expected = ops.gaussian_blur(sharp, torch.full((BATCH,), 20 * SIZE / 224))
    assert torch.allclose(blurred, expected, atol=1e-4)


def test_views_differ_by_epoch_seed_and_sample(canvases):
    same = canvases[:1].expand_as(canvases)
    base, _ = render(same, augmentation="small")
    assert base.parameters.unique().numel() == BATCH
    for other in (render(same, augmentation="small", epoch=1)[0], render(same, augmentation="small", seed=1)[0]):
        assert not torch.allclose(other.first, base.first) and not torch.allclose(other.parameters, base.parameters)


@pytest.mark.parametrize(
    "path", ["rotation", "se2", "zoom", "perspective", "color_jitter", "gaussian_blur", "rotation+color_jitter"]
)
def test_intermediates_lie_on_the_path_of_the_end_view(canvases, path):
    """A path with parameters scaled by t ends at the state u_t: render it again with smaller ranges."""
    views, _ = render(canvases, path, num_intermediates=1, border="reflection")
    shorter = "+".join(f"{part}:0.5" for part in path.split("+"))
    renderer = ViewRenderer(make_path(shorter), SIZE, 1, border="reflection")
    half = renderer(canvases, **samples())
    assert torch.allclose(views.intermediates[:, 0], half.end, atol=1e-4)


def test_end_view_equals_the_transformed_base_view(canvases):
    """v2 = g(u): one fused interpolation against two, on smooth images, away from the border."""
    canvases = ops.gaussian_blur(canvases.float() / 255, torch.full((BATCH,), 2.0)).mul(255).round().to(torch.uint8)
    views, renderer = render(canvases, num_intermediates=1, border="zeros")
    _, _, path = renderer.sample(**samples())
    base = F.interpolate(canvases.float() / 255, size=SIZE, mode="bicubic", antialias=True)
    expected = renderer.normalize(path.at(1.0)(base, border="zeros"))
    assert (views.end - expected).abs().max() < 0.12
    assert (views.end - expected).abs().mean() < 0.015


def test_color_of_the_base_augmentation_is_the_same_at_every_state(canvases):
    """With the identity as path all states must be equal, jitter, blur and solarisation included."""
    views, _ = render(canvases, "rotation", num_intermediates=2, augmentation="vicreg", border="canvas")
    renderer = ViewRenderer(make_path("rotation:1e-6"), SIZE, 2, "vicreg", "canvas")
    still = renderer(canvases, **samples())
    assert torch.allclose(still.intermediates, still.end[:, None].expand_as(still.intermediates), atol=1e-3)
    assert torch.equal(still.first, views.first)  # the path has its own random stream


def test_without_intermediates_the_other_views_stay_the_same(canvases):
    renderer = ViewRenderer(make_path("se2"), SIZE, 2, "small")
    with_targets = renderer(canvases, **samples())
    without = renderer(canvases, **samples(), with_intermediates=False)
    assert without.intermediates is None
    assert torch.allclose(without.end, with_targets.end) and torch.allclose(without.first, with_targets.first)


@functools.cache
def natural(height, width, seed=0):
    """A picture whose spectrum falls as that of photographs, 1 / f: uint8 (3, height, width)."""
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)).clamp_min(
        1 / max(height, width)
    )
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    picture = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real
    return (128 + 40 * picture / picture.std()).clamp(0, 255).to(torch.uint8)


def on_canvas(picture, side):
    """As `decode_image` lays it: (1, 3, side, side) and the size (1, 2)."""
    decoded = decode_image(Image.fromarray(picture.permute(1, 2, 0).numpy()), side)
    return torch.from_numpy(decoded.canvas)[None], torch.tensor([decoded.size])


def laplacian_energy(images):
    """Of the middle of images (N, 3, H, W), which all states of a rotation show."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    quarter = images.shape[-1] // 6
    return F.conv2d(images, kernel, groups=3)[..., quarter:-quarter, quarter:-quarter].square().mean().item()


def boxed(left, top, width, height):
    """Parameters of one view that is cropped and nothing else."""
    no, one = torch.zeros(1, dtype=torch.bool), torch.tensor([[1.0, 1, 1, 0]])
    box = torch.tensor([[left, top, width, height]]).float()
    return ViewParameters(
        box, flip=no, color=one, order=torch.arange(4)[None], gray=no, sigma=torch.zeros(1), solarize=no
    )


@pytest.mark.parametrize(("height", "width"), [(375, 500), (1500, 2000)])
@pytest.mark.parametrize(
    ("augmentation", "size", "area"),
    [("vicreg", 224, 0.08), ("vicreg", 224, 0.25), ("vicreg", 224, 0.9), ("dinov2", 96, 0.05), ("dinov2", 96, 0.3)],
)
def test_views_are_as_sharp_as_theresized_crop_of_the_original(height, width, augmentation, size, area):
    picture = natural(height, width)
    side = training_canvas_size(augmentation, 224, MultiCrop(8, 96) if size == 96 else None)
    canvas, sizes = on_canvas(picture, side)
    crop_width, crop_height = (round(math.sqrt(area) * side) for side in (width, height))
    energies = []
    # Where a view has the pixels of a reduced canvas, its sharpness depends on how far its own lie off them.
    for shift in range(4):
        left, top = (width - crop_width) // 3 + shift, (height - crop_height) // 2 + shift
        reference = picture[None, :, top : top + crop_height, left : left + crop_width].float() / 255
        reference = F.interpolate(reference, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        view = resized_crop(canvas.transpose(1, 2), sizes, boxed(left, top, crop_width, crop_height), size).clamp(0, 1)
        energies.append((laplacian_energy(view), laplacian_energy(reference)))
        assert (view - reference).square().mean() < 0.02 * (reference - reference.mean()).square().mean()
        if side >= max(height, width):  # nothing was reduced: it is the reference
            assert torch.allclose(view, reference, atol=1e-3)
    ours, theirs = (sum(energy) for energy in zip(*energies, strict=True))
    assert 0.85 < ours / theirs < 1.15


@pytest.mark.parametrize(("height", "width", "area"), [(375, 500, 0.08), (375, 500, 0.6), (1500, 2000, 0.25)])
def test_sharpness_does_not_reveal_the_angle(height, width, area):
    size = 96
    canvas, sizes = on_canvas(natural(height, width), 8 * math.ceil(size / math.sqrt(0.08) / 8))
    crop_width, crop_height = (round(math.sqrt(area) * side) for side in (width, height))
    drawn = boxed((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)
    renderer = ViewRenderer(make_path("rotation"), size, border="canvas")
    region = resized_region(canvas.transpose(1, 2), sizes, drawn, size, renderer.num_points)
    angles = torch.deg2rad(torch.tensor([0.0, 5, 20, 45]))
    moves = Transformation.stack([renderer.path.at(angle.reshape(1, 1), 1.0) for angle in angles])
    still = laplacian_energy(resized_crop(canvas.transpose(1, 2), sizes, drawn, size).clamp(0, 1))
    for state in render_states(region, renderer.crop_of_region(region), moves, "canvas", size)[0]:
        assert 0.85 < laplacian_energy(state[None]) / still < 1.15


def test_state_that_does_not_move_is_theresized_crop():
    """Up to the interpolation of the region and its edges."""
    canvas, sizes = on_canvas(natural(90, 120), 160)
    drawn = boxed(20, 11, 70, 60)
    drawn = dataclasses.replace(drawn, flip=torch.ones(1, dtype=torch.bool))
    for border in ops.BORDERS:
        renderer = ViewRenderer(make_path("rotation"), 48, border=border)
        region = resized_region(canvas.transpose(1, 2), sizes, drawn, 48, renderer.num_points)
        still = Transformation.stack([renderer.path.at(torch.zeros(1, 1), 1.0)])
        state = render_states(region, renderer.crop_of_region(region), still, "canvas", 48)[:, 0]
        expected = resized_crop(canvas.transpose(1, 2), sizes, drawn, 48).clamp(0, 1)
        assert (state - expected)[..., 3:-3, 3:-3].abs().max() < 0.02


@pytest.mark.parametrize("resized", ["crop", "region"])
def test_half_precision_of_a_gpu_changes_a_view_by_less_than_a_level_of_8_bits(monkeypatch, resized):
    """As TF32 would: 10 bits of each factor."""
    monkeypatch.setattr(resize, "_GROUP", 1000)  # a GPU computes all outputs of an axis together
    canvas, sizes = on_canvas(natural(90, 120), 160)
    drawn = boxed(20, 11, 70, 60)
    lines = canvas.transpose(1, 2)
    views = []
    for dtype in (torch.float32, torch.float16):
        if resized == "crop":
            views.append(resized_crop(lines.to(dtype), sizes, drawn, 48))
        else:
            views.append(resized_region(lines.to(dtype), sizes, drawn, 48, 100))
    assert (views[0] - views[1]).abs().max() < 1 / 255
    assert not torch.equal(*views)


def test_beyond_the_image_its_mirror_image_goes_on():
    picture = natural(40, 40)
    canvas, sizes = on_canvas(picture, 64)
    region = resized_region(canvas.transpose(1, 2), sizes, boxed(0, 0, 40, 40), 40, 160)  # half an image on each side
    large = picture.float()[None] / 255
    mirrored = torch.cat([large.flip(-1), large, large.flip(-1)], dim=-1)
    mirrored = torch.cat([mirrored.flip(-2), mirrored, mirrored.flip(-2)], dim=-2)
    canvas, sizes = on_canvas((mirrored[0] * 255).to(torch.uint8), 128)
    whole = resized_region(canvas.transpose(1, 2), sizes, boxed(40, 40, 40, 40), 40, 160)
    inside = (..., slice(50, 110), slice(50, 110))
    assert torch.allclose(region[inside], whole[inside], atol=1e-4)
    assert (region - whole).square().mean().sqrt() < 0.02  # the filter is cut off at the image's edge


@pytest.mark.parametrize(
    ("arguments", "side"),
    [
        (("simclr", 224), 792),
        (("dinov2", 224, MultiCrop(8, 96)), 432),
        (("ibot", 224, MultiCrop(8, 96)), 448),
        (("path_only", 224), 336),
        (("small", 32), 64),
    ],
)
def test_canvas_has_as_many_pixels_as_the_smallest_crop_needs(arguments, side):
    assert training_canvas_size(*arguments) == side


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augmentation": "none"}, "unknown augmentation 'none'"),
        ({"border": "wrap"}, "unknown border"),
        ({"num_intermediates": 0}, "at least 1"),
    ],
)
def test_renderer_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViewRenderer(make_path("rotation"), SIZE, **arguments)


def test_mixed_border_is_black_in_some_samples_and_the_photograph_in_the_others(canvases):
    settings = {"path": "se2", "augmentation": "vicreg"}
    mixed, renderer = render(canvases, border="mixed", **settings)
    photograph, _ = render(canvases, border="canvas", **settings)
    black, _ = render(canvases, border="zeros", **settings)
    chosen = renderer.draw(**samples()).black
    assert chosen.any() and not chosen.all()
    for name in ("end", "intermediates"):
        found, shown, empty = (getattr(views, name) for views in (mixed, photograph, black))
        assert torch.allclose(found[~chosen], shown[~chosen], atol=1e-5)
        assert (found[chosen] - empty[chosen]).abs().mean() < 2e-3  # half a pixel at the edge differs
        assert (found[chosen] - shown[chosen]).abs().mean() > 0.02
    assert torch.equal(mixed.first, photograph.first)  # the choice has its own random stream
    alone, _ = render(canvases, border="mixed", rows=slice(1, 2), **settings)
    assert torch.allclose(alone.end, mixed.end[1:2], atol=1e-5)


def test_mixed_border_is_black_in_half_of_the_samples():
    keys = torch.arange(4000)
    renderer = ViewRenderer(make_path("rotation"), SIZE, border="mixed")
    drawn = renderer.draw(torch.full((4000, 2), CANVAS), keys, torch.zeros_like(keys))
    assert abs(drawn.black.float().mean() - 0.5) < 0.03  # 4 standard deviations


@pytest.mark.parametrize("border", ["zeros", "reflection"])
@pytest.mark.parametrize("path", ["se2+color_jitter", "rotation+gaussian_blur"])
def test_transformation_of_an_image_is_the_end_view_of_training(canvases, path, border):
    """Where the view is the canvas, applying g to the picture itself gives the same pixels, black corners included."""
    renderer = ViewRenderer(make_path(path), CANVAS, border=border)
    views = renderer(canvases, **samples())
    moved = renderer.path.at(views.parameters, 1.0)(canvases.float() / 255, border)
    error = (renderer.normalize(moved) - views.end).abs()
    assert error[..., 2:-2, 2:-2].max() < 0.2 and error.mean() < 0.02  # of interpolation


@pytest.mark.parametrize("path", ["color_jitter", "gaussian_blur", "color_jitter+gaussian_blur"])
def test_paths_without_motion_act_on_the_view_itself(canvases, path):
    renderer = ViewRenderer(make_path(path), CANVAS)
    views = renderer(canvases, **samples())
    for k, t in enumerate((1 / 3, 2 / 3)):
        state = renderer.path.at(views.parameters, t)(canvases.float() / 255)
        assert torch.allclose(renderer.normalize(state), views.intermediates[:, k], atol=1e-4)


MULTI = {"local_crops": MultiCrop(3, 8), "masking": BlockMasking(probability=1.0), "patch_size": 4}


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_local_crops_and_masks_do_not_depend_on_the_batch_around_them(canvases, augmentation):
    together, _ = render(canvases, augmentation=augmentation, **MULTI)
    alone, _ = render(canvases, rows=slice(3, 4), augmentation=augmentation, **MULTI)
    assert together.local.shape == (BATCH, 3, 3, 8, 8) and together.masks.shape == (BATCH, 2, (SIZE // 4) ** 2)
    assert torch.allclose(together.local[3:4], alone.local, atol=1e-5) and torch.equal(together.masks[3:4], alone.masks)


def test_local_crops_and_masks_leave_the_other_views_as_they_are(canvases):
    plain, _ = render(canvases, augmentation="ibot")
    rich, _ = render(canvases, augmentation="ibot", **MULTI)
    assert torch.equal(plain.first, rich.first) and torch.equal(plain.intermediates, rich.intermediates)
    assert plain.local is None and plain.masks is None


def test_local_crops_differ_from_each_other_and_by_epoch(canvases):
    views, _ = render(canvases, augmentation="dinov2", **MULTI)
    later, _ = render(canvases, augmentation="dinov2", epoch=1, **MULTI)
    assert not torch.allclose(views.local[:, 0], views.local[:, 1], atol=0.1)
    assert not torch.allclose(views.local, later.local, atol=0.1) and not torch.equal(views.masks, later.masks)
    assert not torch.equal(views.masks[:, 0], views.masks[:, 1])


def test_local_crop_shows_the_drawn_part_of_the_image():
    """On a ramp from left to right the mean of a crop tells its place, and its range its width."""
    ramp = ((torch.arange(CANVAS) + 0.5) / CANVAS * 255).round().to(torch.uint8).expand(BATCH, 3, CANVAS, CANVAS)
    views, renderer = render(ramp, "rotation", augmentation="path_only", local_crops=MultiCrop(2, 16))
    pixels = views.local * torch.tensor(renderer.std)[:, None, None] + torch.tensor(renderer.mean)[:, None, None]
    keys = torch.arange(BATCH)
    for i in range(2):
        draws = uniforms(0, keys=keys, epochs=torch.zeros_like(keys), stream=16 + i, count=33)
        left, _, width, height = (
            sample_view(AUGMENTATIONS["path_only"][2], draws, torch.full((BATCH, 2), CANVAS), SIZE).box.T / CANVAS
        )
        assert (width * height < 0.45).all() and (width * height > 0.07).all()
        center, half = left + width / 2, width / 2
        row = pixels[:, i, 0, 8]
        assert torch.allclose(row.mean(dim=-1), center, atol=0.02)
        assert torch.allclose(row[:, -1] - row[:, 0], 2 * half * 15 / 16, atol=0.03)


def test_final_state_is_the_last_target(canvases):
    views, renderer = render(canvases, num_intermediates=2, include_final=True)
    assert views.intermediates.shape[1] == 3 and renderer.target_fractions == [1 / 3, 2 / 3, 1.0]
    assert torch.equal(views.intermediates[:, 2], views.end)
    without, _ = render(canvases, num_intermediates=2)
    assert torch.equal(without.intermediates, views.intermediates[:, :2])
