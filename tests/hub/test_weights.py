"""Names and meanings of saved weights: what is on disk is what is in memory, and what no training has made stays known
as random."""

import pytest
import torch
from safetensors.torch import load_file
from tests.hub.hub_tools import seeded, tiny_config
from transformers import AutoModel, AutoModelForPreTraining, Dinov2Model, Trainer, TrainingArguments, pipeline

from eqcohvit import (
    PIPELINE_TASK,
    EqCohViTBackbone,
    EqCohViTForImageClassification,
    EqCohViTForPreTraining,
    EqCohViTModel,
)
from eqcohvit.hub.configuration_eqcohvit import FAMILIES
from eqcohvit.publish.folder import save_hub_folder

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_names_on_disk_are_names_in_memory(model_type, tmp_path):
    model = seeded(EqCohViTForPreTraining, tiny_config(model_type))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    other = seeded(EqCohViTForPreTraining, tiny_config(model_type), seed=5)
    other.load_state_dict(saved)
    with torch.no_grad():
        assert torch.equal(other(X).reconstructions, model(X).reconstructions)


def test_trainer_resumes_exactly(tmp_path):
    """The real Trainer: 4 steps, and 2 steps and 2 more from its checkpoint, end with the same bits."""
    images = [
        {"pixel_values": torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i)), "labels": i % 2}
        for i in range(8)
    ]

    def train(max_steps, resume=None):
        sizes = {
            "max_steps": max_steps,
            "save_steps": 2,
            "per_device_train_batch_size": 2,
            "lr_scheduler_type": "constant",
        }
        arguments = TrainingArguments(
            str(tmp_path / "run"), **sizes, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True
        )
        torch.manual_seed(0)
        model = EqCohViTForImageClassification(tiny_config(num_labels=2))
        Trainer(model, arguments, train_dataset=images).train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = train(4)
    resumed = train(4, str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# ---------------------------------------------------------------------------------------------------- random weights


def test_weights_that_did_not_fit_stay_random_through_saving(folder, tmp_path):
    model = AutoModel.from_pretrained(folder, feature_dim=30, ignore_mismatched_sizes=True)
    assert model.missing_encoder_keys == ["feature_head.bias", "feature_head.weight"]
    save_hub_folder(tmp_path / "again", model)
    for auto_class in (AutoModel, AutoModelForPreTraining):
        assert len(auto_class.from_pretrained(tmp_path / "again").missing_encoder_keys) == 2
    with pytest.raises(ValueError, match="all weights of the encoder, but 2 are missing, first feature_head.bias"):
        pipeline(PIPELINE_TASK, model=str(tmp_path / "again"))


def test_the_encoder_of_a_refused_model_is_refused_too_and_in_half_precision(tmp_path):
    seeded(EqCohViTBackbone, tiny_config()).save_pretrained(tmp_path / "maps")  # has no feature head
    model = EqCohViTForPreTraining.from_pretrained(tmp_path / "maps")
    model.to(torch.bfloat16).eqcohvit.save_pretrained(tmp_path / "half")
    assert EqCohViTModel.from_pretrained(tmp_path / "half").missing_encoder_keys == [
        "feature_head.bias",
        "feature_head.weight",
    ]


def test_training_makes_random_weights_the_models_own(tmp_path):
    seeded(EqCohViTBackbone, tiny_config()).save_pretrained(tmp_path / "maps")
    model = EqCohViTForPreTraining.from_pretrained(tmp_path / "maps").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        outputs = model(X)
        (outputs.loss + outputs.invariant_features.square().mean()).backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    assert EqCohViTModel.from_pretrained(tmp_path / "trained").missing_encoder_keys == []


@pytest.mark.parametrize(
    ("field", "value"), [("equivariant_dim", 8), ("num_prefix_tokens", 2), ("decoder_context", "cls")]
)
def test_another_meaning_than_the_checkpoints_is_refused(folder, field, value):
    with pytest.raises(ValueError, match=f"was trained with {field}=.*, got {value!r}"):
        AutoModelForPreTraining.from_pretrained(folder, **{field: value})
    config = EqCohViTModel.from_pretrained(folder).config
    setattr(config, field, value)
    with pytest.raises(ValueError, match=f"was trained with {field}="):
        EqCohViTModel.from_pretrained(folder, config=config)
    new_head = {"feature_dim": 30, "equivariant_dim": 8, "ignore_mismatched_sizes": True}
    assert EqCohViTModel.from_pretrained(folder, **new_head).config.equivariant_dim == 8


# ------------------------------------------------------------------------------------------------- options, precision


@pytest.mark.parametrize(
    "model_class", [EqCohViTModel, EqCohViTForPreTraining, EqCohViTForImageClassification, EqCohViTBackbone]
)
def test_options_of_the_configuration_reach_the_nested_backbone(folder, model_class):
    model = model_class.from_pretrained(folder, output_hidden_states=True)
    assert len(model(X).hidden_states) == 3 and model(X, output_hidden_states=False).hidden_states is None
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    assert [tuple(layer.shape) for layer in model(X).attentions] == [(2, 4, 17, 17)] * 2
    assert isinstance(model_class.from_pretrained(folder, return_dict=False)(X), tuple)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_backbone_of_half_precision_takes_the_precision_of_the_model(dtype, tmp_path):
    backbone = tiny_config().backbone_config
    Dinov2Model(backbone).to(dtype).save_pretrained(tmp_path)
    half = Dinov2Model.from_pretrained(tmp_path).config
    assert half.dtype == dtype
    model = EqCohViTModel(tiny_config(backbone_kwargs=half.to_dict()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model(X)
