"""Photographs that no one took: image files with the spectrum and about the size of real ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, width: int, height: int, image_format: str = "JPEG") -> bytes:
    """The content of an image file with the spectrum of a photograph (amplitude ~ 1 / frequency) and so about its size
    in bytes."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    fields = []
    for _ in range(4):  # three colors and what they have in common
        field = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((height, width))) / frequency, (height, width))
        fields.append(field / field.std())
    pixels = (
        np.stack([45 * fields[3] + 18 * field + 120 for field in fields[:3]], axis=-1).clip(0, 255).astype(np.uint8)
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, quality=90 if image_format == "JPEG" else 85)
    return buffer.getvalue()


def write_photos(folder: Path, count: int) -> list[Path]:
    """`count` JPEG files of 500 x 375 pixels, of 16 different pictures."""
    contents = [photo(seed, 500, 375) for seed in range(min(count, 16))]
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(contents[i % len(contents)])
    return paths
