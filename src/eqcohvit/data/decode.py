"""One image, in any format that Pillow reads, to one canvas: uint8 RGB, S x S, upright.

The image lies in the upper left corner at its own resolution, so that crops are as sharp as crops of the file. Only an
axis of more than S pixels is reduced to S. So the content is min(height, S) x min(width, S) pixels, which follows from
the original (height, width) that travels with the canvas. All problems with the data end in `BadImage`, never in
another exception.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..hub.image_reading_eqcohvit import (
    MAX_PIXELS,
    BadImage,
    content_of,
    image_extensions,
    load,
    on_white,
    opened,
    orientation,
    quiet,
    to_8_bits,
)
from .jpeg import read_jpeg

__all__ = ["FITS", "MAX_PIXELS", "BadImage", "Decoded", "decode_image", "image_extensions", "one_line"]

# EXIF orientation -> the dimensions of (3, height, width) that are reversed to make the stored image upright, from 5 on
# after exchanging height and width (EXIF 2.3, tag 0x0112); applied to the content of the canvas, because it commutes
# with the resampling.
_REVERSED = {2: [2], 3: [1, 2], 4: [1], 5: [], 6: [2], 7: [1, 2], 8: [1]}
# EXIF orientations whose stored columns, and whose stored rows, run against the upright image.
_COLUMNS_REVERSED = (2, 3, 7, 8)
_ROWS_REVERSED = (3, 4, 6, 7)

FITS = ("native", "square")


class Decoded(NamedTuple):
    """canvas: uint8 (3, S, S), RGB, black beyond the image. size: (height, width) of the upright original, in pixels.
    label: only if decoding is what determines it."""

    canvas: np.ndarray
    size: tuple[int, int]
    label: int | None = None


def decode_image(data: Any, canvas_size: int, fit: str = "native") -> Decoded:
    """Decode an image, any of the `SOURCES` of `image_reading_eqcohvit`, to a canvas of `canvas_size` x `canvas_size`
    pixels.

    `fit="native"` puts the whole image at its own resolution into the top left corner, smaller along an axis that
    exceeds the canvas. `fit="square"` cuts the central square of the upright original before any resampling, and
    resamples it to the whole canvas, by the same factor along x and y; the size is then the square's.

    Its pixels become 8-bit RGB by the `PIXELS` there: upright, transparency on white, numbers scaled. Raises `BadImage`
    for anything that is not a whole image.
    """
    if canvas_size < 1:
        raise ValueError(f"canvas_size must be a positive number of pixels, got {canvas_size}")
    if fit not in FITS:
        raise ValueError(f"unknown fit {fit!r}; known: {', '.join(FITS)}")
    try:
        with quiet():
            return _decode(content_of(data), canvas_size, fit)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    # Mutated files make Pillow's readers raise almost anything: OSError, SyntaxError, ValueError, struct.error,
    # EOFError, IndexError, KeyError, OverflowError, RecursionError, zlib.error, MemoryError, DecompressionBombError ...
    except Exception as error:
        raise BadImage(one_line(error)) from None


def one_line(error: Exception, limit: int = 200) -> str:
    """`Type: message` without line breaks, at most `limit` characters of it."""
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return " ".join(text.split())[:limit]


def _decode(data: Any, canvas_size: int, fit: str) -> Decoded:
    stored = read_jpeg(data, canvas_size)
    image, (height, width), turned = stored or _read_by_pillow(data, canvas_size)
    if fit == "square":
        image = _central_square(image, turned)
        width = height = min(width, height)
    if isinstance(image, Image.Image):
        image = to_8_bits(image)
    if fit == "square":
        content = _resized(image, canvas_size, canvas_size)
    else:
        content = _resized(image, min(height, canvas_size), min(width, canvas_size))
    if turned in _REVERSED:
        if turned >= 5:
            content, width, height = content.transpose(1, 2), height, width
        content = content.flip(_REVERSED[turned])
    canvas = torch.zeros(3, canvas_size, canvas_size, dtype=torch.uint8)
    canvas[:, : content.shape[1], : content.shape[2]] = content
    return Decoded(canvas.numpy(), (height, width))


def _read_by_pillow(data: Any, canvas_size: int) -> tuple[Image.Image, tuple[int, int], int]:
    """The loaded image, (height, width) in the file, and the EXIF orientation."""
    image = opened(data)
    width, height = image.size
    # JPEG only: decode at 1/2, 1/4 or 1/8, never below the canvas. It changes the image, so not for one that the caller
    # holds.
    drafted = image is not data and image.draft("RGB", (canvas_size, canvas_size)) is not None
    load(image)
    if not drafted:
        width, height = image.size  # some readers learn the size, or turn the image upright (TIFF), only now
    return image, (height, width), orientation(image)


def _central_square(image: Image.Image | np.ndarray, turned: int) -> Image.Image | np.ndarray:
    """The largest central square. An odd margin is one pixel wider on the right or at the bottom of the upright
    image."""
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    side = min(height, width)
    left = (width - side + (turned in _COLUMNS_REVERSED)) // 2
    top = (height - side + (turned in _ROWS_REVERSED)) // 2
    if isinstance(image, np.ndarray):
        return image[top : top + side, left : left + side]
    return image if width == height else image.crop((left, top, left + side, top + side))


def _resized(image: Image.Image | np.ndarray, height: int, width: int) -> torch.Tensor:
    """Modes RGB, L, RGBa, or uint8 (h, w, 1 or 3) -> (3, height, width), as Pillow's bicubic `resize` up to rounding;
    transparency lies on white.

    For the interleaved 8-bit channels that Pillow gives, torch has vectorized kernels; it holds more copies, so large
    images come smaller.
    """
    most = 16 * width * height
    if isinstance(image, np.ndarray) and image.shape[0] * image.shape[1] > most:
        image = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    if isinstance(image, Image.Image) and image.width * image.height > most:
        halfway = (min(image.width, 2 * width), min(image.height, 2 * height))
        image = image.resize(halfway, Image.Resampling.BICUBIC, reducing_gap=2.0)
    values = np.asarray(image)  # read only
    pixels = torch.from_numpy(values).reshape(*values.shape[:2], -1).permute(2, 0, 1)
    if pixels.shape[1:] != (height, width):
        pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
    if isinstance(image, Image.Image) and image.mode == "RGBa":
        pixels = torch.from_numpy(on_white(pixels.permute(1, 2, 0).numpy())).permute(2, 0, 1)
    return pixels.expand(3, -1, -1)
