"""Base augmentations: their settings, the random parameters of a view, and their colors (paper, section 3.1)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch

from . import ops
from .render import SIGMA_SIZE

_DRAWS = {  # how many uniform numbers decide each property of a view, in this order
    "area": 10,
    "ratio": 10,
    "place": 2,
    "flip": 1,
    "color": 4,
    "is_colored": 1,
    "order": 1,
    "is_gray": 1,
    "is_blurred": 1,
    "sigma": 1,
    "is_solarized": 1,
}
NUM_DRAWS = sum(_DRAWS.values())
_ORDERS = tuple(itertools.permutations(range(4)))


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities of one view's base augmentation, in the order in which it is applied.

    Args:
        crop_scale: area of the crop as a fraction of the image, (low, high). (1, 1) is the central square.
        crop_ratio: width over height of the crop, (low, high), drawn uniformly in the logarithm.
        color: largest changes of the factors of brightness, contrast and saturation from 1, and of the hue in turns;
            applied in random order.
        blur_sigma: standard deviation (low, high) in pixels of a 224-pixel image; it scales with the image.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0
    color: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_probability: float = 0.0
    gray_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0

    @property
    def recolors(self) -> bool:
        """Whether it can change colors."""
        return self.color_probability > 0 or self.gray_probability > 0

    def most_blurred(self, number: int) -> int:
        """How many of so many images are blurred at most: the mean and 8 standard deviations.

        More are with a probability below 1e-8 a batch.
        """
        share = self.blur_probability
        return min(number, math.ceil(number * share + 8 * math.sqrt(number * share * (1 - share))))


# What the recipes share.
_USUAL = Augmentation(flip_probability=0.5, color=(0.4, 0.4, 0.2, 0.1), color_probability=0.8, gray_probability=0.2)

# (first view, second view, local crops) of each recipe.
AUGMENTATIONS: dict[str, tuple[Augmentation, Augmentation, Augmentation]] = {
    "path_only": (
        Augmentation(),
        Augmentation(),
        Augmentation(crop_scale=(0.1, 0.4)),
    ),
    # arXiv:2002.05709, appendix A. The paper has no local crops; those here are drawn as the global views.
    "simclr": (
        replace(_USUAL, crop_scale=(0.08, 1.0), color=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5),
        replace(_USUAL, crop_scale=(0.08, 1.0), color=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5),
        replace(_USUAL, crop_scale=(0.08, 1.0), color=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5),
    ),
    # https://github.com/facebookresearch/vicreg, augmentations.py. In arXiv:2105.04906, appendix C.1, both views are
    # alike.
    "vicreg": (
        replace(_USUAL, crop_scale=(0.08, 1.0), blur_probability=1.0),
        replace(_USUAL, crop_scale=(0.08, 1.0), blur_probability=0.1, solarize_probability=0.2),
        replace(_USUAL, crop_scale=(0.08, 1.0), blur_probability=0.5),
    ),
    # https://github.com/bytedance/ibot, main_ibot.py, with the crops of its README.
    "ibot": (
        replace(_USUAL, crop_scale=(0.25, 1.0), blur_probability=1.0),
        replace(_USUAL, crop_scale=(0.25, 1.0), blur_probability=0.1, solarize_probability=0.2),
        replace(_USUAL, crop_scale=(0.05, 0.25), blur_probability=0.5),
    ),
    # https://github.com/facebookresearch/dinov2, data/augmentations.py. It states 1.0 / 0.1 / 0.5 for the blur, but its
    # GaussianBlur blurs with the complement of that probability, and the released checkpoints were trained so:
    # https://github.com/facebookresearch/dinov3/pull/342, https://github.com/facebookresearch/dinov3/issues/286,
    # https://github.com/facebookresearch/dinov2/pull/411.
    "dinov2": (
        replace(_USUAL, crop_scale=(0.32, 1.0), blur_probability=0.0),
        replace(_USUAL, crop_scale=(0.32, 1.0), blur_probability=0.9, solarize_probability=0.2),
        replace(_USUAL, crop_scale=(0.05, 0.32), blur_probability=0.5),
    ),
    # Milder crops for small images, in which 8 % of the area is only a handful of pixels.
    "small": (
        replace(_USUAL, crop_scale=(0.3, 1.0)),
        replace(_USUAL, crop_scale=(0.3, 1.0)),
        replace(_USUAL, crop_scale=(0.15, 0.4)),
    ),
}


@dataclass(frozen=True)
class ViewParameters:
    """The drawn augmentation of one view of B images.

    box: (B, 4), left, top, width and height of the crop in whole pixels of the original. flip: (B,) booleans, whether
    left and right are exchanged. color: (B, 4), factors of brightness, contrast and saturation, and the hue in turns.
    order: int64 (B, 4), the order of these (`ops.jitter_color`). gray: (B,) booleans. sigma: (B,), of the blur in
    pixels of the view. solarize: (B,) booleans.
    """

    box: torch.Tensor
    flip: torch.Tensor
    color: torch.Tensor
    order: torch.Tensor
    gray: torch.Tensor
    sigma: torch.Tensor
    solarize: torch.Tensor

    def __getitem__(self, rows: slice | torch.Tensor) -> ViewParameters:
        return ops.mapped(self, lambda values: values[rows])


def random_resized_crop(
    draws: dict[str, torch.Tensor], sizes: torch.Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> torch.Tensor:
    """Crops as torchvision's `RandomResizedCrop` draws them: the first of 10 that fits, otherwise the largest one
    within the ratio limits.

    Args:
        draws: uniform numbers, `area` and `ratio` (B, 10), `place` (B, 2).
        sizes: (B, 2), height and width of the images in pixels.
        scale: limits of the area, as a fraction of the image.
        ratio: limits of width over height.

    Returns:
        (B, 4): left, top, width and height in whole pixels.
    """
    height, width = sizes.to(draws["area"].dtype).unbind(dim=-1)
    area = _between(scale, draws["area"]) * (height * width)[:, None]
    ratios = torch.exp(_between((math.log(ratio[0]), math.log(ratio[1])), draws["ratio"]))
    widths = (area * ratios).sqrt().round()
    heights = (area / ratios).sqrt().round()
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    chosen = fits.long().argmax(dim=1, keepdim=True)  # the first one
    any_fits = fits.any(dim=1)
    crop_width = torch.where(
        any_fits, widths.gather(1, chosen)[:, 0], torch.minimum(width, (height * ratio[1]).round())
    )
    crop_height = torch.where(
        any_fits, heights.gather(1, chosen)[:, 0], torch.minimum(height, (width / ratio[0]).round())
    )
    crop_width = crop_width.clamp_min(1)
    crop_height = crop_height.clamp_min(1)
    place = draws["place"]
    left = torch.where(any_fits, place[:, 0] * (width - crop_width + 1), (width - crop_width) / 2).floor()
    top = torch.where(any_fits, place[:, 1] * (height - crop_height + 1), (height - crop_height) / 2).floor()
    left = torch.minimum(left, width - crop_width)  # a draw close to 1 may be rounded up
    top = torch.minimum(top, height - crop_height)
    return torch.stack([left, top, crop_width, crop_height], dim=-1)


def sample_view(
    augmentation: Augmentation, draws: torch.Tensor, sizes: torch.Tensor, image_size: int
) -> ViewParameters:
    """Uniform draws (B, 33) and original sizes (B, 2) = (height, width) in pixels -> one view's parameters."""
    draw = dict(zip(_DRAWS, draws.split(list(_DRAWS.values()), dim=-1), strict=True))
    if augmentation.crop_scale == (1.0, 1.0):
        height, width = sizes.to(draws.dtype).unbind(dim=-1)
        side = torch.minimum(height, width)
        box = torch.stack([((width - side) / 2).floor(), ((height - side) / 2).floor(), side, side], dim=-1)
    else:
        box = random_resized_crop(draw, sizes, augmentation.crop_scale, augmentation.crop_ratio)
    is_colored = draw["is_colored"] < augmentation.color_probability
    change = (2 * draw["color"] - 1) * ops.constant(augmentation.color, draws) * is_colored
    color = torch.cat([(1 + change[:, :3]).clamp_min(0), change[:, 3:]], dim=-1)
    order = ops.constant(_ORDERS, sizes)[(draw["order"][:, 0] * len(_ORDERS)).long()]
    is_blurred = draw["is_blurred"] < augmentation.blur_probability
    sigma = _between(augmentation.blur_sigma, draw["sigma"]) * is_blurred * (image_size / SIGMA_SIZE)
    return ViewParameters(
        box=box,
        flip=draw["flip"][:, 0] < augmentation.flip_probability,
        color=color,
        order=order,
        gray=draw["is_gray"][:, 0] < augmentation.gray_probability,
        sigma=sigma[:, 0],
        solarize=draw["is_solarized"][:, 0] < augmentation.solarize_probability,
    )


def _between(limits: tuple[float, float], uniform: torch.Tensor) -> torch.Tensor:
    return limits[0] + (limits[1] - limits[0]) * uniform


def recolor(
    images: torch.Tensor,
    augmentation: Augmentation,
    drawn: ViewParameters,
    sigma: torch.Tensor,
    pivots: torch.Tensor | None = None,
    num_states: int = 1,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Color, blur and solarization of images (N, 3, h, w), and the pivots (N, 6) of the contrast (`ops.jitter_color`).

    sigma: (N,), of the blur in pixels of the images. The pivots are None if the augmentation never changes colors. Each
    draw decides about `num_states` images.
    """
    images = images.clamp(0, 1)
    if augmentation.recolors:
        images, pivots = ops.jitter_color(images, drawn.color, drawn.order, pivots)
        images = ops.adjust_saturation(images, 1 - drawn.gray.to(images.dtype))
    if augmentation.blur_probability:
        most = num_states * augmentation.most_blurred(len(images) // num_states)
        images = ops.gaussian_blur(images, sigma, most)
    if augmentation.solarize_probability:
        images = ops.solarize(images, drawn.solarize)
    return images, pivots
