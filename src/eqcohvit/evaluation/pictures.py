"""Pictures of inputs, targets and predictions side by side."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IGNORED = 255  # label of pixels that do not count
_GAP = 4
_HEADER = 20
_CELL_HEIGHT = 200


def palette(num_colors: int) -> np.ndarray:
    """Colors, different for neighbors in the list, uint8 (num_colors, 3)."""
    golden = 0.61803398875
    colors = [
        colorsys.hsv_to_rgb((i * golden) % 1, 0.85 - 0.3 * (i % 3 == 1), 1.0 - 0.25 * (i % 2))
        for i in range(num_colors)
    ]
    return (np.array(colors).reshape(-1, 3) * 255).round().astype(np.uint8)


def color_labels(labels: np.ndarray, num_labels: int) -> Image.Image:
    """Class indices (H, W) as colors; ignored pixels are black."""
    colors = np.concatenate([palette(num_labels), np.zeros((1, 3), np.uint8)])
    return Image.fromarray(colors[np.where(labels == IGNORED, num_labels, labels)])


def overlay(image: Image.Image, labels: np.ndarray, num_labels: int) -> Image.Image:
    """Class indices (H, W) as colors over a photograph of the same size; class 0 is transparent."""
    colors = np.asarray(color_labels(labels, num_labels)).astype(np.float32)
    pixels = np.asarray(image).astype(np.float32)
    mixed = np.where(((labels > 0) & (labels != IGNORED))[..., None], 0.45 * pixels + 0.55 * colors, pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def color_values(values: np.ndarray, low: float, high: float) -> Image.Image:
    """Numbers (H, W) as colors from dark blue (low) over green to yellow (high); others are black."""
    stops = np.array([[13, 8, 135], [32, 110, 160], [40, 175, 120], [190, 215, 60], [253, 231, 37]], dtype=np.float32)
    t = np.nan_to_num((values - low) / max(high - low, 1e-9)).clip(0, 1) * (len(stops) - 1)
    below = t.astype(int).clip(max=len(stops) - 2)
    fraction = (t - below)[..., None]
    colors = stops[below] * (1 - fraction) + stops[below + 1] * fraction
    return Image.fromarray(np.where(np.isfinite(values)[..., None], colors, 0).round().astype(np.uint8))


def with_height(image: Image.Image, height: int = _CELL_HEIGHT) -> Image.Image:
    """The picture with another height in pixels, and the width in proportion."""
    return image.resize((max(1, round(image.width * height / image.height)), height))


def make_sheet(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """A row of pictures per sample under one title per column; all pictures have one height (`with_height`)."""
    font = ImageFont.load_default(size=13)
    height = rows[0][0].height + _GAP
    widths = [
        max(round(font.getlength(title)), *(row[column].width for row in rows)) for column, title in enumerate(titles)
    ]
    size = (sum(widths) + _GAP * (len(widths) + 1), _HEADER + len(rows) * height + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for column, title in enumerate(titles):
        draw.text((left + widths[column] / 2, _HEADER / 2 + 1), title, fill="black", font=font, anchor="mm")
        for line, row in enumerate(rows):
            sheet.paste(row[column], (left, _HEADER + _GAP + line * height))
        left += widths[column] + _GAP
    return sheet


def save_sheet(path: Path, titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> None:
    """Write `make_sheet` as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_sheet(titles, rows).save(path)
