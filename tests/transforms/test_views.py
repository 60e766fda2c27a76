import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqcohvit.transforms import AUGMENTATIONS, BlockMasking, MultiCrop, ViewRenderer, make_path, ops
from eqcohvit.transforms import views as views_module
from eqcohvit.transforms.random import uniforms
from eqcohvit.transforms.views import sample_view

SIZE, CANVAS, BATCH = 24, 32, 6


@pytest.fixture
def canvases():
    noise = torch.rand(BATCH, 3, CANVAS, CANVAS, generator=torch.Generator().manual_seed(0))
    smooth = ops.gaussian_blur(noise, torch.full((BATCH,), 2.0))
    low, high = smooth.amin(dim=(1, 2, 3), keepdim=True), smooth.amax(dim=(1, 2, 3), keepdim=True)
    return ((smooth - low) / (high - low) * 255).to(torch.uint8)


def render(canvases, path="rotation", rows=slice(None), epoch=0, sizes=None, **kwargs):
    renderer = ViewRenderer(make_path(path), SIZE, **kwargs)
    keys = torch.arange(BATCH)[rows]
    sizes = torch.full((BATCH, 2), CANVAS) if sizes is None else sizes
    return renderer(canvases[rows], sizes[rows], torch.full_like(keys, epoch), keys), renderer


def test_views_shapes_and_normalization(canvases):
    views, renderer = render(canvases, num_intermediates=3)
    assert views.first.shape == views.end.shape == (BATCH, 3, SIZE, SIZE)
    assert views.intermediates.shape == (BATCH, 3, 3, SIZE, SIZE)
    assert views.parameters.shape == (BATCH, 1)
    assert torch.allclose(renderer.normalize(torch.zeros(3, 1, 1)).flatten(), -torch.tensor(renderer.mean) / torch.tensor(renderer.std))


def test_path_only_first_view_is_the_whole_image(canvases):
    views, renderer = render(canvases)
    whole = torch.nn.functional.interpolate(canvases.float() / 255, size=SIZE, mode="bilinear", align_corners=False)
    assert torch.allclose(views.first, renderer.normalize(whole), atol=1e-4)


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
    monkeypatch.setattr(views_module, "_CACHED_VALUES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    parts, _ = render(canvases, path, augmentation="vicreg")
    for name in ("first", "end", "intermediates"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-5)


@pytest.mark.parametrize("path", ["se2", "perspective", "zoom+color_jitter", "rotation+gaussian_blur"])
@pytest.mark.parametrize("border", ops.BORDERS)
def test_what_a_cpu_leaves_out_changes_no_view(canvases, monkeypatch, path, border):
    """Parts of the canvases that no view reads, operations that change nothing: a GPU computes them all."""
    sizes = torch.tensor([[CANVAS, 3 * CANVAS]]).expand(BATCH, 2)
    arguments = {"sizes": sizes, "augmentation": "vicreg", "border": border, "local_crops": MultiCrop(2, 8)}
    chosen = [render(canvases, path, rows=slice(i, i + 1), **arguments)[0] for i in range(BATCH)]
    monkeypatch.setattr(ops, "can_choose", lambda _images: False)
    whole, _ = render(canvases, path, **arguments)
    for name in ("first", "end", "intermediates", "local"):
        assert torch.allclose(torch.cat([getattr(views, name) for views in chosen]), getattr(whole, name), atol=1e-3), name


@pytest.mark.parametrize("path", ["se2", "perspective+rotation"])
@pytest.mark.parametrize("border", ops.BORDERS)
def test_maps_are_composed_without_matrix_products(canvases, path, border):
    """A GPU would round those to TF32 where the training loop allows it."""
    with FlopCounterMode(display=False) as counter:
        render(canvases, path, augmentation="ibot", border=border, local_crops=MultiCrop(1, 8))
    assert counter.get_total_flops() == 0


def test_base_blur_is_that_of_the_uncropped_view_in_its_own_pixels(canvases):
    """A2 blurs the canvas before the crop, by as much as the view's own pixels ask for along each axis."""
    augmentation = dataclasses.replace(AUGMENTATIONS["path_only"][0], crop_scale=(0.5, 0.5), blur_probability=1.0, blur_sigma=(20.0, 20.0))
    renderers = [ViewRenderer(make_path("rotation"), SIZE) for _ in range(2)]
    renderers[0].augmentations = [augmentation] * 2
    renderers[1].augmentations = [dataclasses.replace(augmentation, blur_probability=0.0)] * 2
    keys = torch.arange(BATCH)
    blurred, sharp = (renderer(canvases, torch.full((BATCH, 2), CANVAS), torch.zeros_like(keys), keys).first for renderer in renderers)
    sigma = torch.full((BATCH,), 20 * SIZE / 224)
    middle = (..., slice(7, -7), slice(7, -7))  # the view's border sees what lies beyond it, or its mirror image
    expected = ops.gaussian_blur(sharp, sigma)[middle]
    assert (blurred[middle] - expected).abs().max() < 0.02 * (sharp[middle] - expected).abs().max()


def test_views_differ_by_epoch_seed_and_sample(canvases):
    same = canvases[:1].expand_as(canvases)
    base, _ = render(same, augmentation="small")
    assert base.parameters.unique().numel() == BATCH
    for other in (render(same, augmentation="small", epoch=1)[0], render(same, augmentation="small", seed=1)[0]):
        assert not torch.allclose(other.first, base.first) and not torch.allclose(other.parameters, base.parameters)


@pytest.mark.parametrize("path", ["rotation", "se2", "zoom", "perspective", "color_jitter", "gaussian_blur", "rotation+color_jitter"])
def test_intermediates_lie_on_the_path_of_the_end_view(canvases, path):
    """A path with parameters scaled by t ends at the state u_t: render it again with the smaller magnitude."""
    views, _ = render(canvases, path, num_intermediates=1, border="reflection")
    renderer = ViewRenderer(make_path(path, 0.5), SIZE, 1, border="reflection")
    keys = torch.arange(BATCH)
    half = renderer(canvases, torch.full((BATCH, 2), CANVAS), torch.zeros_like(keys), keys)
    assert torch.allclose(views.intermediates[:, 0], half.end, atol=1e-4)


def test_end_view_equals_the_transformed_base_view(canvases):
    """v2 = g(u): one fused interpolation against two, on smooth images, away from the border."""
    canvases = ops.gaussian_blur(canvases.float() / 255, torch.full((BATCH,), 2.0)).mul(255).round().to(torch.uint8)
    views, renderer = render(canvases, num_intermediates=1, border="zeros")
    keys = torch.arange(BATCH)
    _, _, path = renderer.sample(torch.zeros_like(keys), keys, torch.full((BATCH, 2), CANVAS))
    base = torch.nn.functional.interpolate(canvases.float() / 255, size=SIZE, mode="bilinear", align_corners=False)
    expected = renderer.normalize(path.at(1.0)(base, border="zeros"))
    assert (views.end - expected).abs().max() < 0.12
    assert (views.end - expected).abs().mean() < 0.015


def test_color_of_the_base_augmentation_is_the_same_at_every_state(canvases):
    """With the identity as path all states must be equal, jitter, blur and solarisation included."""
    views, _ = render(canvases, "rotation", num_intermediates=2, augmentation="vicreg", border="canvas")
    renderer = ViewRenderer(make_path("rotation", 1e-6), SIZE, 2, "vicreg", "canvas")
    keys = torch.arange(BATCH)
    still = renderer(canvases, torch.full((BATCH, 2), CANVAS), torch.zeros_like(keys), keys)
    assert torch.allclose(still.intermediates, still.end[:, None].expand_as(still.intermediates), atol=1e-3)
    assert torch.equal(still.first, views.first)  # the path has its own random stream


def test_without_intermediates_the_other_views_stay_the_same(canvases):
    renderer = ViewRenderer(make_path("se2"), SIZE, 2, "small")
    keys = torch.arange(BATCH)
    arguments = (canvases, torch.full((BATCH, 2), CANVAS), torch.zeros_like(keys), keys)
    with_targets, without = renderer(*arguments), renderer(*arguments, with_intermediates=False)
    assert without.intermediates is None
    assert torch.allclose(without.end, with_targets.end) and torch.allclose(without.first, with_targets.first)


def test_crops_have_the_drawn_area_in_true_pixels():
    draws = torch.rand(500, 16, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[100, 400]]).expand(500, 2)
    augmentation = AUGMENTATIONS["simclr"][0]
    crop = sample_view(augmentation, draws, sizes, SIZE).crop
    width, height = crop[:, 0, 0].abs() * 400, crop[:, 1, 1] * 100
    area = (augmentation.crop_scale[0] + (augmentation.crop_scale[1] - augmentation.crop_scale[0]) * draws[:, 0]) * 40_000
    unclamped = (width < 399.9) & (height < 99.9)
    assert unclamped.sum() > 50
    assert torch.allclose((width * height)[unclamped], area[unclamped], rtol=1e-4)
    assert ((width / height)[unclamped] >= 0.7499).all() and ((width / height)[unclamped] <= 1.3334).all()
    assert (crop[:, 0, 0].abs() + crop[:, 0, 2].abs() <= 1.00001).all() and (crop[:, 1, 1] + crop[:, 1, 2].abs() <= 1.00001).all()
    assert 0.4 < (crop[:, 0, 0] < 0).float().mean() < 0.6  # flips


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


@pytest.mark.parametrize("border", ["zeros", "reflection"])
@pytest.mark.parametrize("path", ["se2+color_jitter", "rotation+gaussian_blur"])
def test_transformation_of_an_image_is_the_end_view_of_training(canvases, path, border):
    """Where the view is the canvas, applying g to the picture itself gives the same pixels, black corners included."""
    renderer = ViewRenderer(make_path(path), CANVAS, border=border)
    keys = torch.arange(BATCH)
    views = renderer(canvases, torch.full((BATCH, 2), CANVAS), torch.zeros_like(keys), keys)
    moved = renderer.path.at(views.parameters, 1.0)(canvases.float() / 255, border)
    assert torch.allclose(renderer.normalize(moved), views.end, atol=1e-4)


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
        draws = uniforms(0, torch.zeros_like(keys), keys, 16 + i, 16)
        crop = sample_view(AUGMENTATIONS["path_only"][2], draws, torch.full((BATCH, 2), CANVAS), SIZE).crop
        assert (crop[:, 0, 0] * crop[:, 1, 1] < 0.41).all() and (crop[:, 0, 0] * crop[:, 1, 1] > 0.09).all()
        centre, half = 0.5 + crop[:, 0, 2] / 2, crop[:, 0, 0] / 2
        row = pixels[:, i, 0, 8]
        assert torch.allclose(row.mean(dim=-1), centre, atol=0.02)
        assert torch.allclose(row[:, -1] - row[:, 0], 2 * half * 15 / 16, atol=0.03)


def test_final_state_is_the_last_target(canvases):
    views, renderer = render(canvases, num_intermediates=2, include_final=True)
    assert views.intermediates.shape[1] == 3 and renderer.target_fractions == [1 / 3, 2 / 3, 1.0]
    assert torch.equal(views.intermediates[:, 2], views.end)
    without, _ = render(canvases, num_intermediates=2)
    assert torch.equal(without.intermediates, views.intermediates[:, :2])
