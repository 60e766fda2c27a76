"""Decoders of EqCohViT: reconstruct the states of the path between two views from their equivariant features
(arXiv:2503.18753, section 3).

Shapes: B images, P prefix tokens (CLS, registers), N = h * w patch tokens, K reconstructed states, p patch size.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_eqcohvit import EqCohViTConfig


def cosine_basis(height: int, width: int, num_waves: int, like: torch.Tensor) -> torch.Tensor:
    """The lowest `num_waves` x `num_waves` patterns of the cosine transform on a grid: (num_waves^2, height, width),
    with a total power of 1."""
    index = torch.arange(num_waves, device=like.device, dtype=torch.float32)
    rows, columns = (
        torch.cos(math.pi * index[:, None] * (torch.arange(n, device=like.device, dtype=torch.float32) + 0.5) / n)
        for n in (height, width)
    )
    basis = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(0, 1)
    return (basis * (2 / (num_waves + 1))).to(like.dtype)


class DecoderLinear(nn.Linear):
    """The linear layer of the decoders. It is a separate class because it is initialized differently."""


class DecoderConv(nn.Conv2d):
    """A convolution of the decoders; `gain` scales its initial weights."""

    def __init__(self, *args, gain: float = math.sqrt(2.0), **kwargs):
        self.gain = gain
        super().__init__(*args, **kwargs)


class IntermediateDecoders(nn.Module):
    """K decoders with independent weights, run as grouped layers (paper, section 3).

    Each decoder is a linear layer on the concatenated equivariant features of both views of a patch, followed by four
    convolutional layers. Layers upsample by sub-pixel convolution (arXiv:1609.05158). The patch size is p = r * 2^n,
    n <= 4: the linear layer makes an r x r grid of each patch, the first n convolutions upsample by 2, and the others
    keep the size.
    """

    num_layers = 4
    num_waves = 4

    def __init__(self, config: EqCohViTConfig):
        super().__init__()
        patch_size = config.square_patch_size
        self.num_decoders = config.num_decoders
        self.num_prefix_tokens = config.num_prefix_tokens
        self.context = config.decoder_context
        self.num_channels = config.num_channels
        self.patch_dropout = config.decoder_patch_dropout
        self.num_upsamplings = 0
        while self.num_upsamplings < self.num_layers and patch_size % 2 ** (self.num_upsamplings + 1) == 0:
            self.num_upsamplings += 1
        self.patch_grid = patch_size // 2**self.num_upsamplings
        groups = self.num_decoders
        width = config.decoder_dim
        self.from_patches = DecoderLinear(2 * config.equivariant_dim, groups * width * self.patch_grid**2)
        if self.context != "none":
            self.from_context = DecoderLinear(2 * config.equivariant_dim, groups * width * self.num_waves**2)
        self.convs = nn.ModuleList()
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            upsamples = layer < self.num_upsamplings
            out_width = config.num_channels if last else max(width // 2, 16) if upsamples else width
            self.convs.append(
                DecoderConv(
                    groups * width,
                    groups * out_width * (4 if upsamples else 1),
                    3,
                    padding=1,
                    groups=groups,
                    gain=0.1 if last else 2**0.5,
                )
            )
            width = out_width

    def forward(
        self, equivariant: torch.Tensor, equivariant_end: torch.Tensor, grid_size: tuple[int, int]
    ) -> torch.Tensor:
        """(B, P + N, d_equi) of both views, patch grid (h, w) -> reconstructions (B, K, C, h * p, w * p)."""
        pairs = torch.cat([equivariant, equivariant_end], dim=-1)
        patches = pairs[:, self.num_prefix_tokens :]
        batch_size = pairs.shape[0]
        x = self.from_patches(patches).transpose(1, 2).reshape(batch_size, -1, *grid_size)
        if self.patch_grid > 1:
            x = F.pixel_shuffle(x, self.patch_grid)
        if self.context != "none":
            context = self.from_context(pairs[:, 0] if self.context == "cls" else patches.mean(dim=1))
            waves = cosine_basis(x.shape[-2], x.shape[-1], self.num_waves, x)
            if self.training and self.patch_dropout > 0:
                x = x * (torch.rand(batch_size, 1, 1, 1, device=x.device) >= self.patch_dropout)
            x = x + torch.einsum("bcf,fhw->bchw", context.unflatten(1, (-1, self.num_waves**2)), waves)
        for layer, conv in enumerate(self.convs):
            x = conv(F.gelu(x))
            if layer < self.num_upsamplings:
                x = F.pixel_shuffle(x, 2)
        return x.reshape(batch_size, self.num_decoders, self.num_channels, *x.shape[-2:])


class _MeanSquaredErrors(torch.autograd.Function):
    """Two (B, K, C, H, W) -> (B, K) in float32, with the gradient of the first in its own precision.

    Neither of them is copied to float32: these tensors are the largest of a training step.
    """

    @staticmethod
    def forward(ctx, reconstructions: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        errors = reconstructions - states.float()
        ctx.save_for_backward(errors)
        ctx.dtype = reconstructions.dtype
        return torch.linalg.vector_norm(errors, dim=(2, 3, 4)).square() / errors[0, 0].numel()

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (errors,) = ctx.saved_tensors
        scale = (2 / errors[0, 0].numel() * gradients[0])[..., None, None, None]
        out = torch.empty(errors.shape, dtype=ctx.dtype, device=errors.device)
        return torch.mul(errors, scale, out=out), None


def reconstruction_losses(reconstructions: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each state of each image, in float32: two (B, K, C, H, W) -> (B, K). The states get no
    gradient."""
    return _MeanSquaredErrors.apply(reconstructions, states)


__all__ = ["DecoderConv", "DecoderLinear", "IntermediateDecoders", "reconstruction_losses"]
