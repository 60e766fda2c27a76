"""JPEGs by simplejpeg (the extra `jpeg`), where it is installed; Pillow reads everything else.

Both are built on libjpeg-turbo, with the same transformation of blocks and the same interpolation of color, so their
pixels are equal where they are built on the same release of it.
"""

from __future__ import annotations

import struct
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..hub.image_reading_eqcohvit import MAX_PIXELS, opened, orientation

__all__ = ["Stored", "jpeg_decoder", "read_jpeg"]

# Markers of JPEG (ITU-T T.81, table B.1).
_START = b"\xff\xd8\xff"
_BASELINE_OR_PROGRESSIVE = (0xC0, 0xC2)
_SCAN = 0xDA
_TABLES = (0xC4, 0xDB, 0xDD, 0xFE)  # Huffman and quantization tables, restart interval, comment: nothing for a reader
_JFIF = 0xE0
_JFIF_LENGTH = 16  # without a thumbnail
_REDUCTIONS = (8, 4, 2, 1)
# A shorter image could have the same size at two reductions, of which simplejpeg would take the stronger.
_SHORTEST = 16


class Stored(NamedTuple):
    """pixels: uint8 (h, w, 1) or (h, w, 3), gray or RGB as the file holds them, reduced like a draft of Pillow.
    size: (height, width) in the file. orientation: EXIF, 1 (upright) to 8."""

    pixels: np.ndarray
    size: tuple[int, int]
    orientation: int


class _Frame(NamedTuple):
    height: int
    width: int
    channels: int
    is_plain: bool  # no metadata that could turn the image, or that Pillow would refuse


def _optional(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:  # also if it does not fit numpy or the system
        return None


_simplejpeg = _optional("simplejpeg")


def jpeg_decoder() -> str:
    """The library that decodes plain JPEGs here: "simplejpeg" or "Pillow"."""
    return "Pillow" if _simplejpeg is None else "simplejpeg"


def read_jpeg(data: Any, canvas_size: int) -> Stored | None:
    """The pixels of a whole 8-bit gray or color JPEG, at 1/2, 1/4 or 1/8 if both sides stay at least `canvas_size`.

    Args:
        data: the bytes of a file, or any other content.

    Returns:
        None for whatever Pillow must read, or refuse: other formats, CMYK, several pictures in a file, too many pixels,
        damage of any kind; and always without simplejpeg.
    """
    if _simplejpeg is None or not isinstance(data, (bytes, bytearray, memoryview)) or bytes(data[:3]) != _START:
        return None
    try:
        frame = _frame_of(data)
        if frame is None:
            return None
        return _decoded(_simplejpeg, data, frame, canvas_size)
    except Exception:  # whatever it is, Pillow finds it too, and says what
        return None


def _frame_of(data: Any) -> _Frame | None:
    """What stands before the first scan; None unless it is complete, 8 bits deep, gray or of three channels."""
    frame = None
    is_plain = True
    place = 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == _SCAN:
            return frame and frame._replace(is_plain=is_plain)
        if marker in _BASELINE_OR_PROGRESSIVE:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            if frame is not None or bits != 8 or channels not in (1, 3) or not 0 < height * width <= MAX_PIXELS:
                return None
            frame = _Frame(height, width, channels, is_plain)
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _JFIF:
            is_plain &= length == _JFIF_LENGTH and bytes(data[place + 4 : place + 9]) == b"JFIF\0"
        elif marker not in (*_TABLES, *_BASELINE_OR_PROGRESSIVE):
            is_plain = False
        place += 2 + length
    return None


def _decoded(library: ModuleType, data: Any, frame: _Frame, canvas_size: int) -> Stored | None:
    height, width, channels, is_plain = frame
    turned = 1
    if not is_plain:
        image = opened(data)
        if image.format != "JPEG" or image.size != (width, height) or image.mode not in ("L", "RGB"):
            return None
        turned = orientation(image)
    smallest = min(height // canvas_size, width // canvas_size)
    reduction = next(reduction for reduction in _REDUCTIONS if reduction <= max(smallest, 1))
    expected = (-(-height // reduction), -(-width // reduction), channels)
    limits = {}
    if reduction > 1:
        if max(height, width) < _SHORTEST:
            return None
        limits = {"min_height": expected[0], "min_width": expected[1], "min_factor": reduction}
    # strict: damage that libjpeg could pass over is an error
    pixels = library.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", strict=True, **limits)
    return Stored(pixels, (height, width), turned) if pixels.shape == expected else None
