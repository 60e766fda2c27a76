import subprocess
import sys

import pytest
from PIL import Image
from tests.patience import PATIENCE
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.pipelines import PIPELINE_REGISTRY, pipeline

import eqcohvit
from eqcohvit.publish.folder import save_hub_folder
from eqcohvit.registration import PIPELINE_TASK, register

CONFIG = {
    "backbone_config": {
        "model_type": "vit",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
    "feature_dim": 8,
    "equivariant_dim": 4,
}


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, eqcohvit.EqCohViTModel),
        (AutoModelForPreTraining, eqcohvit.EqCohViTForPreTraining),
        (AutoModelForImageClassification, eqcohvit.EqCohViTForImageClassification),
        (AutoBackbone, eqcohvit.EqCohViTBackbone),
    ],
)
def test_auto_classes_build_our_classes_without_a_trust_flag(auto_class, model_class):
    config = AutoConfig.for_model("eqcohvit", **CONFIG)
    assert type(config) is eqcohvit.EqCohViTConfig
    assert type(auto_class.from_config(config)) is model_class


def test_auto_image_processor_finds_ours_by_the_model_configuration(tmp_path):
    config = eqcohvit.EqCohViTConfig(**CONFIG)
    config.save_pretrained(tmp_path)
    eqcohvit.EqCohViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is eqcohvit.EqCohViTImageProcessorPil


def test_register_may_run_again():
    register()
    register()
    assert PIPELINE_REGISTRY.get_supported_tasks().count(PIPELINE_TASK) == 1


def test_import_is_quiet_and_needs_no_torchvision():
    script = "import sys; sys.modules['torchvision'] = None; import eqcohvit; assert 'datasets' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_librarys_own_task_asks_nobody_whether_to_run_code(tmp_path, monkeypatch):
    questions = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "n")
    save_hub_folder(tmp_path / "model", eqcohvit.EqCohViTModel(eqcohvit.EqCohViTConfig(**CONFIG)))
    features = pipeline("image-feature-extraction", str(tmp_path / "model"))(Image.new("RGB", (40, 30)))
    assert questions == []
    assert len(features[0]) == 197 and len(features[0][0]) == 16  # CLS and the patches, of the backbone's width
