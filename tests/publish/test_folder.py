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
    with pytest.raises(FileNotFoundError):  # after the weights are written
        save_hub_folder(tmp_path / "model", make(seed=1), training_state=tmp_path / "missing")
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
    with pytest.raises(ValueError, match="photos exists but is not a model folder"):
        save_hub_folder(tmp_path / "photos", make())
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file exists but is not a model folder"):
        save_hub_folder(tmp_path / "file", make())


def test_wrong_models_and_normalizations_are_named(tmp_path):
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
