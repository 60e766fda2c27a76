"""The views of a training sample: sampled parameters first, then one fused rendering from the canvas (paper, sections 3.1 and 3.2).

    v1 = A1(I),  u = A2(I),  v2 = g(u),  targets u_k = g at k / (K + 1) of the way, applied to u,
    local crops of I,  masks of the patches of v1 and v2

Crop, flip and path compose into one map per view, so each view is a single interpolation from the canvas. Colour, blur and solarisation
of A1 and A2 are applied to the canvas before, once for u_k and v2 together, so that these differ by g alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from . import ops
from .masks import BlockMasking
from .paths import SampledPath, Transformation, TransformationPath, intermediate_fractions
from .random import uniforms

# Random streams; the local crops take those from _LOCAL on.
_FIRST, _SECOND, _PATH, _MASKS = range(4)
_LOCAL = 16
_NUM_DRAWS = 16
_CACHED_VALUES = 2**19  # of float32 images that stay in a CPU's cache from one operation to the next


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
_COLOR = (0.4, 0.4, 0.2, 0.1)


def _multi_crop(split: float) -> tuple[Augmentation, Augmentation, Augmentation]:
    """Global crops of more, local crops of less than the share `split` of the image."""
    return (
        Augmentation((split, 1.0), _RATIO, 0.5, _COLOR, 0.8, 0.2, 1.0),
        Augmentation((split, 1.0), _RATIO, 0.5, _COLOR, 0.8, 0.2, 0.1, solarize_probability=0.2),
        Augmentation((0.05, split), _RATIO, 0.5, _COLOR, 0.8, 0.2, 0.5),
    )


# (first view, second view, local crops) of each recipe. SimCLR: arXiv:2002.05709, appendix A. VICReg: arXiv:2105.04906, appendix C.1.
# ibot, dinov2: https://github.com/bytedance/ibot (global crops from 0.25 on), https://github.com/facebookresearch/dinov2 (from 0.32 on).
AUGMENTATIONS: dict[str, tuple[Augmentation, Augmentation, Augmentation]] = {
    "path_only": (Augmentation(), Augmentation(), Augmentation((0.1, 0.4), _RATIO)),
    "simclr": (Augmentation((0.08, 1.0), _RATIO, 0.5, (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5),) * 3,
    "vicreg": (Augmentation((0.08, 1.0), _RATIO, 0.5, _COLOR, 0.8, 0.2, 0.5, solarize_probability=0.1),) * 3,
    "ibot": _multi_crop(0.25),
    "dinov2": _multi_crop(0.32),
    # Milder crops for images of few pixels, where 8 % of the area is a handful of them.
    "small": (
        *(Augmentation((0.3, 1.0), _RATIO, 0.5, _COLOR, 0.8, 0.2),) * 2,
        Augmentation((0.15, 0.4), _RATIO, 0.5, _COLOR, 0.8, 0.2),
    ),
}


@dataclass(frozen=True)
class ViewParameters:
    """One view's drawn augmentation. crop (B, 3, 3) output -> canvas; color (B, 4); sigma (B,) pixels; solarize (B,) booleans."""

    crop: torch.Tensor
    color: torch.Tensor
    sigma: torch.Tensor
    solarize: torch.Tensor

    def __getitem__(self, rows: slice) -> ViewParameters:
        return ViewParameters(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class Views:
    """Rendered views in the encoder's normalised pixels.

    first, end: (B, 3, H, H) the global views v1 and v2. intermediates: (B, K, 3, H, H) targets u_1 .. u_K, with v2 as one more where the
    final state is a target too, or None where not asked for. parameters: (B, P) of the transformation g, in its path's units.
    local: (B, L, 3, h, h) local crops, or None. masks: (B, 2, N) booleans, true where a patch of v1, v2 is hidden, or None.
    """

    first: torch.Tensor
    end: torch.Tensor
    intermediates: torch.Tensor | None
    parameters: torch.Tensor
    local: torch.Tensor | None = None
    masks: torch.Tensor | None = None


def sample_view(augmentation: Augmentation, draws: torch.Tensor, sizes: torch.Tensor, image_size: int) -> ViewParameters:
    """Uniform draws (B, 16) and original sizes (B, 2) = (height, width) in pixels -> one view's parameters."""
    a = augmentation
    draw = draws.unbind(dim=-1)

    def between(limits: tuple[float, float], u: torch.Tensor) -> torch.Tensor:
        return limits[0] + (limits[1] - limits[0]) * u

    height, width = sizes.to(draws.dtype).unbind(dim=-1)
    area = between(a.crop_scale, draw[0]) * height * width
    log_ratio = [math.log(ratio) for ratio in a.crop_ratio]
    ratio = torch.exp(between((log_ratio[0], log_ratio[1]), draw[1]))
    if a.crop_scale == (1.0, 1.0):  # the whole image, stretched
        ratio = width / height
    crop_width = (area * ratio).sqrt().clamp(max=width) / width  # as fractions of the sides
    crop_height = (area / ratio).sqrt().clamp(max=height) / height
    shift_x = (2 * draw[2] - 1) * (1 - crop_width)
    shift_y = (2 * draw[3] - 1) * (1 - crop_height)
    flip = 1 - 2 * (draw[4] < a.flip_probability).to(draws.dtype)
    crop = ops.affine([[crop_width * flip, 0, shift_x], [0, crop_height, shift_y], [0, 0, 1]], draw[0])

    limits = ops.constant(a.color, draws)
    change = (2 * torch.stack(draw[5:9], dim=-1) - 1) * limits * (draw[9] < a.color_probability).to(draws.dtype)[:, None]
    color = torch.cat([(1 + change[:, :3]).clamp_min(0), change[:, 3:]], dim=-1)
    grey = draw[10] < a.grey_probability
    color = torch.cat([color[:, :2], color[:, 2:3].masked_fill(grey[:, None], 0), color[:, 3:]], dim=-1)
    sigma = between(a.blur_sigma, draw[12]) * (draw[11] < a.blur_probability) * (image_size / 224)
    return ViewParameters(crop, color, sigma, draw[13] < a.solarize_probability)


@dataclass(frozen=True)
class MultiCrop:
    """`number` local crops of `size` pixels, seen by the student alone (arXiv:2006.09882, section 3.3)."""

    number: int
    size: int


class ViewRenderer:
    """Draws and renders the views of a batch of canvases.

    Args:
        path: the transformation path of the second view.
        image_size: side H of the global views in pixels.
        num_intermediates: K.
        augmentation: a key of `AUGMENTATIONS`; `"path_only"` leaves v1 = I and u = I (the paper's "rot"), the others are its "all".
        border: what lies outside a moved view: `"canvas"` (the photograph goes on), `"zeros"` (black), `"reflection"`.
        include_final: whether v2 is a target as well, after u_K (the paper's "2 + final").
        local_crops: number and size of the local crops; None for none.
        masking: how the patches of both global views are masked; None for not at all.
        patch_size: side of a patch in pixels, for the masks.
        mean, std: normalisation of the encoder, per channel.
        seed: of all random numbers, together with the epochs and the keys of the samples.

    Raises:
        ValueError: an unknown augmentation or border, or fewer than 1 intermediate state.
    """

    def __init__(
        self,
        path: TransformationPath,
        image_size: int,
        num_intermediates: int = 2,
        augmentation: str = "path_only",
        border: str = "canvas",
        include_final: bool = False,
        local_crops: MultiCrop | None = None,
        masking: BlockMasking | None = None,
        patch_size: int = 16,
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
        self.num_intermediates, self.include_final = num_intermediates, include_final
        self.local_crops, self.masking, self.patch_size = local_crops, masking, patch_size
        *self.augmentations, self.local_augmentation = AUGMENTATIONS[augmentation]
        self.mean, self.std = mean, std
        self._normalization = (1 / torch.tensor(std)[:, None, None], (torch.tensor(mean) / torch.tensor(std))[:, None, None])
        steepest = path.at(torch.tensor([[high for _, high in path.limits]]), 1.0)
        self._max_path_sigma = None if steepest.sigma is None else steepest.sigma.item()
        self._needs_pivot = steepest.color is not None or any(_recolors(a) for a in self.augmentations)

    def compile(self, **kwargs: Any) -> None:
        """Compile the rendering by `torch.compile`, in place; the random numbers stay outside of it.

        For GPUs: on a CPU the compiled sampling of the canvas is slower than the eager one.
        """
        self._render, self._render_local = torch.compile(self._render, **kwargs), torch.compile(self._render_local, **kwargs)

    @property
    def target_fractions(self) -> list[float]:
        """How far along the path each target lies: k / (K + 1), and 1 where the final state is one."""
        return intermediate_fractions(self.num_intermediates) + [1.0] * self.include_final

    def sample(self, epochs: torch.Tensor, keys: torch.Tensor, sizes: torch.Tensor) -> tuple[ViewParameters, ViewParameters, SampledPath]:
        """Parameters of the first view, of the second view's base, and of the path, for sample keys (B,) in epochs (B,)."""
        draws = self._draw(epochs, keys, [_FIRST, _SECOND, _PATH], max(_NUM_DRAWS, self.path.num_parameters))
        first, second = (sample_view(a, draws[:, i, :_NUM_DRAWS], sizes, self.image_size) for i, a in enumerate(self.augmentations))
        return first, second, self.path.sample(draws[:, 2, : self.path.num_parameters])

    def _draw(self, epochs: torch.Tensor, keys: torch.Tensor, streams: list[int], count: int) -> torch.Tensor:
        """Uniform numbers (B, streams, count), in one go: on a GPU their cost is the number of launches."""
        batch, number = len(keys), len(streams)
        stream = ops.constant(streams, keys).repeat(batch)
        flat = uniforms(self.seed, epochs.repeat_interleave(number), keys.repeat_interleave(number), stream, count)
        return flat.unflatten(0, (batch, number))

    @torch.no_grad()
    def __call__(
        self, canvases: torch.Tensor, sizes: torch.Tensor, epochs: torch.Tensor, keys: torch.Tensor, with_intermediates: bool = True
    ) -> Views:
        """uint8 canvases (B, 3, S, S), sizes (B, 2), epochs (B,), sample keys (B,), all on one device -> views."""
        first, second, path = self.sample(epochs, keys, sizes)
        fractions = (intermediate_fractions(self.num_intermediates) if with_intermediates else []) + [1.0]
        moves = Transformation.stack([path.at(t) for t in fractions])
        if moves.matrix is None:
            moves = dataclasses.replace(moves, matrix=torch.eye(3, device=keys.device).expand(len(keys), len(fractions), 3, 3))
        images = torch.empty(len(keys), 1 + len(fractions), 3, self.image_size, self.image_size, device=keys.device)
        for rows in _parts(canvases, (1 + len(fractions)) * self.image_size**2):
            self._render(canvases[rows], first[rows], second[rows], moves[rows], images[rows])
        return Views(
            first=images[:, 0],
            end=images[:, -1],
            intermediates=images[:, 1 : len(self.target_fractions) + 1] if with_intermediates else None,
            parameters=path.parameters,
            local=self._local(canvases, sizes, epochs, keys) if self.local_crops else None,
            masks=self.masking.sample(self.seed, epochs, keys, _MASKS, self.image_size // self.patch_size) if self.masking else None,
        )

    def _local(self, canvases: torch.Tensor, sizes: torch.Tensor, epochs: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """uint8 canvases (B, 3, S, S) -> local crops (B, L, 3, h, h)."""
        assert self.local_crops is not None
        number = self.local_crops.number
        draws = self._draw(epochs, keys, list(range(_LOCAL, _LOCAL + number)), _NUM_DRAWS)
        drawn = sample_view(self.local_augmentation, draws.flatten(0, 1), sizes.repeat_interleave(number, dim=0), self.image_size)
        parameters = ViewParameters(*(getattr(drawn, f.name).unflatten(0, (-1, number)) for f in dataclasses.fields(drawn)))
        return _joined(self._render_local(canvases[rows], parameters[rows]) for rows in _parts(canvases, number * self.local_crops.size**2))

    def _render_local(self, canvases: torch.Tensor, drawn: ViewParameters) -> torch.Tensor:
        """uint8 canvases (B, 3, S, S), parameters (B, L, ...) -> local crops (B, L, 3, h, h), all read in one launch."""
        assert self.local_crops is not None
        crop, number = drawn.crop, drawn.crop.shape[1]
        identity = torch.eye(3, device=canvases.device).expand_as(crop)
        grid, _ = ops.sampling_grid(crop, identity, self.local_crops.size, "canvas", projective=False)
        images = ops.sample(canvases.float() / 255, grid).flatten(0, 1)
        drawn = ViewParameters(*(getattr(drawn, f.name).flatten(0, 1) for f in dataclasses.fields(drawn)))
        pivot = _mean_luminance(canvases).repeat_interleave(number)
        images = _recolor(images, self.local_augmentation, drawn, drawn.sigma[:, None].expand(-1, 2), self.image_size / 224, pivot)
        return self.normalize(images.unflatten(0, (len(canvases), number)))

    def _render(
        self, canvases: torch.Tensor, first: ViewParameters, second: ViewParameters, moves: Transformation, out: torch.Tensor
    ) -> None:
        """uint8 canvases (B, 3, S, S), states of the path (B, V, ...) -> out (B, 1 + V, 3, H, H): the first view, the second's states."""
        pivot = _mean_luminance(canvases) if self._needs_pivot else None
        still = Transformation(matrix=torch.eye(3, device=canvases.device).expand(len(canvases), 1, 3, 3))
        self._look(canvases, self.augmentations[0], first, pivot, still, "canvas", out[:, :1])
        self._look(canvases, self.augmentations[1], second, pivot, moves, self.border, out[:, 1:])

    def _look(
        self,
        canvases: torch.Tensor,
        augmentation: Augmentation,
        drawn: ViewParameters,
        pivot: torch.Tensor | None,
        moves: Transformation,
        border: str,
        out: torch.Tensor,
    ) -> None:
        """uint8 canvases (B, 3, S, S), recoloured, then read in each state -> out (B, V, 3, H, H)."""
        assert moves.matrix is not None
        scale = canvases.shape[-1] / self.image_size
        sigma = drawn.sigma[:, None] * torch.stack([drawn.crop[:, 0, 0], drawn.crop[:, 1, 1]], dim=-1).abs() * scale  # of the canvas
        crop = drawn.crop.unsqueeze(1).expand_as(moves.matrix)
        reads_beyond = border == "canvas" or moves.sigma is not None  # else what lies outside of the view is of no account
        if ops.can_choose(canvases):
            margin = 2 + math.ceil(scale) + math.ceil(4 * sigma.max().item())
            canvases, crop = _window(canvases, crop, moves.matrix, reads_beyond, margin)
        base = _recolor(canvases.float().div_(255), augmentation, drawn, sigma, self.image_size / 224 * scale, pivot)
        if moves.color is not None:
            assert pivot is not None
            pivot = (pivot * drawn.color[:, 0]).clamp(0, 1)
        grid, coverage = ops.sampling_grid(crop, moves.matrix, self.image_size, border, moves.projective)
        for state in range(out.shape[1]):  # one by one, so that it stays in a CPU's cache
            images = ops.sample(base, grid[:, state : state + 1], "reflection" if reads_beyond else "border").squeeze(1)
            if moves.color is not None:
                images, _ = ops.adjust_color(images, moves.color[:, state], pivot)
            if moves.sigma is not None:
                images = ops.gaussian_blur(images, moves.sigma[:, state], self._max_path_sigma)
            images = images if coverage is None else images * coverage[:, state]
            if ops.can_choose(images):
                self.normalize(images, out[:, state])
            else:  # a compiled graph cannot write into a part of a tensor, but is not the slower for a copy
                out[:, state] = self.normalize(images)

    def normalize(self, images: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(..., 3, H, W) in [0, 1] -> normalised, into `out` where it is given."""
        scale, shift = (constant.to(images.device, non_blocking=True) for constant in self._normalization)
        return torch.sub(images * scale, shift, out=out)


def _recolors(augmentation: Augmentation) -> bool:
    return augmentation.color_probability > 0 or augmentation.grey_probability > 0


def _recolor(
    images: torch.Tensor,
    augmentation: Augmentation,
    drawn: ViewParameters,
    sigma: torch.Tensor,
    blur_scale: float,
    pivot: torch.Tensor | None,
) -> torch.Tensor:
    """Colour, blur and solarisation of images (N, 3, h, w) by drawn parameters (N, ...); what the augmentation has not is left out.

    sigma: (N, 2), along x and y, in pixels of the images, at most `blur_scale` times the augmentation's. pivot: (N,), for the contrast.
    """
    if _recolors(augmentation):
        assert pivot is not None
        changed = (drawn.color != ops.constant([1, 1, 1, 0], drawn.color)).any(dim=-1)
        images = ops.where(changed, lambda *arguments: ops.adjust_color(*arguments)[0], images, drawn.color, pivot)
    if augmentation.blur_probability:
        bound = None if ops.can_choose(images) else augmentation.blur_sigma[1] * blur_scale
        images = ops.where(drawn.sigma > 0, partial(ops.gaussian_blur, max_sigma=bound), images, sigma)
    if augmentation.solarize_probability:
        images = ops.where(drawn.solarize, ops.solarize, images, drawn.solarize)
    return images


def _mean_luminance(canvases: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, S, S) -> (B,) in [0, 1]: the pivot of the contrast is one for all views of a sample."""
    return ops.luminance(canvases.float().mean(dim=(2, 3), keepdim=True)).flatten() / 255


def _window(
    canvases: torch.Tensor, crop: torch.Tensor, motion: torch.Tensor, beyond: bool, margin: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the views read of the canvases (B, 3, S, S), with `margin` pixels around it, and their crop (B, V, 3, 3) in its coordinates.

    A CPU need not recolour the rest. `beyond`: whether views that move read what lies outside of the crop. All V have one crop.
    """
    side, corners = canvases.shape[-1], ([], [])
    for crops, motions in zip(crop[:, 0].tolist(), motion.tolist(), strict=True):
        for of_x, of_y, of_one in motions:
            for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                scale = of_one[0] * x + of_one[1] * y + of_one[2]
                if scale <= 0:  # the horizon lies within the view
                    return canvases, crop
                moved = [(row[0] * x + row[1] * y + row[2]) / scale for row in (of_x, of_y)]
                if not beyond:
                    moved = [min(max(position, -1), 1) for position in moved]
                for axis in range(2):
                    corners[axis].append(crops[axis][0] * moved[0] + crops[axis][1] * moved[1] + crops[axis][2])
    slices, rows = [], torch.eye(3).tolist()
    for axis in range(2):
        low, high = min(corners[axis]), max(corners[axis])
        low, high = min(low, 2 - high), max(high, -2 - low)  # what leaves the canvas reads its mirror image
        start = max(0, math.floor((low + 1) / 2 * side) - margin)
        stop = min(side, math.ceil((high + 1) / 2 * side) + margin)
        slices.append(slice(start, stop))
        rows[axis][axis], rows[axis][2] = side / (stop - start), (side - start - stop) / (stop - start)
    columns, lines = slices
    return canvases[:, :, lines, columns], ops.compose(crop.new_tensor(rows), crop)


def _parts(canvases: torch.Tensor, pixels_per_sample: int) -> list[slice]:
    """The whole batch at once; on a CPU as many samples as its cache holds, but one for each thread."""
    size = len(canvases)
    if canvases.device.type == "cpu":
        size = max(torch.get_num_threads(), _CACHED_VALUES // (3 * pixels_per_sample))
    return [slice(start, start + size) for start in range(0, len(canvases), size)]


def _joined(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
