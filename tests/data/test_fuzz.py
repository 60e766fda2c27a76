"""2,000 broken variants of small images in every common format: each is used or skipped; nothing crashes, hangs or gets
lost."""

import io
import json
import random
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from eqcohvit.data import BadImage, CanvasStream, FolderSource, decode_image
from eqcohvit.data.decode import MAX_PIXELS

NUM_IMAGES = 2000
SECONDS_PER_IMAGE = 20  # the largest image that is decoded takes about 3 on a quiet machine


def whole_files() -> dict[str, bytes]:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}

    def add(name: str, image_format: str, image: Image.Image = pixels, **options) -> None:
        buffer = io.BytesIO()
        image.save(buffer, image_format, **options)
        files[name] = buffer.getvalue()

    for image_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        add(image_format, image_format, exif=exif)
    for image_format in ("GIF", "BMP", "PPM", "JPEG2000", "ICO", "TGA", "PCX", "SGI", "DDS"):
        add(image_format, image_format)
    add("progressive JPEG", "JPEG", progressive=True)
    add("CMYK JPEG", "JPEG", pixels.convert("CMYK"))
    add("two JPEGs", "MPO", save_all=True, append_images=[pixels])
    add("16-bit PNG", "PNG", Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24) * 100))
    add("palette PNG", "PNG", pixels.quantize(16), transparency=3)
    add("float TIFF", "TIFF", Image.fromarray(np.linspace(-1, 1, 576, dtype=np.float32).reshape(24, 24)))
    add("deflated TIFF", "TIFF", compression="tiff_deflate")
    for image_format in ("GIF", "WEBP", "PNG"):
        add(
            f"animated {image_format}",
            image_format,
            save_all=True,
            append_images=[pixels.transpose(Image.Transpose.ROTATE_90)] * 2,
        )
    return files


def broken(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """Bytes changed, cut off, cut out, repeated, or the end of another file."""
    data = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 3))):
        place = generator.randrange(min(len(data), generator.choice((64, 1_000_000))) or 1)
        length = generator.choice((1, 2, 4, 32, 500))
        kind = generator.choice(("change", "change", "change", "extreme", "cut off", "cut out", "repeat", "splice"))
        if kind == "change":
            for index in range(place, min(place + generator.randint(1, 4), len(data))):
                data[index] = generator.randrange(256)
        elif kind == "extreme":  # of a size or an offset
            data[place : place + 4] = generator.choice(
                (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x20\0")
            )
        elif kind == "cut off":
            del data[place:]
        elif kind == "cut out":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length] * generator.choice((1, 2, 50))
        else:
            data[place:] = other[place:]
    return bytes(data)


@pytest.mark.filterwarnings("error", "ignore:This DataLoader will create")  # the latter on a machine of one core
def test_each_of_2000_broken_images_is_used_or_skipped(tmp_path, capsys, jpeg_decoder):
    generator, files = random.Random(0), whole_files()
    kinds = list(files)
    counts: Counter = Counter()
    slowest, expected = 0.0, {}
    for index in range(NUM_IMAGES):
        kind = kinds[index % len(kinds)]
        data = broken(files[kind], files[generator.choice(kinds)], generator)
        (tmp_path / f"{index:04}.png").write_bytes(data)
        started = time.process_time()
        try:
            canvas, (height, width), _ = decode_image(data, 8)
        except BadImage as error:
            assert str(error) and str(error).isprintable()
            expected[f"{index:04}.png"] = str(error)
        else:
            assert canvas.shape == (3, 8, 8) and canvas.dtype == np.uint8 and 0 < height * width <= MAX_PIXELS
        slowest = max(slowest, time.process_time() - started)
        counts[kind, f"{index:04}.png" in expected] += 1
    assert slowest < SECONDS_PER_IMAGE
    assert all(sum(counts[kind, skipped] for kind in kinds) > NUM_IMAGES / 4 for skipped in (True, False)), counts

    stream = CanvasStream(
        FolderSource(tmp_path), 8, 50, num_workers=2, max_bad_fraction=1.0, bad_images_path=tmp_path / "bad.jsonl"
    )
    used: set[int] = set()
    for batch in stream:
        used.update(key for key, epoch in zip(batch.keys.tolist(), batch.epochs.tolist(), strict=True) if epoch == 0)
        if int(batch.epochs[-1]) > 0:
            break
    entries = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    skipped = {entry["key"] for entry in entries}
    assert used.isdisjoint(skipped) and len(used) + len(skipped) == NUM_IMAGES
    assert {entry["path"].rsplit("/", 1)[1]: entry["reason"] for entry in entries} == expected
    with capsys.disabled():
        print(f" [{len(used)} used, {len(skipped)} skipped, slowest {slowest:.2f} s]", end="")
