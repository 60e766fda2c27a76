"""Sprites: an endless, labelled stream of small rendered scenes, the default data that needs no download.

A scene is a function of (seed, index) alone: its parameters come from a counter-based hash, so there is no generator state
to fork, to save or to share, and sample `i` is the same in every batch, worker and run. Shapes are signed distance functions
on the unit square, so every size shows the same scene. Per-pixel work uses only + - * / sqrt, min, max and rint, which IEEE 754
rounds exactly: an image does not depend on which SIMD path a batch shape happens to take.

Coordinates: positions are fractions of the image side from the image centre, x to the right and y down, as in pixel grids.
Angles are radians, counter-clockwise as seen on the screen; 0 is upright. A single image carries a noisy cue of "up", as
photographs do: the light and the objects are upright only up to the two standard deviations below.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sprite_shapes import SHAPE_DISTANCES, SHAPES, ShapeDistance

LIGHT_ANGLE_STD = np.deg2rad(35.0)  # radians; deviation of the light (and of the background gradient) from "straight above"
POSE_ANGLE_STD = np.deg2rad(40.0)  # radians; deviation of the object from upright
SCALE_RANGE = (0.28, 0.42)  # radius of the object's bounding circle, as a fraction of the image side
MAX_DISTRACTORS = 3

_SHADOW_OFFSET = 0.16  # of the cast shadow, and the finite-difference step of the bevel; in object radii
_SHADOW_STRENGTH = 0.38

_NUM_DRAWS = 64  # uniforms per scene; new parameters take unused ones, so that existing scenes keep theirs
_CHUNK_PIXELS = 1 << 15  # pixels rendered together: the ~30 float32 planes in flight then fit in a 1 MB cache


@dataclass(frozen=True)
class SpriteBatch:
    """B rendered scenes.

    images: uint8 (B, 3, size, size), RGB.
    labels: int64 (B,), index into `SHAPES`.
    pose: float32 (B, 4), the object's (x, y, angle, scale): centre as a fraction of the side from the image centre (x right,
        y down), radians counter-clockwise from upright, radius of the bounding circle as a fraction of the side.
    depth: float32 (B, size, size), distance from the camera in sides: a slightly tilted background plane near 1, and a domed,
        tilted object at least 0.05 in front of it. Distractors are painted on the background.
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
        raise ValueError(f"indices must be an integer array of shape (B,), got {indices.dtype} of shape {indices.shape}")
    if size < 1:
        raise ValueError(f"size must be a positive number of pixels, got {size}")
    scenes = _draw_scenes(indices, seed)
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


# ---------------------------------------------------------------------------------------------------------------------
# Scene parameters: (seed, index) -> numbers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pattern:
    """A repeating texture with values in [0, 1]; every field is float32 (B, 1, 1). See `_render_pattern`."""

    cos: np.ndarray  # cycles per unit length times the cosine of the direction
    sin: np.ndarray
    phase_u: np.ndarray
    phase_v: np.ndarray
    weight_u: np.ndarray
    weight_v: np.ndarray
    weight_uv: np.ndarray
    threshold: np.ndarray
    gain: np.ndarray
    warp: np.ndarray  # cycles

    def take(self, rows: np.ndarray) -> "_Pattern":
        return _Pattern(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class _Scenes:
    """Parameters of B scenes. Colours are sRGB in [0, 1], float32 (B, 3); vectors are in image coordinates (y down)."""

    labels: np.ndarray  # int64 (B,)
    pose: np.ndarray  # float32 (B, 4)
    light: np.ndarray  # float32 (B, 2), unit vector towards the light
    background: np.ndarray  # (B, 3) at the middle of the gradient
    background_gradient: np.ndarray  # (B, 3), added at the lit end, subtracted at the dark end
    background_texture: np.ndarray  # (B, 3), amplitude of `background_pattern`
    background_pattern: _Pattern
    object_dark: np.ndarray  # (B, 3)
    object_gradient: np.ndarray  # (B, 3), added where fully lit
    object_texture: np.ndarray  # (B, 3)
    object_pattern: _Pattern
    blobs: np.ndarray  # float32 (B, MAX_DISTRACTORS, 3): x, y, radius; absent blobs have a negative radius
    blob_color: np.ndarray  # (B, 3)
    depth: np.ndarray  # float32 (B, 5): background tilt x, y; object distance in front; object tilt x, y

    def take(self, rows: np.ndarray) -> "_Scenes":
        taken: dict[str, Any] = {k: value.take(rows) if isinstance(value, _Pattern) else value[rows] for k, value in vars(self).items()}
        return _Scenes(**taken)


def _hash64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (https://prng.di.unimi.it/splitmix64.c), uint64 -> uint64, a bijection."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniforms(indices: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Uniforms in [0, 1), float64 (count, B): row k, column b is a function of (seed, indices[b], k) alone."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    stream = _hash64(np.array([seed % 2**64], dtype=np.uint64) + golden)
    scene = _hash64(stream + indices.astype(np.uint64) * golden)
    counters = np.arange(1, count + 1, dtype=np.uint64)[:, None]
    return (_hash64(_hash64(scene + counters * golden)) >> np.uint64(11)) * 2.0**-53


class _Draws:
    """Takes the rows of `_uniforms` one after another; each draw is float64 (B,)."""

    def __init__(self, uniforms: np.ndarray):
        self._rows: Iterator[np.ndarray] = iter(uniforms)

    def uniform(self, low: float | np.ndarray = 0.0, high: float | np.ndarray = 1.0) -> np.ndarray:
        return low + (high - low) * next(self._rows)

    def integer(self, count: int) -> np.ndarray:
        return (next(self._rows) * count).astype(np.int64)

    def normal(self, std: float) -> np.ndarray:
        radius = np.sqrt(-2.0 * np.log1p(-next(self._rows)))
        return std * radius * np.cos(2.0 * np.pi * next(self._rows))


def _draw_scenes(indices: np.ndarray, seed: int) -> _Scenes:
    draw = _Draws(_uniforms(indices, seed, _NUM_DRAWS))
    labels = draw.integer(len(SHAPES))

    scale = draw.uniform(*SCALE_RANGE)
    reach = 0.5 - 0.95 * scale  # only the tips of turned objects leave the image
    x, y, angle = draw.uniform(-reach, reach), draw.uniform(-reach, reach), draw.normal(POSE_ANGLE_STD)
    light_angle = draw.normal(LIGHT_ANGLE_STD)
    light = np.stack([-np.sin(light_angle), -np.cos(light_angle)], axis=1)

    # Two themes, light and dark backgrounds; the dark ones keep to teal, blue and purple, as dark yellows and oranges look like mud.
    # The object's hue is at least about 100 degrees away from the background's mean hue.
    dark_theme = draw.uniform() < 0.55
    hue = draw.uniform(np.where(dark_theme, 2.9, 0.0), np.where(dark_theme, 5.9, 2.0 * np.pi))
    lightness = np.where(dark_theme, draw.uniform(0.18, 0.42), draw.uniform(0.66, 0.9))
    chroma = draw.uniform(0.04, 0.085)
    # From an even wall to a clear sky: as in photographs, the background often does not tell where up is.
    gradient = draw.uniform(0.0, 0.6)
    drift = gradient * draw.uniform(-0.6, 0.6)
    lit = _oklch_to_srgb(lightness + 0.07 * gradient, chroma, hue + drift)
    unlit = _oklch_to_srgb(lightness - 0.11 * gradient, chroma, hue - drift)
    object_hue = hue + np.pi + draw.uniform(-1.4, 1.4)
    # Yellow and orange objects stay light in both themes.
    yellowness = np.maximum(0.0, np.cos(object_hue - 1.6))
    object_lightness = np.where(dark_theme, draw.uniform(0.68, 0.78), draw.uniform(0.54, 0.64))
    object_lightness += yellowness * np.where(dark_theme, 0.08, 0.16)
    object_chroma = draw.uniform(0.15, 0.20)
    dark = _oklch_to_srgb(object_lightness - 0.16, object_chroma * 0.9, object_hue + 0.15)
    bright = _oklch_to_srgb(object_lightness + 0.14, object_chroma, object_hue - 0.15)
    accent = _oklch_to_srgb(object_lightness + 0.17, object_chroma * 0.75, object_hue + draw.uniform(-0.9, 0.9))
    blob_hue = hue + draw.uniform(-1.2, 1.2)
    blob_color = _oklch_to_srgb(lightness + np.where(dark_theme, 0.18, -0.14), draw.uniform(0.08, 0.12), blob_hue)

    background_pattern = _draw_pattern(draw, kinds=("stripes", "checks", "dots", "noise"), cycles=(1.2, 6.0))
    background_texture = draw.uniform(0.08, 0.22)[:, None] * np.where(draw.uniform() < 0.5, 1.0, -1.0)[:, None]
    object_pattern = _draw_pattern(draw, kinds=("plain", "plain", "stripes", "dots"), cycles=(1.6, 2.8))

    num_blobs = draw.integer(MAX_DISTRACTORS + 1)
    blobs = []
    for k in range(MAX_DISTRACTORS):
        blob_x, blob_y, radius = draw.uniform(-0.46, 0.46), draw.uniform(-0.46, 0.46), draw.uniform(0.03, 0.075)
        blobs.append(np.stack([blob_x, blob_y, np.where(k < num_blobs, radius, -1.0)], axis=1))
    plane_x, plane_y, gap = draw.uniform(-0.1, 0.1), draw.uniform(0.0, 0.2), draw.uniform(0.3, 0.5)
    tilt_x, tilt_y = draw.uniform(-0.15, 0.15), draw.uniform(-0.15, 0.15)
    depth = np.stack([plane_x, plane_y, gap, tilt_x, tilt_y], axis=1)

    f32 = np.float32
    return _Scenes(
        labels=labels,
        pose=np.stack([x, y, angle, scale], axis=1).astype(f32),
        light=light.astype(f32),
        background=(0.5 * (lit + unlit)).astype(f32),
        background_gradient=(0.5 * (lit - unlit)).astype(f32),
        background_texture=np.broadcast_to(background_texture, lit.shape).astype(f32),
        background_pattern=background_pattern,
        object_dark=dark.astype(f32),
        object_gradient=(bright - dark).astype(f32),
        object_texture=(0.75 * (accent - 0.5 * (dark + bright))).astype(f32),
        object_pattern=object_pattern,
        blobs=np.stack(blobs, axis=1).astype(f32),
        blob_color=blob_color.astype(f32),
        depth=depth.astype(f32),
    )


# weight_u, weight_v, weight_uv, threshold, gain, warp of `_render_pattern`
_PATTERN_KINDS = {
    "plain": (0.0, 0.0, 0.0, 1.0, 1.0, 0.0),
    "stripes": (1.0, 0.0, 0.0, 0.0, 6.0, 0.0),
    "checks": (0.0, 0.0, 1.0, 0.0, 8.0, 0.0),
    "dots": (1.0, 1.0, 0.0, 0.9, 5.0, 0.0),
    "noise": (0.3, 0.3, 0.8, 0.0, 0.6, 0.6),
}


def _draw_pattern(draw: _Draws, kinds: tuple[str, ...], cycles: tuple[float, float]) -> _Pattern:
    table = np.array([_PATTERN_KINDS[kind] for kind in kinds])
    weight_u, weight_v, weight_uv, threshold, gain, warp = table[draw.integer(len(kinds))].T
    frequency, direction = draw.uniform(*cycles), draw.uniform(0.0, 2.0 * np.pi)
    fields = {
        "cos": frequency * np.cos(direction),
        "sin": frequency * np.sin(direction),
        "phase_u": draw.uniform(),
        "phase_v": draw.uniform(),
        "weight_u": weight_u,
        "weight_v": weight_v,
        "weight_uv": weight_uv,
        "threshold": threshold,
        "gain": gain,
        "warp": warp,
    }
    return _Pattern(**{name: value.astype(np.float32)[:, None, None] for name, value in fields.items()})


def _oklch_to_srgb(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """OKLCH (B,) each, hue in radians -> sRGB (B, 3), clipped to [0, 1] (https://bottosson.github.io/posts/oklab/)."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=1,
    ).clip(0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)


# ---------------------------------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------------------------------


def _local_coordinates(pose: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pose (b, 4) -> the (x, y) of each pixel centre in its object's frame, y up, in radii; float32 (b, size, size) each."""
    grid = _pixel_centres(size)
    x, y, scale = pose[:, 0:1], pose[:, 1:2], pose[:, 3:4]
    angle = pose[:, 2:3].astype(np.float64)  # rounded to float32 afterwards: hides the last bits, where libraries differ
    cos, sin = np.cos(angle).astype(np.float32) / scale, np.sin(angle).astype(np.float32) / scale
    right, down = grid - x, grid - y
    return _outer_sum(cos * right, -sin * down), _outer_sum(-sin * right, -cos * down)


def _pixel_centres(size: int) -> np.ndarray:
    return ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)


def _outer_sum(along_x: np.ndarray, along_y: np.ndarray) -> np.ndarray:
    """(b, s), (b, s) -> (b, s, s), [b, i, j] = along_x[b, j] + along_y[b, i]: affine functions of the pixel for one addition."""
    return along_x[:, None, :] + along_y[:, :, None]


def _wave(t: np.ndarray) -> np.ndarray:
    """A sine of period 1 made of two parabolas: (b, s, s) -> [-1, 1], consumes its input."""
    t -= np.rint(t)
    envelope = np.abs(t)
    envelope *= -16.0
    envelope += 8.0
    t *= envelope
    return t


def _render_pattern(x: np.ndarray, y: np.ndarray, pattern: _Pattern, resolution: float | np.ndarray) -> np.ndarray:
    """Texture at (x, y), broadcastable to (b, s, s) -> [0, 1]. `resolution`, pixels per unit of x, keeps edges a pixel wide."""
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


def _render_class(scenes: _Scenes, shape_distance: ShapeDistance, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scenes (b) of one class -> RGB uint8 (b, 3, size, size), depth float32 and mask bool (b, size, size)."""
    grid = _pixel_centres(size)
    x, y, scale = scenes.pose[:, 0:1], scenes.pose[:, 1:2], scenes.pose[:, 3:4]
    light_x, light_y = scenes.light[:, 0:1], scenes.light[:, 1:2]
    pixels_per_radius = (size * scale)[:, :, None]

    # Geometry: the distance here, and the distance a step towards the light, which gives both the cast shadow and the bevel.
    local_x, local_y = _local_coordinates(scenes.pose, size)
    distance = shape_distance(local_x, local_y)
    shifted = scenes.pose.copy()
    shifted[:, :2] -= _SHADOW_OFFSET * scale * scenes.light
    towards_light = shape_distance(*_local_coordinates(shifted, size))
    mask = _coverage(distance, 1.0 / pixels_per_radius)
    shadow = _coverage(towards_light, 0.25)
    shadow *= -_SHADOW_STRENGTH
    shadow += 1.0

    # Light on the object: a gradient across it, and a rim that is bright where the outline faces the light, dark where not.
    rim = _coverage(distance + 0.07, -0.3)
    shade = towards_light - distance
    shade *= rim
    shade *= 0.55 / _SHADOW_OFFSET
    slope_x, slope_y = 0.28 * light_x / scale, 0.28 * light_y / scale
    shade += _outer_sum(slope_x * (grid - x) + 0.5, slope_y * (grid - y))
    shade.clip(0.0, 1.0, out=shade)
    paint = _render_pattern(local_x, local_y, scenes.object_pattern, pixels_per_radius)

    # Light on the background: a gradient from the lit to the unlit end of the image, and the texture.
    gradient = _outer_sum(1.8 * light_x * grid, 1.8 * light_y * grid)
    texture = _render_pattern(grid[None, None, :], grid[None, :, None], scenes.background_pattern, float(size))
    texture -= 0.5
    blob_distance = np.full_like(gradient, np.inf)
    for blob_x, blob_y, radius in (np.split(blob, 3, axis=1) for blob in scenes.blobs.swapaxes(0, 1)):
        disc = np.sqrt(_outer_sum((grid - blob_x) ** 2, (grid - blob_y) ** 2))
        disc -= radius[:, :, None]
        np.minimum(blob_distance, disc, out=blob_distance)
    blob = _coverage(blob_distance, max(1.0 / size, 0.008))

    images = np.empty((len(scale), 3, size, size), dtype=np.uint8)
    for channel in range(3):
        at = (slice(None), slice(channel, channel + 1), None)
        image = gradient * scenes.background_gradient[at]
        image += scenes.background[at]
        _blend(image, scenes.blob_color[at], blob)
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

    plane_x, plane_y, gap, tilt_x, tilt_y = (scenes.depth[:, i : i + 1] for i in range(5))
    plane = _outer_sum(plane_x * grid + 1.0, -plane_y * grid)
    surface = np.maximum(distance, -0.4)  # the dome: nearer away from the outline
    surface *= 0.6 * scale[:, :, None]
    surface += _outer_sum(tilt_x * (grid - x) + (1.0 - gap), tilt_y * (grid - y))
    inside = distance < 0.0
    return images, np.where(inside, surface, plane), inside
