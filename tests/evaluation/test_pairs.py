import math

import pytest
import torch
import torch.nn.functional as F

from eqcohvit.data import Batch
from eqcohvit.evaluation.pairs import PROTOCOLS, band_limited, canvas_size, render_pair, render_states, strict_crop
from eqcohvit.transforms import PATHS, make_path, ops


def make_batch(canvas, sizes=(60, 60), value=None):
    keys = torch.arange(8)
    noise = ops.gaussian_blur(
        torch.rand(8, 3, canvas, canvas, generator=torch.Generator().manual_seed(0)), torch.full((8,), 3.0)
    )
    canvases = (
        (noise * 200 + 50).to(torch.uint8)
        if value is None
        else torch.full((8, 3, canvas, canvas), value, dtype=torch.uint8)
    )
    return Batch(canvases, torch.tensor([sizes]).expand(8, 2), keys, torch.zeros_like(keys), keys % 3, {})


def pairs(protocol, name="rotation", **kwargs):
    path = make_path(name)
    return render_pair(make_batch(canvas_size(24, path, protocol), **kwargs), path, protocol, 24)


def test_paper_protocol_shows_empty_corners_and_strict_does_not():
    paper, strict = pairs("paper", value=200), pairs("strict", value=200)
    moved = paper.parameters[:, 0].abs() > 0.2
    assert moved.any() and (paper.transformed[moved][..., 0, 0] == 0).all()
    assert torch.allclose(strict.transformed, torch.tensor(200 / 255))


@pytest.mark.parametrize("name", [*PATHS, "rotation+zoom"])
def test_strict_protocol_reads_nothing_beyond_the_canvas(name):
    path = make_path(name)
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(300, path.num_parameters, generator=generator)
    matrix = path.sample(torch.cat([random, random.round()])).at(1.0).matrix
    if matrix is None:
        assert strict_crop(path) == 1
        return
    crop = torch.diag(torch.tensor([strict_crop(path), strict_crop(path), 1.0])).expand(600, 1, 3, 3)
    grid, _ = ops.sampling_grid(crop, matrix.unsqueeze(1), 24, "canvas")
    assert grid.abs().max() <= 1


def test_strict_crop_of_45_degrees_is_the_inscribed_square():
    assert strict_crop(make_path("rotation")) == pytest.approx(2**-0.5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_states_are_on_the_way_of_the_pair(protocol):
    path = make_path("rotation")
    batch = make_batch(canvas_size(24, path, protocol))
    (states,) = render_states(batch, path, protocol, 24, [0], [0.0, 0.5, 1.0])
    pair = render_pair(batch, path, protocol, 24)
    assert torch.equal(states.parameters, pair.parameters)
    assert torch.equal(states.on_path[:, 2], pair.transformed)
    if protocol != "recolored":
        torch.testing.assert_close(states.on_path[:, 0], states.original, atol=1e-5, rtol=0)
    distance = (states.on_path - pair.transformed[:, None]).abs().mean(dim=(2, 3, 4))
    moved = pair.parameters[:, 0].abs() > 0.2
    assert (distance[moved, 1] < distance[moved, 0]).all()


def test_pair_shares_everything_but_the_transformation():
    for protocol in PROTOCOLS:
        pair = pairs(protocol, "color_jitter")
        for i in range(8):
            expected = ops.adjust_color(
                pair.original[i : i + 1], torch.cat([1 + pair.parameters[i, :3], pair.parameters[i, 3:]])[None]
            )
            assert torch.allclose(pair.transformed[i : i + 1], expected, atol=1e-6)


def test_same_images_get_the_same_transformation_in_all_protocols():
    assert torch.equal(pairs("paper").parameters, pairs("strict").parameters)
    assert torch.equal(pairs("recolored").parameters, pairs("strict").parameters)


def test_recolored_views_of_a_gray_picture_are_darker_or_brighter_each_by_its_own_factor():
    """Of equal gray pixels only the brightness changes, by a factor of 0.2 to 1.8: 100 becomes 20 to 180."""
    pair = pairs("recolored", value=100)
    levels = torch.stack([pair.original, pair.transformed]) * 255
    assert torch.allclose(levels, levels[..., :1, :1, :1].expand_as(levels), atol=1e-3)
    levels = levels[..., 0, 0, 0]
    assert levels.min() >= 20 and levels.max() <= 180 and levels.std(dim=1).min() > 20
    assert (levels[0] - levels[1]).abs().min() > 1


def test_recolored_views_are_those_of_strict_in_other_colors():
    """An edge between black and gray stays in its place, and gray stays brighter than black."""
    path = make_path("rotation")
    batch = make_batch(canvas_size(24, path, "strict"))
    edge = torch.zeros_like(batch.canvases)
    edge[..., 30:] = 120
    batch = Batch(edge, batch.sizes, batch.keys, batch.epochs, batch.labels, {})
    strict, recolored = (render_pair(batch, path, protocol, 24) for protocol in ("strict", "recolored"))
    for name in ("original", "transformed"):
        gray, colored = (getattr(pair, name).mean(dim=1).flatten(1) for pair in (strict, recolored))
        assert (gray - colored).abs().amax(dim=1).min() > 0.01
        for own, other in zip(gray, colored, strict=True):
            assert torch.corrcoef(torch.stack([own, other]))[0, 1] > 0.99


def test_under_several_seeds_a_recolored_image_keeps_its_colors_and_its_versions_do_not():
    path = make_path("rotation")
    batch = make_batch(canvas_size(24, path, "recolored"), value=100)
    first, second = render_states(batch, path, "recolored", 24, [0, 1], [0.5, 1.0])
    assert torch.equal(first.original, second.original)
    assert torch.allclose(first.on_path[:, 0], first.on_path[:, 1], atol=1e-5)
    assert (first.on_path - second.on_path).abs().amax(dim=(1, 2, 3, 4)).min() > 0.01


def test_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="unknown protocol 'lax'; known: paper, strict, recolored"):
        render_pair(make_batch(24), make_path("rotation"), "lax", 24)


def wave(down, across, size):
    """`down` and `across` half periods along the sides of (1, 1, size, size)."""
    centers = math.pi * (torch.arange(size) + 0.5) / size
    return torch.outer(torch.cos(down * centers), torch.cos(across * centers))[None, None]


@pytest.mark.parametrize("canvas", [40, 130])  # the source as it is, or resampled
@pytest.mark.parametrize(
    ("down", "across", "kept"),
    [(0, 0, 1), (30, 0, 16 / 17), (18, 24, 16 / 17), (36, 0, 0.884), (38, 0, 0.430), (0, 38, 0.430), (39, 39, 0)],
)
def test_a_circle_of_frequencies_is_kept(down, across, kept, canvas):
    """Of k half periods along a source of 40 pixels 1 / (1 + (k / 60)^4) is left up to 36, half of that at 38, none
    from 40 on."""
    source = wave(down, across, 40)
    if canvas != 40:
        source = F.interpolate(source, (canvas, canvas), mode="bicubic", antialias=True)
    found = band_limited(source, torch.tensor([40]), 60.0, 170)
    # away from the border, where bicubic interpolation does not mirror
    assert torch.allclose(found[..., 20:-20, 20:-20], kept * wave(down, across, 170)[..., 20:-20, 20:-20], atol=0.015)


def test_what_a_view_cannot_hold_is_weakened_alike_in_all_directions():
    left = {(40, 0): 1 / 2, (24, 32): 1 / 2, (60, 0): 16 / 97, (36, 48): 16 / 97}
    for waves, expected in left.items():
        found = band_limited(wave(*waves, 100), torch.tensor([100]), 40.0, 150)
        assert (found.std() / wave(*waves, 150).std()).item() == pytest.approx(expected, rel=1e-3)


def test_strict_views_stay_within_the_range_of_colors():
    path = make_path("rotation")
    batch = make_batch(canvas_size(24, path, "strict"))
    edges = batch.canvases.new_zeros(batch.canvases.shape)
    edges[..., ::7] = 255
    pair = render_pair(Batch(edges, batch.sizes, batch.keys, batch.epochs, batch.labels, {}), path, "strict", 24)
    for image in (pair.original, pair.transformed):
        assert image.min() == 0 and image.max() <= 1
