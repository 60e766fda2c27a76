"""The plain pipeline, the way it is usually written: what scripts/benchmark.py measures against.

Each worker decodes the whole image, then crops, recolors, blurs and rotates view by view with Pillow; the K decoders
are separate modules called in a loop, and the two views are encoded one after the other. The parameters of the views
come from the same sampler as ours, so that both pipelines give the same views up to interpolation and rounding to 8
bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import nn

from eqcohvit.hub.decoders_eqcohvit import IntermediateDecoders
from eqcohvit.objectives import ObjectiveInputs, Tokens
from eqcohvit.training.pretrain_module import PretrainModule
from eqcohvit.transforms import SampledPath, ViewParameters, ViewRenderer

_BICUBIC = Image.Resampling.BICUBIC


def plain_views(
    data: bytes, renderer: ViewRenderer, first: ViewParameters, second: ViewParameters, path: SampledPath
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The content of an image file -> v1 (3, H, H), v2 (3, H, H), u_1 .. u_K (K, 3, H, H) in normalized pixels;
    rotation paths only.

    The parameters are those of one sample, as `renderer.sample` draws them.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    base = _augment(image, second, renderer.image_size)
    degrees = math.degrees(path.parameters.item())
    fractions = [k / (renderer.num_intermediates + 1) for k in range(1, renderer.num_intermediates + 2)]
    moved = [_to_tensor(base.rotate(t * degrees, _BICUBIC), renderer) for t in fractions]
    return _to_tensor(_augment(image, first, renderer.image_size), renderer), moved[-1], torch.stack(moved[:-1])


def _augment(image: Image.Image, view: ViewParameters, size: int) -> Image.Image:
    """Crop, flip, color jitter, blur, solarization: the usual order of the transforms."""
    left, top, width, height = view.box[0].tolist()
    out = image.crop((left, top, left + width, top + height)).resize((size, size), _BICUBIC)
    if view.flip.item():
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factors = view.color[0].tolist()
    if factors != [1, 1, 1, 0]:
        operations = (_brightness, _contrast, _saturation, _turn_hue)
        for operation in view.order[0].tolist():
            out = operations[operation](out, factors[operation])
    if view.gray.item():
        out = out.convert("L").convert("RGB")
    if view.sigma.item() > 0:
        out = out.filter(ImageFilter.GaussianBlur(view.sigma.item()))
    return ImageOps.solarize(out, 128) if view.solarize.item() else out


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _saturation(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _turn_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int16) + round(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")


def _to_tensor(image: Image.Image, renderer: ViewRenderer) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (renderer.mean, renderer.std))
    return (pixels - mean) / std


class PlainDecoders(nn.Module):
    """The K decoders as separate modules, one after the other, with the weights of `decoders` (without a global
    context)."""

    def __init__(self, decoders: IntermediateDecoders):
        super().__init__()
        if decoders.context != "none":
            raise ValueError(f"the plain decoders have no global context, got decoder_context={decoders.context!r}")
        self.num_prefix_tokens, self.patch_grid = decoders.num_prefix_tokens, decoders.patch_grid
        self.num_upsamplings = decoders.num_upsamplings
        layers, count = [decoders.from_patches, *decoders.convs], decoders.num_decoders
        self.decoders = nn.ModuleList(nn.ModuleList(_part(layer, k, count) for layer in layers) for k in range(count))

    def forward(
        self, equivariant: torch.Tensor, equivariant_end: torch.Tensor, grid_size: tuple[int, int]
    ) -> torch.Tensor:
        """(B, P + N, d_equi) of both views, patch grid (h, w) -> reconstructions (B, K, C, h * p, w * p)."""
        states = []
        for decoder in self.decoders:
            linear, *convs = decoder.children()
            x = linear(torch.cat([equivariant, equivariant_end], dim=-1)[:, self.num_prefix_tokens :])
            x = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, grid_size), self.patch_grid)
            for layer, conv in enumerate(convs):
                x = conv(F.gelu(x))
                if layer < self.num_upsamplings:
                    x = F.pixel_shuffle(x, 2)
            states.append(x)
        return torch.stack(states, dim=1)


def _part(layer: nn.Module, index: int, count: int) -> nn.Module:
    """The `index`-th of `count` groups of a linear layer or of a convolution that keeps the size, as a layer of its
    own."""
    values = {name: value.chunk(count)[index] for name, value in layer.state_dict().items()}
    out_width, in_width, *kernel = values["weight"].shape
    part = (
        nn.Conv2d(in_width, out_width, kernel[0], padding=kernel[0] // 2) if kernel else nn.Linear(in_width, out_width)
    )
    part.load_state_dict(values)
    return part.to(values["weight"].device)


class PlainViews(torch.utils.data.Dataset):
    """Files as samples of a map-style dataset: v1, v2, u_1 .. u_K of each, made by Pillow.

    Their parameters are drawn before: one by one our generator would take longer than those that such pipelines use.
    """

    def __init__(self, paths: Sequence[Path], renderer: ViewRenderer):
        self.paths, self.renderer = paths, renderer
        sizes = torch.tensor([Image.open(path).size[::-1] for path in paths])
        keys = torch.arange(len(paths))
        self.parameters = renderer.sample(sizes=sizes, keys=keys, epochs=torch.zeros_like(keys))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        (first, second, path), rows = self.parameters, slice(index, index + 1)
        return plain_views(self.paths[index].read_bytes(), self.renderer, first[rows], second[rows], path[rows])


def plain_loss(
    module: PretrainModule, decoders: PlainDecoders, first: torch.Tensor, end: torch.Tensor, intermediates: torch.Tensor
) -> torch.Tensor:
    """The loss of `module` for an objective on CLS features, with one pass of the encoder for each view and decoders in
    a loop."""
    outputs = [module.model.eqcohvit(view) for view in (first, end)]
    prefix = module.model.config.num_prefix_tokens
    features = [
        torch.stack([output[name] for output in outputs]) for name in ("invariant_features", "equivariant_features")
    ]
    invariant, equivariant = (Tokens(tokens[:, :, 0], tokens[:, :, prefix:]) for tokens in features)
    inputs = ObjectiveInputs(
        invariant, equivariant, torch.stack([first, end]), parameters=first.new_zeros(len(first), 1)
    )
    loss = sum(module.objective(inputs).values())
    side = first.shape[-1] // module.model.config.square_patch_size
    states = decoders(*(output.equivariant_features for output in outputs), (side, side))
    errors = [F.mse_loss(states[:, k].float(), intermediates[:, k]) for k in range(states.shape[1])]
    return loss + module.recon_weight * torch.stack(errors).mean()
