"""The configuration: what it keeps, and what it says of wrong settings."""

import pytest
from tests.hub.hub_tools import tiny_config
from transformers import AutoConfig, AutoModel


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"classifier_hidden_dim": -1}, "classifier_hidden_dim must be at least 0, got -1"),
        ({"equivariant_dim": 24}, "equivariant_dim must lie between 1 and feature_dim - 1 = 23, got 24"),
        ({"num_intermediates": 0}, "num_intermediates must be at least 1, got 0"),
        ({"backbone_config": {"model_type": "swin"}}, "unknown backbone model_type 'swin'; known: dinov2"),
        ({"backbone_config": {"hidden_size": 32}}, "unknown backbone model_type None"),
        ({"equivarant_dim": 4}, "unknown configuration field 'equivarant_dim'; did you mean 'equivariant_dim'"),
        (
            {"hidden_size": 64},
            "'hidden_size' belongs to the backbone: expected backbone_config={'hidden_size': ...}, got hidden_size=64",
        ),
        ({"backbone_kwargs": {"patch_size": 5}}, "patch_size must divide image_size: 32 is not a multiple of 5"),
        ({"scale_factors": [1, -2]}, "scale_factors must be positive"),
        ({"out_features": ["stage9"]}, "stage9"),
    ],
)
def test_wrong_configurations_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**kwargs)


@pytest.mark.parametrize(
    ("name", "message"),
    [("image_size", "belongs to the backbone"), ("equivarant_dim", "did you mean 'equivariant_dim'")],
)
def test_wrong_settings_at_loading_are_named(name, message, folder):
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(folder, **{name: 64})


def test_configuration_round_trips_with_its_backbone(tmp_path):
    config = tiny_config(out_indices=[1, 2], scale_factors=[2, 0.5], path="se2")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_json_string() == config.to_json_string()
    assert loaded.out_features == ["stage1", "stage2"] and loaded.backbone_config.hidden_size == 32
