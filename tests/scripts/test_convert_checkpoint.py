import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.patience import PATIENCE
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTImageProcessorPil,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
HEAD = {"feature_dim": 24, "equivariant_dim": 10, "num_intermediates": 2}

spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
script = importlib.util.module_from_spec(spec)
sys.modules["convert_checkpoint"] = script
spec.loader.exec_module(script)


def shake(model):
    """Random biases, scales and tokens too: at their initial zeros and ones a mix-up would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


# ------------------------------------------------------------------------------------------------- transformers folders


@pytest.mark.parametrize(
    "model_type", ["vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "deit", "vit_msn", "ijepa", "vit_mae"]
)
def test_transformers_folder_keeps_the_backbone_outputs(model_type, tmp_path):
    torch.manual_seed(0)
    mlp = {"mlp_ratio": 2} if model_type.startswith("dinov2") else {"intermediate_size": 64}
    config = AutoConfig.for_model(model_type, **SIZES, **mlp)
    if model_type == "vit_mae":
        config.mask_ratio = 0.0
    source = shake(AutoModel.from_config(config))
    source.save_pretrained(tmp_path / "source")
    size = {"height": 16, "width": 16}  # another one than in the configuration
    processor = ViTImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path / "source")
    args = [
        "--source",
        str(tmp_path / "source"),
        "--output",
        str(tmp_path / "out"),
        "--feature_dim",
        "24",
        "--equivariant_dim",
        "10",
    ]
    script.main(script.parse(args))

    converted = AutoModel.from_pretrained(tmp_path / "out")
    x = torch.randn(2, 3, 32, 32)
    noise = {"noise": torch.arange(16.0).expand(2, 16)} if model_type == "vit_mae" else {}
    with torch.no_grad():
        assert torch.equal(converted(x).last_hidden_state, source(x, **noise).last_hidden_state)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert dict(processor.size) == size


# --------------------------------------------------------------- official state dicts, against a small ViT written here


def official_weights(layout, width=32, depth=2, patch=8, grid=4, registers=0, swiglu=False):
    """Random tensors under the keys of the official repositories."""
    torch.manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape) * 0.2

    weights = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, 1 + grid**2, width)}
    weights["masked_embed" if layout == "ibot" else "mask_token"] = draw(1, width)
    if layout == "dinov3":
        del weights["pos_embed"]
        weights |= {"storage_tokens": draw(1, registers, width), "rope_embed.periods": 100 ** (torch.arange(2) / 2)}
    elif registers:
        weights["register_tokens"] = draw(1, registers, width)
    weights |= {"patch_embed.proj.weight": draw(width, 3, patch, patch), "patch_embed.proj.bias": draw(width)}
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    if not swiglu:
        layers |= {"mlp.fc1": (64, width), "mlp.fc2": (width, 64)}
    elif layout == "dinov3":
        layers |= {"mlp.w1": (hidden, width), "mlp.w2": (hidden, width), "mlp.w3": (width, hidden)}
    else:
        layers |= {"mlp.w12": (2 * hidden, width), "mlp.w3": (width, hidden)}
    for i in range(depth):
        for name, shape in layers.items():
            weights |= {f"blocks.{i}.{name}.weight": draw(*shape), f"blocks.{i}.{name}.bias": draw(shape[0])}
        for name in ("norm1", "norm2"):
            weights |= {f"blocks.{i}.{name}.weight": 1 + draw(width), f"blocks.{i}.{name}.bias": draw(width)}
        if layout == "dinov3":
            weights[f"blocks.{i}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(width)
        if layout != "ibot":
            weights |= {f"blocks.{i}.ls1.gamma": 1 + draw(width), f"blocks.{i}.ls2.gamma": 1 + draw(width)}
    return weights | {"norm.weight": 1 + draw(width), "norm.bias": draw(width)}


def rotate(t, grid, prefix):
    """Rotary positions of DINOv3: queries or keys (B, heads, P + N, d), their patches turned by 2 pi y / 100^(i / (d /
    4)), and by x."""
    d = t.shape[-1]
    centers = 2 * (torch.arange(grid) + 0.5) / grid - 1
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    periods = 100 ** (torch.arange(d // 4) / (d // 4))
    angles = torch.cat([2 * torch.pi * c.reshape(-1, 1) / periods for c in (y, x)], dim=1)  # (N, d / 2)
    first, second = t[..., prefix:, : d // 2], t[..., prefix:, d // 2 :]
    turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
    return torch.cat([t[..., :prefix, :], torch.cat(turned, dim=-1)], dim=-2)


def official_forward(w, x, num_heads=4):
    """The forward pass of DINOv2, DINOv3 and iBOT, written from their papers: images (B, 3, H, W) -> tokens (B, 1 + R +
    N, D)."""
    width, rotary = w["cls_token"].shape[-1], "rope_embed.periods" in w

    def norm(name, t):
        return F.layer_norm(t, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5 if rotary else 1e-6)

    def linear(name, t):
        return F.linear(t, w[f"{name}.weight"], w[f"{name}.bias"] * w.get(f"{name}.bias_mask", torch.ones(())))

    patch = w["patch_embed.proj.weight"].shape[-1]
    tokens = (
        F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch).flatten(2).transpose(1, 2)
    )
    grid = x.shape[-1] // patch
    tokens = torch.cat([w["cls_token"].expand(len(x), -1, -1), tokens], dim=1) + w.get("pos_embed", torch.zeros(()))
    registers = w.get("register_tokens", w.get("storage_tokens", torch.zeros(1, 0, width)))
    tokens = torch.cat([tokens[:, :1], registers.expand(len(x), -1, -1), tokens[:, 1:]], dim=1)
    i = 0
    while f"blocks.{i}.norm1.weight" in w:
        block = f"blocks.{i}"
        q, k, v = (
            linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
            .unflatten(-1, (3, num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        if rotary:
            q, k = (rotate(t, grid, 1 + registers.shape[1]) for t in (q, k))
        attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        update = linear(f"{block}.attn.proj", attention.transpose(1, 2).flatten(2))
        tokens = tokens + update * w.get(f"{block}.ls1.gamma", torch.ones(width))
        hidden = norm(f"{block}.norm2", tokens)
        if f"{block}.mlp.w3.weight" in w:
            together = f"{block}.mlp.w12.weight" in w
            halves = (
                [linear(f"{block}.mlp.w12", hidden)]
                if together
                else [linear(f"{block}.mlp.w{n}", hidden) for n in (1, 2)]
            )
            gate, up = torch.cat(halves, dim=-1).chunk(2, dim=-1)
            update = linear(f"{block}.mlp.w3", F.silu(gate) * up)
        else:
            update = linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", hidden)))
        tokens = tokens + update * w.get(f"{block}.ls2.gamma", torch.ones(width))
        i += 1
    return norm("norm", tokens)


def in_chunks(weights):
    """Names of DINOv2's training checkpoints: blocks in chunks, under `teacher` and `backbone.`, beside heads."""
    named = {f"backbone.{k.replace('blocks.', 'blocks.0.', 1)}": v for k, v in weights.items()}
    return {"teacher": named | {"dino_head.mlp.0.weight": torch.zeros(3, 3)}}


CASES = {
    "dinov2": ("dinov2", {}, lambda w: w),
    "dinov2-registers": ("dinov2", {"registers": 3}, lambda w: w),
    "dinov2-giant": ("dinov2", {"swiglu": True}, lambda w: w),
    "dinov2-training": ("dinov2", {}, in_chunks),
    "dinov3": ("dinov3", {"registers": 3}, lambda w: w | {"local_cls_norm.weight": torch.zeros(3)}),
    "dinov3-gated": ("dinov3", {"registers": 4, "swiglu": True}, lambda w: w),
    "ibot": ("ibot", {}, lambda w: {"state_dict": w}),
    "ibot-training": (
        "ibot",
        {},
        lambda w: {"teacher": {f"backbone.{k}": v for k, v in w.items()} | {"head.mlp.0.weight": torch.zeros(2, 2)},
                   "epoch": 3, "args": argparse.Namespace(arch="vit_small")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_official_state_dict_keeps_the_backbone_outputs(name, tmp_path):
    layout, kwargs, wrap = CASES[name]
    weights = official_weights(layout, **kwargs)
    torch.save(wrap(weights), tmp_path / "weights.pth")
    args = ["--source", str(tmp_path / "weights.pth"), "--output", str(tmp_path / "out")]
    args += (
        [] if layout == "dinov3" else ["--num_attention_heads", "4"]
    )  # DINOv3's rotary periods tell the width of a head
    args += ["--feature_dim", "24", "--equivariant_dim", "10", "--report", str(tmp_path / "report.json")]
    script.main(script.parse(args))

    x = torch.randn(2, 3, 32, 32)
    model = AutoModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = model(x).last_hidden_state
    torch.testing.assert_close(found, official_forward(weights, x), rtol=1e-5, atol=1e-5)
    mask_token = model.backbone.embeddings.mask_token
    assert torch.equal(mask_token.flatten(), weights["masked_embed" if layout == "ibot" else "mask_token"].flatten())

    report = json.loads((tmp_path / "report.json").read_text())
    by_action = {
        action: [entry for entry in report if entry["action"] == action]
        for action in ("copied", "split", "dropped", "new")
    }
    unused = [entry["source"] for entry in by_action["dropped"]]
    assert all(re.search("head|rope_embed.periods|bias_mask|local_cls_norm", source) for source in unused)
    assert len(by_action["copied"]) + len(by_action["split"]) == len(weights) - len(set(unused) & set(weights))
    filled = {f"eqcohvit.backbone.{key}" for entry in report if entry["source"] for key in entry["targets"]}
    new = {key for entry in by_action["new"] for key in entry["targets"]}
    assert filled | new == set(AutoModelForPreTraining.from_pretrained(tmp_path / "out").state_dict())


# ------------------------------------------------------------------------------------------------------------ bad input


def test_report_names_what_became_of_each_key():
    entry = script.Entry("split", "blocks.0.attn.qkv.weight", ("a.q", "a.k", "a.v"), (96, 32))
    new = script.Entry("new", None, ("feature_head.bias",), (24,))
    assert script.format_report([entry, new]).splitlines() == [
        "split    blocks.0.attn.qkv.weight -> a.q, a.k, a.v [96, 32]",
        "new      - -> feature_head.bias [24]",
        "0 copied, 1 split, 0 dropped, 1 new",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w | {"blocks.0.surprise": torch.zeros(2)},
            r"unknown key 'blocks.0.surprise' of shape \(2,\) in the dinov2 layout",
        ),
        (
            lambda w: {k: v for k, v in w.items() if k != "norm.bias"},
            r"expected layernorm.bias of shape \(32,\), found nothing",
        ),
        (lambda w: w | {"norm.bias": torch.zeros(5)}, r"expected layernorm.bias of shape \(32,\), found \(5,\)"),
        (
            lambda w: {"conv1.weight": torch.zeros(3)},
            "expected the keys of an official DINO or iBOT ViT .*, found conv1.weight",
        ),
        (lambda w: {"epoch": 3}, "expected a state dict of tensors, found dict"),
        (
            lambda w: w | {"pos_embed": torch.zeros(1, 16, 32)},
            "expected pos_embed of a square grid and one CLS token, found 16 positions",
        ),
    ],
)
def test_wrong_state_dicts_are_named(change, message, tmp_path):
    torch.save(change(official_weights("dinov2")), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        script.convert(str(tmp_path / "weights.pth"), "auto", 4, **HEAD)


class Evil:
    def __reduce__(self):
        return (Path.write_text, (Path("evil.txt"), "ran"))


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"cls_token": torch.zeros(1), "x": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="expected a state dict of tensors"):
        script.convert(str(tmp_path / "weights.pth"), "auto", 4, **HEAD)
    assert not (tmp_path / "evil.txt").exists()


def test_command_line_error_is_one_line_and_writes_nothing(tmp_path):
    torch.save(official_weights("ibot"), tmp_path / "weights.pth")
    command = [
        sys.executable,
        str(SCRIPT),
        "--source",
        str(tmp_path / "weights.pth"),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr
        == "error: the width 32 is not a multiple of 64, the usual width of a head: give --num_attention_heads\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_ends_before_the_model_is(tmp_path):
    AutoModel.from_config(AutoConfig.for_model("dinov2", **SIZES, mlp_ratio=2)).save_pretrained(tmp_path / "in")
    (tmp_path / "file").touch()
    flags = [
        "--source",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "out"),
        "--report",
        str(tmp_path / "file" / "report.json"),
    ]
    with pytest.raises(ValueError, match=r"cannot write the report .*report.json: File exists"):
        script.main(script.parse(flags))
    assert not (tmp_path / "out").exists()


def test_heads_of_a_transformers_model_are_reported_as_dropped(tmp_path):
    torch.manual_seed(0)
    source = AutoModelForImageClassification.from_config(AutoConfig.for_model("dinov2", **SIZES, mlp_ratio=2))
    source.save_pretrained(tmp_path)
    model, report, *_ = script.convert(str(tmp_path), "auto", None, **HEAD)
    assert {entry.source for entry in report if entry.action == "dropped"} == {"classifier.weight", "classifier.bias"}
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eqcohvit(x).last_hidden_state, source.dinov2.eval()(x).last_hidden_state)


def test_other_transformers_models_are_refused_by_name(tmp_path):
    AutoConfig.for_model("resnet").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a model_type of dinov2, .*, found 'resnet'"):
        script.convert(str(tmp_path), "auto", None, **HEAD)
