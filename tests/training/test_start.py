import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, ViTImageProcessorPil

from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining
from eqcohvit.hub.configuration_eqcohvit import FAMILIES
from eqcohvit.loading import resize_positions
from eqcohvit.preprocessing import Preprocessing
from eqcohvit.publish.folder import save_hub_folder
from eqcohvit.training.arguments import parse_arguments
from eqcohvit.training.build import build_model
from eqcohvit.training.start import open_start
from eqcohvit.training.start_settings import complete_settings
from eqcohvit.training.start_weights import fill

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


def save_vit(folder, model_type="dinov2", processor=True, **sizes):
    """A randomly initialized ViT of the Hub's layout, with all tensors away from their zeros and ones."""
    torch.manual_seed(0)
    mlp = {"mlp_ratio": 2} if model_type.startswith("dinov2") else {"intermediate_size": 64}
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **{**SIZES, **mlp, **sizes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    if processor:
        size = {"height": 16, "width": 16}
        ViTImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return model


def save_split(folder, **kwargs):
    torch.manual_seed(0)
    sizes = {"feature_dim": 24, "equivariant_dim": 8, "decoder_dim": 16, **kwargs}
    model = EqCohViTForPreTraining(EqCohViTConfig.from_preset("micro", 16, 8, **sizes)).eval()
    save_hub_folder(folder, model, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    return model


def settings(*flags):
    return parse_arguments([str(flag) for flag in flags], complete_settings)


# ------------------------------------------------------------------------------------------------------------ positions


def test_resized_positions_by_hand():
    # The columns of a 2 x 2 grid are 0 and 1; the prefix token is 7.
    positions = torch.tensor([7.0, 0, 1, 0, 1])[None, :, None]
    config = EqCohViTConfig.from_preset("micro", 16, 4, backbone_type="vit")
    resized = resize_positions({"embeddings.position_embeddings": positions, "other": positions}, config)
    rows = resized["embeddings.position_embeddings"].flatten()
    assert rows[0] == 7 and torch.equal(rows[1:].reshape(4, 4)[0], rows[1:].reshape(4, 4)[3])
    expected = F.interpolate(torch.tensor([[[[0.0, 1], [0, 1]]]]), size=(4, 4), mode="bicubic", align_corners=False)
    assert torch.equal(rows[1:], expected.flatten()) and resized["other"] is positions


@pytest.mark.parametrize("model_type", FAMILIES)
def test_model_of_another_image_size_computes_what_the_source_computes_there(model_type, tmp_path):
    source = save_vit(tmp_path, model_type, **({"mask_ratio": 0.0} if model_type == "vit_mae" else {}))
    args = settings("--init_from", tmp_path, "--image_size", "48", "--decoder_dim", "16", "--projector_dim", "16")
    model = build_model(args, open_start(args.init_from)).eval()
    assert model.config.square_image_size == 48
    x = torch.randn(2, 3, 48, 48)
    kwargs = {} if model_type == "dinov3_vit" else {"interpolate_pos_encoding": True}
    if model_type.startswith("dinov2"):
        kwargs = {}
    if model_type == "vit_mae":
        kwargs["noise"] = torch.arange(36.0).expand(2, 36)
    with torch.no_grad():
        torch.testing.assert_close(model.eqcohvit(x).last_hidden_state, source(x, **kwargs).last_hidden_state)


# ------------------------------------------------------------------------------------------------------------- settings


def test_sizes_and_normalization_come_from_the_checkpoint(tmp_path):
    save_vit(tmp_path)
    args, start = settings("--init_from", tmp_path), open_start(str(tmp_path))
    assert (args.backbone, args.patch_size, args.image_size, args.model_preset) == ("dinov2", 8, 16, None)
    assert start.preprocessing == Preprocessing(16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_vit(tmp_path / "bare", processor=False)
    assert settings("--init_from", tmp_path / "bare").image_size == 32


def test_head_settings_come_from_a_split_model(tmp_path):
    save_split(tmp_path, num_intermediates=3, decoder_context="none", path="se2", border="canvas")
    args = settings("--init_from", tmp_path)
    assert (args.feature_dim, args.equivariant_dim, args.num_intermediates, args.decoder_context) == (24, 8, 3, "none")
    assert (args.path, args.border, args.decoder_patch_dropout) == ("se2", "canvas", 0.0)
    assert settings("--init_from", tmp_path, "--path", "rotation").path == "rotation"
    args = settings("--init_from", tmp_path, "--no-init_heads")
    assert (args.feature_dim, args.num_intermediates, args.decoder_context) == (256, 2, "mean")


def test_completed_settings_are_a_recipe(tmp_path):
    save_vit(tmp_path / "vit")
    args = settings("--init_from", tmp_path / "vit", "--lora_rank", "4")
    args.save(tmp_path / "config.yaml")
    assert settings("--config", tmp_path / "config.yaml") == args


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--patch_size 4", "expected patch_size=4, found 8 in init_from="),
        ("--backbone vit", "expected backbone='vit', found 'dinov2' in init_from="),
        (
            "--feature_dim 32",
            "expected feature_dim=32, found 24 in init_from=.*; --no-init_heads begins with new heads",
        ),
        ("--model_preset small", "model_preset cannot be set together with init_from="),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(flags, message, tmp_path):
    save_split(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        settings("--init_from", tmp_path, *flags.split())
    assert "\n" not in str(error.value)


def test_sources_of_no_use_are_refused_in_one_line(tmp_path):
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
        tmp_path / "bert"
    )
    (tmp_path / "empty").mkdir()
    no_model = "no model at"
    for name, message in (
        ("bert", "expected a model_type of dinov2.*, found 'bert'"),
        ("empty", no_model),
        ("nowhere", no_model),
    ):
        with pytest.raises(ValueError, match=message) as error:
            settings("--init_from", tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [save_vit, save_split])
def test_truncated_weights_are_refused_in_one_line(save, tmp_path):
    save(tmp_path)
    args = settings("--init_from", tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="no (weights|model) at") as error:
        build_model(args, open_start(args.init_from))
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("heads", [True, False])
def test_split_model_brings_its_heads_unless_new_ones_are_wanted(heads, tmp_path):
    source = save_split(tmp_path)
    sizes = (
        "--feature_dim 24 --equivariant_dim 8 --decoder_dim 16 --decoder_context none --decoder_patch_dropout 0".split()
    )
    args = settings("--init_from", tmp_path, *sizes, "--init_heads" if heads else "--no-init_heads")
    torch.manual_seed(1)
    model = build_model(args, open_start(args.init_from))
    equal = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, source.state_dict()[name])}
    assert equal >= {name for name in source.state_dict() if name.startswith("eqcohvit.backbone.")}
    assert ("eqcohvit.feature_head.weight" in equal) == heads and ("decoders.convs.0.weight" in equal) == heads


def test_fill_names_the_first_tensor_that_does_not_fit():
    layer = nn.Linear(3, 2)
    weights = layer.state_dict()
    for change, message in (
        ({"weight": torch.zeros(4, 3)}, r"here: expected weight of shape \(2, 3\), found \(4, 3\) \(1 such tensors\)"),
        ({"extra": torch.zeros(1)}, r"here: found extra of shape \(1,\), which has no place"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(layer, {**weights, **change}, "here")
    with pytest.raises(ValueError, match=r"here: expected bias of shape \(2,\), found nothing of that name"):
        fill(layer, {"weight": weights["weight"]}, "here")


def test_shareable_settings_name_no_place_of_this_machine(tmp_path):
    save_vit(tmp_path / "vit")
    args = settings("--init_from", tmp_path / "vit", "--train_dir", tmp_path, "--output_dir", tmp_path / "run")
    assert str(tmp_path) not in yaml.safe_dump(args.shareable())
    assert parse_arguments(["--dataset_name", "user/images"]).shareable()["dataset_name"] == "user/images"
