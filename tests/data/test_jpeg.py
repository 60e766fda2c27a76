"""JPEGs by simplejpeg and by Pillow: equal pixels, and the same rules for files that are odd or broken."""

import io
import random

import numpy as np
import pytest
from PIL import Image, features
from tests.data.test_fuzz import broken, whole_files
from tests.image_kinds import file_of

from eqcohvit.data import BadImage, decode_image, jpeg
from eqcohvit.hub.image_reading_eqcohvit import quiet

simplejpeg = pytest.importorskip("simplejpeg", reason="the extra jpeg is not installed")
# Of 255. Pillow may be built on another library, which rounds differently.
LARGEST_DIFFERENCE = 0
on_the_same_library = pytest.mark.skipif(
    not features.check_feature("libjpeg_turbo"), reason="this Pillow is not built on libjpeg-turbo"
)


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth colors with some noise."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + draw.integers(-20, 21, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def both(data, canvas_size, monkeypatch, fit="native"):
    """What each decoder makes of a file: pixels and size, or what is wrong with it."""
    found = []
    for library in (None, simplejpeg):
        monkeypatch.setattr(jpeg, "_simplejpeg", library)
        try:
            found.append(decode_image(data, canvas_size, fit))
        except BadImage as error:
            found.append(str(error))
    return found


def assert_equal(by_pillow, by_simplejpeg):
    if isinstance(by_pillow, str) or isinstance(by_simplejpeg, str):
        assert by_pillow == by_simplejpeg
        return
    assert by_pillow.size == by_simplejpeg.size
    difference = np.abs(by_pillow.canvas.astype(int) - by_simplejpeg.canvas).max()
    assert difference <= LARGEST_DIFFERENCE


SAVED = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "poor": {"quality": 10},
    "profile": {"icc_profile": b"profile of colors"},
    "comment": {"comment": b"a comment"},
}


@on_the_same_library
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("saved", SAVED)
def test_both_decoders_give_the_same_pixels(saved, mode, monkeypatch):
    for width, height in ((341, 256), (97, 131), (640, 70)):
        data = file_of(photo(width, height, mode), "JPEG", **{"quality": 90} | SAVED[saved])
        for canvas_size in (8, 32, 96, 224, 400):
            assert jpeg.read_jpeg(data, canvas_size) is not None
            for fit in ("native", "square"):
                assert_equal(*both(data, canvas_size, monkeypatch, fit))


@on_the_same_library
def test_the_smallest_images_are_equal_too(monkeypatch):
    for width in range(1, 26):
        for height in (1, 2, 3, 7, 8, 9, 15, 16, 17, 25):
            data = file_of(photo(width, height), "JPEG")
            for canvas_size in (1, 2, 3, 5):
                assert_equal(*both(data, canvas_size, monkeypatch))


@on_the_same_library
@pytest.mark.parametrize("where", ["EXIF", "XMP"])
def test_the_orientation_is_found_wherever_it_stands(where, monkeypatch):
    for turned in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turned
        packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{turned}"/></x:xmpmeta>'.encode()
        options = {"exif": exif} if where == "EXIF" else {"xmp": packet}
        data = file_of(photo(60, 40), "JPEG", **options)
        stored = jpeg.read_jpeg(data, 32)
        assert stored is not None and stored.orientation == turned
        assert_equal(*both(data, 32, monkeypatch))


def odd_files() -> dict[str, bytes]:
    """Files that Pillow must read, or refuse."""
    whole = file_of(photo(64, 48), "JPEG")
    frame = whole.index(b"\xff\xc0")
    without_end = whole.removesuffix(b"\xff\xd9")
    return {
        "CMYK": file_of(photo(64, 48).convert("CMYK"), "JPEG"),
        "two pictures": file_of(photo(64, 48), "MPO", save_all=True, append_images=[photo(64, 48)]),
        "cut": whole[: len(whole) // 2],
        "cut in the header": whole[: frame + 6],
        "without end": without_end,
        "12 bits": whole[: frame + 4] + b"\x0c" + whole[frame + 5 :],
        "no height": whole[: frame + 5] + b"\0\0" + whole[frame + 7 :],
        "too many pixels": whole[: frame + 5] + b"\xff\xff\xff\xff" + whole[frame + 9 :],
        "arithmetic coding": whole.replace(b"\xff\xc0", b"\xff\xc9", 1),
        "JFIF without a version": whole.replace(whole[2:20], b"\xff\xe0\0\x06JFIF", 1),
        "PNG": file_of(photo(64, 48), "PNG"),
        "empty": b"",
        "start alone": b"\xff\xd8\xff",
    }


@pytest.mark.parametrize("kind", odd_files())
def test_pillow_decides_on_everything_else(kind, monkeypatch):
    data = odd_files()[kind]
    monkeypatch.setattr(jpeg, "_simplejpeg", simplejpeg)
    assert jpeg.read_jpeg(data, 16) is None
    by_pillow, ours = both(data, 16, monkeypatch)
    assert by_pillow == ours if isinstance(by_pillow, str) else (by_pillow.canvas == ours.canvas).all()


def test_each_kind_of_bytes_is_read(monkeypatch):
    data = file_of(photo(64, 48), "JPEG")
    for given in (bytearray(data), memoryview(data), io.BytesIO(data), {"bytes": data, "path": None}):
        assert_equal(*both(given, 24, monkeypatch))


@on_the_same_library
def test_broken_files_are_used_or_refused_alike(monkeypatch):
    generator = random.Random(1)
    files = {name: data for name, data in whole_files().items() if data[:3] == b"\xff\xd8\xff"}
    files["plain"] = file_of(photo(200, 150), "JPEG")
    files["gray"] = file_of(photo(200, 150, "L"), "JPEG")
    used = refused = read_fast = 0
    for index in range(1200):
        data = broken(list(files.values())[index % len(files)], files["plain"], generator)
        found = both(data, 16, monkeypatch)
        assert_equal(*found)
        refused += isinstance(found[0], str)
        used += not isinstance(found[0], str)
        with quiet():
            read_fast += jpeg.read_jpeg(data, 16) is not None
    assert min(used, refused, read_fast) > 50, (used, refused, read_fast)
