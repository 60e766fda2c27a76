"""timm is optional: a stand-in with its interface takes its place, and the last test needs the library itself."""

import importlib.util
import json
import sys
import types

import pytest
import torch
from torch import nn

from eqcohvit.evaluation.features import LAST, Feature, load_encoder, random_controls
from eqcohvit.evaluation.timm_encoder import find_timm_name


class Patches(nn.Module):
    """Patches of 8 pixels of images of 32 pixels, after `num_prefix_tokens` constant tokens."""

    def __init__(self, num_prefix_tokens=0, has_class_token=False, size=32):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 8, 8)
        self.patch_embed = types.SimpleNamespace(patch_size=(8, 8))
        self.num_prefix_tokens = num_prefix_tokens
        self.cls_token = nn.Parameter(torch.full((1, 1, 6), 7.0)) if has_class_token else None
        self.size = size
        self.pretrained_cfg = {
            "architecture": "patches",
            "input_size": (3, size, size),
            "mean": (0.1, 0.2, 0.3),
            "std": (0.5, 0.5, 0.5),
        }

    def forward_features(self, x):
        assert x.shape[-1] == self.size, f"Input size {x.shape[-1]} does not match {self.size}"
        tokens = self.embed(x).flatten(2).mT
        return torch.cat([torch.full((len(x), self.num_prefix_tokens, 6), 7.0), tokens], dim=1)


class Maps(Patches):
    """A feature map (B, h, w, d), as timm's Swin gives it, or (B, d, h, w)."""

    def __init__(self, output_fmt):
        super().__init__()
        self.pretrained_cfg["architecture"] = output_fmt
        if output_fmt == "NHWC":
            self.output_fmt = output_fmt

    def forward_features(self, x):
        state = self.embed(x)
        return state.permute(0, 2, 3, 1) if hasattr(self, "output_fmt") else state


MODELS = {
    "vit_cls": lambda: Patches(1, has_class_token=True),
    "vit_registers": lambda: Patches(4),
    "nhwc": lambda: Maps("NHWC"),
    "nchw": lambda: Maps("NCHW"),
}


@pytest.fixture
def timm(monkeypatch):
    """`create_model` draws weights, pretrained ones always the same."""
    calls = []

    def create_model(name, pretrained=False, num_classes=None):
        calls.append((name, pretrained, num_classes))
        name = name.removeprefix("hf-hub:user/").split(".")[0]
        if name not in MODELS:
            raise RuntimeError(f"Unknown model ({name})")
        if not pretrained:
            return MODELS[name]()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return MODELS[name]()

    module, data = types.ModuleType("timm"), types.ModuleType("timm.data")
    data.resolve_model_data_config = lambda model: model.pretrained_cfg
    module.__version__, module.create_model, module.data, module.calls = "1.0.0", create_model, data, calls
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    return module


@pytest.mark.parametrize(("name", "num_prefix"), [("vit_cls", 1), ("vit_registers", 0), ("nhwc", 0), ("nchw", 0)])
def test_models_of_timm_give_the_tokens_of_their_backbone(timm, name, num_prefix):
    encoder = load_encoder(f"timm/{name}.some_tag")
    assert timm.calls == [(f"{name}.some_tag", True, 0)]
    assert encoder.image_size == 32 and encoder.preprocessing.mean == (0.1, 0.2, 0.3)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = encoder.tokens(images)["backbone", LAST]
    expected = encoder.model.embed((images - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.5).permute(0, 2, 3, 1)
    assert torch.allclose(tokens.grid, expected, atol=1e-6)
    assert tokens.prefix.shape == (2, num_prefix, 6) and (tokens.prefix == 7).all()
    assert (Feature("backbone", LAST, "cls") in encoder(images)) == bool(num_prefix)


def test_random_control_has_other_weights_and_models_of_one_architecture_share_it(timm):
    a, b = load_encoder("timm/vit_cls.a"), load_encoder("hf-hub:user/vit_cls")
    (control,) = random_controls([a, b])
    assert control.name == "random weights" and a.fingerprint == b.fingerprint != control.fingerprint
    assert random_controls([a])[0].fingerprint == control.fingerprint


def test_fingerprint_follows_the_version_of_timm(timm):
    before = load_encoder("timm/vit_cls").fingerprint
    timm.__version__ = "1.0.1"
    assert load_encoder("timm/vit_cls").fingerprint != before


def test_names_tell_timm_from_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    assert find_timm_name(str(tmp_path)) == f"local-dir:{tmp_path}"
    assert find_timm_name("timm/resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert find_timm_name("hf-hub:user/repo") == "hf-hub:user/repo"
    assert find_timm_name("facebook/dinov2-small") is None and find_timm_name("runs/timm/model") is None


def test_what_cannot_be_opened_is_one_line(timm):
    with pytest.raises(ValueError, match=r"no timm model timm/nothing: Unknown model \(nothing\)"):
        load_encoder("timm/nothing")
    with pytest.raises(ValueError, match="layer must be 'last' for timm models, got last 2 for timm/nchw"):
        load_encoder("timm/nchw", ["last", "2"])
    with pytest.raises(
        ValueError, match=r"timm/vit_cls does not take images of \(64, 64\) pixels: Input size 64 does not match 32"
    ):
        load_encoder("timm/vit_cls").tokens(torch.rand(1, 3, 64, 64))


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'eqcohvit\[timm\]'"):
        load_encoder("timm/resnet18")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is optional")
def test_folder_that_timm_saved(tmp_path):
    import timm.models

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1)
    arguments = {"img_size": 32, "depth": 1}
    timm.models.save_for_hf(model, str(tmp_path), model_args=arguments, safe_serialization=True)
    encoder = load_encoder(str(tmp_path))
    assert encoder.tokens(torch.rand(1, 3, 32, 32))["backbone", LAST].grid.shape == (1, 2, 2, 192)
