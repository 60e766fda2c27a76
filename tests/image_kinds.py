"""Images of every kind, and what each must become, worked out here from its numbers; and the doors through which an
image is read."""

import base64
import colorsys
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms


@dataclass
class Kind:
    """image: as Pillow holds it. rgb: uint8 (H, W, 3), what it shows. content: the file of it, where a format holds its
    mode.
    array: its numbers, where they alone tell what they are."""

    image: Image.Image
    rgb: np.ndarray
    content: bytes | None = None
    array: np.ndarray | None = None


def blend(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, 3) and (H, W) of 0 to 255 -> on white."""
    share = alpha[..., None] / 255
    return np.rint(color * share + 255 * (1 - share)).astype(np.uint8)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(values).astype(np.uint8)[..., None], 3, axis=-1)


def file_of(image: Image.Image, container: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


def turned(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """The upright image (EXIF 2.3): of the stored one, where row 0 and column 0 lie."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        orientation
    ]
    return rgb[::rows, ::columns]


def kinds(height: int = 12, width: int = 16) -> dict[str, Kind]:
    """By name; smooth enough for nothing, random numbers of a fixed seed."""
    draw = np.random.default_rng(0)
    shape = (height, width)
    byte = draw.integers(0, 256, (*shape, 4), dtype=np.uint8)
    rgb, alpha, luma = byte[..., :3], byte[..., 3], byte[..., 0]
    deep = draw.integers(0, 1 << 16, shape, dtype=np.uint16)
    share = draw.random(shape, dtype=np.float32)
    palette = draw.integers(0, 256, (256, 3), dtype=np.uint8)
    clear = luma < 128
    found: dict[str, Kind] = {}

    def add(
        name: str,
        image: Image.Image,
        shown: np.ndarray,
        container: str | None = None,
        array: Any = None,
        **options: Any,
    ) -> None:
        found[name] = Kind(image, shown, file_of(image, container, **options) if container else None, array)

    def of_palette(*indices: np.ndarray) -> Image.Image:
        image = Image.frombytes("PA" if len(indices) == 2 else "P", shape[::-1], np.stack(indices, axis=-1).tobytes())
        image.putpalette(palette.tobytes())
        return image

    add("1", Image.fromarray(clear), gray(clear * 255), "PNG", clear)
    add("L", Image.fromarray(luma), gray(luma), "PNG", luma)
    add("LA", Image.fromarray(byte[..., [0, 3]]), blend(gray(luma), alpha), "PNG")
    add("La", Image.fromarray(byte[..., [0, 3]]).convert("La"), blend(gray(luma), alpha))
    add("P", of_palette(luma), palette[luma], "PNG")
    add("PA", of_palette(luma, alpha), blend(palette[luma], alpha), "TIFF")
    add("RGB", Image.fromarray(rgb), rgb, "PNG", rgb)
    add("RGBX", Image.frombytes("RGBX", shape[::-1], byte.tobytes()), rgb)
    add("RGBA", Image.fromarray(byte), blend(rgb, alpha), "PNG", byte)
    add("RGBa", Image.fromarray(byte).convert("RGBa"), blend(rgb, alpha))
    add(
        "CMYK",
        Image.frombytes("CMYK", shape[::-1], byte.tobytes()),
        np.rint((255.0 - rgb) * (255.0 - alpha[..., None]) / 255),
        "TIFF",
    )
    y, cb, cr = rgb[..., 0] * 1.0, rgb[..., 1] - 128.0, rgb[..., 2] - 128.0
    shown = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    add("YCbCr", Image.frombytes("YCbCr", shape[::-1], rgb.tobytes()), np.rint(shown).clip(0, 255))
    hsv = np.array([colorsys.hsv_to_rgb(*pixel) for pixel in rgb.reshape(-1, 3) / 255]).reshape(rgb.shape)
    add("HSV", Image.frombytes("HSV", shape[::-1], rgb.tobytes()), np.rint(hsv * 255))
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    muted = (96 + rgb // 4).astype(np.uint8)  # within the colors that 8 bits of LAB keep apart
    add("LAB", ImageCms.profileToProfile(Image.fromarray(muted), srgb, lab, outputMode="LAB"), muted, "TIFF")
    add("I;16", Image.fromarray(deep), gray(deep / 257), "PNG", deep)
    add("I;16B", Image.frombytes("I;16B", shape[::-1], deep.astype(">u2").tobytes()), gray(deep / 257), "TIFF")
    add("I", Image.fromarray(deep.astype(np.int32)), gray(deep / 257), "TIFF", deep.astype(np.int32))
    signed = (deep.astype(np.int32) - 30000) * 5
    low, high = signed.min(), signed.max()
    add("I below 0", Image.fromarray(signed), gray((signed - low) * 255.0 / (high - low)), "TIFF", signed)
    add("F to 1", Image.fromarray(share), gray(share * 255), "TIFF", share)
    add("F to 255", Image.fromarray(share * 255), gray(share * 255), "TIFF", share * 255)
    key: Any = int(luma[0, 0])
    add(
        "P, one color clear",
        of_palette(luma),
        np.where((luma == key)[..., None], 255, palette[luma]),
        "PNG",
        transparency=key,
    )
    found["P, one color clear"].image.info["transparency"] = key
    key = tuple(rgb[0, 0].tolist())
    add(
        "RGB, one color clear",
        Image.fromarray(rgb),
        np.where((rgb == rgb[0, 0]).all(-1)[..., None], 255, rgb),
        "PNG",
        transparency=key,
    )
    found["RGB, one color clear"].image.info["transparency"] = key
    return found


def turned_kinds(height: int = 12, width: int = 16) -> dict[str, Kind]:
    """Those that a format with EXIF holds, in each orientation."""
    found = {}
    for name, container in (
        ("L", "PNG"),
        ("RGB", "TIFF"),
        ("RGBA", "PNG"),
        ("RGBA", "TIFF"),
        ("I;16", "PNG"),
        ("RGB", "PNG"),
    ):
        kind = kinds(height, width)[name]
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            content = file_of(kind.image, container, exif=exif)
            found[f"{name} {container} {orientation}"] = Kind(
                Image.open(io.BytesIO(content)), turned(kind.rgb, orientation), content
            )
    return found


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()
