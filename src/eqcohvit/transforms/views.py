"""The views of a training sample: sampled parameters first, then the rendering from the canvas (paper, sections 3.1 and
3.2).

    v1 = A1(I),  u = A2(I),  v2 = g(u),  targets u_k = g at k / (K + 1) of the way, applied to u,
    local crops of I,  masks of the patches of v1 and v2

The canvas is the image at its own resolution (`eqcohvit.data.decode`). A view that does not move is the antialiased
bicubic resize of its crop, as torchvision's `RandomResizedCrop` makes it. For the views that move, the crop of u and
what lies around it is resized in the same way, but to twice as many points along each axis, and each state reads these
by a single interpolation. Colour, blur and solarisation come after that, with the same parameters for all states of u,
so that these differ by g alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import ops
from .masks import BlockMasking
from .paths import SIGMA_SIZE, SampledPath, Transformation, TransformationPath, intermediate_fractions
from .random import uniforms

# Random streams; the local crops take those from _LOCAL on.
_FIRST, _SECOND, _PATH, _MASKS = range(4)
_LOCAL = 16

_DRAWS = {  # uniform numbers of a view by what they decide, in this order
    "area": 10,
    "ratio": 10,
    "place": 2,
    "flip": 1,
    "color": 4,
    "is_colored": 1,
    "order": 1,
    "is_grey": 1,
    "is_blurred": 1,
    "sigma": 1,
    "is_solarized": 1,
}
NUM_DRAWS = sum(_DRAWS.values())
_ORDERS = list(itertools.permutations(range(4)))

# The resized region around u has this many points for each pixel of a view. Bilinear reading between points dampens the
# finest details of the views by (1 + 2 a) - 2 a cos(w) on average, w their frequency, which a sharpening by a undoes.
# With pixels 0.21 points off the points' centres, the view that does not turn is dampened by as much as those whose
# pixels lie anywhere between the points: p (1 - p) = 1 / 6.
_DENSITY = 2
_OFF_CENTRE = 0.5 - 0.2113
_READING_LOSS = 0.1
# The same for a canvas that is smaller than the image: its details are dampened twice, which matters least for the
# largest crops.
_CANVAS_LOSS = 0.07
_MIN_CANVAS = 1.5  # side of the canvas over that of the view, below which that loss would be too large to undo

_MARGIN = 4  # points of the region beyond what the views read
_MAX_REACH = 3.0  # of a region, in halves of the side of u
_PROXY_SIZE = 64  # pixels of the small u that the contrast's pivots are measured on
_CPU_VALUES = 2**19  # values that a CPU renders at a time, so that they stay in its cache
_GPU_VALUES = 2**28


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities of one view's base augmentation, in the order in which it is applied.

    Args:
        crop_scale: area of the crop as a fraction of the image, (low, high); (1, 1) keeps the whole image, stretched.
        crop_ratio: width over height of the crop, (low, high), drawn uniformly in the logarithm.
        color: largest change of brightness, contrast, saturation (of the factor 1), and hue (turns); in a random order.
        blur_sigma: standard deviation (low, high) in pixels of a 224-pixel image; scales with the image.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0
    color: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_probability: float = 0.0
    grey_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0

    @property
    def recolors(self) -> bool:
        """Whether it may change colours."""
        return self.color_probability > 0 or self.grey_probability > 0


# What the recipes have in common.
_USUAL = Augmentation(flip_probability=0.5, color=(0.4, 0.4, 0.2, 0.1), color_probability=0.8, grey_probability=0.2)

# (first view, second view, local crops) of each recipe.
AUGMENTATIONS: dict[str, tuple[Augmentation, Augmentation, Augmentation]] = {
    "path_only": (
        Augmentation(),
        Augmentation(),
        Augmentation(crop_scale=(0.1, 0.4)),
    ),
    # arXiv:2002.05709, appendix A. Without local crops, so their place is taken by a third global one.
    "simclr": (
        replace(_USUAL, crop_scale=(0.08, 1.0), color=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5),
        replace(_USUAL, crop_scale=(0.08, 1.0), color=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5),
        replace(_USUAL, crop_scale=(0.08, 1.0), color=(0.8, 0.8, 0.8, 0.2), blur_probability=0.5),
    ),
    # https://github.com/facebookresearch/vicreg, augmentations.py; arXiv:2105.04906, appendix C.1, has both views
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
    # Milder crops for images of few pixels, where 8 % of the area is a handful of them.
    "small": (
        replace(_USUAL, crop_scale=(0.3, 1.0)),
        replace(_USUAL, crop_scale=(0.3, 1.0)),
        replace(_USUAL, crop_scale=(0.15, 0.4)),
    ),
}


@dataclass(frozen=True)
class ViewParameters:
    """One view's drawn augmentation, of B images.

    box: (B, 4), left, top, width and height of the crop in whole pixels of the original. flip: (B,) booleans, left and
        right exchanged.
    color: (B, 4), factors of brightness, contrast and saturation, hue in turns. order: int64 (B, 4), of these
        (`ops.jitter_color`).
    grey: (B,) booleans. sigma: (B,) of the blur in pixels of the view. solarize: (B,) booleans.
    """

    box: torch.Tensor
    flip: torch.Tensor
    color: torch.Tensor
    order: torch.Tensor
    grey: torch.Tensor
    sigma: torch.Tensor
    solarize: torch.Tensor

    def __getitem__(self, rows: slice | torch.Tensor) -> ViewParameters:
        return ViewParameters(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class Views:
    """Rendered views in the encoder's normalised pixels.

    first, end: (B, 3, H, H) the global views v1 and v2. intermediates: (B, K, 3, H, H) targets u_1 .. u_K, with v2 as
    one more where the final state is a target too, or None where not asked for. parameters: (B, P) of the
    transformation g, in its path's units.
    local: (B, L, 3, h, h) local crops, or None. masks: (B, 2, N) booleans, true where a patch of v1, v2 is hidden, or
        None.
    """

    first: torch.Tensor
    end: torch.Tensor
    intermediates: torch.Tensor | None
    parameters: torch.Tensor
    local: torch.Tensor | None = None
    masks: torch.Tensor | None = None


@dataclass(frozen=True)
class MultiCrop:
    """`number` local crops of `size` pixels, seen by the student alone (arXiv:2006.09882, section 3.3)."""

    number: int
    size: int


def training_canvas_size(augmentation: str, image_size: int, local_crops: MultiCrop | None = None) -> int:
    """Side in pixels of the canvas in which the smallest crops of square images have as many pixels as their views; a
    multiple of 8."""
    *global_views, local_view = AUGMENTATIONS[augmentation]
    views = [(view, image_size) for view in global_views]
    if local_crops:
        views.append((local_view, local_crops.size))
    sides = [size / math.sqrt(view.crop_scale[0]) for view, size in views]
    return 8 * math.ceil(max(*sides, _MIN_CANVAS * image_size) / 8)


# ------------------------------------------------------------------------------------------------------------------ random parameters


def random_resized_crop(
    draws: dict[str, torch.Tensor], sizes: torch.Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> torch.Tensor:
    """Crops as torchvision's `RandomResizedCrop` draws them: the first of 10 that fits, else the largest one within the
    ratio limits.

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
    crop_width, crop_height = crop_width.clamp_min(1), crop_height.clamp_min(1)
    place = draws["place"]
    left = torch.where(any_fits, place[:, 0] * (width - crop_width + 1), (width - crop_width) / 2).floor()
    top = torch.where(any_fits, place[:, 1] * (height - crop_height + 1), (height - crop_height) / 2).floor()
    left = torch.minimum(left, width - crop_width)  # a draw next to 1 may be rounded up
    top = torch.minimum(top, height - crop_height)
    return torch.stack([left, top, crop_width, crop_height], dim=-1)


def sample_view(
    augmentation: Augmentation, draws: torch.Tensor, sizes: torch.Tensor, image_size: int
) -> ViewParameters:
    """Uniform draws (B, 33) and original sizes (B, 2) = (height, width) in pixels -> one view's parameters."""
    a = augmentation
    draw = dict(zip(_DRAWS, draws.split(list(_DRAWS.values()), dim=-1), strict=True))
    if a.crop_scale == (1.0, 1.0):
        height, width = sizes.to(draws.dtype).unbind(dim=-1)
        box = torch.stack([torch.zeros_like(width), torch.zeros_like(width), width, height], dim=-1)
    else:
        box = random_resized_crop(draw, sizes, a.crop_scale, a.crop_ratio)
    change = (2 * draw["color"] - 1) * ops.constant(a.color, draws) * (draw["is_colored"] < a.color_probability)
    color = torch.cat([(1 + change[:, :3]).clamp_min(0), change[:, 3:]], dim=-1)
    order = ops.constant(_ORDERS, sizes)[(draw["order"][:, 0] * len(_ORDERS)).long()]
    sigma = (
        _between(a.blur_sigma, draw["sigma"]) * (draw["is_blurred"] < a.blur_probability) * (image_size / SIGMA_SIZE)
    )
    return ViewParameters(
        box=box,
        flip=draw["flip"][:, 0] < a.flip_probability,
        color=color,
        order=order,
        grey=draw["is_grey"][:, 0] < a.grey_probability,
        sigma=sigma[:, 0],
        solarize=draw["is_solarized"][:, 0] < a.solarize_probability,
    )


def _between(limits: tuple[float, float], uniform: torch.Tensor) -> torch.Tensor:
    return limits[0] + (limits[1] - limits[0]) * uniform


# ----------------------------------------------------------------------------------------------------------------------------- rendering


class ViewRenderer:
    """Draws and renders the views of a batch of canvases.

    The views of a sample are the same in any batch, up to 1e-5 of rounding, and the same bit for bit in the same batch.

    Args:
        path: the transformation path of the second view.
        image_size: side H of the global views in pixels.
        num_intermediates: K.
        augmentation: a key of `AUGMENTATIONS`; `"path_only"` leaves v1 = I and u = I (the paper's "rot"), the others
            are its "all".
        border: what lies outside a moved view: `"canvas"` (the photograph goes on, and beyond its edge its mirror
            image), `"zeros"` (black), `"reflection"`.
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
        self._normalization = (
            1 / torch.tensor(std)[:, None, None],
            (torch.tensor(mean) / torch.tensor(std))[:, None, None],
        )
        reach = path_reach(path) if border == "canvas" else 1.0
        self._num_points = 2 * math.ceil(reach * image_size * _DENSITY / 2 + _MARGIN)  # of the region along each axis

    def compile(self, **kwargs: Any) -> None:
        """Compile the rendering by `torch.compile`, in place; the random numbers stay outside of it."""
        self._render, self._render_local = (
            torch.compile(self._render, **kwargs),
            torch.compile(self._render_local, **kwargs),
        )

    @property
    def target_fractions(self) -> list[float]:
        """How far along the path each target lies: k / (K + 1), and 1 where the final state is one."""
        return intermediate_fractions(self.num_intermediates) + [1.0] * self.include_final

    def sample(
        self, epochs: torch.Tensor, keys: torch.Tensor, sizes: torch.Tensor
    ) -> tuple[ViewParameters, ViewParameters, SampledPath]:
        """Parameters of the first view, of the second view's base, and of the path, for sample keys (B,) in epochs
        (B,)."""
        draws = self._draw(epochs, keys, [_FIRST, _SECOND, _PATH], max(NUM_DRAWS, self.path.num_parameters))
        first, second = (
            sample_view(a, draws[:, i, :NUM_DRAWS], sizes, self.image_size) for i, a in enumerate(self.augmentations)
        )
        return first, second, self.path.sample(draws[:, 2, : self.path.num_parameters])

    def sample_local(self, epochs: torch.Tensor, keys: torch.Tensor, sizes: torch.Tensor) -> ViewParameters:
        """Parameters of the L local crops of each sample, those of a sample one after the other: (B * L, ...)."""
        assert self.local_crops is not None
        number = self.local_crops.number
        draws = self._draw(epochs, keys, list(range(_LOCAL, _LOCAL + number)), NUM_DRAWS)
        return sample_view(
            self.local_augmentation, draws.flatten(0, 1), sizes.repeat_interleave(number, dim=0), self.image_size
        )

    def _draw(self, epochs: torch.Tensor, keys: torch.Tensor, streams: list[int], count: int) -> torch.Tensor:
        """Uniform numbers (B, streams, count), in one go: on a GPU their cost is the number of launches."""
        batch, number = len(keys), len(streams)
        stream = ops.constant(streams, keys).repeat(batch)
        flat = uniforms(self.seed, epochs.repeat_interleave(number), keys.repeat_interleave(number), stream, count)
        return flat.unflatten(0, (batch, number))

    @torch.no_grad()
    def __call__(
        self,
        canvases: torch.Tensor,
        sizes: torch.Tensor,
        epochs: torch.Tensor,
        keys: torch.Tensor,
        with_intermediates: bool = True,
    ) -> Views:
        """uint8 canvases (B, 3, S, S), sizes (B, 2), epochs (B,), sample keys (B,), all on one device -> views."""
        first, second, path = self.sample(epochs, keys, sizes)
        fractions = (intermediate_fractions(self.num_intermediates) if with_intermediates else []) + [1.0]
        moves = Transformation.stack([path.at(t) for t in fractions])
        rendered = [
            self._render(canvases[rows], sizes[rows], first[rows], second[rows], moves[rows])
            for rows in _parts(canvases, self._num_points**2 + (1 + len(fractions)) * self.image_size**2)
        ]
        images, states = (torch.cat(parts) for parts in zip(*rendered, strict=True))
        return Views(
            first=images,
            end=states[:, -1],
            intermediates=states[:, : len(self.target_fractions)] if with_intermediates else None,
            parameters=path.parameters,
            local=self._local(canvases, sizes, epochs, keys) if self.local_crops else None,
            masks=self.masking.sample(self.seed, epochs, keys, _MASKS, self.image_size // self.patch_size)
            if self.masking
            else None,
        )

    def _local(
        self, canvases: torch.Tensor, sizes: torch.Tensor, epochs: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """uint8 canvases (B, 3, S, S) -> local crops (B, L, 3, h, h)."""
        assert self.local_crops is not None
        number = self.local_crops.number
        drawn = self.sample_local(epochs, keys, sizes)
        parts = [
            self._render_local(canvases[rows], sizes[rows], drawn[slice(rows.start * number, rows.stop * number)])
            for rows in _parts(canvases, number * self.local_crops.size * canvases.shape[-1])
        ]
        return torch.cat(parts).unflatten(0, (-1, number))

    def _render_local(self, canvases: torch.Tensor, sizes: torch.Tensor, drawn: ViewParameters) -> torch.Tensor:
        """uint8 canvases (B, 3, S, S), parameters (B * L, ...) -> local crops (B * L, 3, h, h)."""
        assert self.local_crops is not None
        crops = _resized_crop(
            _lines(canvases), sizes.repeat_interleave(self.local_crops.number, dim=0), drawn, self.local_crops.size
        )
        return self.normalize(_recolor(crops, self.local_augmentation, drawn, drawn.sigma)[0])

    def _render(
        self,
        canvases: torch.Tensor,
        sizes: torch.Tensor,
        first: ViewParameters,
        second: ViewParameters,
        moves: Transformation,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 canvases (B, 3, S, S), moves (B, V, ...) -> the first view (B, 3, H, H) and the second's states (B, V,
        3, H, H)."""
        lines = _lines(canvases)
        images = _resized_crop(lines, sizes, first, self.image_size)
        images, _ = _recolor(images, self.augmentations[0], first, first.sigma)
        return self.normalize(images), self._states(lines, sizes, second, moves)

    def _states(
        self, lines: torch.Tensor, sizes: torch.Tensor, drawn: ViewParameters, moves: Transformation
    ) -> torch.Tensor:
        """uint8 canvases (B, S, 3, S), states of the path (B, V, ...) -> normalised states of u (B, V, 3, H, H)."""
        number = moves.num_states
        sigma = drawn.sigma[:, None].expand(-1, number)
        coverage = None
        if moves.matrix is None:
            proxy = _resized_crop(lines, sizes, drawn, self.image_size)
            states = proxy[:, None].expand(-1, number, -1, -1, -1)
        else:
            region = _resized_region(lines, sizes, drawn, self.image_size, self._num_points)
            proxy, states, coverage = self._read(region, moves)
            sigma = sigma * ops.magnification(moves.matrix)
        states = states.flatten(0, 1)
        # The contrast's pivots are those of u for all its states, which else would show how much of u has left the
        # view.
        augmentation, pivots, pivot = self.augmentations[1], None, None
        if augmentation.recolors or moves.color is not None:
            proxy, pivots = _recolor(proxy, augmentation, drawn, drawn.sigma * (proxy.shape[-1] / self.image_size))
            pivots = None if pivots is None else pivots.repeat_interleave(number, dim=0)
            pivot = ops.luminance(proxy).mean(dim=(1, 2, 3)).repeat_interleave(number)
        owner = torch.arange(len(lines), device=lines.device).repeat_interleave(number)
        states, _ = _recolor(states, augmentation, drawn[owner], sigma.flatten(), pivots)
        if moves.color is not None:
            states = ops.adjust_color(states, moves.color.flatten(0, 1), pivot)
        if moves.sigma is not None:
            states = ops.gaussian_blur(states, moves.sigma.flatten() * (self.image_size / SIGMA_SIZE))
        if coverage is not None:
            states = states * coverage.flatten(0, 1)
        return self.normalize(states).unflatten(0, (-1, number))

    def _read(
        self, region: torch.Tensor, moves: Transformation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Region around u (B, 3, n, n) -> small u (B, 3, h, h), states (B, V, 3, H, H), their coverage (B, V, 1, H, H)
        or None."""
        assert moves.matrix is not None
        scale = _DENSITY * self.image_size / self._num_points
        shift = -2 * _OFF_CENTRE / self._num_points
        from_view = ops.constant([[scale, 0, shift], [0, scale, shift], [0, 0, 1]], moves.matrix)
        still = torch.eye(3, device=region.device).expand(len(region), 1, 3, 3)
        grid, _ = ops.sampling_grid(
            from_view.expand_as(still), still, min(self.image_size, _PROXY_SIZE), "canvas", projective=False
        )
        proxy = ops.sample(region, grid, "border").squeeze(1)
        grid, coverage = ops.sampling_grid(
            from_view.expand_as(moves.matrix), moves.matrix, self.image_size, self.border, moves.projective
        )
        return proxy.clamp(0, 1), ops.sample(region, grid, "border").clamp(0, 1), coverage

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) in [0, 1] -> normalised."""
        scale, shift = (constant.to(images.device, non_blocking=True) for constant in self._normalization)
        return images * scale - shift


def path_reach(path: TransformationPath) -> float:
    """How far from its middle the views of a path read u, in halves of its side: 1 where nothing moves; at most 3.

    The parameters' extremes decide, at any fraction of the way; a path of many parameters has too many corners for all
    to be tried.
    """
    corners = torch.rand(4096, path.num_parameters, generator=torch.Generator().manual_seed(0)).round()
    drawn = path.sample(corners)
    view = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]])
    reach = torch.tensor(1.0)
    for step in range(1, 9):
        matrix = drawn.at(step / 8).matrix
        if matrix is None:
            return 1.0
        moved = view @ matrix.transpose(1, 2)
        behind = moved[..., 2:] <= 0  # the horizon lies within the view
        places = (moved[..., :2] / moved[..., 2:]).abs().masked_fill(behind, _MAX_REACH).nan_to_num(_MAX_REACH)
        reach = torch.maximum(reach, places.max())
    return min(reach.item(), _MAX_REACH)


def _lines(canvases: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S) -> (B, S, 3, S), of whole lines."""
    return canvases.transpose(1, 2).contiguous()


def _resized_crop(lines: torch.Tensor, sizes: torch.Tensor, drawn: ViewParameters, size: int) -> torch.Tensor:
    """uint8 canvases (B, S, 3, S), sizes (B * L, 2) and L views of each -> their crops (B * L, 3, size, size) in [0,
    1]."""
    num_pixels = lines.shape[1]
    filters = []
    for begin, length, content, is_reduced, sign in _axes(sizes, drawn, num_pixels):
        centers = _on_axis(begin, length, sign, _pixel_centres(size, lines.device))
        # Only pixels of the crop count; in a reduced canvas its edges lie within pixels, which then do.
        limits = (begin + 1e-3).floor(), torch.minimum((begin + length - 1e-3).ceil(), content)
        width = (length / size).clamp_min(1)
        sharpening = (_CANVAS_LOSS / width**2 * is_reduced, width)
        bound = max(num_pixels / size, 1)
        filters.append(ops.bicubic_filter(centers, width, limits, num_pixels, (num_pixels / size, bound), sharpening))
    return _filtered(lines, filters, size).contiguous()


def _resized_region(
    lines: torch.Tensor, sizes: torch.Tensor, drawn: ViewParameters, size: int, num_points: int
) -> torch.Tensor:
    """uint8 canvases (B, S, 3, S) -> the crops and what is around them, (B, 3, n, n) in [0, 1], with the detail of
    views of `size` pixels.

    Point i is where a view has the coordinate (2 i + 1 - n) / n of the region; beyond the image its mirror image goes
    on.
    """
    num_pixels = lines.shape[1]
    places = (torch.arange(num_points, device=lines.device) + (0.5 - num_points / 2 + _OFF_CENTRE)) * (
        2 / (size * _DENSITY)
    )
    filters = []
    for begin, length, content, is_reduced, sign in _axes(sizes, drawn, num_pixels):
        centers = torch.remainder(_on_axis(begin, length, sign, places), 2 * content[:, None])
        centers = content[:, None] - (centers - content[:, None]).abs()
        width = (length / size).clamp_min(1)
        # 3 for the one: the second difference at half the distance is a quarter as large for wide details, half for the
        # finest.
        sharpening = (_READING_LOSS + 3 * _CANVAS_LOSS / width**2 * is_reduced, length / (size * _DENSITY))
        bounds = (num_pixels / (size * _DENSITY), max(num_pixels / size, 1))
        filters.append(
            ops.bicubic_filter(centers, width, (torch.zeros_like(content), content), num_pixels, bounds, sharpening)
        )
    return _filtered(lines, filters, num_points)


def _axes(sizes: torch.Tensor, drawn: ViewParameters, num_pixels: int) -> list[tuple[torch.Tensor, ...]]:
    """For y and x: begin and length of the crops and of the content in pixels of the canvas, whether it is reduced, the
    flip's sign."""
    original = sizes.to(drawn.box.dtype)
    content = original.clamp_max(num_pixels)
    box = drawn.box * (content / original)[:, [1, 0, 1, 0]]
    sign = 1 - 2 * drawn.flip.to(box.dtype)
    left, top, width, height = box.unbind(dim=-1)
    is_reduced = content < original
    return [
        (top, height, content[:, 0], is_reduced[:, 0], torch.ones_like(sign)),
        (left, width, content[:, 1], is_reduced[:, 1], sign),
    ]


def _pixel_centres(size: int, device: torch.device) -> torch.Tensor:
    return torch.arange(1 - size, size, 2, device=device) / size


def _on_axis(begin: torch.Tensor, length: torch.Tensor, sign: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Places (n,) in a view, from -1 to 1, in pixels of the canvas: (B, n)."""
    half = (length / 2)[:, None]
    return begin[:, None] + half + half * sign[:, None] * places


def _filtered(lines: torch.Tensor, filters: list[ops.Filter], size: int) -> torch.Tensor:
    """uint8 canvases (B, S, 3, S), filters along y and x for N views -> (N, 3, size, size), in [0, 1] but for
    overshoots."""
    along_y = ops.apply_filter(lines, filters[0], size)  # (N, size, 3, S)
    both = ops.apply_filter(along_y.permute(0, 3, 2, 1), filters[1], size)  # (N, size of x, 3, size of y)
    return both.permute(0, 2, 3, 1) / 255


def _recolor(
    images: torch.Tensor,
    augmentation: Augmentation,
    drawn: ViewParameters,
    sigma: torch.Tensor,
    pivots: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Colour, blur and solarisation of images (N, 3, h, w), and the pivots (N, 6) of the contrast (`ops.jitter_color`).

    sigma: (N,) in pixels of the images.
    """
    images = images.clamp(0, 1)
    if augmentation.recolors:
        images, pivots = ops.jitter_color(images, drawn.color, drawn.order, pivots)
        images = ops.adjust_saturation(images, 1 - drawn.grey.to(images.dtype))
    if augmentation.blur_probability:
        images = ops.gaussian_blur(images, sigma)
    if augmentation.solarize_probability:
        images = ops.solarize(images, drawn.solarize)
    return images, pivots


def _parts(canvases: torch.Tensor, pixels_per_sample: int) -> list[slice]:
    """As many samples at a time as fit a CPU's cache, one for each thread at least, or a part of a GPU's memory."""
    per_sample = 3 * (pixels_per_sample + canvases.shape[-1] ** 2)
    is_cpu = canvases.device.type == "cpu"
    size = max(torch.get_num_threads() if is_cpu else 1, (_CPU_VALUES if is_cpu else _GPU_VALUES) // per_sample)
    return [slice(start, min(start + size, len(canvases))) for start in range(0, len(canvases), size)]
