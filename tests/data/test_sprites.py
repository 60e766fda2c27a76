import multiprocessing

import numpy as np
import pytest
import torch

from eqcohvit.data import sprite_scenes, sprites
from eqcohvit.data.sprite_shapes import SHAPE_DISTANCES, SHAPES
from eqcohvit.data.sprites import render_sprites
from eqcohvit.evaluation.probes import knn_accuracy


def _mask(label: int, pose: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Pixels inside the shape, bool (size, size)."""
    x, y = sprites._local_coordinates(np.array([pose], dtype=np.float32), size)
    return SHAPE_DISTANCES[SHAPES[label]](x, y)[0] < 0.0


def _object_mask(depth: np.ndarray) -> np.ndarray:
    """Pixels in front of the background plane, bool (B, size, size): the plane lies beyond 0.85, objects before 0.8."""
    return depth < 0.82


def test_render_returns_documented_shapes_and_types():
    batch = render_sprites(np.arange(5), size=20)
    assert batch.images.shape == (5, 3, 20, 20) and batch.images.dtype == np.uint8
    assert batch.labels.shape == (5,) and batch.labels.dtype == np.int64
    assert batch.pose.shape == (5, 4) and batch.pose.dtype == np.float32
    assert batch.depth.shape == (5, 20, 20) and batch.depth.dtype == np.float32
    assert len(SHAPES) == len(set(SHAPES)) == 10


def test_render_accepts_an_empty_batch_and_huge_indices():
    assert render_sprites(np.zeros(0, dtype=np.int64), size=16).images.shape == (0, 3, 16, 16)
    far = render_sprites(np.array([2**62, 2**62 + 1]), size=16, seed=-1).images
    assert not np.array_equal(far[0], far[1])


@pytest.mark.parametrize(
    ("indices", "size"), [(np.zeros((2, 2), dtype=np.int64), 16), (np.arange(2), 0), (np.array([0.5]), 16)]
)
def test_render_rejects_wrong_arguments(indices, size):
    with pytest.raises(ValueError):
        render_sprites(indices, size=size)


def test_scene_is_independent_of_its_batch():
    indices = np.arange(300)
    batch = render_sprites(indices, size=31, seed=3)
    order = np.random.default_rng(0).permutation(300)
    shuffled = render_sprites(indices[order], size=31, seed=3)
    for name, value in vars(batch).items():
        np.testing.assert_array_equal(value[order], getattr(shuffled, name), err_msg=name)
    for index in range(0, 300, 7):
        alone = render_sprites(np.array([index]), size=31, seed=3)
        for name, value in vars(batch).items():
            np.testing.assert_array_equal(
                value[index : index + 1], getattr(alone, name), err_msg=f"{name} of scene {index}"
            )


def test_scene_is_the_same_in_a_forked_process():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        forked = pool.apply(render_sprites, (np.arange(8), 24))
    np.testing.assert_array_equal(forked.images, render_sprites(np.arange(8), 24).images)


def test_scenes_do_not_change_between_versions():
    """Parameters of three scenes, so that an edit which reshuffles the stream is deliberate."""
    batch = render_sprites(np.array([0, 1, 123456789]), size=8)
    assert batch.labels.tolist() == [9, 5, 9]
    expected = [
        [0.2333, 0.1449, 0.3605, 0.2439],
        [0.1882, 0.1519, 0.5958, 0.3265],
        [-0.0067, 0.0853, -0.151, 0.3698],
    ]
    np.testing.assert_allclose(batch.pose, expected, atol=1e-4)


def test_size_does_not_change_the_scene():
    large, small = render_sprites(np.arange(200), size=96), render_sprites(np.arange(200), size=48)
    np.testing.assert_array_equal(large.labels, small.labels)
    np.testing.assert_array_equal(large.pose, small.pose)
    pooled = large.images.reshape(200, 3, 48, 2, 48, 2).mean(axis=(3, 5))
    error = np.abs(pooled - small.images).mean(axis=(1, 2, 3))
    other = np.abs(pooled - np.roll(small.images, 1, axis=0)).mean(axis=(1, 2, 3))
    assert error.max() < 6.0  # of 255; the finest textures lose contrast
    assert error.mean() < 1.5
    assert other.mean() > 40.0


def test_seeds_and_indices_give_different_scenes():
    first, second = render_sprites(np.arange(200), size=16, seed=0), render_sprites(np.arange(200), size=16, seed=1)
    assert len(np.unique(np.concatenate([first.images, second.images]).reshape(400, -1), axis=0)) == 400
    assert len(np.unique(np.concatenate([first.pose, second.pose]), axis=0)) == 400


def test_images_are_not_degenerate():
    images = render_sprites(np.arange(500), size=32).images.astype(np.float32)
    assert images.std(axis=(2, 3)).mean(axis=1).min() > 6.0
    assert ((images == 0.0) | (images == 255.0)).mean() < 0.05
    assert images.mean(axis=(2, 3)).std(axis=0).min() > 20.0  # scenes differ in color


def test_object_stands_out_from_its_background():
    batch = render_sprites(np.arange(300), size=48)
    inside = _object_mask(batch.depth)
    images = batch.images.astype(np.float32)
    contrast = [
        np.linalg.norm(image[:, m].mean(axis=1) - image[:, ~m].mean(axis=1))
        for image, m in zip(images, inside, strict=True)
    ]
    assert min(contrast) > 35.0 and np.median(contrast) > 90.0


def test_uniforms_are_uniform_and_uncorrelated():
    draws = sprite_scenes._uniforms(np.arange(20_000), seed=7, count=6)
    assert draws.min() >= 0.0 and draws.max() < 1.0
    for row in draws:
        counts = np.histogram(row, bins=50, range=(0.0, 1.0))[0]
        assert ((counts - 400.0) ** 2 / 400.0).sum() < 98.0  # chi squared with 49 degrees of freedom: p = 4e-5
    other_seed = sprite_scenes._uniforms(np.arange(20_000), seed=8, count=6)
    neighbors = np.concatenate([draws[:, :-1], draws[:, 1:], other_seed[:, :-1]])
    correlation = np.corrcoef(neighbors) - np.eye(18)
    assert np.abs(correlation).max() < 5.0 / np.sqrt(20_000)


def test_labels_are_balanced():
    counts = np.bincount(render_sprites(np.arange(10_000), size=1).labels, minlength=10)
    assert counts.min() > 880 and counts.max() < 1120  # four standard deviations of 30


def test_pose_has_the_documented_distribution():
    x, y, angle, scale = render_sprites(np.arange(10_000), size=1).pose.T
    assert scale.min() >= sprite_scenes.SCALE_RANGE[0] - 1e-6 and scale.max() <= sprite_scenes.SCALE_RANGE[1] + 1e-6
    assert abs(angle.mean()) < 0.03 and angle.std() == pytest.approx(sprite_scenes.POSE_ANGLE_STD, rel=0.03)
    assert abs(x.mean()) < 0.01 and abs(y.mean()) < 0.01
    assert (np.abs(x) + 0.95 * scale).max() <= 0.5 + 1e-5 and (np.abs(y) + 0.95 * scale).max() <= 0.5 + 1e-5


def test_images_are_lit_from_above():
    images = render_sprites(np.arange(300), size=32).images.astype(np.float32)
    top, bottom = images[:, :, :8].mean(axis=(1, 2, 3)), images[:, :, -8:].mean(axis=(1, 2, 3))
    left, right = images[:, :, :, :8].mean(axis=(1, 2, 3)), images[:, :, :, -8:].mean(axis=(1, 2, 3))
    assert 0.65 < (top > bottom).mean() < 0.85  # a cue, but a noisy one
    assert 0.4 < (left > right).mean() < 0.6


def test_neighbors_by_pixels_are_rarely_of_the_same_class():
    batch = render_sprites(np.arange(1500), size=16)
    pixels, labels = torch.from_numpy(batch.images).flatten(1).float(), torch.from_numpy(batch.labels)
    pixels -= pixels.mean(dim=0)
    assert knn_accuracy(pixels[:1000], labels[:1000], pixels[1000:], labels[1000:]) < 0.2  # chance is 0.1


def test_object_is_lighter_than_its_background_in_about_half_of_the_scenes():
    batch = render_sprites(np.arange(500), size=32)
    lightness = batch.images.mean(axis=1)
    lighter = [image[m].mean() > image[~m].mean() for image, m in zip(lightness, batch.mask, strict=True)]
    assert 0.35 < np.mean(lighter) < 0.7


def test_strokes_are_round_ended_lines():
    grid = sprites._pixel_centers(16)  # multiples of 1 / 16, shifted by half of one
    strokes = np.full((1, sprite_scenes.MAX_DISTRACTORS, 5), -1.0, dtype=np.float32)  # none
    strokes[0, 0] = [1 / 32, 1 / 32, 0.1, 0.25, 0.0]  # middle, radius, half its length to the right
    opacity = sprites._render_strokes(strokes, grid)[0]
    assert opacity[8, [1, 3, 8, 13, 15]].tolist() == [
        0.0,
        1.0,
        1.0,
        1.0,
        0.0,
    ]  # -7, -5, 0, 5 and 7 sixteenths from its middle
    assert opacity[[5, 7, 9, 11], 8].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert opacity[5].max() == 0.0


def test_local_coordinates_follow_the_pose():
    # Pixel centers of a 4 x 4 grid lie at -3/8, -1/8, 1/8, 3/8. Object at (1/8, -1/8), radius 1/4, upright.
    x, y = sprites._local_coordinates(np.array([[0.125, -0.125, 0.0, 0.25]], dtype=np.float32), 4)
    np.testing.assert_allclose(x[0, 0], [-2.0, -1.0, 0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(y[0, :, 0], [1.0, 0.0, -1.0, -2.0], atol=1e-6)
    # A quarter turn counter-clockwise takes the object's "up" to the image's left.
    x, y = sprites._local_coordinates(np.array([[0.125, -0.125, np.pi / 2, 0.25]], dtype=np.float32), 4)
    np.testing.assert_allclose(y[0, 1], [2.0, 1.0, 0.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(x[0, :, 2], [1.0, 0.0, -1.0, -2.0], atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.5 * np.pi, -2.0])
def test_arrow_points_along_its_angle(angle):
    size, x, y, scale = 101, 0.05, -0.1, 0.35
    mask = _mask(SHAPES.index("arrow"), (x, y, angle, scale), size)

    def inside(along: float, across: float) -> bool:
        column = x + scale * (-along * np.sin(angle) + across * np.cos(angle))
        row = y + scale * (-along * np.cos(angle) - across * np.sin(angle))
        return bool(mask[int((row + 0.5) * size), int((column + 0.5) * size)])

    assert inside(0.8, 0.0) and inside(-0.8, 0.0) and inside(0.2, 0.5) and inside(0.2, -0.5)
    assert not inside(1.1, 0.0) and not inside(-1.1, 0.0) and not inside(-0.4, 0.5) and not inside(-0.4, -0.5)


def test_rendered_object_follows_the_pose():
    batch = render_sprites(np.arange(200), size=64)
    for label, pose, seen in zip(batch.labels, batch.pose, _object_mask(batch.depth), strict=True):
        expected = _mask(int(label), tuple(pose), 64)
        assert expected.sum() > 100
        np.testing.assert_array_equal(seen, expected)


def test_object_lies_in_front_of_the_background():
    batch = render_sprites(np.arange(500), size=32)
    assert batch.depth.min() > 0.1 and batch.depth.max() < 1.3
    assert (_object_mask(batch.depth).mean(axis=(1, 2)) > 0.02).all()


@pytest.mark.parametrize("label", range(10), ids=SHAPES)
def test_quarter_turn_equals_rot90(label):
    upright = _mask(label, (0.0, 0.0, 0.3, 0.4), 64)
    turned = _mask(label, (0.0, 0.0, 0.3 + np.pi / 2, 0.4), 64)
    assert (np.rot90(upright) != turned).mean() < 2e-3


@pytest.mark.parametrize("label", range(10), ids=SHAPES)
def test_shape_has_no_rotational_symmetry(label):
    """At most 85 % overlap with itself after any turn of 30 degrees or more."""
    upright = _mask(label, (0.0, 0.0, 0.0, 0.45), 96)
    for angle in np.deg2rad(np.arange(30, 331, 5)):
        turned = _mask(label, (0.0, 0.0, angle, 0.45), 96)
        assert (upright & turned).sum() / (upright | turned).sum() < 0.85, f"after {np.rad2deg(angle):.0f} degrees"


@pytest.mark.parametrize("label", range(10), ids=SHAPES)
def test_shape_fills_its_bounding_circle(label):
    x, y = sprites._local_coordinates(np.array([[0.0, 0.0, 0.0, 0.35]], dtype=np.float32), 256)
    distance = SHAPE_DISTANCES[SHAPES[label]](x, y)[0]
    furthest = np.hypot(x, y)[0][distance < 0.0].max()
    assert 0.85 < furthest <= 1.05
    slope = np.hypot(*np.gradient(distance.astype(np.float64), 1.0 / (256 * 0.35)))
    assert slope.max() < 1.1  # an underestimate of the true distance at worst: edges are never aliased
    near_edge = np.abs(distance) < 0.05
    assert np.median(slope[near_edge]) > 0.9
