"""Read one image from any of the `SOURCES`, by the same rules (`PIXELS`) everywhere."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import stat
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, TiffImagePlugin

# Pillow's own default. Larger images are refused before they are decoded. Decoding takes up to 13 bytes of memory per
# pixel, 1.2 GB in all.
MAX_PIXELS = 89_478_485
MAX_FILE_BYTES = 1 << 29
BAND_PIXELS = 1 << 20  # pixels that are scaled at a time, in images of 16-bit or floating-point numbers
URL_SECONDS = 60.0  # default time to wait for an answer

COMMON_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Pillow cannot decode them itself, or only by starting another program (Ghostscript for EPS).
_REFUSED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# What an image may be given as.
SOURCES = {
    "path": "of an image file, as text or `Path`",
    "URL": "`http://` or `https://`",
    "base64": "text of an image file, plain or as a `data:` URL",
    "bytes": "of an image file: `bytes`, `bytearray`, `memoryview`",
    "file object": 'anything whose `.read()` gives bytes: `open(path, "rb")`, `BytesIO`',
    "Pillow image": "of any mode",
    "array": "numpy or torch, (H, W), (H, W, C) or (C, H, W) with C = 1, 3 (RGB) or 4 (RGBA)",
    "cell": 'of a `datasets` column that is not decoded: `{"bytes": ..., "path": ...}`',
}
# How its pixels are converted: always to 8-bit RGB.
PIXELS = {
    "8 bits": "kept; gray, palettes, CMYK, YCbCr, HSV and LAB become RGB",
    "1 bit, bool": "black and white",
    "16 bits, unsigned": "scaled by their full range, 0 to 65535",
    "other numbers, one channel": (
        "scaled by [0, 1], [0, 255] or [0, 65535], the first that contains them all; else from minimum to maximum"
    ),
    "floats, three or four channels": "must lie in [0, 1]",
    "transparency": "put on white",
    "EXIF orientation": "the image is turned upright",
    "animation": "its first frame",
}

# EXIF orientation (EXIF 2.3, tag 0x0112) -> what makes the stored image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXPECTED = (
    "a path, a URL, a base64 string, bytes, a file object, a PIL image or an array (H, W), (H, W, C) or (C, H, W)"
)
_BYTES = (bytes, bytearray, memoryview)


class BadImage(ValueError):
    """An image that cannot be read; the message is one line that says why."""


def read_image(source: Any, timeout: float | None = None, channels: str | None = None) -> Image.Image:
    """One of the `SOURCES` -> an upright 8-bit RGB image, by the rules of `PIXELS`. It has no metadata, so that it is
    not turned twice.

    Args:
        timeout: seconds to wait for the answer to a URL.
        channels: `"channels_first"` or `"channels_last"`, for an array that could be either.

    Raises:
        BadImage: the source is of no known kind, or not a complete image.
    """
    try:
        with quiet():
            return to_rgb(opened(content_of(source, timeout), channels))
    except Exception as error:  # broken files make Pillow's readers raise almost anything
        reason = (
            "cannot identify image file"
            if isinstance(error, Image.UnidentifiedImageError)
            else str(error) or type(error).__name__
        )
        if not hasattr(source, "__array__"):
            reason = f"expected {_EXPECTED}, got {_shown(source)}: {reason}"
        raise BadImage(" ".join(reason.split())) from None


def _shown(source: Any) -> str:
    if isinstance(source, (str, *_BYTES)):
        source = source[:80] if isinstance(source, str) else bytes(source[:80])
    text = repr(source)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings about single files: one line per web image would bury the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ----------------------------------------------------------------------------------------------- from source to content


def content_of(source: Any, timeout: float | None = None) -> Any:
    """Any of the `SOURCES` -> the bytes of an image file, a Pillow image or an array.

    Raises:
        BadImage: the source is of no known kind.
        OSError: the network fails.
    """
    if isinstance(source, Mapping) and "path" in source:
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, os.PathLike):
        return read_file(os.fspath(source))
    if isinstance(source, str):
        return read_url(source, timeout) if source.startswith(("http://", "https://")) else read_text(source)
    if not isinstance(source, (*_BYTES, Image.Image)) and hasattr(source, "read"):
        # As Pillow does: a file that was just written is read from its beginning.
        with contextlib.suppress(AttributeError, OSError):
            source.seek(0)
        source = source.read()
        if not isinstance(source, _BYTES):
            raise BadImage(f"its read() gives {type(source).__name__}, expected bytes: open files in binary mode")
    return source


def read_text(text: str) -> bytes:
    """The content of the file at this path, or of the base64 text."""
    if not text.startswith("data:") and os.path.exists(text):
        return read_file(text)
    try:
        content = base64.b64decode(
            "".join(text.partition(",")[2].split() if text.startswith("data:") else text.split()), validate=True
        )
        with Image.open(io.BytesIO(content), formats=decodable_formats()):  # a path may look like base64 too
            return content
    except Exception:  # from the decoder, or from a reader of broken content
        raise BadImage("neither a file nor base64 of an image (No such file or directory)") from None


def read_file(path: str) -> bytes:
    """The content of a local file.

    Raises:
        BadImage: it cannot be read, is not a regular file, or has more than `MAX_FILE_BYTES`.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:  # reading a pipe would never end
            raise BadImage(f"not a regular file of at most {MAX_FILE_BYTES} bytes")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(f"cannot read the file ({error.strerror or error})") from None


def read_url(url: str, timeout: float | None = None) -> bytes:
    """The content at a URL.

    Raises:
        BadImage: the image does not exist (404, 410 and other errors of the request), or has more than
            `MAX_FILE_BYTES`.
        OSError: the network or the server fails, or refuses temporarily (401, 403, 408, 425, 429, 5xx).
    """
    request = urllib.request.Request(
        urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "eqcohvit"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout or URL_SECONDS) as response:
            content = response.read(MAX_FILE_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403, 408, 425, 429) or error.code >= 500:
            raise ConnectionError(f"the server answers {error.code} {error.reason}") from None
        raise BadImage(f"the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise ConnectionError(f"no answer ({error.reason})") from None
    except http.client.InvalidURL as error:
        raise BadImage(f"not a URL ({error})") from None
    except http.client.HTTPException as error:
        raise ConnectionError(f"the answer breaks off ({type(error).__name__}: {error})") from None
    if len(content) > MAX_FILE_BYTES:
        raise BadImage(f"more than {MAX_FILE_BYTES} bytes")
    return content


# ----------------------------------------------------------------------------------------------- from content to pixels


@cache
def decodable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read, frequent ones first."""
    Image.init()
    return (*COMMON_FORMATS, *sorted(set(Image.OPEN) - set(COMMON_FORMATS) - _REFUSED_FORMATS))


@cache
def image_extensions() -> frozenset[str]:
    """Lower-case file name endings (".jpg", ...) of the formats that can be read."""
    formats = {*decodable_formats(), "MPO"}  # Pillow opens MPO through its JPEG reader
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def opened(content: Any, channels: str | None = None) -> Image.Image:
    """What `content_of` returns, as a Pillow image. The pixels of a file are not read yet, and a Pillow image is
    returned unchanged.

    Raises:
        BadImage: it is not an image, has no pixels, or has more than `MAX_PIXELS`.
    """
    if isinstance(content, Image.Image):
        image = content
    elif isinstance(content, _BYTES):
        if len(content) == 0:
            raise BadImage("empty file (0 bytes)")
        image = Image.open(io.BytesIO(content), formats=decodable_formats())
    elif hasattr(content, "__array__"):
        image = _image_of_array(content, channels)
    else:
        raise BadImage(f"expected the bytes of an image file, got {type(content).__name__}")
    width, height = image.size
    if 0 in (width, height):
        raise BadImage(f"its width and height are {width} x {height}")
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
    return image


def load(image: Image.Image) -> None:
    """Read the pixels of an image, if they are not read yet.

    Pillow 12 mixes up the pixels of a TIFF with an orientation of 5 to 8 when it maps the file into memory, which it
    does when it knows the file's name.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()
        return
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8. It is 1 if broken metadata holds something else, which leaves the pixels."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def to_8_bits(image: Image.Image) -> Image.Image:
    """An image of mode "RGB", "L" (gray), or "RGBa" (premultiplied transparency, not yet `on_white`).

    Numbers are scaled in bands, so that memory holds a huge image at most three times.
    """
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_to_8_bit(image))
    image = image.convert("LA") if image.mode == "La" else image
    if image.mode in ("RGBA", "LA", "PA") or image.info.get("transparency") is not None:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        return image.convert("RGB" if image.getchannel("A").getextrema() == (255, 255) else "RGBa")
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "LAB":  # `convert` cannot do it
        from PIL import ImageCms

        return ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        ).apply(image)
    return image if image.mode in ("RGB", "L", "RGBa") else image.convert("RGB")  # P, CMYK, YCbCr, HSV


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Premultiplied RGBa, uint8 (..., 4) -> RGB on white (..., 3)."""
    return np.minimum(pixels[..., :3] + (255 - pixels[..., 3:].astype(np.uint16)), 255).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> upright 8-bit RGB without metadata, by the rules of `PIXELS`."""
    load(image)
    turned = orientation(image)  # after loading: in the file it may stand behind the pixels
    converted = to_8_bits(image)
    pixels = np.asarray(converted)
    rgb = Image.fromarray(on_white(pixels) if converted.mode == "RGBa" else pixels).convert("RGB")
    return rgb.transpose(_TURNS[turned]) if turned in _TURNS else rgb


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
    """A band of rows at a time, as float32."""
    height = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        rows = slice(top, min(top + height, image.height))
        yield rows, np.asarray(image.crop((0, rows.start, image.width, rows.stop))).astype(np.float32)


def _image_of_array(array: Any, channels: str | None) -> Image.Image:
    """(H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels -> an image of the mode that holds its numbers."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    pixels = np.asarray(array)
    shape = tuple(pixels.shape)
    first = channels == "channels_first" or (
        channels is None and shape[-1:] not in ((1,), (3,), (4,)) and shape[:1] in ((1,), (3,), (4,))
    )
    if pixels.ndim == 3 and first:
        pixels = np.moveaxis(pixels, 0, -1)
    if 0 in shape or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)):
        raise BadImage(
            f"expected one image of shape (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4, "
            f"got an array of shape {shape}"
        )
    if pixels.dtype.kind not in "buif":
        raise BadImage(f"expected an array of numbers, got {pixels.dtype}")
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    if pixels.ndim == 2 or pixels.shape[-1] == 1:
        pixels = pixels.reshape(pixels.shape[:2])
        if pixels.dtype not in (np.uint8, np.uint16):
            pixels = pixels.astype(np.float32)
    elif pixels.dtype != np.uint8:
        pixels = _colors_to_8_bits(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _colors_to_8_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        return np.rint(pixels.astype(np.float32) * (255.0 / 65535.0)).astype(np.uint8)
    if pixels.dtype.kind != "f":
        raise BadImage(
            f"expected an array of uint8, or of floats in [0, 1], got {pixels.dtype}; uint16 and bool work too"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise BadImage(f"expected floats in [0, 1], got an array with values from {low:g} to {high:g}")
    return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)


__all__ = ["BadImage", "read_image"]
