"""The pictures that the page brings along: its examples, and random scenes with the statistics of photographs.

The read-outs of `probe` are fitted on random scenes and tested on the examples, so the page starts with any model and
without photographs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

EXAMPLES = ("boat", "house", "balloon", "mountains", "fruit", "flower", "city", "lighthouse")
_CORNERS = {"ellipse": 24, "box": 4, "triangle": 3, "blob": 7}


def find_examples() -> dict[str, Path]:
    """The example pictures by name. The page opens with the first one."""
    return {name: Path(__file__).parent / "examples" / f"{name}.jpg" for name in EXAMPLES}


def draw_scene(seed: int, side: int) -> Image.Image:
    """The scene of a seed, `side` x `side` pixels: overlapping shapes of all sizes, shaded and textured."""
    draw = np.random.default_rng(seed)
    palette = _palette(draw)
    shapes, colors = _shapes(draw, side, palette)
    place = np.linspace(-1, 1, side)
    slopes = draw.normal(0, 0.12, (len(colors), 2)) + draw.normal(0, 0.08, 2) + [0, -0.1]
    picture = colors[shapes]
    picture += (slopes[shapes, 0] * place + slopes[shapes, 1] * place[:, None])[..., None]
    texture = _noise(draw, side, draw.uniform(0.6, 1.6), 2)
    strength = np.abs(draw.normal(0, draw.uniform(0.02, 0.15), (len(colors), 2)))[shapes]
    picture += (texture[0] * strength[..., 0])[..., None]
    picture += (texture[1] * strength[..., 1])[..., None] * (palette[0] - palette[-1])
    light, haze = _noise(draw, side, 2.0, 2)
    picture = picture * (1 + 0.25 * draw.random() * light)[..., None] + 0.1 * draw.random() * haze[..., None]
    pixels = (picture.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(draw.uniform(0, 1.2)))


def _palette(draw: np.random.Generator) -> np.ndarray:
    """Two to five colors that go together, (k, 3)."""
    colors = draw.random((draw.integers(2, 6), 3)) * draw.uniform(0.3, 1) + draw.uniform(0, 0.4)
    gray = colors.mean(axis=1, keepdims=True)
    return gray + (colors - gray) * draw.uniform(0.2, 1)


def _shapes(draw: np.random.Generator, side: int, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which shape is seen at each pixel (side, side), and the color of each shape (n, 3). Shape 0 is the background."""
    image = Image.new("I", (side, side))
    canvas = ImageDraw.Draw(image)
    colors = [palette[0]]
    if draw.random() < 0.6:  # a horizon
        height = draw.uniform(0.2, 0.8) * side
        tilt = draw.uniform(-0.05, 0.05) * side
        canvas.polygon([(0, height - tilt), (side, height + tilt), (side, side), (0, side)], fill=1)
        colors.append(palette[1])
    smallest = draw.uniform(0.015, 0.08)
    largest = draw.uniform(0.12, 0.5)
    share = draw.random(int(np.exp(draw.uniform(np.log(4), np.log(150)))))
    radii = 1 / np.sqrt(share / smallest**2 + (1 - share) / largest**2)  # as many of each size as in photographs
    radii.sort()
    for radius in radii[::-1] if draw.random() < 0.7 else radii:
        canvas.polygon(_outline(draw, radius * side, side), fill=len(colors))
        colors.append(palette[draw.integers(len(palette))] + draw.normal(0, 0.06, 3) + draw.normal(0, 0.12))
    return np.asarray(image), np.array(colors)


def _outline(draw: np.random.Generator, radius: float, side: int) -> list[tuple[float, float]]:
    """Corners of a shape. Many stand upright and near the middle, as things in photographs do."""
    kind = draw.choice(list(_CORNERS))
    count = _CORNERS[kind]
    angles = np.arange(count) / count * 2 * np.pi + (np.pi / 4 if kind == "box" else 0)
    reach = radius * (draw.uniform(0.4, 1, count) if kind == "blob" else np.ones(count))
    aspect = np.exp(draw.normal(0, 0.4)) * (3 if kind == "box" and draw.random() < 0.3 else 1)
    x = reach * np.cos(angles) * aspect
    y = reach * np.sin(angles) / aspect
    turn = draw.choice([0, np.pi / 2]) + draw.normal(0, 0.05 if draw.random() < 0.6 else 2)
    centered = draw.random() < 0.5
    middle = side * (draw.normal(0.5, 0.22, 2) if centered else draw.random(2))
    cos = np.cos(turn)
    sin = np.sin(turn)
    return list(zip(middle[0] + cos * x - sin * y, middle[1] + sin * x + cos * y, strict=True))


def _noise(draw: np.random.Generator, side: int, slope: float, count: int) -> np.ndarray:
    """Fields (count, side, side) whose amplitude falls with the frequency to the power `slope`; deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side
    amplitude = np.maximum(frequency, 1) ** -slope
    amplitude[0, 0] = 0
    phases = np.exp(2j * np.pi * draw.random((count, *amplitude.shape)))
    fields = np.fft.irfft2(amplitude * phases, s=(side, side))
    return fields / fields.std(axis=(1, 2), keepdims=True)
