"""The exported folder alone is enough: processes that have torch, transformers and pillow, and not the package."""

import ast
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import load_script
from tests.hub.hub_tools import run_python
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, pipeline

from eqcohvit import EqCohViTBackbone

ROOT = Path(__file__).parents[2]
USE_EVERYTHING = """
import importlib.util
assert not any(map(importlib.util.find_spec, ["eqcohvit", "accelerate", "datasets", "scipy", "torchvision"]))
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification,
                          AutoModelForPreTraining, pipeline)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import logging
logging.disable_progress_bar()
torch.manual_seed(0)
trust = dict(trust_remote_code=True)
x = load_file("x.safetensors")["x"]
results = {}
with torch.no_grad():
    model = AutoModel.from_pretrained("model", **trust)
    results["invariant"] = model(x).invariant_features
    results["equivariant"] = model(x).equivariant_features
    pretrained = AutoModelForPreTraining.from_pretrained("model", **trust)
    results["reconstructions"] = pretrained(x, x.flip(-1)).reconstructions
    logits = AutoModelForImageClassification.from_pretrained("model", num_labels=5, **trust)(x).logits
    assert logits.shape == (2, 5)
    backbone_class = get_class_from_dynamic_module("modeling_eqcohvit.EqCohViTBackbone", "model")
    backbone = backbone_class.from_pretrained("model", out_indices=[1, 2])
    results["map1"], results["map2"] = backbone(x).feature_maps
    config = AutoConfig.from_pretrained("model", **trust)
    assert AutoBackbone.from_config(config, **trust)(x).feature_maps[0].shape == (2, 32, 4, 4)
    processor = AutoImageProcessor.from_pretrained("model", **trust)
    image = Image.open("photo.png")
    results["pixel_values"] = processor(image, return_tensors="pt").pixel_values
    by_task = pipeline("equivariant-feature-extraction", model="model", **trust)
    features = by_task("photo.png", tokens="patches", return_tensors=True)
    results["pipeline"] = features["equivariant"]
    stock = pipeline("image-feature-extraction", model="model", **trust)
    results["stock"] = torch.tensor(stock("photo.png"))
model.save_pretrained("resaved")
processor.save_pretrained("resaved")
again = AutoModel.from_pretrained("resaved", **trust)
with torch.no_grad():
    assert torch.equal(again(x).invariant_features, results["invariant"])
save_file({key: value.contiguous() for key, value in results.items()}, "results.safetensors")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, folder, photo):
    """A working directory with the folder, an image and an input tensor, and nothing of the repository."""
    place = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder, place / "model")
    photo.save(place / "photo.png")
    torch.manual_seed(1)
    save_file({"x": torch.randn(2, 3, 32, 32)}, place / "x.safetensors")
    return place


def offline(place):
    return os.environ | {"HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1"}


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_config_json_names_every_class(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_eqcohvit.EqCohViTConfig",
        "AutoModel": "modeling_eqcohvit.EqCohViTModel",
        "AutoModelForPreTraining": "modeling_eqcohvit.EqCohViTForPreTraining",
        "AutoModelForImageClassification": "modeling_eqcohvit.EqCohViTForImageClassification",
        "AutoBackbone": "modeling_eqcohvit.EqCohViTBackbone",
    }
    assert set(config["custom_pipelines"]) == {"equivariant-feature-extraction"}
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_eqcohvit.EqCohViTImageProcessorPil"}


def test_folder_alone_gives_the_same_numbers_in_a_process_without_the_package(place, photo, bare_site):
    run_python(USE_EVERYTHING, place, bare_site, offline(place))
    found, x = load_file(place / "results.safetensors"), load_file(place / "x.safetensors")["x"]
    with torch.no_grad():
        outputs = AutoModel.from_pretrained(place / "model")(x)
        assert_close(found["invariant"], outputs.invariant_features)
        assert_close(found["equivariant"], outputs.equivariant_features)
        reconstructions = AutoModelForPreTraining.from_pretrained(place / "model")(x, x.flip(-1)).reconstructions
        assert_close(found["reconstructions"], reconstructions)
        maps = EqCohViTBackbone.from_pretrained(place / "model", out_indices=[1, 2])(x).feature_maps
        assert_close((found["map1"], found["map2"]), maps)
    features = pipeline("equivariant-feature-extraction", model=str(place / "model"))(
        photo, tokens="patches", return_tensors=True
    )
    assert_close(found["pipeline"], features["equivariant"])
    assert found["stock"].shape == (1, 17, 32)


def test_without_trust_the_library_refuses_and_says_how(place, bare_site):
    script = """
from transformers import AutoModel
try:
    AutoModel.from_pretrained("model", trust_remote_code=False)
except ValueError as error:
    print(error)
"""
    assert "trust_remote_code=True" in run_python(script, place, bare_site, offline(place))


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForPreTraining, AutoModelForImageClassification])
def test_with_the_package_no_trust_flag_is_needed(folder, auto_class):
    assert type(auto_class.from_pretrained(folder)).__module__ == "eqcohvit.hub.modeling_eqcohvit"
    assert (
        type(auto_class.from_pretrained(folder, trust_remote_code=True)).__module__ == "eqcohvit.hub.modeling_eqcohvit"
    )


def test_shipped_files_import_only_what_every_user_has(folder):
    shipped = sorted(folder.glob("*.py"))
    names = [path.name for path in shipped]
    rooms = ("configuration", "decoders", "image_processing", "image_reading", "modeling", "pipeline")
    assert names == [f"{name}_eqcohvit.py" for name in rooms]
    allowed = {"torch", "transformers", "huggingface_hub", "numpy", "PIL", *sys.stdlib_module_names}
    for path in shipped:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path.name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, f"{path.name}: {node.module}"
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and f"{node.module}.py" in names, (
                    f"{path.name}: only `from .sibling import x` is shipped"
                )


@pytest.mark.parametrize(
    "released", sorted((ROOT / "model_cards").glob("*/config.json")), ids=lambda path: path.parent.name
)
def test_released_folders_hold_the_present_code(released):
    """What a checkpoint is published with is what the tests here have tested."""
    shipped = {path.name: path.read_text() for path in released.parent.glob("*.py")}
    present = {path.name: path.read_text() for path in (ROOT / "src" / "eqcohvit" / "hub").glob("*_eqcohvit.py")}
    assert shipped == present, "the released code is out of date: run python scripts/refresh_model_cards.py"


def test_released_cards_are_what_their_runs_give():
    script = load_script("refresh_model_cards")
    for name in script.RUNS:
        card = (ROOT / "model_cards" / name / "README.md").read_text()
        assert card == script.released_card(name), "out of date: run python scripts/refresh_model_cards.py"
