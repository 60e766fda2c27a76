"""The Trainer of transformers on our models, as on any other."""

import pytest
import torch
from tests.hub.hub_tools import tiny_config
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from eqcohvit import EqCohViTForImageClassification, EqCohViTForPreTraining, EqCohViTImageProcessorPil


@pytest.fixture
def arguments(tmp_path):
    sizes = {
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 6,
        "seed": 0,
    }
    return TrainingArguments(
        str(tmp_path / "run"), **sizes, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )


@pytest.fixture
def images():
    """Noise around -0.5 (label 0) or 0.5 (label 1)."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.randn(3, 32, 32, generator=generator) + i % 2 - 0.5, "labels": i % 2} for i in range(16)
    ]


def test_trainer_finetunes_a_classifier_and_saves_a_whole_folder(arguments, images, tmp_path):
    torch.manual_seed(0)
    processor = EqCohViTImageProcessorPil(size={"height": 32, "width": 32})
    model = EqCohViTForImageClassification(tiny_config(num_labels=2))
    trainer = Trainer(model, arguments, train_dataset=images, eval_dataset=images, processing_class=processor)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
    assert trainer.predict(images).predictions.shape == (16, 2)
    trainer.save_model(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_eqcohvit.py"} <= names
    loaded, x = AutoModelForImageClassification.from_pretrained(tmp_path / "model"), images[0]["pixel_values"][None]
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model.eval()(x).logits)


def test_trainer_runs_the_pretraining_model(arguments, images):
    torch.manual_seed(0)
    trainer = Trainer(
        EqCohViTForPreTraining(tiny_config()),
        arguments,
        train_dataset=[{"pixel_values": x["pixel_values"]} for x in images],
    )
    trainer.train()
    first, last = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert last < first
