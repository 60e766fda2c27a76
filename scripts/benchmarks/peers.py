"""The official steps beside ours, from a folder with their repositories; nothing of theirs is in ours.

`FOLDER/ibot` is https://github.com/bytedance/ibot, `FOLDER/vicreg` is https://github.com/facebookresearch/vicreg,
`FOLDER/dinov2` is https://github.com/facebookresearch/dinov2.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from eqcohvit.hub.configuration_eqcohvit import EqCohViTConfig
from eqcohvit.transforms import Views


class Missing(ValueError):
    """What a comparison needs is not there."""


def classes_of(path: Path, *names: str, **known: Any) -> SimpleNamespace:
    """Functions and classes of a script that cannot be imported, because it also needs much that they do not."""
    if not path.is_file():
        raise Missing(f"{path} is not there")
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "dist": dist, "np": np, **known}
    exec(compile(tree, str(path), "exec"), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


@contextlib.contextmanager
def imported_from(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported; afterwards their names are free again. timm's registry may be missing."""
    if not folder.is_dir():
        raise Missing(f"{folder} is not there")
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    package = ModuleType("models")  # without the imports of its __init__
    package.__path__ = [str(folder / "models")]
    sys.modules["models"] = package
    registry = ModuleType("timm.models.registry")
    registry.register_model = lambda function: function  # type: ignore[attr-defined]
    sys.modules["timm.models.registry"] = registry
    for name in ("timm", "timm.models"):
        sys.modules.setdefault(name, ModuleType(name))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("models", "utils", "timm", "dinov2"):
                del sys.modules[name]


def join_alone() -> None:
    """The official losses reduce over processes: a group of this one."""
    if not dist.is_initialized():
        store = tempfile.mkdtemp(prefix="rendezvous")
        dist.init_process_group("gloo", init_method=f"file://{store}/file", rank=0, world_size=1)


def _ibot_networks(
    folder: Path, config: EqCohViTConfig, options: Any, hidden_dim: int, image_size: int, device: torch.device
) -> tuple[Any, Any, ModuleType]:
    """The official student and its teacher with the same weights, and the module of their helpers."""
    backbone: Any = config.backbone_config
    with imported_from(folder / "ibot"):
        transformer = importlib.import_module("models.vision_transformer").VisionTransformer
        make_head = importlib.import_module("models.head").iBOTHead
        utils = importlib.import_module("utils")
    sizes = {
        "img_size": [image_size], "patch_size": backbone.patch_size, "embed_dim": backbone.hidden_size,
        "depth": backbone.num_hidden_layers, "num_heads": backbone.num_attention_heads, "qkv_bias": True,
        "return_all_tokens": True,
    }  # fmt: skip
    student, teacher = (
        utils.MultiCropWrapper(
            transformer(**sizes, drop_path_rate=rate, masked_im_modeling=masks),
            make_head(
                backbone.hidden_size, options.num_prototypes, patch_out_dim=options.num_prototypes,
                norm_last_layer=False, shared_head=True, hidden_dim=hidden_dim, bottleneck_dim=options.bottleneck_dim,
            ),
        ).to(device)
        for rate, masks in ((getattr(backbone, "drop_path_rate", 0.0), True), (0.0, False))
    )  # fmt: skip
    teacher.load_state_dict(student.state_dict(), strict=False)
    teacher.requires_grad_(False)
    return student, teacher, utils


def ibot_step(
    folder: Path, config: EqCohViTConfig, options: Any, hidden_dim: int, views: Views, autocast: Callable[[], Any]
) -> Callable[[], None]:
    """A training step of the official iBOT on these views: the backbone of `config`, heads and losses of `options`."""
    assert views.local is not None and views.masks is not None
    device, local = views.first.device, views.local.transpose(0, 1)
    student, teacher, utils = _ibot_networks(folder, config, options, hidden_dim, views.first.shape[-1], device)
    loss_class = classes_of(folder / "ibot" / "main_ibot.py", "iBOTLoss").iBOTLoss
    join_alone()
    temperatures = (0.04, 0.07, 0.04, 0.07)
    objective = loss_class(
        options.num_prototypes,
        options.num_prototypes,
        2,
        len(local),
        *temperatures,
        warmup_teacher_temp_epochs=1,
        nepochs=2,
    ).to(device)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], fused=device.type == "cuda")
    backbone: Any = config.backbone_config
    side = views.first.shape[-1] // backbone.patch_size
    masks = [view.unflatten(-1, (side, side)) for view in views.masks.unbind(1)]
    globals_ = [views.first, views.end]
    old_weights = dict(teacher.named_parameters())
    pairs = [(new, old_weights[name]) for name, new in student.named_parameters() if name in old_weights]

    def step() -> None:
        with autocast():
            expected = teacher(globals_)
            found = student(globals_, mask=masks)
            student.backbone.masked_im_modeling = False
            found_local = student(list(local))[0]
            student.backbone.masked_im_modeling = True
            loss = objective(found, expected, found_local, masks, 1)["loss"]
        loss.item()  # as in the official loop
        optimizer.zero_grad()
        loss.backward()
        utils.clip_gradients(student, 3.0)
        optimizer.step()
        with torch.no_grad():
            for new, old in pairs:
                old.mul_(0.996).add_((1 - 0.996) * new.detach())

    return step


def _dinov2_networks(
    folder: Path, config: EqCohViTConfig, options: Any, hidden_dim: int, views: Views
) -> tuple[nn.ModuleDict, nn.ModuleDict, ModuleType]:
    """The official student and its teacher with the same weights, each a backbone and its heads, and the losses."""
    backbone: Any = config.backbone_config
    with imported_from(folder / "dinov2"):
        transformer = importlib.import_module("dinov2.models.vision_transformer").DinoVisionTransformer
        layers = importlib.import_module("dinov2.layers")
        losses = importlib.import_module("dinov2.loss")
    sizes = {
        "img_size": views.first.shape[-1], "patch_size": backbone.patch_size, "embed_dim": backbone.hidden_size,
        "depth": backbone.num_hidden_layers, "num_heads": backbone.num_attention_heads,
        "init_values": backbone.layerscale_value, "drop_path_uniform": True,
        "block_fn": partial(layers.NestedTensorBlock, attn_class=layers.MemEffAttention),
    }  # fmt: skip
    widths = {"hidden_dim": hidden_dim, "bottleneck_dim": options.bottleneck_dim}
    make_head = partial(layers.DINOHead, backbone.hidden_size, options.num_prototypes, **widths)
    student, teacher = (
        nn.ModuleDict(
            {
                "backbone": transformer(**sizes, drop_path_rate=rate),
                "head": make_head(),
            }
        )
        for rate in (backbone.drop_path_rate, 0.0)
    )
    for networks in (student, teacher):
        networks["patch_head"] = make_head() if options.heads == "separate" else networks["head"]
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    return student.to(views.first.device), teacher.to(views.first.device), losses


def dinov2_step(
    folder: Path, config: EqCohViTConfig, options: Any, hidden_dim: int, views: Views, autocast: Callable[[], Any]
) -> Callable[[], None]:
    """A training step of the official DINOv2 on these views: the backbone of `config`, heads and losses of `options`.

    Its networks and losses are put together as its `SSLMetaArch` does, which needs xformers: without that, the student
    sees global and local crops in two passes.
    """
    assert views.local is not None and views.masks is not None
    student, teacher, losses = _dinov2_networks(folder, config, options, hidden_dim, views)
    join_alone()
    device = views.first.device
    of_cls, of_patches = (loss(options.num_prototypes).to(device) for loss in (losses.DINOLoss, losses.iBOTPatchLoss))
    spread = losses.KoLeoLoss()
    globals_ = torch.cat([views.first, views.end])
    local = views.local.transpose(0, 1).flatten(0, 1)
    num_local, temperature = views.local.shape[1], options.teacher_temperature
    masks = views.masks.transpose(0, 1).flatten(0, 1)
    hidden = masks.flatten().nonzero().flatten()
    weights = (1 / masks.sum(dim=-1, keepdim=True).clamp_min(1)).expand_as(masks)[masks]
    parts = list(dict.fromkeys(student.values()))  # a shared head is one part
    optimizer = torch.optim.AdamW(student.parameters(), fused=device.type == "cuda")

    @torch.no_grad()
    def targets() -> tuple[torch.Tensor, torch.Tensor]:
        tokens = teacher["backbone"](globals_, is_training=True)
        first, end = tokens["x_norm_clstoken"].chunk(2)
        cls, patches = _through_heads(
            teacher, options.heads, torch.cat([end, first]), tokens["x_norm_patchtokens"].flatten(0, 1)[hidden]
        )
        if options.targets == "sinkhorn":
            count = torch.tensor([len(hidden)], device=device)
            return (
                of_cls.sinkhorn_knopp_teacher(cls, temperature),
                of_patches.sinkhorn_knopp_teacher(patches, temperature, count),
            )
        centered = of_cls.softmax_center_teacher(cls, temperature)
        of_cls.update_center(cls)
        patch_targets = of_patches.softmax_center_teacher(patches[None], temperature)
        of_patches.update_center(patches[None])
        return centered, patch_targets[0]

    def step() -> None:
        with autocast():
            expected, expected_patches = targets()
            found = student["backbone"](globals_, masks=masks, is_training=True)
            found_local = student["backbone"](local, is_training=True)["x_norm_clstoken"]
            cls = found["x_norm_clstoken"]
            tokens = torch.cat([cls, found_local])
            outputs, patches = _through_heads(
                student, options.heads, tokens, found["x_norm_patchtokens"].flatten(0, 1)[hidden]
            )
            global_outputs, local_outputs = outputs[: len(cls)], outputs[len(cls) :]
            in_turn = expected.unflatten(0, (2, -1))
            loss = of_cls(list(local_outputs.chunk(num_local)), in_turn) / (2 + 2 * num_local)
            loss = loss + of_cls([global_outputs], [expected]) * 2 / (2 + 2 * num_local)
            loss = loss + options.koleo_weight * sum(spread(tokens) for tokens in cls.chunk(2))
            loss = loss + of_patches.forward_masked(patches, expected_patches, masks, len(hidden), weights)
        optimizer.zero_grad()
        loss.backward()
        for part in parts:
            nn.utils.clip_grad_norm_(part.parameters(), 3.0)
        optimizer.step()
        with torch.no_grad():
            for new, old in zip(student.parameters(), teacher.parameters(), strict=True):
                old.mul_(0.992).add_((1 - 0.992) * new)

    return step


def _through_heads(
    networks: nn.ModuleDict, heads: str, cls: torch.Tensor, patches: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prototype scores of CLS tokens and of hidden patches; a shared head reads both at once."""
    if heads == "separate":
        return networks["head"](cls), networks["patch_head"](patches)
    scores = networks["head"](torch.cat([cls, patches]))
    return scores[: len(cls)], scores[len(cls) :]


def vicreg_step(
    folder: Path, config: EqCohViTConfig, widths: str, views: Views, autocast: Callable[[], Any]
) -> Callable[[], None]:
    """A training step with the official loss and projector, such as "8192-8192-8192", and the ViT of timm."""
    names = ("VICReg", "Projector", "off_diagonal", "FullGatherLayer")
    backbone: Any = config.backbone_config

    def vit(**_: Any) -> tuple[nn.Module, int]:
        try:
            from timm.models.vision_transformer import VisionTransformer  # type: ignore[import-not-found]
        except ImportError:
            raise Missing("timm is not installed") from None
        made = VisionTransformer(
            img_size=views.first.shape[-1], patch_size=backbone.patch_size, embed_dim=backbone.hidden_size,
            depth=backbone.num_hidden_layers, num_heads=backbone.num_attention_heads, num_classes=0,
        )  # fmt: skip
        return made, backbone.hidden_size

    official = classes_of(folder / "vicreg" / "main_vicreg.py", *names, resnet=SimpleNamespace(vit=vit)).VICReg
    join_alone()
    settings = SimpleNamespace(
        arch="vit", mlp=widths, batch_size=len(views.first), sim_coeff=25.0, std_coeff=25.0, cov_coeff=1.0
    )
    model = official(settings).to(views.first.device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=views.first.device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = model(views.first, views.end)
        loss.backward()
        optimizer.step()

    return step
