"""LoRA on our models, through PEFT and through transformers' own adapter methods."""

import peft
import pytest
import torch
import transformers
from packaging.version import parse
from peft import LoraConfig, PeftModel, get_peft_model
from tests.conftest import SCRIPTS
from tests.hub.hub_tools import seeded, tiny_config
from transformers import AutoModel, AutoModelForImageClassification
from transformers.integrations.peft import MIN_PEFT_VERSION

from eqcohvit import EqCohViTForImageClassification, EqCohViTForPreTraining, EqCohViTModel


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(3, 3, 32, 32)


def train_a_little(model, **inputs):
    model.train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.5)
    for _ in range(3):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_lora_classifier_trains_saves_loads_and_merges(x, tmp_path, folder):
    base = AutoModelForImageClassification.from_pretrained(folder, num_labels=3)
    frozen = base.eqcohvit.backbone.embeddings.cls_token.clone()
    torch.manual_seed(2)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier", "feature_head"])
    model = get_peft_model(base, config)
    before = model(pixel_values=x).logits.detach()
    train_a_little(model, pixel_values=x, labels=torch.tensor([0, 1, 2]))
    trained = model(pixel_values=x).logits.detach()
    assert (trained - before).abs().max() > 1e-2
    assert torch.equal(base.eqcohvit.backbone.embeddings.cls_token, frozen)

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        AutoModelForImageClassification.from_pretrained(folder, num_labels=3), tmp_path / "adapter"
    )
    torch.testing.assert_close(again.eval()(pixel_values=x).logits, trained)

    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = EqCohViTForImageClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(loaded(x).logits, trained, rtol=1e-4, atol=1e-5)


native = pytest.mark.skipif(
    parse(peft.__version__) < parse(MIN_PEFT_VERSION),
    reason=f"transformers {transformers.__version__} needs peft {MIN_PEFT_VERSION}, {peft.__version__} is installed",
)


def test_a_peft_too_old_for_add_adapter_is_refused_with_the_version_and_works_by_itself(x, folder, monkeypatch):
    """As transformers 5.24 does with peft 0.21.2."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0.0")
    model, config = AutoModel.from_pretrained(folder), LoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"^[^\n]*99\.0\.0[^\n]*$"):
        model.add_adapter(config)
    assert get_peft_model(model, config)(pixel_values=x).invariant_features.isfinite().all()
    guide = (SCRIPTS / "guides" / "continue.md").read_text()
    assert "transformers 5.24 needs peft 0.22 for `model.add_adapter`" in guide


@native
def test_native_adapter_is_added_saved_loaded_and_switched_off(x, tmp_path, folder):
    model = AutoModel.from_pretrained(folder).eval()
    plain = model(x).invariant_features.detach()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False), adapter_name="a")
    assert model.active_adapters() == ["a"]
    adapted = model(x).invariant_features.detach()
    assert (adapted - plain).abs().max() > 1e-3
    model.disable_adapters()
    torch.testing.assert_close(model(x).invariant_features, plain)
    model.enable_adapters()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "model.safetensors").exists()
    fresh = AutoModel.from_pretrained(folder).eval()
    fresh.load_adapter(str(tmp_path), adapter_name="b")
    torch.testing.assert_close(fresh(x).invariant_features, adapted)


def test_lora_of_the_pretraining_model_gets_gradients_under_checkpointing(x):
    torch.manual_seed(0)
    model = get_peft_model(
        EqCohViTForPreTraining(tiny_config()), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    model.base_model.model.activation_checkpointing_enable()
    model.train()
    model(pixel_values=x, pixel_values_end=x.flip(-1), intermediates=torch.ones(3, 2, 3, 32, 32)).loss.backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4 and all(gradient is not None and gradient.any() for gradient in trained.values())


def test_input_gradients_can_be_asked_of_the_patch_embedding(x):
    model = seeded(EqCohViTModel, tiny_config())
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(x).last_hidden_state.requires_grad
