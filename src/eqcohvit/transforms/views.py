"""The views of a training sample: sampled parameters first, then one fused rendering from the canvas (paper, sections 3.1 and 3.2).

    v1 = A1(I),  u = A2(I),  v2 = g(u),  targets u_k = g at k / (K + 1) of the way, applied to u

Crop, flip and path compose into one map per view, so each view is a single interpolation from the canvas. Colour operations of A2 are
shared by u_k and v2, with one contrast pivot per sample, so that they differ by g alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import ops
from .paths import SampledPath, TransformationPath, intermediate_fractions
from .random import uniforms

_FIRST, _SECOND, _PATH = range(3)  # random streams
_NUM_DRAWS = 16


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities of one view's base augmentation.

    Args:
        crop_scale: area of the crop as a fraction of the image, (low, high); (1, 1) keeps the whole image.
        crop_ratio: width over height of the crop, (low, high), drawn uniformly in the logarithm.
        color: largest change of brightness, contrast, saturation (of the factor 1), and hue (turns).
        blur_sigma: standard deviation (low, high) in pixels of a 224-pixel image; scales with the image.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip_probability: float = 0.0
    color: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_probability: float = 0.0
    grey_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0


_RATIO = (3 / 4, 4 / 3)
# (first view, second view) of each recipe. SimCLR: arXiv:2002.05709, appendix A. VICReg: arXiv:2105.04906, appendix C.1.
AUGMENTATIONS: dict[str, tuple[Augmentation, Augmentation]] = {
    "path_only": (Augmentation(), Augmentation()),
    "simclr": (Augmentation((0.08, 1.0), _RATIO, 0.5, (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5),) * 2,
    "vicreg": (
        Augmentation((0.08, 1.0), _RATIO, 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, solarize_probability=0.1),
        Augmentation((0.08, 1.0), _RATIO, 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, solarize_probability=0.1),
    ),
    # Milder crops for images of few pixels, where 8 % of the area is a handful of them.
    "small": (Augmentation((0.3, 1.0), _RATIO, 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2),) * 2,
}


@dataclass(frozen=True)
class ViewParameters:
    """One view's drawn augmentation. crop (B, 3, 3) output -> canvas; color (B, 4); sigma (B,) pixels; solarize (B,) booleans."""

    crop: torch.Tensor
    color: torch.Tensor
    sigma: torch.Tensor
    solarize: torch.Tensor


@dataclass(frozen=True)
class Views:
    """Rendered views in the encoder's normalised pixels.

    first, end: (B, 3, H, H) views v1 and v2. intermediates: (B, K, 3, H, H) targets u_1 .. u_K, or None where not asked for.
    parameters: (B, P) of the transformation g.
    """

    first: torch.Tensor
    end: torch.Tensor
    intermediates: torch.Tensor | None
    parameters: torch.Tensor


def sample_view(augmentation: Augmentation, draws: torch.Tensor, sizes: torch.Tensor, image_size: int) -> ViewParameters:
    """Uniform draws (B, 16) and original sizes (B, 2) = (height, width) in pixels -> one view's parameters."""
    a = augmentation
    draw = draws.unbind(dim=-1)

    def between(limits: tuple[float, float], u: torch.Tensor) -> torch.Tensor:
        return limits[0] + (limits[1] - limits[0]) * u

    height, width = sizes.to(draws.dtype).unbind(dim=-1)
    area = between(a.crop_scale, draw[0]) * height * width
    log_ratio = torch.tensor(a.crop_ratio, dtype=torch.float64).log().tolist()
    ratio = torch.exp(between((log_ratio[0], log_ratio[1]), draw[1]))
    if a.crop_scale == (1.0, 1.0):  # the whole image, stretched
        ratio = width / height
    crop_width = (area * ratio).sqrt().clamp(max=width) / width  # as fractions of the sides
    crop_height = (area / ratio).sqrt().clamp(max=height) / height
    shift_x = (2 * draw[2] - 1) * (1 - crop_width)
    shift_y = (2 * draw[3] - 1) * (1 - crop_height)
    flip = 1 - 2 * (draw[4] < a.flip_probability).to(draws.dtype)
    crop = ops.affine([[crop_width * flip, 0, shift_x], [0, crop_height, shift_y], [0, 0, 1]], draw[0])

    limits = draws.new_tensor(a.color)
    change = (2 * torch.stack(draw[5:9], dim=-1) - 1) * limits * (draw[9] < a.color_probability).to(draws.dtype)[:, None]
    color = torch.cat([(1 + change[:, :3]).clamp_min(0), change[:, 3:]], dim=-1)
    grey = draw[10] < a.grey_probability
    color = torch.cat([color[:, :2], color[:, 2:3].masked_fill(grey[:, None], 0), color[:, 3:]], dim=-1)
    sigma = between(a.blur_sigma, draw[12]) * (draw[11] < a.blur_probability) * (image_size / 224)
    return ViewParameters(crop, color, sigma, draw[13] < a.solarize_probability)


class ViewRenderer:
    """Draws and renders the views of a batch of canvases.

    Args:
        path: the transformation path of the second view.
        image_size: side H of every view in pixels.
        num_intermediates: K.
        augmentation: a key of `AUGMENTATIONS`; `"path_only"` leaves v1 = I and u = I (the paper's "rot"), the others are its "all".
        border: what lies outside a moved view: `"canvas"` (the photograph goes on), `"zeros"` (black), `"reflection"`.
        mean, std: normalisation of the encoder, per channel.
    """

    def __init__(
        self,
        path: TransformationPath,
        image_size: int,
        num_intermediates: int = 2,
        augmentation: str = "path_only",
        border: str = "canvas",
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        seed: int = 0,
    ):
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"unknown augmentation {augmentation!r}; known: {', '.join(AUGMENTATIONS)}")
        if border not in ops.BORDERS:
            raise ValueError(f"unknown border {border!r}; known: {', '.join(ops.BORDERS)}")
        if num_intermediates < 1:
            raise ValueError(f"num_intermediates must be at least 1, got {num_intermediates}")
        self.path, self.image_size, self.border, self.seed = path, image_size, border, seed
        self.num_intermediates = num_intermediates
        self.augmentations = AUGMENTATIONS[augmentation]
        self.mean, self.std = mean, std

    def sample(
        self, epochs: torch.Tensor, keys: torch.Tensor, sizes: torch.Tensor
    ) -> tuple[ViewParameters, ViewParameters, SampledPath]:
        """Parameters of the first view, of the second view's base, and of the path, for sample keys (B,) in epochs (B,)."""
        first, second = (
            sample_view(augmentation, uniforms(self.seed, epochs, keys, stream, _NUM_DRAWS), sizes, self.image_size)
            for augmentation, stream in zip(self.augmentations, (_FIRST, _SECOND), strict=True)
        )
        return first, second, self.path.sample(uniforms(self.seed, epochs, keys, _PATH, self.path.num_parameters))

    @torch.no_grad()
    def __call__(
        self, canvases: torch.Tensor, sizes: torch.Tensor, epochs: torch.Tensor, keys: torch.Tensor, with_intermediates: bool = True
    ) -> Views:
        """uint8 canvases (B, 3, S, S), sizes (B, 2), epochs (B,), sample keys (B,), all on one device -> views."""
        first, second, path = self.sample(epochs, keys, sizes)
        fractions = (intermediate_fractions(self.num_intermediates) if with_intermediates else []) + [1.0]
        images = self._render(canvases.float().div_(255), first, second, path, fractions)
        return Views(
            first=images[:, 0],
            end=images[:, -1],
            intermediates=images[:, 1:-1] if with_intermediates else None,
            parameters=path.parameters,
        )

    def _render(
        self, canvases: torch.Tensor, first: ViewParameters, second: ViewParameters, path: SampledPath, fractions: list[float]
    ) -> torch.Tensor:
        """Canvases (B, 3, S, S) in [0, 1] -> (B, 1 + len(fractions), 3, H, H): the first view, then the second at each fraction."""
        batch, num_moved = len(canvases), len(fractions)
        steps = [path.at(t) for t in fractions]
        identity = torch.eye(3, device=canvases.device).expand(batch, 3, 3)
        motion = torch.stack([identity] + [identity if step.matrix is None else step.matrix for step in steps], dim=1)
        crop = torch.stack([first.crop] + [second.crop] * num_moved, dim=1)
        grid, coverage = ops.sampling_grid(crop, motion, self.image_size, self.border)
        images = ops.sample(canvases, grid).flatten(0, 1)

        def per_view(of_first: torch.Tensor, of_second: torch.Tensor) -> torch.Tensor:
            return torch.stack([of_first] + [of_second] * num_moved, dim=1).flatten(0, 1)

        colored = any(a.color_probability or a.grey_probability for a in self.augmentations)
        pivot = None
        if colored or steps[0].color is not None:
            pivot = ops.luminance(canvases).mean(dim=(1, 2, 3)).repeat_interleave(num_moved + 1)
        if colored:
            images, pivot = ops.adjust_color(images, per_view(first.color, second.color), pivot)
        if any(a.blur_probability for a in self.augmentations):
            images = ops.gaussian_blur(images, per_view(first.sigma, second.sigma))
        if any(a.solarize_probability for a in self.augmentations):
            images = ops.solarize(images, per_view(first.solarize, second.solarize))
        if steps[0].color is not None:
            unchanged = torch.zeros_like(steps[0].color) + steps[0].color.new_tensor([1, 1, 1, 0])
            images, _ = ops.adjust_color(images, torch.stack([unchanged] + [step.color for step in steps], dim=1).flatten(0, 1), pivot)
        if steps[0].sigma is not None:
            sigma = torch.stack([torch.zeros_like(steps[0].sigma)] + [step.sigma for step in steps], dim=1).flatten()
            images = ops.gaussian_blur(images, sigma)
        images = images.unflatten(0, (batch, num_moved + 1))
        if coverage is not None:
            images = images * coverage
        return self.normalize(images)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) in [0, 1] -> normalised."""
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std
