import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from eqcohvit.data.decode import BadImage, decode_image, image_extensions

pytestmark = pytest.mark.usefixtures("jpeg_decoder")

RED_LEFT = np.zeros((20, 40, 3), dtype=np.uint8)  # wide: left half red, right half blue
RED_LEFT[:, :20, 0] = 255
RED_LEFT[:, 20:, 2] = 255


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def corner_colors(canvas: np.ndarray) -> list[list[int]]:
    """Rounded to 0 / 255: top left, top right, bottom left, bottom right."""
    return [np.where(canvas[:, y, x] > 127, 255, 0).tolist() for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_decode_image_reads_each_format(image_format):
    canvas, size, label = decode_image(encode(Image.fromarray(RED_LEFT), image_format), 16)
    red, blue = [255, 0, 0], [0, 0, 255]
    assert canvas.shape == (3, 16, 16) and canvas.dtype == np.uint8 and canvas.flags.c_contiguous
    assert size == (20, 40) and label is None
    assert corner_colors(canvas) == [red, blue, red, blue]


def test_decode_image_accepts_a_pillow_image_and_leaves_it_alone():
    image = Image.open(io.BytesIO(encode(Image.fromarray(RED_LEFT).resize((400, 200)), "JPEG")))
    assert decode_image(image, 16).size == (200, 400)
    assert image.size == (400, 200)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_image_applies_exif_orientation(image_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quadrants = np.zeros((16, 32, 3), dtype=np.uint8)
    quadrants[:8, :16], quadrants[:8, 16:], quadrants[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    tl, tr, bl, br = [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]
    expected = {  # where row 0 and column 0 of the stored image lie in the upright one (EXIF 2.3, tag 0x0112)
        1: [tl, tr, bl, br], 2: [tr, tl, br, bl], 3: [br, bl, tr, tl], 4: [bl, br, tl, tr],
        5: [tl, bl, tr, br], 6: [bl, tl, br, tr], 7: [br, tr, bl, tl], 8: [tr, br, tl, bl],
    }  # fmt: skip
    canvas, size, _ = decode_image(encode(Image.fromarray(quadrants), image_format, exif=exif), 32)
    assert size == ((16, 32) if orientation < 5 else (32, 16))
    assert corner_colors(canvas[:, : size[0], : size[1]]) == expected[orientation]


def test_decode_image_lays_transparency_on_white():
    half = np.zeros((8, 8, 4), dtype=np.uint8)
    half[:, :4] = (255, 0, 0, 255)
    rgba = Image.fromarray(half)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.paste(0, (0, 0, 4, 8))
    gray_alpha = rgba.convert("LA")
    red, white = [255, 0, 0], [255, 255, 255]
    for data in (encode(rgba, "PNG"), encode(rgba, "WEBP", lossless=True), encode(palette, "PNG", transparency=1)):
        assert corner_colors(decode_image(data, 8).canvas) == [red, white, red, white]
    assert decode_image(encode(gray_alpha, "PNG"), 8).canvas[0, 0].tolist() == pytest.approx(
        [76] * 4 + [255] * 4, abs=12
    )


def test_decode_image_converts_gray_bilevel_and_cmyk():
    gray = np.repeat(np.linspace(0, 255, 16).astype(np.uint8)[None], 16, axis=0)
    canvas = decode_image(encode(Image.fromarray(gray), "PNG"), 16).canvas
    assert (canvas == gray).all()
    assert set(np.unique(decode_image(encode(Image.fromarray(gray).convert("1"), "PNG"), 16).canvas)) == {0, 255}
    cmyk = decode_image(encode(Image.fromarray(RED_LEFT).convert("CMYK"), "JPEG", quality=95), 16).canvas
    assert corner_colors(cmyk) == [[255, 0, 0], [0, 0, 255]] * 2


def test_decode_image_scales_16_bit_integer_and_float_images():
    ramp = np.repeat(np.linspace(0, 1, 16)[None], 16, axis=0)
    expected = np.rint(ramp * 255)
    images = [
        encode(Image.fromarray((ramp * 65535).astype(np.uint16)), "PNG"),
        encode(Image.fromarray((ramp * 65535).astype(np.uint16)), "TIFF"),
        encode(Image.fromarray((ramp * 65535).astype(np.int32)), "TIFF"),
        encode(Image.fromarray(ramp.astype(np.float32)), "TIFF"),
        encode(Image.fromarray((ramp * 2e6 - 1e6).astype(np.float32)), "TIFF"),
    ]
    for data in images:
        assert np.abs(decode_image(data, 16).canvas[1] - expected).max() <= 1
    with pytest.raises(BadImage, match="finite"):
        decode_image(encode(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "TIFF"), 4)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_decode_image_takes_the_first_frame_of_an_animation(image_format):
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255))]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert corner_colors(decode_image(data, 8).canvas) == [[255, 0, 0]] * 4


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2000)])
def test_decode_image_allows_extreme_sizes(size):
    canvas, original, _ = decode_image(encode(Image.new("RGB", size, (10, 200, 30)), "PNG"), 24)
    assert original == size[::-1]
    height, width = (min(side, 24) for side in original)
    assert (canvas[:, :height, :width] == np.array([10, 200, 30], dtype=np.uint8)[:, None, None]).all()
    assert not canvas[:, height:].any() and not canvas[:, :, width:].any()


def test_decode_image_keeps_the_pixels_of_an_image_that_fits():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    canvas = decode_image(encode(Image.fromarray(pixels), "PNG"), 32).canvas
    assert (canvas[:, :20, :31] == pixels.transpose(2, 0, 1)).all()


def test_decode_image_reduces_the_axis_that_is_too_long_and_no_other():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    canvas = decode_image(encode(Image.fromarray(pixels), "PNG"), 32).canvas.astype(int)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(canvas[:, :20] - expected).max() <= 1


def test_decode_image_reduced_jpeg_keeps_size_and_content():
    y, x = np.mgrid[:600, :1000]
    smooth = np.stack([x / 4, y / 3, (x + y) / 8], axis=-1).astype(np.uint8)
    canvas, size, _ = decode_image(encode(Image.fromarray(smooth), "JPEG", quality=95), 64)
    full = np.asarray(Image.fromarray(smooth).resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert size == (600, 1000)
    assert np.abs(canvas.astype(int) - full).max() <= 6


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (16, 21), (21, 16), (16, 16)])
def test_square_fit_cuts_the_central_square_of_the_original(size):
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left = (height - 16) // 2, (width - 16) // 2
    canvas, found, _ = decode_image(encode(Image.fromarray(pixels), "PNG"), 16, fit="square")
    assert found == (16, 16)
    assert (canvas == pixels[top : top + 16, left : left + 16].transpose(2, 0, 1)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(8, 13), (13, 8)])
def test_square_fit_of_a_turned_image_is_that_of_the_upright_one(orientation, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encode(Image.fromarray(pixels), "PNG", exif=exif)
    upright = encode(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))), "PNG")
    canvas, found, _ = decode_image(turned, 8, fit="square")
    assert found == (8, 8)
    assert (canvas == decode_image(upright, 8, fit="square").canvas).all()


def test_square_fit_of_a_reduced_jpeg_is_isotropic_and_has_the_canvas_resolution():
    """Stripes of four pixels survive only where no side was decoded below the canvas."""
    x = np.broadcast_to(np.arange(960), (240, 960))
    stripes = (127.5 + 100 * np.cos(2 * np.pi * x / 4)).astype(np.uint8)
    canvas, found, _ = decode_image(encode(Image.fromarray(stripes), "JPEG", quality=95), 200, fit="square")
    expected = np.asarray(Image.fromarray(stripes[:, 360:600]).resize((200, 200), Image.Resampling.BICUBIC))
    assert found == (240, 240)
    assert np.abs(canvas[0].astype(int) - expected).max() <= 6
    assert canvas[0].std() > 40


def test_unknown_fit_is_refused():
    with pytest.raises(ValueError, match="unknown fit 'crop'; known: native, square"):
        decode_image(JPEG, 8, fit="crop")


JPEG = encode(Image.fromarray(RED_LEFT).resize((64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not an image"),
        (JPEG[:-40], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # would start Ghostscript
        (None, "NoneType"),
    ],
)
def test_decode_image_raises_bad_image_with_one_line(data, reason):
    with pytest.raises(BadImage, match=reason) as caught:
        decode_image(data, 16)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_decode_image_refuses_huge_images_before_decoding(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # calling it would be a TypeError
    small = encode(Image.new("1", (1, 1)), "PNG")
    for side, reason in ((10_000, "10000 x 10000 pixels are more than the limit"), (100_000, "DecompressionBombError")):
        header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
        with pytest.raises(BadImage, match=reason):
            decode_image(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:], 16)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "I", "F"])
def test_decode_image_holds_at_most_13_bytes_for_a_pixel(mode):
    side = 2500
    options = {"transparency": 0} if mode == "P" else {}
    image_format = "TIFF" if mode in ("I", "F") else "PNG"
    color = {"RGBA": (1, 2, 3, 100), "LA": (1, 100)}.get(mode, 0)
    data = encode(Image.new(mode, (side, side), color), image_format, **options)
    decode_image(JPEG, 8)  # what is imported or allocated once
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # its own process, whose peak begins at what it inherits
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decode_image(data, 64)
        os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        num_bytes = int(pipe.read()) * 1024  # the system counts in KiB
    assert num_bytes / side**2 < 13


def test_decode_image_rejects_a_bad_canvas_size():
    with pytest.raises(ValueError, match="canvas_size must be a positive number of pixels, got 0"):
        decode_image(JPEG, 0)


def test_image_extensions_hold_what_can_be_decoded():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".mpo"} <= image_extensions()
    assert image_extensions().isdisjoint({".eps", ".pdf", ".mpg", ".txt"})
