"""Sprites: an endless, labeled stream of small rendered scenes, the default data that needs no download.

A scene depends only on (seed, index) (`sprite_scenes`). Shapes are signed distance functions on the unit square,
so every size shows the same scene. Per-pixel work uses only + - * / sqrt, min, max and rint, which IEEE 754 rounds
exactly: an image does not depend on which SIMD path a batch shape happens to take.
"""

from dataclasses import dataclass

import numpy as np

from .sprite_scenes import Pattern, Scenes, draw_scenes
from .sprite_shapes import SHAPE_DISTANCES, ShapeDistance

_SHADOW_OFFSET = 0.16  # of the cast shadow, and the finite-difference step of the bevel; in object radii
_SHADOW_STRENGTH = 0.38
_CHUNK_PIXELS = 1 << 15  # pixels rendered together: the ~30 float32 planes in flight then fit in a 1 MB cache


@dataclass(frozen=True)
class SpriteBatch:
    """B rendered scenes.

    images: uint8 (B, 3, size, size), RGB.
    labels: int64 (B,), index into `sprite_shapes.SHAPES`.
    pose: float32 (B, 4), the object's (x, y, angle, scale): center as a fraction of the side from the image center (x
        right, y down), radians counter-clockwise from upright, radius of the bounding circle as a fraction of the side.
    depth: float32 (B, size, size), distance from the camera in sides: a slightly tilted background plane near 1, and a
        domed, tilted object at least 0.05 in front of it. Distractors are painted on the background.
    mask: bool (B, size, size), where the object is.
    """

    images: np.ndarray
    labels: np.ndarray
    pose: np.ndarray
    depth: np.ndarray
    mask: np.ndarray


def render_sprites(indices: np.ndarray, size: int, seed: int = 0) -> SpriteBatch:
    """Render the scenes `indices`, int64 (B,), at `size` x `size` pixels. Scene i depends on (seed, i) only."""
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"indices must be an integer array of shape (B,), got {indices.dtype} of shape {indices.shape}"
        )
    if size < 1:
        raise ValueError(f"size must be a positive number of pixels, got {size}")
    scenes = draw_scenes(indices, seed)
    images = np.empty((len(indices), 3, size, size), dtype=np.uint8)
    depth = np.empty((len(indices), size, size), dtype=np.float32)
    mask = np.empty((len(indices), size, size), dtype=bool)
    chunk_size = max(1, _CHUNK_PIXELS // size**2)
    for label, shape in enumerate(SHAPE_DISTANCES):
        members = np.flatnonzero(scenes.labels == label)
        for start in range(0, len(members), chunk_size):
            chunk = members[start : start + chunk_size]
            images[chunk], depth[chunk], mask[chunk] = _render_class(scenes.take(chunk), SHAPE_DISTANCES[shape], size)
    return SpriteBatch(images=images, labels=scenes.labels, pose=scenes.pose, depth=depth, mask=mask)


def _local_coordinates(pose: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pose (b, 4) -> the (x, y) of each pixel center in its object's frame, y up, in radii; float32 (b, size, size)
    each."""
    grid = _pixel_centers(size)
    x, y, scale = pose[:, 0:1], pose[:, 1:2], pose[:, 3:4]
    angle = pose[:, 2:3].astype(
        np.float64
    )  # rounded to float32 afterwards: hides the last bits, where libraries differ
    cos, sin = np.cos(angle).astype(np.float32) / scale, np.sin(angle).astype(np.float32) / scale
    right, down = grid - x, grid - y
    return _outer_sum(cos * right, -sin * down), _outer_sum(-sin * right, -cos * down)


def _pixel_centers(size: int) -> np.ndarray:
    return ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)


def _outer_sum(along_x: np.ndarray, along_y: np.ndarray) -> np.ndarray:
    """(b, s), (b, s) -> (b, s, s), [b, i, j] = along_x[b, j] + along_y[b, i]: affine functions of the pixel for one
    addition."""
    return along_x[:, None, :] + along_y[:, :, None]


def _wave(t: np.ndarray) -> np.ndarray:
    """A sine of period 1 made of two parabolas: (b, s, s) -> [-1, 1], consumes its input."""
    t -= np.rint(t)
    envelope = np.abs(t)
    envelope *= -16.0
    envelope += 8.0
    t *= envelope
    return t


def _render_pattern(x: np.ndarray, y: np.ndarray, pattern: Pattern, resolution: float | np.ndarray) -> np.ndarray:
    """Texture at (x, y), broadcastable to (b, s, s) -> [0, 1]. `resolution`, pixels per unit of x, keeps edges a pixel
    wide."""
    u = (x * pattern.cos + pattern.phase_u) + y * pattern.sin
    v = (x * -pattern.sin + pattern.phase_v) + y * pattern.cos
    if pattern.warp.any():
        bend_u, bend_v = _wave(v * 0.37 + 0.5 * u), _wave(u * 0.43 - 0.3 * v)
        bend_u *= pattern.warp
        bend_v *= pattern.warp
        u += bend_u
        v += bend_v
    u, v = _wave(u), _wave(v)
    value = u * v
    value *= pattern.weight_uv
    u *= pattern.weight_u
    v *= pattern.weight_v
    value += u
    value += v
    value -= pattern.threshold
    steepest = 8.0 * np.sqrt(pattern.cos**2 + pattern.sin**2)  # slope of `_wave` per unit of x
    value *= np.minimum(pattern.gain, resolution / steepest)
    value += 0.5
    return value.clip(0.0, 1.0, out=value)


def _coverage(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Signed distance -> share of a pixel (or penumbra) of that width that lies inside, [0, 1]."""
    covered = distance * (-1.0 / width)
    covered += 0.5
    return covered.clip(0.0, 1.0, out=covered)


def _blend(image: np.ndarray, color: np.ndarray, alpha: np.ndarray) -> None:
    """Paint `color` over `image` (b, s, s), in place, with opacity `alpha` (b, s, s)."""
    difference = color - image
    difference *= alpha
    image += difference


def _render_class(
    scenes: Scenes, shape_distance: ShapeDistance, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scenes (b) of one class -> RGB uint8 (b, 3, size, size), depth float32 and mask bool (b, size, size)."""
    grid, scale = _pixel_centers(size), scenes.pose[:, 3:4]
    pixels_per_radius = (size * scale)[:, :, None]
    local_x, local_y = _local_coordinates(scenes.pose, size)
    distance = shape_distance(local_x, local_y)
    # The distance a step towards the light gives both the cast shadow and the bevel.
    shifted = scenes.pose.copy()
    shifted[:, :2] -= _SHADOW_OFFSET * scale * scenes.light
    towards_light = shape_distance(*_local_coordinates(shifted, size))
    mask = _coverage(distance, 1.0 / pixels_per_radius)
    shadow = _coverage(towards_light, 0.25)
    shadow *= -_SHADOW_STRENGTH
    shadow += 1.0
    shade = _render_shade(scenes, distance, towards_light, grid)
    paint = _render_pattern(local_x, local_y, scenes.object_pattern, pixels_per_radius)
    gradient = _outer_sum(1.8 * scenes.light[:, 0:1] * grid, 1.8 * scenes.light[:, 1:2] * grid)
    texture = _render_pattern(grid[None, None, :], grid[None, :, None], scenes.background_pattern, float(size))
    texture -= 0.5
    stroke = _render_strokes(scenes.strokes, grid)

    images = np.empty((len(scale), 3, size, size), dtype=np.uint8)
    for channel in range(3):
        at = (slice(None), slice(channel, channel + 1), None)
        image = gradient * scenes.background_gradient[at]
        image += scenes.background[at]
        _blend(image, scenes.stroke_color[at], stroke)
        image += texture * scenes.background_texture[at]
        image *= shadow
        color = shade * scenes.object_gradient[at]
        color += scenes.object_dark[at]
        color += paint * scenes.object_texture[at]
        _blend(image, color, mask)
        image *= 255.0
        image += 0.5
        image.clip(0.0, 255.0, out=image)
        images[:, channel] = image
    inside = distance < 0.0
    return images, _render_depth(scenes, distance, inside, grid), inside


def _render_shade(scenes: Scenes, distance: np.ndarray, towards_light: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Light on the object, [0, 1]: a gradient across it, and a rim that is bright where the outline faces the light,
    dark where not."""
    x, y, scale = scenes.pose[:, 0:1], scenes.pose[:, 1:2], scenes.pose[:, 3:4]
    shade = towards_light - distance
    shade *= _coverage(distance + 0.07, -0.3)
    shade *= 0.55 / _SHADOW_OFFSET
    slope_x, slope_y = 0.28 * scenes.light[:, 0:1] / scale, 0.28 * scenes.light[:, 1:2] / scale
    shade += _outer_sum(slope_x * (grid - x) + 0.5, slope_y * (grid - y))
    return shade.clip(0.0, 1.0, out=shade)


def _render_strokes(strokes: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Opacity of the distractors, [0, 1]."""
    nearest = np.full((len(strokes), len(grid), len(grid)), np.inf, dtype=np.float32)
    for x, y, radius, along_x, along_y in (np.split(stroke, 5, axis=1) for stroke in strokes.swapaxes(0, 1)):
        right, down = grid - x, grid - y
        squared = along_x * along_x + along_y * along_y + 1e-6
        place = _outer_sum(
            right * (along_x / squared), down * (along_y / squared)
        )  # along the stroke: its ends are at -1 and 1
        place.clip(-1.0, 1.0, out=place)
        from_x = right[:, None, :] - place * along_x[:, :, None]
        from_y = down[:, :, None] - place * along_y[:, :, None]
        distance = np.sqrt(from_x * from_x + from_y * from_y)
        distance -= radius[:, :, None]
        np.minimum(nearest, distance, out=nearest)
    return _coverage(nearest, max(1.0 / len(grid), 0.008))


def _render_depth(scenes: Scenes, distance: np.ndarray, inside: np.ndarray, grid: np.ndarray) -> np.ndarray:
    x, y, scale = scenes.pose[:, 0:1], scenes.pose[:, 1:2], scenes.pose[:, 3:4]
    plane_x, plane_y, gap, tilt_x, tilt_y = (scenes.depth[:, i : i + 1] for i in range(5))
    plane = _outer_sum(plane_x * grid + 1.0, -plane_y * grid)
    surface = np.maximum(distance, -0.4)  # the dome: nearer away from the outline
    surface *= 0.6 * scale[:, :, None]
    surface += _outer_sum(tilt_x * (grid - x) + (1.0 - gap), tilt_y * (grid - y))
    return np.where(inside, surface, plane)
