"""What is seen on a sprite: the parameters of a scene, drawn only from (seed, index).

They come from a counter-based hash, so no generator state has to be forked, saved or shared, and scene i is the
same in every batch, worker and run.

Coordinates: positions are fractions of the image side from the image center, x to the right and y down, as in pixel
grids. Angles are radians, counter-clockwise as seen on the screen; 0 is upright. A single image carries a noisy cue of
"up", as
photographs do: the light and the objects are upright only up to the two standard deviations below.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sprite_shapes import SHAPES

LIGHT_ANGLE_STD = np.deg2rad(
    35.0
)  # radians; deviation of the light (and of the background gradient) from "straight above"
POSE_ANGLE_STD = np.deg2rad(40.0)  # radians; deviation of the object from upright
SCALE_RANGE = (0.24, 0.38)  # radius of the object's bounding circle, as a fraction of the image side
MAX_DISTRACTORS = 4

_NUM_DRAWS = 96  # uniforms per scene; new parameters take unused ones, so that existing scenes keep theirs


@dataclass(frozen=True)
class Pattern:
    """A repeating texture with values in [0, 1]; every field is float32 (B, 1, 1). `sprites` says how they make the
    texture."""

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

    def take(self, rows: np.ndarray) -> "Pattern":
        """The patterns of some scenes, by indices (b,)."""
        return Pattern(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Scenes:
    """Parameters of B scenes. Colors are sRGB in [0, 1], float32 (B, 3); vectors are in image coordinates (y down)."""

    labels: np.ndarray  # int64 (B,)
    pose: np.ndarray  # float32 (B, 4)
    light: np.ndarray  # float32 (B, 2), unit vector towards the light
    background: np.ndarray  # (B, 3) at the middle of the gradient
    background_gradient: np.ndarray  # (B, 3), added at the lit end, subtracted at the dark end
    background_texture: np.ndarray  # (B, 3), how far `background_pattern` goes from one of its two colors to the other
    background_pattern: Pattern
    object_dark: np.ndarray  # (B, 3)
    object_gradient: np.ndarray  # (B, 3), added where fully lit
    object_texture: np.ndarray  # (B, 3)
    object_pattern: Pattern
    strokes: (
        np.ndarray
    )  # float32 (B, MAX_DISTRACTORS, 5): x, y, radius, half its length as (x, y); absent ones have a negative radius
    stroke_color: np.ndarray  # (B, 3)
    depth: np.ndarray  # float32 (B, 5): background tilt x, y; object distance in front; object tilt x, y

    def take(self, rows: np.ndarray) -> "Scenes":
        """Some of the scenes, by indices (b,)."""
        taken: dict[str, Any] = {
            k: value.take(rows) if isinstance(value, Pattern) else value[rows] for k, value in vars(self).items()
        }
        return Scenes(**taken)


def _hash64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (https://prng.di.unimi.it/splitmix64.c), uint64 -> uint64, a bijection."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniforms(indices: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Uniforms in [0, 1), float64 (count, B): row k, column b depends only on (seed, indices[b], k)."""
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


def draw_scenes(indices: np.ndarray, seed: int) -> Scenes:
    """The scenes of the indices, int64 (B,)."""
    # The order of the draws is what a scene is: (seed, index) names the same one for ever.
    draw = _Draws(_uniforms(indices, seed, _NUM_DRAWS))
    labels, pose = draw.integer(len(SHAPES)), _draw_pose(draw)
    light_angle = draw.normal(LIGHT_ANGLE_STD)
    colors = _draw_colors(draw)
    background_pattern = _draw_pattern(draw, kinds=("stripes", "checks", "dots", "noise"), cycles=(2.5, 7.0))
    object_pattern = _draw_pattern(draw, kinds=("plain", "plain", "stripes", "dots"), cycles=(1.6, 2.8))
    vectors = {
        "pose": pose,
        "light": np.stack([-np.sin(light_angle), -np.cos(light_angle)], axis=1),
        **colors,
        "strokes": _draw_strokes(draw),
        "depth": _draw_depth(draw),
    }
    rounded = {name: vector.astype(np.float32) for name, vector in vectors.items()}
    return Scenes(labels=labels, background_pattern=background_pattern, object_pattern=object_pattern, **rounded)


def _draw_pose(draw: _Draws) -> np.ndarray:
    scale = draw.uniform(*SCALE_RANGE)
    reach = 0.5 - 0.95 * scale  # only the tips of turned objects leave the image
    return np.stack(
        [draw.uniform(-reach, reach), draw.uniform(-reach, reach), draw.normal(POSE_ANGLE_STD), scale], axis=1
    )


def _draw_colors(draw: _Draws) -> dict[str, np.ndarray]:
    """The colors of `Scenes` by name, sRGB (B, 3) each."""
    # Any hue, and either the object or the background is the lighter one: no color channel separates them in all
    # scenes.
    hue, lightness, chroma = draw.uniform(0.0, 2.0 * np.pi), draw.uniform(0.3, 0.78), draw.uniform(0.03, 0.09)
    # From an even wall to a faint sky: as in photographs, the background often does not tell where up is.
    gradient = draw.uniform(0.0, 0.3)
    lit = _oklch_to_srgb(lightness + 0.05 * gradient, chroma, hue)
    unlit = _oklch_to_srgb(lightness - 0.07 * gradient, chroma, hue)
    background = 0.5 * (lit + unlit)
    ink_lightness = lightness + draw.uniform(0.22, 0.4) * np.where(lightness > 0.54, -1.0, 1.0)
    ink = _oklch_to_srgb(ink_lightness, draw.uniform(0.03, 0.1), hue + draw.uniform(-1.2, 1.2))
    # The object's hue is at least about 100 degrees away from the background's; the strokes' is near the object's.
    object_hue = hue + np.pi + draw.uniform(-1.4, 1.4)
    object_lightness, object_chroma = draw.uniform(0.5, 0.74), draw.uniform(0.13, 0.19)
    dark = _oklch_to_srgb(object_lightness - 0.16, object_chroma * 0.9, object_hue + 0.15)
    bright = _oklch_to_srgb(object_lightness + 0.14, object_chroma, object_hue - 0.15)
    accent = _oklch_to_srgb(object_lightness + 0.17, object_chroma * 0.75, object_hue + draw.uniform(-0.9, 0.9))
    stroke_hue = object_hue + draw.uniform(-0.8, 0.8)
    return {
        "background": background,
        "background_gradient": 0.5 * (lit - unlit),
        "background_texture": ink - background,
        "object_dark": dark,
        "object_gradient": bright - dark,
        "object_texture": 0.75 * (accent - 0.5 * (dark + bright)),
        "stroke_color": _oklch_to_srgb(object_lightness, draw.uniform(0.08, 0.16), stroke_hue),
    }


def _draw_strokes(draw: _Draws) -> np.ndarray:
    num_strokes = draw.integer(MAX_DISTRACTORS + 1)
    strokes = []
    for k in range(MAX_DISTRACTORS):
        x, y, radius = draw.uniform(-0.46, 0.46), draw.uniform(-0.46, 0.46), draw.uniform(0.03, 0.06)
        half_length, angle = draw.uniform(0.0, 0.15), draw.uniform(0.0, np.pi)
        shown = np.where(k < num_strokes, radius, -1.0)
        strokes.append(np.stack([x, y, shown, half_length * np.cos(angle), half_length * np.sin(angle)], axis=1))
    return np.stack(strokes, axis=1)


def _draw_depth(draw: _Draws) -> np.ndarray:
    ranges = (
        (-0.1, 0.1),
        (0.0, 0.2),
        (0.3, 0.5),
        (-0.15, 0.15),
        (-0.15, 0.15),
    )  # of the plane's tilt, the gap, the object's tilt
    return np.stack([draw.uniform(*limits) for limits in ranges], axis=1)


# weight_u, weight_v, weight_uv, threshold, gain, warp of a `Pattern`
_PATTERN_KINDS = {
    "plain": (0.0, 0.0, 0.0, 1.0, 1.0, 0.0),
    "stripes": (1.0, 0.0, 0.0, 0.0, 6.0, 0.0),
    "checks": (0.0, 0.0, 1.0, 0.0, 8.0, 0.0),
    "dots": (1.0, 1.0, 0.0, 0.9, 5.0, 0.0),
    "noise": (0.3, 0.3, 0.8, 0.0, 0.6, 0.6),
}


def _draw_pattern(draw: _Draws, kinds: tuple[str, ...], cycles: tuple[float, float]) -> Pattern:
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
    return Pattern(**{name: value.astype(np.float32)[:, None, None] for name, value in fields.items()})


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
