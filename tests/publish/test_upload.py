import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTConfig,
    ViTModel,
)

from eqcohvit import (
    EqCohViTBackbone,
    EqCohViTConfig,
    EqCohViTForImageClassification,
    EqCohViTForPreTraining,
    EqCohViTModel,
)
from eqcohvit.publish.folder import save_hub_folder
from eqcohvit.publish.upload import push_hub_folder

BACKBONE = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
FILES = {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "configuration_eqcohvit.py",
    "decoders_eqcohvit.py",
    "modeling_eqcohvit.py",
    "image_processing_eqcohvit.py",
    "image_reading_eqcohvit.py",
    "pipeline_eqcohvit.py",
}


def make(model_class=EqCohViTModel, channels=3, seed=0):
    torch.manual_seed(seed)
    backbone = {**BACKBONE, "image_size": 24, "patch_size": 8, "num_channels": channels}
    return model_class(
        EqCohViTConfig(backbone_config=backbone, feature_dim=8, equivariant_dim=4, decoder_dim=16)
    ).eval()


# ------------------------------------------------------------------------------------------------------------------ folder


@pytest.mark.parametrize(
    "model_class", [EqCohViTModel, EqCohViTForPreTraining, EqCohViTForImageClassification, EqCohViTBackbone]
)
def test_folder_is_complete_for_every_model_class(model_class, tmp_path):
    model = make(model_class)
    folder = save_hub_folder(
        tmp_path / "runs" / "model", model, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6), card="# A card\n"
    )
    assert {path.name for path in folder.iterdir()} == FILES | {"README.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # nothing half-written is left beside it
    assert (folder / "README.md").read_text() == "# A card\n"
    loaded = model_class.from_pretrained(folder)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert dict(processor.size) == {"height": 24, "width": 24}


def test_older_folder_is_replaced_whole(tmp_path):
    save_hub_folder(tmp_path / "model", make(EqCohViTForPreTraining, seed=0), card="old")
    newer = make(EqCohViTForPreTraining, seed=1)
    save_hub_folder(tmp_path / "model", newer)
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES  # the old card told of other weights
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.eqcohvit.feature_head.weight, newer.eqcohvit.feature_head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failure_leaves_the_older_folder_as_it_was(tmp_path):
    save_hub_folder(tmp_path / "model", make())
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    broken = make(seed=1)
    broken.feature_head.weight = torch.nn.Parameter(broken.feature_head.weight.detach().to("meta"))  # cannot be written
    with pytest.raises(Exception):  # noqa: B017
        save_hub_folder(tmp_path / "model", broken)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_killed_writer_leaves_no_half_folder(tmp_path):
    """What a killed process left beside the folder is cleared by the next one."""
    (tmp_path / ".model.new").mkdir()
    (tmp_path / ".model.new" / "config.json").write_text("half")
    save_hub_folder(tmp_path / "model", make())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    AutoModel.from_pretrained(tmp_path / "model")


def test_places_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"precious")
    with pytest.raises(ValueError, match="photos is there and is no model folder"):
        save_hub_folder(tmp_path / "photos", make())
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file is there and is no model folder"):
        save_hub_folder(tmp_path / "file", make())


def test_wrong_models_and_normalisations_are_named(tmp_path):
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(ValueError, match="expected an EqCohViT model, got ViTModel"):
        save_hub_folder(tmp_path / "model", vit)
    with pytest.raises(ValueError, match="image_std needs 3 numbers, one for each channel of the model, got 1"):
        save_hub_folder(tmp_path / "model", make(), image_mean=(0, 0, 0), image_std=(1,))
    assert not (tmp_path / "model").exists()


def test_classification_folder_keeps_its_labels(tmp_path):
    model = make(EqCohViTForImageClassification)
    model.config.id2label = {0: "cat", 1: "dog"}
    save_hub_folder(tmp_path / "model", model)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "model").config.id2label == {0: "cat", 1: "dog"}


# ------------------------------------------------------------------------------------------------------------------ upload


@pytest.mark.parametrize(
    ("folder", "repo_id", "message"),
    [
        ("missing", "user/name", "missing is no model folder: expected config.json and"),
        ("no-weights", "user/name", "no-weights has no weights: expected"),
        ("model", "user/name/more", "expected a repository name like user/name, got 'user/name/more'"),
        ("model", "user/na me", "expected a repository name like user/name, got 'user/na me'"),
    ],
)
def test_wrong_uploads_are_named_before_anything_is_sent(folder, repo_id, message, tmp_path):
    save_hub_folder(tmp_path / "model", make())
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        push_hub_folder(tmp_path / folder, repo_id)


def test_unreachable_hub_is_a_connection_error_after_the_last_attempt(tmp_path):
    save_hub_folder(tmp_path / "model", make())
    script = """
import sys
from eqcohvit.publish.upload import push_hub_folder
try:
    push_hub_folder(sys.argv[1], "user/name", token="hf_x", max_attempts=2, wait_seconds=0.01)
except ConnectionError as error:
    print(error)
"""
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert re.fullmatch(
        r"upload to user/name failed 2 times, last: .*refused.*; run it again to go on\n", done.stdout
    ), done
