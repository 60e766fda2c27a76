"""One image, the same pixels, through whichever door it comes."""

import functools
import http.server
import io
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.hub.hub_tools import seeded, tiny_config
from tests.image_kinds import Kind, file_of, kinds, text_of, turned, turned_kinds

from eqcohvit import EqCohViTFeatureExtractionPipeline, EqCohViTImageProcessorPil, EqCohViTModel
from eqcohvit.data import DatasetSource, FolderSource, decode_image
from eqcohvit.evaluation import rows
from eqcohvit.evaluation.guard import KnnGuard
from eqcohvit.hub.image_reading_eqcohvit import COMMON_FORMATS, PIXELS, SOURCES, read_image

KINDS = kinds() | turned_kinds()
# Rounding of Pillow's own conversions; LAB keeps 8 bits of each of its axes.
TOLERANCE = {"YCbCr": 2, "HSV": 2, "LAB": 8}
PLAIN = EqCohViTImageProcessorPil(do_resize=False, do_normalize=False)  # pixel values are the pixels over 255


def assert_shows(found: np.ndarray, kind: Kind, name: str = "") -> None:
    """found: (H, W, 3)."""
    assert found.shape == kind.rgb.shape, name
    assert np.abs(np.asarray(found).astype(int) - kind.rgb.astype(int)).max() <= TOLERANCE.get(name, 1), name


def canvas(source) -> np.ndarray:
    """Through the decoder of training, (H, W, 3)."""
    decoded = decode_image(source, 40)
    height, width = decoded.size
    assert not decoded.canvas[:, height:].any() and not decoded.canvas[:, :, width:].any()
    return decoded.canvas[:, :height, :width].transpose(1, 2, 0)


def processed(source) -> np.ndarray:
    """Through the image processor, (H, W, 3)."""
    return np.rint(PLAIN(source, return_tensors="np").pixel_values[0].transpose(1, 2, 0) * 255)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with the files of all kinds, by number."""
    root = tmp_path_factory.mktemp("kinds")
    for index, kind in enumerate(KINDS.values()):
        (root / f"{index}.png").write_bytes(kind.content or b"")
    return root


@pytest.fixture(scope="module")
def address(root):
    """The folder behind a URL on the loopback interface."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(scope="module")
def extract():
    return EqCohViTFeatureExtractionPipeline(model=seeded(EqCohViTModel, tiny_config()), image_processor=PLAIN)


def sources_of(name: str, root: Path, address: str) -> dict:
    """What the kind may come as, by a name of `SOURCES`."""
    kind, index = KINDS[name], list(KINDS).index(name)
    found: dict = {"Pillow image": kind.image}
    if kind.array is not None:
        found |= {"array": kind.array, "array, torch": torch.from_numpy(kind.array)}
        found["array, channel last"] = np.atleast_3d(kind.array)
        found["array, channel first"] = np.moveaxis(np.atleast_3d(kind.array), -1, 0)
    if (content := kind.content) is not None:
        path, text = root / f"{index}.png", text_of(content)
        found |= {"path": path, "path, text": str(path), "URL": f"{address}/{index}.png", "base64": text}
        found |= {
            "base64, data URL": f"data:image/png;base64,{text}",
            "bytes": content,
            "bytes, bytearray": bytearray(content),
        }
        found |= {
            "bytes, memoryview": memoryview(content),
            "file object": io.BytesIO(content),
            "file object, open": path.open("rb"),
        }
        found["Pillow image, of a path"] = Image.open(path)
        found |= {"cell": {"bytes": content, "path": None}, "cell, path": {"bytes": None, "path": str(path)}}
    return found


@pytest.mark.parametrize("name", KINDS)
def test_every_source_of_every_kind_gives_the_same_pixels_through_every_door(name, root, address, extract):
    kind = KINDS[name]
    for came_as, source in sources_of(name, root, address).items():
        assert_shows(np.asarray(read_image(source)), kind, name)
        assert_shows(canvas(source), kind, name)
        assert_shows(processed(source), kind, name)
        assert_shows(np.rint(extract.preprocess(source)["pixel_values"][0].permute(1, 2, 0).numpy() * 255), kind, name)
        if came_as.partition(",")[0] in ("Pillow image", "bytes", "cell", "path, text") and not isinstance(
            source, bytearray | memoryview
        ):
            assert_shows(np.asarray(rows.read_image({"image": source}, "image")), kind, name)


def test_the_sources_of_the_table_are_those_that_are_crossed(root, address):
    crossed = {came_as.partition(",")[0] for name in KINDS for came_as in sources_of(name, root, address)}
    assert crossed == set(SOURCES)


def test_folders_and_columns_of_bytes_of_base64_and_of_urls_give_training_the_same_pixels(root, address, tmp_path):
    contents = {name: kind.content for name, kind in KINDS.items() if kind.content}
    index = {name: list(KINDS).index(name) for name in contents}
    columns = {
        "image": ([{"bytes": content, "path": None} for content in contents.values()], datasets.Image()),
        "bytes": (list(contents.values()), datasets.Value("binary")),
        "base64": ([text_of(content) for content in contents.values()], datasets.Value("string")),
        "url": ([f"{address}/{index[name]}.png" for name in contents], datasets.Value("string")),
        "path": ([str(root / f"{index[name]}.png") for name in contents], datasets.Value("large_string")),
    }
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    table = {name: values for name, (values, _) in columns.items()}
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "kinds.parquet")
    for column in columns:
        source = DatasetSource("parquet", data_files=str(tmp_path / "kinds.parquet"), image_column=column)
        payloads = [record.payload for shard in range(source.num_shards) for record in source.read_shard(shard, 0)]
        for name, decoded in zip(contents, source.decode_batch(payloads, 32), strict=True):
            height, width = decoded.size
            assert_shows(decoded.canvas[:, :height, :width].transpose(1, 2, 0), KINDS[name], name)
    folder = FolderSource(root)
    paths = [record.payload for record in folder.read_shard(0, 0)]
    decoded = dict(zip(paths, folder.decode_batch(paths, 32), strict=True))
    for name in contents:
        item = decoded[str(root / f"{index[name]}.png")]
        assert_shows(item.canvas[:, : item.size[0], : item.size[1]].transpose(1, 2, 0), KINDS[name], name)


def test_the_guard_measures_on_the_same_pixels(tmp_path):
    square = {name: kind for name, kind in (kinds(16, 16) | turned_kinds(16, 16)).items() if kind.content}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    cells = [{"bytes": kind.content, "path": None} for kind in square.values()]
    table = {"image": cells, "label": [i % 2 for i in range(len(cells))]}
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "kinds.parquet")
    source = DatasetSource("parquet", data_files=str(tmp_path / "kinds.parquet"))
    guard = KnnGuard(source, len(cells), 16, max_drop=0.1)
    for image, (name, kind) in zip(guard.images, square.items(), strict=True):
        assert_shows(image.permute(1, 2, 0).numpy(), kind, name)


def test_an_upright_image_is_not_turned_again():
    kind = KINDS["RGB PNG 6"]
    once = read_image(kind.content)
    assert (
        (np.asarray(read_image(once)) == np.asarray(once)).all()
        and once.getexif() == {}
        and "transparency" not in once.info
    )


# 16 bits over 257, to the nearest: 257 k is k, and k ends half a step above, at 257 k + 128.5.
SIXTEEN_BITS = {0: 0, 128: 0, 129: 1, 257: 1, 32767: 127, 32768: 128, 32896: 128, 65406: 254, 65407: 255, 65535: 255}


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(lambda numbers: file_of(Image.fromarray(numbers.astype(np.uint16)), "PNG"), id="I;16 PNG"),
        pytest.param(lambda numbers: file_of(Image.fromarray(numbers.astype(np.uint16)), "TIFF"), id="I;16 TIFF"),
        pytest.param(lambda numbers: file_of(Image.fromarray(numbers.astype(np.int32)), "TIFF"), id="I TIFF"),
        pytest.param(lambda numbers: numbers.astype(np.uint16), id="array"),
        pytest.param(lambda numbers: np.stack([numbers.astype(np.uint16)] * 3, axis=-1), id="array of colors"),
        pytest.param(lambda numbers: torch.from_numpy(numbers.astype(np.int32)), id="tensor"),
    ],
)
def test_sixteen_bits_are_scaled_by_their_full_range_exactly(source):
    numbers = np.array([[*SIXTEEN_BITS, *range(0, 65536, 257)]])
    expected = np.array([*SIXTEEN_BITS.values(), *range(256)])
    given_as = source(numbers)
    assert (np.asarray(read_image(given_as)) == expected[None, :, None]).all()
    assert (processed(given_as) == expected[None, :, None]).all()
    whole = decode_image(given_as, len(expected)).canvas[:, 0]
    assert (whole == expected).all()


# ----------------------------------------------------------------------------------------------------- generated images

MODES = {
    "1": (np.bool_, 1),
    "L": (np.uint8, 1),
    "LA": (np.uint8, 2),
    "RGB": (np.uint8, 3),
    "RGBA": (np.uint8, 4),
    "CMYK": (np.uint8, 4),
    "P": (np.uint8, 1),
    "I;16": (np.uint16, 1),
    "I": (np.int32, 1),
    "F": (np.float32, 1),
}
PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
EXACT = {"1", "L", "P", "RGB", "I;16"}  # their numbers are copied, or scaled by one division
CONTAINERS = {
    "PNG": {*MODES} - {"I", "F", "CMYK"},
    "TIFF": {*MODES} - {"1"},
    "WEBP": {"RGB", "RGBA"},
    "JPEG": {"L", "RGB"},
    "memory": {*MODES},
}


@st.composite
def stored_images(draw):
    """(source, expected uint8 (H, W, 3), tolerance): an image of generated mode, size, numbers, orientation and
    container."""
    container = draw(st.sampled_from(sorted(CONTAINERS)))
    mode = draw(st.sampled_from(sorted(CONTAINERS[container])))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    orientation = draw(st.sampled_from([None, 0, *range(1, 9), 9, 77])) if container != "memory" else None
    dtype, channels = MODES[mode]
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    if container == "JPEG":  # which keeps flat colors only
        pixels = np.broadcast_to(random.integers(0, 256, channels, dtype=np.uint8), (height, width, channels))
    elif dtype in (np.int32, np.float32):
        low, high = draw(st.sampled_from([(0, 1), (0, 255), (0, 65535), (-50, 20), (300, 1 << 20)]))
        pixels = (low + random.random((height, width, 1)) * (high - low)).astype(dtype)
    else:
        pixels = random.integers(0, 2 if mode == "1" else np.iinfo(dtype).max + 1, (height, width, channels)).astype(
            dtype
        )
    squeezed = pixels[..., 0] if channels == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(squeezed))
    if mode == "CMYK":
        image = Image.frombytes(mode, image.size, image.tobytes())
    elif mode == "P":
        image.putpalette(PALETTE.tobytes())
    assert image.mode == mode
    expected = turned(reference(pixels, mode), orientation if orientation in range(1, 9) else 1)
    tolerance = 3 if container == "JPEG" else 0 if mode in EXACT else 1
    if container == "memory":
        return draw(st.sampled_from([image] if mode in ("LA", "CMYK", "P") else [image, squeezed])), expected, tolerance
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    options = (
        {"lossless": True, "exact": True} if container == "WEBP" else {"quality": 100} if container == "JPEG" else {}
    )
    content = file_of(image, container, exif=exif, **options)
    wrap = draw(
        st.sampled_from([bytes, memoryview, io.BytesIO, text_of, lambda content: Image.open(io.BytesIO(content))])
    )
    return wrap(content), expected, tolerance


def reference(pixels: np.ndarray, mode: str) -> np.ndarray:
    """What numbers (H, W, C) of a mode show, uint8 (H, W, 3), by the table of the guide, in float64."""
    numbers = pixels.astype(np.float64)
    if mode == "1":
        numbers = numbers * 255
    elif mode == "I;16":
        numbers = numbers * 255 / 65535
    elif mode == "P":
        numbers = PALETTE[pixels[..., 0]]
    elif mode == "CMYK":
        numbers = (255 - numbers[..., :3]) * (255 - numbers[..., 3:]) / 255
    elif mode in ("I", "F"):
        low, high = numbers.min(), numbers.max()
        if low >= 0 and high <= 65535:
            low, high = 0, 1 if high <= 1 else 255 if high <= 255 else 65535
        numbers = (numbers - low) * 255 / (high - low) if high > low else numbers * 0
    elif mode in ("LA", "RGBA"):
        numbers = numbers[..., :-1] * (numbers[..., -1:] / 255) + 255 - numbers[..., -1:]
    return np.rint(np.broadcast_to(numbers, (*pixels.shape[:2], 3))).astype(np.uint8)


@given(stored=stored_images())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_generated_images_show_what_the_table_says(stored):
    source, expected, tolerance = stored
    for found in (np.asarray(read_image(source)), processed(source), canvas(source)):
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= tolerance


# ------------------------------------------------------------------------------------------------------------ the guide


def test_the_guide_s_table_is_the_code_s():
    guide = (Path(__file__).parents[1] / "scripts" / "guides" / "features.md").read_text()
    table = [f"| {name} | {text} |" for name, text in SOURCES.items()]
    rules = [f"| {name} | {text} |" for name, text in PIXELS.items()]
    for lines in (
        ["| an image may be a | |", "|---|---|", *table],
        ["| its pixels | become 8-bit RGB |", "|---|---|", *rules],
    ):
        assert "\n".join(lines) + "\n" in guide, "\n".join(lines)
    assert ", ".join(COMMON_FORMATS) in guide
