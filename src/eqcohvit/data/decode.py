"""One image, in any format that Pillow reads, to one canvas: uint8 RGB, S x S, upright.

The image lies in the upper left corner at its own resolution, so that crops of it are as sharp as those of the file; only an axis of more
than S pixels is reduced to S. So the content is min(height, S) x min(width, S) pixels, which follows from the original (height, width) that
travels with the canvas. Whatever is wrong with the data ends in `BadImage`, never in another exception.
"""

import io
import warnings
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

# Pillow's own default; larger images are refused before they are decoded. Decoding takes up to 13 bytes of memory for a pixel, 1.2 GB.
MAX_PIXELS = 89_478_485

BAND_PIXELS = 1 << 20  # of images of numbers, scaled at a time

# Not decodable by Pillow itself, or only by starting another program (EPS starts Ghostscript).
_REFUSED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_COMMON_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]

# EXIF orientation -> the dimensions of (3, height, width) that are reversed to make the stored image upright, from 5 on after exchanging
# height and width (EXIF 2.3, tag 0x0112); applied to the content of the canvas, because it commutes with the resampling.
_REVERSED = {2: [2], 3: [1, 2], 4: [1], 5: [], 6: [2], 7: [1, 2], 8: [1]}
# EXIF orientations whose stored columns, and whose stored rows, run against the upright image.
_COLUMNS_REVERSED = (2, 3, 7, 8)
_ROWS_REVERSED = (3, 4, 6, 7)

FITS = ("native", "square")


class BadImage(Exception):
    """This image cannot be decoded; the message is one line that says why."""


class Decoded(NamedTuple):
    """canvas: uint8 (3, S, S), RGB, black beyond the image. size: (height, width) of the upright original, in pixels. label: where decoding
    is what tells it."""

    canvas: np.ndarray
    size: tuple[int, int]
    label: int | None = None


@cache
def decodable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that `decode_image` accepts, frequent ones first."""
    Image.init()
    return tuple(_COMMON_FORMATS + sorted(set(Image.OPEN) - set(_COMMON_FORMATS) - _REFUSED_FORMATS))


@cache
def image_extensions() -> frozenset[str]:
    """Lower-case file name endings (".jpg", ...) of the formats that `decode_image` accepts."""
    formats = {*decodable_formats(), "MPO"}  # Pillow opens MPO through its JPEG reader
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def decode_image(data: bytes | Image.Image, canvas_size: int, fit: str = "native") -> Decoded:
    """Decode the file content `data` (or convert an open Pillow image) to a canvas of `canvas_size` x `canvas_size` pixels.

    `fit="native"` puts the whole image at its own resolution into the top left corner, smaller along an axis that exceeds the canvas.
    `fit="square"` cuts the central square of the upright original before any resampling, and resamples it to the whole canvas, by the
    same factor along x and y; the size is then that of the square.

    EXIF orientation is applied. Transparency is laid on white. The first frame of an animation counts. Single-channel images of
    more than 8 bits are scaled: 16-bit by their full range; 32-bit and float by [0, 1], [0, 255] or [0, 65535] if that holds all
    values, otherwise from their own minimum to their maximum. Raises `BadImage` for anything that is not a whole image.
    """
    if canvas_size < 1:
        raise ValueError(f"canvas_size must be a positive number of pixels, got {canvas_size}")
    if fit not in FITS:
        raise ValueError(f"unknown fit {fit!r}; known: {', '.join(FITS)}")
    if isinstance(data, (bytes, bytearray, memoryview)) and len(data) == 0:
        raise BadImage("empty file (0 bytes)")
    try:
        with warnings.catch_warnings():  # Pillow warns about oddities of single files; one line per web image would bury the log
            warnings.simplefilter("ignore")
            return _decode(data, canvas_size, fit)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    # Mutated files make Pillow's readers raise almost anything: OSError, SyntaxError, ValueError, struct.error, EOFError,
    # IndexError, KeyError, OverflowError, RecursionError, zlib.error, MemoryError, DecompressionBombError ...
    except Exception as error:
        raise BadImage(one_line(error)) from None


def one_line(error: Exception, limit: int = 200) -> str:
    """`Type: message` without line breaks, at most `limit` characters of it."""
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return " ".join(text.split())[:limit]


def _decode(data: bytes | Image.Image, canvas_size: int, fit: str) -> Decoded:
    if isinstance(data, Image.Image):
        image = data
    elif isinstance(data, (bytes, bytearray, memoryview)):
        image = Image.open(io.BytesIO(data), formats=decodable_formats())
    else:
        raise BadImage(f"expected the bytes of an image file, got {type(data).__name__}")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
    # JPEG only: decode at 1/2, 1/4 or 1/8, never below the canvas. It changes the image, so not for one that the caller holds.
    drafted = image is not data and image.draft("RGB", (canvas_size, canvas_size)) is not None
    image.load()
    if not drafted:
        width, height = image.size  # some readers learn the size, or turn the image upright (TIFF), only now
    orientation = _orientation(image)
    if fit == "square":
        image = _central_square(image, orientation)
        width = height = min(width, height)
    image = _to_8_bit(image)
    if fit == "square":
        content = _resized(image, canvas_size, canvas_size)
    else:
        content = _resized(image, min(height, canvas_size), min(width, canvas_size))
    if orientation in _REVERSED:
        if orientation >= 5:
            content, width, height = content.transpose(1, 2), height, width
        content = content.flip(_REVERSED[orientation])
    canvas = torch.zeros(3, canvas_size, canvas_size, dtype=torch.uint8)
    canvas[:, : content.shape[1], : content.shape[2]] = content
    return Decoded(canvas.numpy(), (height, width))


def _central_square(image: Image.Image, orientation: int) -> Image.Image:
    """The largest central square. An odd margin is one pixel wider on the right or at the bottom of the upright image."""
    side = min(image.size)
    left = (image.width - side + (orientation in _COLUMNS_REVERSED)) // 2
    top = (image.height - side + (orientation in _ROWS_REVERSED)) // 2
    return image if image.width == image.height else image.crop((left, top, left + side, top + side))


def _resized(image: Image.Image, height: int, width: int) -> torch.Tensor:
    """Modes RGB, L, RGBa -> (3, height, width), as Pillow's bicubic `resize` up to rounding; transparency lies on white.

    For the interleaved 8-bit channels that Pillow gives, torch has vectorised kernels; it holds more copies, so large images come smaller.
    """
    if image.width * image.height > 16 * width * height:
        halfway = (min(image.width, 2 * width), min(image.height, 2 * height))
        image = image.resize(halfway, Image.Resampling.BICUBIC, reducing_gap=2.0)
    pixels = torch.from_numpy(np.asarray(image)).reshape(image.height, image.width, -1).permute(2, 0, 1)  # read only
    if pixels.shape[1:] != (height, width):
        pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
    if image.mode == "RGBa":
        color, opacity = pixels.to(torch.int16).split([3, 1])
        pixels = (color + 255 - opacity).clamp_max(255).to(torch.uint8)
    return pixels.expand(3, -1, -1)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata do not spoil the pixels
        return 1


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Mode "RGB", "L" for gray images, or "RGBa" (premultiplied) for those with transparency.

    Transparency is laid on white on the canvas only, and numbers are scaled in bands, so that a huge image is held three times at most.
    """
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_to_8_bit(image))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("RGBA", "LA", "PA") or image.info.get("transparency") is not None:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        return image.convert("RGB" if image.getchannel("A").getextrema() == (255, 255) else "RGBa")
    return image if image.mode in ("RGB", "L", "RGBa") else image.convert("RGB")  # P, CMYK, YCbCr, HSV


def _scale_to_8_bit(image: Image.Image) -> np.ndarray:
    """Numbers of any type -> uint8 (H, W)."""
    low, high, lowest = 0.0, 65535.0, 0.0
    if not image.mode.startswith("I;16"):
        low, high = _range_of(image)
        lowest = low
        if low >= 0 and high <= 65535:
            low, high = 0.0, next(limit for limit in (1.0, 255.0, 65535.0) if high <= limit)
    scaled = np.empty((image.height, image.width), dtype=np.uint8)
    for rows, values in _bands(image):
        if not image.mode.startswith("I;16"):
            values = np.where(np.isfinite(values), values, lowest)
        scaled[rows] = np.rint((values - low) * (255.0 / max(high - low, 1e-12)))
    return scaled


def _range_of(image: Image.Image) -> tuple[float, float]:
    """Smallest and largest finite value."""
    ends = []
    for _, values in _bands(image):
        finite = values[np.isfinite(values)]
        if finite.size:
            ends += [finite.min(), finite.max()]
    if not ends:
        raise BadImage("no finite value in a floating-point image")
    return float(min(ends)), float(max(ends))


def _bands(image: Image.Image) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows at a time, as float32."""
    height = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        rows = slice(top, min(top + height, image.height))
        yield rows, np.asarray(image.crop((0, rows.start, image.width, rows.stop))).astype(np.float32)
