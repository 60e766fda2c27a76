"""The views of a training sample: random parameters first, then rendering from the canvas (paper, sections 3.1 and
3.2).

    v1 = A1(I),  u = A2(I),  v2 = g(u),  targets u_k = g at k / (K + 1) of the way, applied to u,
    local crops of I,  masks of the patches of v1 and v2

All states of u share the parameters of their colors, blur and solarization, so they differ by g only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import ops
from .augmentations import AUGMENTATIONS, NUM_DRAWS, ViewParameters, recolor, sample_view
from .canvases import content, split, without_empty
from .masks import BlockMasking
from .paths import SampledPath, Transformation, TransformationPath, intermediate_fractions, path_reach
from .random import uniforms
from .render import render, still_view
from .resize import DENSITY, OFF_CENTER, by_lines, resized_crop, resized_region

# Random streams. Local crop i has the stream _LOCAL + i.
_FIRST, _SECOND, _PATH, _MASKS, _BORDER = range(5)
_LOCAL = 16

# What a training view shows outside of u: one of `ops.BORDERS`, or for each sample the photograph or black.
VIEW_BORDERS = ("canvas", "zeros", "reflection", "mixed")
_MIN_CANVAS = 1.5  # least canvas side, in sides of the view; details lost in a smaller one cannot be restored
_MARGIN = 4  # points of the region beyond those that the views read
_PIVOT_SIZE = 64  # side in pixels of the small u on which the contrast's pivots are measured


@dataclass(frozen=True)
class Views:
    """Rendered views in the encoder's normalized pixels.

    first, end: (B, 3, H, H), the global views v1 and v2. intermediates: (B, K, 3, H, H), the targets u_1 .. u_K,
    followed by v2 if the final state is a target too; None if not requested. parameters: (B, P) of the transformation
    g, in its path's units. local: (B, L, 3, h, h) local crops, or None. masks: (B, 2, N) booleans, true where a patch
    of v1, v2 is hidden, or None.
    """

    first: torch.Tensor
    end: torch.Tensor
    intermediates: torch.Tensor | None
    parameters: torch.Tensor
    local: torch.Tensor | None = None
    masks: torch.Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """All that is random about the views of B samples.

    first: of v1. second: of u. moves: (B, V, ...), from u to the targets and v2. parameters: (B, P) of g. local: (B *
    L, ...) or None. masks: (B, 2, N) booleans or None. black: (B,) booleans, whose corners are black, or None if all
    samples are alike. sizes: (B, 2) of the original images. largest: the longest side of them in pixels.
    """

    first: ViewParameters
    second: ViewParameters
    moves: Transformation
    parameters: torch.Tensor
    local: ViewParameters | None
    masks: torch.Tensor | None
    black: torch.Tensor | None
    sizes: torch.Tensor
    largest: int

    def map(self, function: Callable[[torch.Tensor], Any]) -> Draws:
        """`function` of each tensor."""
        return ops.mapped(self, function)

    def to(self, device: torch.device) -> Draws:
        """On a device, without waiting for a copy to a GPU."""
        if device.type == "cuda" and self.sizes.device.type == "cpu":
            return self.map(lambda values: values.pin_memory().to(device, non_blocking=True))
        return self.map(lambda values: values.to(device))


@dataclass(frozen=True)
class MultiCrop:
    """`number` local crops of `size` pixels, which only the student sees (arXiv:2006.09882, section 3.3)."""

    number: int
    size: int


def training_canvas_size(augmentation: str, image_size: int, local_crops: MultiCrop | None = None) -> int:
    """Side in pixels of a canvas in which the smallest crops of square images have as many pixels as their views.

    It is a multiple of 8.
    """
    *global_views, local_view = AUGMENTATIONS[augmentation]
    views = [(view, image_size) for view in global_views]
    if local_crops:
        views.append((local_view, local_crops.size))
    sides = [size / math.sqrt(view.crop_scale[0]) for view, size in views]
    return 8 * math.ceil(max(*sides, _MIN_CANVAS * image_size) / 8)


class ViewRenderer:
    """Draws and renders the views of a batch of canvases.

    A sample's views are the same in any batch, up to 1e-5 of rounding, and bit for bit in the same batch.

    Args:
        path: the transformation path of the second view.
        image_size: side H of the global views in pixels.
        num_intermediates: K.
        augmentation: a key of `AUGMENTATIONS`. `"path_only"` keeps v1 = I and u = I (the paper's "rot"); the others are
            the paper's "all".
        border: what appears where a moved view reads outside of u: `"canvas"` (the photograph, and beyond its edge its
            mirror image), `"zeros"` (black), `"reflection"` (the mirror image of u), `"mixed"` (black in half of the
            samples, the photograph in the others).
        include_final: also make v2 a target, after u_K (the paper's "2 + final").
        local_crops: number and size of the local crops, or None.
        masking: how the patches of both global views are masked, or None.
        patch_size: side of a patch in pixels, for the masks.
        mean, std: normalization of the encoder, per channel.
        seed: of all random numbers, together with the epochs and keys of the samples.

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
        if border not in VIEW_BORDERS:
            raise ValueError(f"unknown border {border!r}; known: {', '.join(VIEW_BORDERS)}")
        if num_intermediates < 1:
            raise ValueError(f"num_intermediates must be at least 1, got {num_intermediates}")
        self.path = path
        self.image_size = image_size
        self.border = border
        self.seed = seed
        self.num_intermediates = num_intermediates
        self.include_final = include_final
        self.local_crops = local_crops
        self.masking = masking
        self.patch_size = patch_size
        *self.augmentations, self.local_augmentation = AUGMENTATIONS[augmentation]
        self.mean = mean
        self.std = std
        self._scale = tuple((1 / torch.tensor(std)).tolist())
        self._shift = tuple((torch.tensor(mean) / torch.tensor(std)).tolist())
        reach = path_reach(path) if border in ("canvas", "mixed") else 1.0
        self.num_points = 2 * math.ceil(reach * image_size * DENSITY / 2 + _MARGIN)  # of the region along each axis
        self._render_global = self._global_views
        self._render_local = self._local_views

    def compile(self, **kwargs: Any) -> None:
        """Compile the rendering by `torch.compile`, in place: one graph for the global views, one for local crops."""
        self._render_global = torch.compile(self._global_views, dynamic=False, **kwargs)
        self._render_local = torch.compile(self._local_views, dynamic=False, **kwargs)

    def compile_on_gpu(self, device: torch.device) -> None:
        """Compile if `device` is a GPU, where launching the many small operations takes longer than their work.

        A CPU renders as fast without, and starts at once. Training loops call this whether or not they compile the
        model.
        """
        if device.type == "cuda":
            self.compile()

    @property
    def target_fractions(self) -> list[float]:
        """How far along the path each target is: k / (K + 1), then 1 if the final state is a target."""
        return intermediate_fractions(self.num_intermediates) + [1.0] * self.include_final

    def sample(
        self, *, sizes: torch.Tensor, keys: torch.Tensor, epochs: torch.Tensor
    ) -> tuple[ViewParameters, ViewParameters, SampledPath]:
        """Parameters of the first view, of the second view's base, and of the path; arguments as of a call."""
        count = max(NUM_DRAWS, self.path.num_parameters)
        draws = self._draw(keys, epochs, [_FIRST, _SECOND, _PATH], count)
        first, second = self.augmentations
        return (
            sample_view(first, draws[:, _FIRST, :NUM_DRAWS], sizes, self.image_size),
            sample_view(second, draws[:, _SECOND, :NUM_DRAWS], sizes, self.image_size),
            self.path.sample(draws[:, _PATH, : self.path.num_parameters]),
        )

    def sample_local(self, *, sizes: torch.Tensor, keys: torch.Tensor, epochs: torch.Tensor) -> ViewParameters:
        """Parameters of the L local crops of each sample, sample by sample: (B * L, ...)."""
        assert self.local_crops is not None
        number = self.local_crops.number
        draws = self._draw(keys, epochs, list(range(_LOCAL, _LOCAL + number)), NUM_DRAWS).flatten(0, 1)
        return sample_view(self.local_augmentation, draws, sizes.repeat_interleave(number, dim=0), self.image_size)

    def _draw(self, keys: torch.Tensor, epochs: torch.Tensor, streams: list[int], count: int) -> torch.Tensor:
        """Uniform numbers (B, streams, count), all in one call."""
        batch, number = len(keys), len(streams)
        flat = uniforms(
            self.seed,
            keys=keys.repeat_interleave(number),
            epochs=epochs.repeat_interleave(number),
            stream=ops.constant(tuple(streams), keys).repeat(batch),
            count=count,
        )
        return flat.unflatten(0, (batch, number))

    @torch.no_grad()
    def __call__(
        self,
        canvases: torch.Tensor,
        *,
        sizes: torch.Tensor,
        keys: torch.Tensor,
        epochs: torch.Tensor,
        with_intermediates: bool = True,
    ) -> Views:
        """Render a batch on the device of its canvases; all else is on the host.

        Args:
            canvases: uint8 (B, 3, S, S).
            sizes: int64 (B, 2), height and width of the original images in pixels.
            keys, epochs: int64 (B,); together with the seed they decide all that is random.
            with_intermediates: whether to render the targets.
        """
        return self.render(canvases, self.draw(sizes, keys, epochs, with_intermediates))

    @torch.no_grad()
    def draw(
        self, sizes: torch.Tensor, keys: torch.Tensor, epochs: torch.Tensor, with_intermediates: bool = True
    ) -> Draws:
        """All random parameters of a batch, on the host. It takes the same arguments as calling the renderer.

        They are hundreds of operations on a few numbers a sample, which a GPU would take longer to launch.
        """
        first, second, path = self.sample(sizes=sizes, keys=keys, epochs=epochs)
        fractions = intermediate_fractions(self.num_intermediates) if with_intermediates else []
        masks = black = None
        if self.border == "mixed":
            black = self._draw(keys, epochs, [_BORDER], 1).flatten() < 0.5
        if self.masking is not None:
            grid_size = self.image_size // self.patch_size
            masks = self.masking.sample(self.seed, keys=keys, epochs=epochs, stream=_MASKS, grid_size=grid_size)
        return Draws(
            first=first,
            second=second,
            moves=Transformation.stack([path.at(t) for t in [*fractions, 1.0]]),
            parameters=path.parameters,
            local=self.sample_local(sizes=sizes, keys=keys, epochs=epochs) if self.local_crops else None,
            masks=masks,
            black=black,
            sizes=sizes,
            largest=int(sizes.max()),
        )

    @torch.no_grad()
    def render(self, canvases: torch.Tensor, drawn: Draws) -> Views:
        """The views that `draw` has decided on, from uint8 canvases (B, 3, S, S)."""
        drawn = drawn.to(canvases.device)
        canvases = without_empty(canvases, drawn.largest)
        sizes = drawn.sizes
        first, states = self._render_global(canvases, sizes, drawn.first, drawn.second, drawn.moves, drawn.black)
        return Views(
            first=first,
            end=states[:, -1],
            intermediates=states[:, : len(self.target_fractions)] if states.shape[1] > 1 else None,
            parameters=drawn.parameters,
            local=None if drawn.local is None else self._render_local(canvases, sizes, drawn.local),
            masks=drawn.masks,
        )

    def _global_views(
        self,
        canvases: torch.Tensor,
        sizes: torch.Tensor,
        first: ViewParameters,
        second: ViewParameters,
        moves: Transformation,
        black: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """v1 (B, 3, H, H) and the states of u, (B, V, 3, H, H), for moves (B, V, ...)."""
        side = canvases.shape[-1]
        values = 3 * (self.num_points**2 + (1 + moves.num_states) * self.image_size**2 + side**2)
        parts = [
            self._render_part(
                canvases[rows],
                sizes[rows],
                first[rows],
                second[rows],
                moves[rows],
                None if black is None else black[rows],
            )
            for rows in split(canvases, values)
        ]
        return torch.cat([images for images, _ in parts]), torch.cat([states for _, states in parts])

    def _render_part(
        self,
        canvases: torch.Tensor,
        sizes: torch.Tensor,
        first: ViewParameters,
        second: ViewParameters,
        moves: Transformation,
        black: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 canvases (B, 3, S, S), moves (B, V, ...) -> v1 (B, 3, H, H) and the states of u (B, V, 3, H, H)."""
        lines = by_lines(content(canvases, sizes))
        images = resized_crop(lines, sizes, first, self.image_size)
        images, _ = recolor(images, self.augmentations[0], first, first.sigma)
        return self.normalize(images), self.normalize(self._states(lines, sizes, second, moves, black))

    def _states(
        self,
        lines: torch.Tensor,
        sizes: torch.Tensor,
        drawn: ViewParameters,
        moves: Transformation,
        black: torch.Tensor | None,
    ) -> torch.Tensor:
        """Canvases (B, S, 3, S), moves (B, V, ...) -> the states of u, (B, V, 3, H, H) in [0, 1]."""
        number = moves.num_states
        augmentation = self.augmentations[1]
        sigma = drawn.sigma[:, None].expand(-1, number)
        crop = None
        if moves.matrix is None:
            picture = still = resized_crop(lines, sizes, drawn, self.image_size)
        else:
            picture = resized_region(lines, sizes, drawn, self.image_size, self.num_points)
            crop = self.crop_of_region(picture)
            still = still_view(picture, crop, min(self.image_size, _PIVOT_SIZE))
            sigma = sigma * ops.magnification(moves.matrix)
        pivots = None
        pivot = None
        if augmentation.recolors or moves.color is not None:
            scale = still.shape[-1] / self.image_size
            still, pivots = recolor(still, augmentation, drawn, drawn.sigma * scale)
            pivot = ops.luminance(still).mean(dim=(1, 2, 3))
        shared_pivots = None if pivots is None else pivots.repeat_interleave(number, dim=0)
        owner = torch.arange(len(lines), device=lines.device).repeat_interleave(number)

        def recolor_states(states: torch.Tensor) -> torch.Tensor:
            return recolor(states, augmentation, drawn[owner], sigma.flatten(), shared_pivots, number)[0]

        border = "zeros" if black is not None else self.border
        return render(picture, crop, moves, border, self.image_size, pivot, recolor_states, black)

    def crop_of_region(self, region: torch.Tensor) -> torch.Tensor:
        """(3, 3), from coordinates in u to coordinates in the region around it."""
        scale = DENSITY * self.image_size / self.num_points
        shift = -2 * OFF_CENTER / self.num_points
        return ops.constant(((scale, 0.0, shift), (0.0, scale, shift), (0.0, 0.0, 1.0)), region)

    def _local_views(self, canvases: torch.Tensor, sizes: torch.Tensor, drawn: ViewParameters) -> torch.Tensor:
        """uint8 canvases (B, 3, S, S), parameters (B * L, ...) -> local crops (B, L, 3, h, h)."""
        assert self.local_crops is not None
        number, size = self.local_crops.number, self.local_crops.size
        parts = []
        for rows in split(canvases, 3 * canvases.shape[-1] * (number * size + canvases.shape[-1])):
            of_rows = drawn[slice(rows.start * number, rows.stop * number)]
            lines = by_lines(content(canvases[rows], sizes[rows]))
            crops = resized_crop(lines, sizes[rows].repeat_interleave(number, dim=0), of_rows, size)
            crops, _ = recolor(crops, self.local_augmentation, of_rows, of_rows.sigma)
            parts.append(self.normalize(crops))
        return torch.cat(parts).unflatten(0, (-1, number))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) in [0, 1] -> normalized."""
        scale = ops.constant(self._scale, images)[:, None, None]
        shift = ops.constant(self._shift, images)[:, None, None]
        return images * scale - shift
