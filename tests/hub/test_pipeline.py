import base64
import functools
import http.server
import io
import threading

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tests.hub.hub_tools import seeded, tiny_config
from tests.tiny import png
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTConfig,
    ViTModel,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from eqcohvit import EqCohViTBackbone, EqCohViTImageProcessorPil, EqCohViTModel
from eqcohvit.publish.folder import save_hub_folder

TASK = "equivariant-feature-extraction"


@pytest.fixture(scope="module")
def extract(folder):
    return pipeline(TASK, model=str(folder))


@pytest.fixture(scope="module")
def expected(folder, photo):
    """The model's own output for the photo."""
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        return model(**processor(photo, return_tensors="pt"))


def close(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------------- kinds of input


@pytest.fixture(scope="module")
def server(tmp_path_factory, photo):
    """The photo behind a URL on the loopback interface."""
    root = tmp_path_factory.mktemp("web")
    photo.save(root / "photo.png")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


KINDS = ["path", "str", "url", "pil", "hwc", "chw", "tensor", "float", "base64", "data-url", "bytes", "rgba", "exif"]
KINDS += ["file", "bytesio", "bytearray", "memoryview"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_gives_the_models_features(kind, extract, expected, photo, server, tmp_path):
    photo.save(tmp_path / "photo.png")
    turned, exif = photo.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    array = np.asarray(photo)
    images = {
        "path": tmp_path / "photo.png",
        "str": str(tmp_path / "photo.png"),
        "url": f"{server}/photo.png",
        "pil": photo,
        "hwc": array,
        "chw": array.transpose(2, 0, 1),
        "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "float": array.astype(np.float32) / 255,
        "base64": base64.b64encode(png(photo)).decode(),
        "data-url": "data:image/png;base64," + base64.b64encode(png(photo)).decode(),
        "bytes": png(photo),
        "rgba": photo.convert("RGBA"),
        "exif": str(tmp_path / "turned.png"),
        "file": (tmp_path / "photo.png").open("rb"),
        "bytesio": io.BytesIO(png(photo)),
        "bytearray": bytearray(png(photo)),
        "memoryview": memoryview(png(photo)),
    }
    features = extract(images[kind])
    assert list(features) == ["invariant", "equivariant"] and isinstance(features["invariant"], list)
    close(features["invariant"], expected.invariant_features[0, 0])
    close(features["equivariant"], expected.equivariant_features[0, 0])


@pytest.mark.parametrize("kind", ["pil", "bytes", "path"])
def test_transparency_lies_on_white_as_in_training(kind, extract, tmp_path):
    clear = Image.new("RGBA", (16, 16), (200, 10, 90, 0))
    clear.save(tmp_path / "clear.png")
    images = {"pil": clear, "bytes": png(clear), "path": tmp_path / "clear.png"}
    close(extract(images[kind])["invariant"], torch.tensor(extract(Image.new("RGB", (16, 16), "white"))["invariant"]))


@pytest.mark.parametrize("kind", ["pil", "bytes", "path"])
def test_gray_of_16_bits_is_that_of_8(kind, extract, photo, tmp_path):
    gray = photo.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    images = {"pil": deep, "bytes": png(deep), "path": tmp_path / "deep.png"}
    close(extract(images[kind])["invariant"], torch.tensor(extract(gray)["invariant"]))


def test_gray_images_are_read_as_rgb(extract, photo):
    gray = photo.convert("L")
    close(extract(np.asarray(gray))["invariant"], torch.tensor(extract(gray.convert("RGB"))["invariant"]))
    close(extract(np.asarray(gray)[..., None])["invariant"], torch.tensor(extract(gray)["invariant"]))


@pytest.mark.parametrize("kind", ["list", "tuple", "generator", "key-dataset", "column", "streamed-column"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_many_images_come_back_in_order(kind, batch_size, extract, photo):
    images = [photo, photo.rotate(90, expand=True), photo.resize((9, 30)), photo.rotate(180)]
    table = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    inputs = {
        "list": images,
        "tuple": tuple(images),
        "generator": (image for image in images),
        "key-dataset": KeyDataset(table, "image"),
        "column": table["image"],
        "streamed-column": table.to_iterable_dataset()["image"],
    }
    outputs = list(extract(inputs[kind], batch_size=batch_size, return_tensors=True))
    assert len(outputs) == 4
    for features, image in zip(outputs, images, strict=True):
        close(features["equivariant"], extract(image, return_tensors=True)["equivariant"])


def test_files_in_a_list_are_images(extract, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    with (tmp_path / "photo.png").open("rb") as file:
        first, second = extract([file, io.BytesIO(png(photo))])
    assert first == second == extract(photo)


def test_a_text_file_is_refused(extract, tmp_path):
    (tmp_path / "text.txt").write_text("text")
    with (
        (tmp_path / "text.txt").open() as file,
        pytest.raises(ValueError, match=r"its read\(\) gives str, expected bytes"),
    ):
        extract(file)


def test_no_images_give_no_features(extract):
    assert extract([]) == []


# ------------------------------------------------------------------------------------------------------ kinds of output


def test_tokens_choose_the_documented_pooling(extract, expected, photo):
    equivariant = expected.equivariant_features[0]
    wanted = {
        "cls": equivariant[0],
        "mean": equivariant[1:].mean(dim=0),
        "all": equivariant,
        "patches": equivariant[1:].reshape(4, 4, 10),
    }
    for tokens, value in wanted.items():
        close(extract(photo, tokens=tokens, return_tensors="pt")["equivariant"], value)
    close(extract(photo)["equivariant"], wanted["cls"])


def test_patches_keep_rows_and_columns(folder, photo):
    """A wide image: 2 x 5 patches, row by row."""
    processor = EqCohViTImageProcessorPil(size={"height": 16, "width": 40})
    extract = pipeline(TASK, model=str(folder), image_processor=processor)
    patches = extract(photo, tokens="patches", return_tensors=True)["invariant"]
    assert patches.shape == (2, 5, 14)
    close(patches[1, 3], extract(photo, tokens="all", return_tensors=True)["invariant"][1 + 1 * 5 + 3])


@pytest.mark.parametrize("part", ["invariant", "equivariant"])
def test_part_returns_only_what_was_asked(extract, expected, photo, part):
    features = extract(photo, part=part)
    assert list(features) == [part]
    close(features[part], expected[f"{part}_features"][0, 0])


def test_return_tensors_chooses_the_type(extract, photo):
    kinds = {None: list, False: list, True: torch.Tensor, "pt": torch.Tensor, "np": np.ndarray}
    for value, kind in kinds.items():
        assert isinstance(extract(photo, return_tensors=value)["invariant"], kind)


def test_arguments_given_once_to_the_pipeline_hold_for_every_call(folder, photo):
    extract = pipeline(TASK, model=str(folder), tokens="patches", part="equivariant", return_tensors=True)
    assert extract(photo)["equivariant"].shape == (4, 4, 10)
    assert extract(photo, tokens="mean")["equivariant"].shape == (10,)


def test_backbone_without_cls_token_gives_the_mean_as_cls(tmp_path, photo):
    save_hub_folder(tmp_path / "model", seeded(EqCohViTModel, tiny_config("ijepa")))
    extract = pipeline(TASK, model=str(tmp_path / "model"))
    assert extract(photo, tokens="cls") == extract(photo, tokens="mean")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_device(folder, photo, expected, dtype):
    extract = pipeline(TASK, model=str(folder), dtype=dtype, device="cpu")
    features = extract(photo, tokens="all", return_tensors=True)
    assert features["invariant"].dtype == dtype and extract.device.type == "cpu"
    wanted = expected.invariant_features[0]
    assert (features["invariant"].float() - wanted).norm() / wanted.norm() < 0.1
    assert isinstance(extract(photo)["invariant"][0], float)


def test_pretraining_and_classification_models_serve_as_well(folder, photo, expected):
    processor = AutoImageProcessor.from_pretrained(folder)
    for auto_class in (AutoModelForPreTraining, AutoModelForImageClassification):
        extract = pipeline(TASK, model=auto_class.from_pretrained(folder), image_processor=processor)
        close(extract(photo)["invariant"], expected.invariant_features[0, 0])


def test_stock_pipelines_work_unchanged(folder, photo, expected):
    extract = pipeline("image-feature-extraction", model=str(folder))
    close(extract(photo)[0], expected.last_hidden_state[0])
    close(extract(photo, pool=True)[0], expected.pooler_output[0])
    classify = pipeline("image-classification", model=str(folder))
    assert len(classify(photo)) == 2 and {"label", "score"} == set(classify(photo)[0])


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.png", "expected a path, a URL, .* got 'missing.png': neither a file nor base64 of an image"),
        ("A" * 500, "got 'AAAA.*A\\.\\.\\.: neither a file"),
        (b"no picture", "got b'no picture': cannot identify image file"),
        ("http://127.0.0.1:9/photo.png", "got 'http://127.0.0.1:9/photo.png': .*refused"),
        (3, "got 3: "),
        (None, "got None: "),
        (Image.new("RGB", (0, 4)), "its width and height are 0 x 4"),
        (np.zeros((0, 3, 3), np.uint8), r"an array of shape \(0, 3, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"expected one image of shape .* got an array of shape \(2, 3, 8, 8\)"),
        (np.zeros((8, 8, 2), np.uint8), r"got an array of shape \(8, 8, 2\)"),
        (np.full((8, 8, 3), 200.0), r"expected floats in \[0, 1\], got an array with values from 200 to 200"),
        (np.full((8, 8, 3), np.nan), r"expected floats in \[0, 1\]"),
        (np.zeros((8, 8, 3), np.int64), r"expected an array of uint8, or of floats in \[0, 1\], got int64"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(image, message, extract):
    with pytest.raises(ValueError, match=message) as caught:
        extract(image)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_broken_file_is_named(tmp_path, extract, photo):
    (tmp_path / "broken.png").write_bytes(png(photo)[: len(png(photo)) // 2])
    with pytest.raises(ValueError, match="broken.png"):
        extract(str(tmp_path / "broken.png"))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"tokens": "first"}, ValueError, "unknown tokens 'first'; known: cls, mean, patches, all"),
        ({"part": "all"}, ValueError, "unknown part 'all'; known: both, invariant, equivariant"),
        ({"return_tensors": "tf"}, ValueError, "unknown return_tensors 'tf'; known: False, True, pt, np"),
        ({"pool": True}, TypeError, "unknown argument 'pool'; known: tokens, part, return_tensors, timeout"),
    ],
)
def test_unknown_arguments_are_named(kwargs, error, message, extract, folder, photo):
    with pytest.raises(error, match=message):
        extract(photo, **kwargs)
    with pytest.raises(error, match=message):
        pipeline(TASK, model=str(folder), **kwargs)


def test_models_without_the_two_parts_are_refused(folder, tmp_path):
    processor = AutoImageProcessor.from_pretrained(folder)
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    for model in (vit, EqCohViTBackbone(tiny_config())):
        with pytest.raises(ValueError, match=f"needs an EqCohViT model, got {type(model).__name__}"):
            pipeline(TASK, model=model, image_processor=processor)
    save_hub_folder(tmp_path / "maps", seeded(EqCohViTBackbone, tiny_config()))  # has no feature head
    with pytest.raises(ValueError, match="all weights of the encoder, but 2 are missing, first feature_head.bias"):
        pipeline(TASK, model=str(tmp_path / "maps"))
