import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, ViTConfig, ViTModel

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.evaluation.features import (
    LAST,
    Feature,
    ModelEncoder,
    PixelEncoder,
    load_encoder,
    parts_of,
    random_controls,
    select,
    split_tokens,
    weights_hash,
)
from eqcohvit.preprocessing import Preprocessing

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1],
    "num_heads": [1, 2, 2],
    "window_size": 4,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 99}
HW = {"size": {"height": 32, "width": 32}}
CROP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
# model type, configuration, image processor's type and settings; expected tokens before the patches, grid, width,
# hidden states
MODELS = {
    "vit": (VIT, "ViTImageProcessor", HW, (1, 4, 16, 3)),
    "deit": (
        VIT,
        "DeiTImageProcessor",
        {"size": {"height": 40, "width": 40}, "crop_size": 32, "do_center_crop": True},
        (2, 4, 16, 3),
    ),
    "beit": (VIT, "BeitImageProcessor", HW, (1, 4, 16, 3)),
    "dinov2": (VIT | {"image_size": 48}, "BitImageProcessor", CROP, (1, 4, 16, 3)),  # interpolates its positions
    "dinov2_with_registers": (VIT | {"num_register_tokens": 4}, "BitImageProcessor", CROP, (5, 4, 16, 3)),
    "dinov3_vit": (VIT | {"num_register_tokens": 4}, "DINOv3ViTImageProcessor", HW, (5, 4, 16, 3)),
    "vit_msn": (VIT, "ViTImageProcessor", HW, (1, 4, 16, 3)),
    "vit_mae": (VIT, "ViTImageProcessor", HW, (1, 4, 16, 3)),
    "ijepa": (VIT, "ViTImageProcessor", HW, (0, 4, 16, 3)),
    "clip_vision_model": (VIT, "CLIPImageProcessor", CROP, (1, 4, 16, 3)),
    "clip": ({"vision_config": VIT, "text_config": TEXT}, "CLIPImageProcessor", CROP, (1, 4, 16, 3)),
    "siglip_vision_model": (VIT, "SiglipImageProcessor", HW, (0, 4, 16, 3)),
    "siglip": ({"vision_config": VIT, "text_config": TEXT}, "SiglipImageProcessor", HW, (0, 4, 16, 3)),
    "convnext": (STAGES, "ConvNextImageProcessor", {"size": {"shortest_edge": 64}}, (0, 2, 16, 5)),
    "resnet": (
        STAGES | {"embedding_size": 8},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}},
        (0, 2, 16, 5),
    ),
    "swin": (SWIN, "ViTImageProcessor", {"size": 64}, (0, 4, 32, 4)),
}


def save(folder, model_type, settings, processor_type, processor):
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(model_type, **settings)).save_pretrained(folder)
    fields = {
        "image_processor_type": processor_type,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        **processor,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return str(folder)


@pytest.mark.parametrize("model_type", MODELS)
def test_any_vision_model_gives_tokens_and_pooled_features(model_type, tmp_path):
    settings, processor_type, processor, (prefix, side, width, states) = MODELS[model_type]
    encoder = load_encoder(save(tmp_path, model_type, settings, processor_type, processor), ["last", "0", "-1"])
    size = 64 if model_type in ("convnext", "resnet", "swin") else 32  # as each processor says
    assert (
        encoder.image_size == size
        and encoder.preprocessing.mean == (0.5, 0.4, 0.3)
        and encoder.preprocessing.std == (0.2, 0.25, 0.3)
    )
    assert encoder.layers == ["last", "0", str(states - 1)]
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens = encoder.tokens(images)["backbone", LAST]
    assert tokens.prefix.shape == (3, prefix, width) and tokens.grid.shape == (3, side, side, width)
    vectors = encoder(images)
    assert (Feature("backbone", LAST, "cls") in vectors) == (prefix > 0)
    assert torch.allclose(select(vectors, "backbone", LAST, "mean"), tokens.grid.mean(dim=(1, 2)))
    assert select(vectors, "backbone", LAST, "cls_mean").shape == (3, width * (2 if prefix else 1))
    assert select(vectors, "backbone", LAST, "grid").shape == (3, 12 * side**2)
    assert all(
        torch.equal(values, again) for values, again in zip(vectors.values(), encoder(images).values(), strict=True)
    )


@pytest.mark.parametrize("model_type", ["dinov2", "ijepa", "vit_mae", "resnet", "swin"])
def test_grid_lies_as_the_image(model_type, tmp_path):
    """Changing the lower right of the image moves the lower right of the grid the most: rows are rows, and nothing is
    shuffled."""
    settings, processor_type, processor, _ = MODELS[model_type]
    encoder = load_encoder(save(tmp_path, model_type, settings, processor_type, processor), ["1"])
    images = torch.rand(2, 3, encoder.image_size, encoder.image_size, generator=torch.Generator().manual_seed(1))
    images[1] = images[0]
    images[1, :, -8:, -8:] = 0
    images[1, :, -8:, :8] += 0.02
    first, second = encoder.tokens(images)["backbone", "1"].grid
    change = (first - second).norm(dim=-1)
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row >= 3 / 4 * change.shape[0] and column >= 3 / 4 * change.shape[1]


def test_normalisation_reaches_the_model(tmp_path):
    folder = save(tmp_path, "vit", *MODELS["vit"][:3])
    encoder, images = load_encoder(folder), torch.rand(2, 3, 32, 32)
    pixel_values = (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[
        :, None, None
    ]
    expected = AutoModel.from_pretrained(folder).eval()(pixel_values).last_hidden_state
    assert torch.allclose(encoder(images)[Feature("backbone", LAST, "cls")], expected[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"do_normalize": False}, Preprocessing(32, (0.0,) * 3, (1.0,) * 3)),
        (
            {"do_rescale": False},  # 255 x has the mean 0.5: x has 0.5 / 255
            Preprocessing(32, (0.5 / 255, 0.4 / 255, 0.3 / 255), (0.2 / 255, 0.25 / 255, 0.3 / 255)),
        ),
        ({"rescale_factor": 1 / 127.5}, Preprocessing(32, (0.25, 0.2, 0.15), (0.1, 0.125, 0.15))),
    ],
)
def test_processor_decides_rescaling_and_normalisation(fields, expected, tmp_path):
    encoder = load_encoder(save(tmp_path, "vit", VIT, "ViTImageProcessor", HW | fields))
    assert encoder.preprocessing == expected


def test_without_a_processor_the_configuration_decides_and_a_warning_says_so(tmp_path):
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no image processor"):
        encoder = load_encoder(str(tmp_path))
    assert encoder.image_size == 32 and encoder.preprocessing.mean == (0.485, 0.456, 0.406)


def test_a_text_model_is_refused(tmp_path):
    AutoModel.from_config(AutoConfig.for_model("bert", **TEXT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not a vision model: expected one that takes pixel_values, got BertModel"):
        load_encoder(str(tmp_path))


def make_split(seed=0):
    torch.manual_seed(seed)
    config = EqCohViTConfig.from_preset("micro", 16, 8, feature_dim=12, equivariant_dim=4)
    return ModelEncoder("split", EqCohViTModel(config), Preprocessing(16, (0.5,) * 3, (0.5,) * 3))


def test_split_model_has_four_parts():
    vectors = make_split()(torch.rand(2, 3, 16, 16))
    widths = {feature.part: values.shape[1] for feature, values in vectors.items() if feature.pooling == "mean"}
    assert widths == {"equivariant": 4, "invariant": 8, "both": 12, "backbone": 128}
    both = torch.cat([select(vectors, part, LAST, "cls") for part in ("invariant", "equivariant")], dim=-1)
    assert torch.equal(select(vectors, "both", LAST, "cls"), both)


def test_unknown_layers_are_refused(tmp_path):
    folder = save(tmp_path, "vit", *MODELS["vit"][:3])
    assert load_encoder(folder, ["all"]).layers == ["0", "1", "2"]
    for layer in ("3", "-4", "first"):
        with pytest.raises(
            ValueError, match=f"layer must be 'last', 'all' or an index from -3 to 2 for this model, got '{layer}'"
        ):
            load_encoder(folder, [layer])


def test_token_sequences_without_a_grid_are_refused():
    assert split_tokens(torch.zeros(1, 8, 3), (64, 32), None).grid.shape == (1, 4, 2, 3)
    with pytest.raises(ValueError, match="cannot find the patch grid in 7 tokens of an image of 32 x 32 pixels"):
        split_tokens(torch.zeros(1, 7, 3), (32, 32), None)


def test_weights_hash_follows_the_weights_alone():
    a, b = make_split(), make_split(1)
    assert weights_hash(a.model) == weights_hash(make_split().model) != weights_hash(b.model)


def test_one_random_control_for_each_architecture(tmp_path):
    vit = load_encoder(save(tmp_path, "vit", *MODELS["vit"][:3]), name="vit")
    a, b = make_split(), make_split(1)
    (control,) = random_controls([a, b])
    assert control.name == "random weights" and control.fingerprint not in (a.fingerprint, b.fingerprint)
    assert [control.name for control in random_controls([a, vit, b])] == [
        "random weights (split)",
        "random weights (vit)",
    ]
    images = torch.rand(1, 3, 16, 16)
    again = random_controls([a])[0](images)
    assert all(torch.equal(values, again[feature]) for feature, values in control(images).items())


def test_pixels_are_means_of_a_16_by_16_grid():
    image = torch.arange(32.0).expand(1, 3, 32, 32) / 32
    (vector,) = PixelEncoder(32)(image).values()
    assert vector.shape == (1, 768) and torch.allclose(vector[0, :16], (torch.arange(16) * 2 + 0.5) / 32)


def test_parts_come_in_one_order_whatever_the_order_of_the_vectors():
    keys = [
        ("backbone", "10"),
        ("backbone", LAST),
        ("both", LAST),
        ("equivariant", LAST),
        ("backbone", "2"),
        ("invariant", LAST),
    ]
    vectors = {Feature(part, layer, "mean"): torch.zeros(1) for part, layer in keys}
    expected = [
        ("equivariant", LAST),
        ("invariant", LAST),
        ("both", LAST),
        ("backbone", LAST),
        ("backbone", "2"),
        ("backbone", "10"),
    ]
    assert parts_of(vectors) == expected
