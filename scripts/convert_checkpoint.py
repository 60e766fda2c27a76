#!/usr/bin/env python
"""Make an EqCohViT folder from the trained weights of another project, to continue training or to add the two parts.

    python scripts/convert_checkpoint.py --source facebook/dinov2-small --output converted/dinov2-small
    python scripts/convert_checkpoint.py --source dinov2_vits14_pretrain.pth --output converted/dinov2-small
    python scripts/convert_checkpoint.py --source checkpoint_teacher.pth --layout ibot --output converted/ibot-small

The source is a transformers folder (or Hub id) of ViT, DINOv2 (with registers), DINOv3, DeiT, ViT-MSN, ViT-MAE or
I-JEPA, or an official DINOv2, DINOv3 or iBOT `.pth` state dict, which is read with `weights_only=True`. The backbone's
outputs stay equal. The feature head and the decoders are new. The printed report lists every key of the source.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eqcohvit.cli import CommandParser, exit_code_of
from eqcohvit.files import first_line

if TYPE_CHECKING:
    from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
    from eqcohvit.preprocessing import Preprocessing
    from eqcohvit.training.start import Weights

# ------------------------------------------------------------------------------------------------ official state dicts
# Source key without the number of the block -> target keys; several targets share the rows of the source equally.

_STEM = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_DINOV2_STEM = _STEM | {"mask_token": "embeddings.mask_token", "register_tokens": "embeddings.register_tokens"}
_IBOT_STEM = _STEM | {"masked_embed": "embeddings.mask_token"}
_QKV = tuple(f"attention.{name}_proj" for name in "qkv")
_DINOV2_BLOCK = {
    "norm1": ("norm1",),
    "attn.qkv": _QKV,
    "attn.proj": ("attention.o_proj",),
    "ls1.gamma": ("layer_scale1.lambda1",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.w3": ("mlp.down_proj",),
    "ls2.gamma": ("layer_scale2.lambda1",),
}
_IBOT_BLOCK = {
    "norm1": ("layernorm_before",),
    "attn.qkv": _QKV,
    "attn.proj": ("attention.o_proj",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_DINOV3_STEM = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_DINOV3_BLOCK = _DINOV2_BLOCK | {
    "mlp.fc1": ("mlp.up_proj",),
    "mlp.fc2": ("mlp.down_proj",),
    "mlp.w1": ("mlp.gate_proj",),
    "mlp.w2": ("mlp.up_proj",),
    "mlp.w3": ("mlp.down_proj",),
}
_LAYOUTS = {
    "dinov2": (_DINOV2_STEM, _DINOV2_BLOCK, "encoder.layer."),
    "dinov3": (_DINOV3_STEM, _DINOV3_BLOCK, "model.layer."),
    "ibot": (_IBOT_STEM, _IBOT_BLOCK, "layers."),
}
_WRAPPERS = ("teacher", "student", "model", "state_dict")
_PREFIXES = re.compile(r"^(module\.|backbone\.|encoder\.|teacher\.backbone\.)+")
_UNUSED = re.compile(
    r"^(head|dino_head|ibot_head|dino_loss|ibot_patch_loss|fc|projector)(\d|\.|$)"
    # DINOv3: these follow from the configuration, or are used only in training.
    r"|^rope_embed\.periods$|^local_cls_norm\.|\.attn\.qkv\.bias_mask$"
)


def read_state_dict(path: Path) -> Weights:
    """The backbone's tensors in a `.pth` file, without the wrappers that training scripts add."""
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = first_line(error)
        raise ValueError(f"{path}: expected a state dict of tensors (read with weights_only=True): {reason}") from None
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected a state dict of tensors, found {type(content).__name__}")
    return {_PREFIXES.sub("", key): value for key, value in content.items() if isinstance(value, torch.Tensor)}


def guess_layout(weights: Weights) -> str:
    """`"dinov2"` and `"dinov3"` have layer scales, `"ibot"` has none; all have blocks and a patch embedding."""
    if "patch_embed.proj.weight" not in weights or not any(key.startswith("blocks.") for key in weights):
        first = ", ".join(sorted(weights)[:3])
        raise ValueError(
            "expected the keys of an official DINO or iBOT ViT (patch_embed.proj.weight, blocks.0 ...), "
            f"found {first} ..."
        )
    if not any(key.endswith("ls1.gamma") for key in weights):
        return "ibot"
    return "dinov2" if "pos_embed" in weights else "dinov3"  # DINOv3 has rotary positions


@dataclass(frozen=True)
class Entry:
    """What happened to one key of the source, or where one key of the target came from."""

    action: str  # "copied", "split", "dropped" or "new"
    source: str | None
    targets: tuple[str, ...]
    shape: tuple[int, ...]


def map_official(weights: Weights, layout: str) -> tuple[Weights, list[Entry]]:
    """The tensors with the backbone's own names, and the report."""
    stem, block, layers = _LAYOUTS[layout]
    mapped: Weights = {}
    report = []
    for key, tensor in weights.items():
        targets: tuple[str, ...] = ()
        # The first of two numbers is a chunk of blocks.
        match = re.match(r"blocks\.(?:\d+\.)?(\d+)\.(.+?)(\.weight|\.bias)?$", key)
        if key in stem:
            targets = (stem[key],)
        elif match and match[2] in block:
            targets = tuple(f"{layers}{match[1]}.{name}{match[3] or ''}" for name in block[match[2]])
        elif not _UNUSED.search(key):
            raise ValueError(f"unknown key {key!r} of shape {tuple(tensor.shape)} in the {layout} layout")
        for name, part in zip(targets, tensor.chunk(len(targets)) if targets else (), strict=True):
            mapped[name] = part.clone()
        if layout == "dinov3" and len(targets) == 3 and key.endswith(".bias"):
            mapped.pop(targets[1])  # the keys' bias, which `bias_mask` switches off
            targets = (targets[0], targets[2])
        action = "dropped" if not targets else "split" if len(targets) > 1 else "copied"
        report.append(Entry(action, key, targets, tuple(tensor.shape)))
    if layout != "dinov2" and "embeddings.mask_token" in mapped:
        mapped["embeddings.mask_token"] = mapped["embeddings.mask_token"].reshape(1, 1, -1)
    return mapped, report


def official_config(weights: Weights, layout: str, num_heads: int | None) -> dict:
    """The backbone configuration that follows from the shapes of the tensors."""
    width, channels, patch_size, _ = weights["patch_embed.proj.weight"].shape
    blocks = {match[1] for key in weights if (match := re.match(r"blocks\.(?:\d+\.)?(\d+)\.[a-z]", key))}
    if num_heads is None and "rope_embed.periods" in weights:
        # Each is a quarter of a head's width: sine and cosine of y and x.
        num_heads = width // (4 * weights["rope_embed.periods"].numel())
    if num_heads is None:
        if width % 64:
            raise ValueError(
                f"the width {width} is not a multiple of 64, the usual width of a head: give --num_attention_heads"
            )
        num_heads = width // 64
    config = {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": num_heads,
        "num_channels": channels,
    }
    config |= {"patch_size": patch_size}
    if layout == "dinov3":
        return config | _dinov3_config(weights)
    grid = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    if grid**2 + 1 != weights["pos_embed"].shape[1]:
        raise ValueError(
            f"expected pos_embed of a square grid and one CLS token, found {weights['pos_embed'].shape[1]} positions"
        )
    config |= {"image_size": grid * patch_size, "layer_norm_eps": 1e-6}
    fc1 = next((tensor for key, tensor in weights.items() if key.endswith("mlp.fc1.weight")), None)
    if layout == "ibot":
        if fc1 is None:
            raise ValueError("expected the weights mlp.fc1.weight of an iBOT ViT, found none")
        return config | {
            "model_type": "vit",
            "intermediate_size": fc1.shape[0],
            "use_mask_token": "masked_embed" in weights,
        }
    config |= {"mlp_ratio": 4, "use_swiglu_ffn": True} if fc1 is None else {"mlp_ratio": fc1.shape[0] // width}
    if "register_tokens" in weights:
        return config | {
            "model_type": "dinov2_with_registers",
            "num_register_tokens": weights["register_tokens"].shape[1],
        }
    return config | {"model_type": "dinov2", "use_mask_token": "mask_token" in weights}


def _dinov3_config(weights: Weights) -> dict:
    """Rotary positions do not determine an image size: the released models decide it."""
    gated = any(key.endswith("mlp.w1.weight") for key in weights)
    hidden = next(tensor for key, tensor in weights.items() if key.endswith(("mlp.w1.weight", "mlp.fc1.weight")))
    registers = weights["storage_tokens"].shape[1] if "storage_tokens" in weights else 0
    config = {
        "model_type": "dinov3_vit",
        "image_size": 224,
        "intermediate_size": hidden.shape[0],
        "num_register_tokens": registers,
    }
    bias = any(key.endswith("attn.qkv.bias") for key in weights)
    config |= {"query_bias": bias, "value_bias": bias}
    return config | ({"use_gated_mlp": True, "hidden_act": "silu"} if gated else {})


# ---------------------------------------------------------------------------------------------------------------- main


def convert(
    source: str, layout: str, num_heads: int | None, **head: int
) -> tuple[EqCohViTForPreTraining, list[Entry], Preprocessing]:
    """The EqCohViT model with the source's backbone, the report, and the preprocessing of the source."""
    from eqcohvit.hub.configuration_eqcohvit import EqCohViTConfig
    from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
    from eqcohvit.preprocessing import Preprocessing, read_preprocessing
    from eqcohvit.training.start_weights import backbone_weights, fill, load_vit

    preprocessing = None
    if Path(source).is_file():
        official = read_state_dict(Path(source))
        guessed = guess_layout(official)
        layout = guessed if layout == "auto" else layout
        if layout != guessed:
            raise ValueError(
                f"{source}: expected the {layout} layout, found {guessed} (by its layer scales and positions)"
            )
        backbone = official_config(official, layout, num_heads)
        weights, report = map_official(official, layout)
    else:
        vit, unexpected = load_vit(source)
        backbone = vit.config.to_dict()
        weights = backbone_weights(vit)
        report = [Entry("dropped", key, (), ()) for key in unexpected]
        for key, tensor in vit.state_dict().items():
            report.append(Entry("copied", key, (key,), tuple(tensor.shape)))
        preprocessing = read_preprocessing(source, vit.config)
    model = EqCohViTForPreTraining(EqCohViTConfig(backbone_config=backbone, **head))
    fill(model.eqcohvit.backbone, weights, source)
    return (
        model.eval(),
        complete(report, weights, model),
        preprocessing or Preprocessing(model.config.square_image_size),
    )


def complete(report: list[Entry], weights: Weights, model: EqCohViTForPreTraining) -> list[Entry]:
    """The report with what has no place in the model as dropped, and with the tensors that are new."""
    own = model.eqcohvit.backbone.state_dict()
    entries = [
        entry if set(entry.targets) <= own.keys() else dataclasses.replace(entry, action="dropped", targets=())
        for entry in report
    ]
    new = {key: tensor for key, tensor in own.items() if key not in weights}
    new |= {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("eqcohvit.backbone.")}
    return entries + [Entry("new", None, (key,), tuple(tensor.shape)) for key, tensor in new.items()]


def format_report(report: list[Entry]) -> str:
    lines = []
    for entry in report:
        targets = ", ".join(entry.targets) or "-"
        lines.append(f"{entry.action:<8} {entry.source or '-'} -> {targets} {list(entry.shape)}")
    counts = {
        action: sum(entry.action == action for entry in report) for action in ("copied", "split", "dropped", "new")
    }
    return "\n".join([*lines, ", ".join(f"{count} {action}" for action, count in counts.items())])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(__doc__, "python scripts/convert_checkpoint.py --source SOURCE --output FOLDER [settings]")
    parser.add_argument("--source", required=True, help="transformers folder or Hub id, or a .pth file")
    parser.add_argument("--output", required=True, type=lambda path: Path(path).expanduser(), help="folder to write")
    parser.add_argument(
        "--layout",
        default="auto",
        choices=["auto", *_LAYOUTS],
        help="layout of a .pth file; default: auto, from the names of its tensors",
    )
    parser.add_argument(
        "--num_attention_heads",
        type=int,
        help="number of attention heads of a .pth file; default: width / 64, or from its rotary periods",
    )
    parser.add_argument("--feature_dim", type=int, default=512, help="width of the new feature head; default: 512")
    parser.add_argument(
        "--equivariant_dim", type=int, default=256, help="how many of these are equivariant; default: 256"
    )
    parser.add_argument("--num_intermediates", type=int, default=2, help="number of decoders; default: 2")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new head and decoders; default: 0")
    parser.add_argument("--report", type=Path, help="write the key-by-key report to this JSON file too")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    import torch
    from transformers.utils import logging

    from eqcohvit.publish.folder import save_hub_folder
    from eqcohvit.registration import register

    register()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    head = {name: getattr(args, name) for name in ("feature_dim", "equivariant_dim", "num_intermediates")}
    if args.report is not None:
        try:  # before the model is written
            args.report.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write the report {args.report}: {error.strerror}") from None
    model, report, found = convert(args.source, args.layout, args.num_attention_heads, **head)
    save_hub_folder(args.output, model, image_mean=found.mean, image_std=found.std, image_size=found.image_size)
    if args.report is not None:
        args.report.write_text(json.dumps([dataclasses.asdict(entry) for entry in report], indent=1) + "\n")
    print(format_report(report))
    mean, std = list(found.mean), list(found.std)
    backbone = f"{model.config.backbone_type}, {found.image_size} pixels, mean {mean}, std {std}"
    print(f"{args.source} is now {args.output}: {backbone}")


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main(parse())))
