"""What the page shows, as numbers: one picture walked along a transformation path, seen through a model. This file
knows neither the page nor the server."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForPreTraining

import eqcohvit  # noqa: F401  (registers the model)
from controls import Choice
from eqcohvit import pool_tokens
from eqcohvit.evaluation.pairs import band_limited, strict_crop
from eqcohvit.files import first_line
from eqcohvit.hub.image_reading_eqcohvit import quiet, read_image
from eqcohvit.loading import check_loaded, find_model
from eqcohvit.transforms import Transformation, TransformationPath, ops

MAX_BYTES = 10 * 1024**2
MAX_PIXELS = 25_000_000
MIN_SIDE = 8
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PSNR = 99.0  # stands for the infinite one of two equal images
PARTS = ("equivariant", "invariant")
BORDERS = {False: "canvas", True: "zeros"}  # by whether corners are black
_READ_DENSITY = 4  # pixels of the canvas for each pixel of a view


class BadPicture(ValueError):
    """The page does not accept the visitor's file; the message is for the visitor."""


def read_picture(file: Path) -> Image.Image:
    """A file -> RGB picture, upright as its EXIF data says.

    Raises:
        BadPicture: the file is too large, too small, or not a picture.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise BadPicture(f"This file has {size / 1024**2:.1f} MB; the limit is {MAX_BYTES // 1024**2} MB.")
    try:
        content = file.read_bytes()
        with quiet(), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise BadPicture(
                    f"This picture has {width} × {height} pixels; the limit is {MAX_PIXELS // 10**6} million."
                )
            if min(width, height) < MIN_SIDE:
                raise BadPicture(f"This picture has {width} × {height} pixels; each side needs at least {MIN_SIDE}.")
        return read_image(content)
    except BadPicture:
        raise
    except Exception:  # broken files make the readers raise almost anything
        raise BadPicture(f"This file cannot be read as a picture. The page takes {', '.join(FORMATS)}.") from None


@dataclass(frozen=True)
class Canvas:
    """A picture from which views are read.

    pixels: (B, 3, S, S), the middle squares. crop: share of a square's side that a view shows.
    """

    pixels: torch.Tensor
    crop: float


@dataclass(frozen=True)
class Walk:
    """A picture at T fractions of the way along a path; K of them are the states that the decoders reconstruct.

    parameters: (P,) of the path, at its end.
    fractions: T numbers from 0 (the first view) to 1 (the end view).
    states: indices of the K intermediate states among them.
    images: (T, 3, H, H) in [0, 1].
    reconstructions: (K, 3, H, H) in [0, 1], of the states, from the equivariant features of the first and the end view.
    psnr: of each reconstruction, in dB. nearest_psnr: of the first or the end view, whichever is closer to the state.
    pooled: part -> (T, 2 d), the CLS and the mean feature of each image.
    patches: part -> (2, h, w, d), the patch features of the first and of the end view.
    """

    parameters: torch.Tensor
    fractions: list[float]
    states: list[int]
    images: torch.Tensor
    reconstructions: torch.Tensor
    psnr: list[float]
    nearest_psnr: list[float]
    pooled: dict[str, torch.Tensor]
    patches: dict[str, torch.Tensor]


class SplitModel:
    """An EqCohViT with its decoders, for pictures in and numbers out; eval mode, no gradients.

    Raises:
        ValueError: there is no EqCohViT with decoders under this name.
    """

    def __init__(self, name_or_path: str):
        place = find_model(name_or_path)
        try:
            model, info = AutoModelForPreTraining.from_pretrained(place, output_loading_info=True)
            processor = AutoImageProcessor.from_pretrained(place)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"no model at {name_or_path}: {first_line(error)}") from None
        if model.config.model_type != "eqcohvit":
            raise ValueError(f"expected an EqCohViT model, {name_or_path} is of model_type {model.config.model_type!r}")
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(
                f"expected a model with its decoders, {name_or_path} lacks {len(missing)} weights, first {missing[0]}"
            )
        check_loaded(model, info, name_or_path)
        self.name = Path(name_or_path).name if Path(name_or_path).exists() else name_or_path
        self.model = model.float().eval()
        self.config = model.config
        self.processor = processor
        self.mean = torch.tensor(processor.image_mean)[:, None, None]
        self.std = torch.tensor(processor.image_std)[:, None, None]
        self.side = self.config.square_image_size
        self.grid = self.side // self.config.square_patch_size

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.eqcohvit.parameters())

    def canvas(self, pictures: list[Image.Image], path: TransformationPath) -> Canvas:
        """The middle squares of pictures. Views of them show so much of it that real pixels fill every state of the
        path, and have the same sharpness in every state."""
        crop = strict_crop(path)
        view_side = self.side / crop
        side = math.ceil(2 * view_side)
        squares = [ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC) for picture in pictures]
        pixels = torch.stack([_to_tensor(square) for square in squares])
        sides = torch.tensor([float(min(picture.size)) for picture in pictures])
        return Canvas(band_limited(pixels, sides, view_side, math.ceil(_READ_DENSITY * view_side)), crop)

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, 3, H, H) in [0, 1] -> token features (B, P + N, d) of each part."""
        outputs = self.model.eqcohvit((images - self.mean) / self.std)
        return {part: outputs[f"{part}_features"] for part in PARTS}

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Token features (B, P + N, d) -> CLS and mean of the patches side by side, (B, 2 d)."""
        return pool_tokens(features, self.config.num_prefix_tokens, "cls_mean")

    def pooled(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, 3, H, H) in [0, 1] -> pooled features (B, 2 d) of each part."""
        return {part: self.pool(tokens) for part, tokens in self.encode(images).items()}

    @torch.inference_mode()
    def decode(self, equivariant: torch.Tensor, equivariant_end: torch.Tensor) -> torch.Tensor:
        """Equivariant token features of both views -> reconstructions (B, K, 3, H, H) in [0, 1]."""
        reconstructions = self.model.reconstruct(equivariant, equivariant_end, (self.side, self.side))
        return (reconstructions * self.std + self.mean).clamp(0, 1)

    def walk(self, canvas: Canvas, choice: Choice, values: dict[str, float], black: bool = False) -> Walk:
        """Walk a picture along the chosen path to the end that the sliders' values say."""
        parameters = choice.parameters(values)
        num_states = self.config.num_intermediates
        num_steps = 2 * (num_states + 1)
        states = list(range(2, num_steps, 2))
        fractions = [step / num_steps for step in range(num_steps + 1)]
        t = torch.tensor(fractions)
        images = views(canvas, choice.path, parameters.expand(len(t), -1), t, self.side, black)[0]
        features = self.encode(images)
        equivariant = features["equivariant"]
        decoded = self.decode(equivariant[:1], equivariant[-1:])[0]
        return Walk(
            parameters=parameters[0],
            fractions=fractions,
            states=states,
            images=images,
            reconstructions=decoded,
            psnr=[psnr(decoded[k], images[step]) for k, step in enumerate(states)],
            nearest_psnr=[max(psnr(images[0], images[step]), psnr(images[-1], images[step])) for step in states],
            pooled={part: self.pool(tokens) for part, tokens in features.items()},
            patches={part: self._patches(tokens[[0, -1]]) for part, tokens in features.items()},
        )

    def _patches(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, self.config.num_prefix_tokens :].unflatten(1, (self.grid, self.grid))


def views(
    canvas: Canvas,
    path: TransformationPath,
    parameters: torch.Tensor,
    t: float | torch.Tensor,
    side: int,
    black: bool = False,
) -> torch.Tensor:
    """V states of each picture: canvas of B pictures, parameters (V, P) or (B * V, P) -> (B, V, 3, side, side).

    t: how far along the path, a number or (V,). black: whether a state is black beyond the frame of the view.
    """
    step = path.at(parameters, t)
    batch = len(canvas.pixels)
    count = len(parameters) if len(parameters) % batch or batch == 1 else len(parameters) // batch
    identity = torch.eye(3).expand(batch, count, 3, 3)
    motion = identity if step.matrix is None else step.matrix.view(-1, count, 3, 3).expand(batch, -1, -1, -1)
    crop = torch.diag(torch.tensor([canvas.crop, canvas.crop, 1.0])).expand_as(motion)
    grid, coverage = ops.sampling_grid(crop, motion, side, BORDERS[black])
    images = ops.sample(canvas.pixels, grid).clamp(0, 1).flatten(0, 1)
    if step.color is not None:
        still, _ = ops.sampling_grid(crop[:, :1], identity[:, :1], side, "canvas")
        pivot = ops.luminance(ops.sample(canvas.pixels, still)[:, 0].clamp(0, 1)).mean(dim=(1, 2, 3))
        images = ops.adjust_color(images, step.color, pivot.repeat_interleave(count))
    if step.sigma is not None:
        images = Transformation(sigma=step.sigma)(images)
    images = images.clamp(0, 1).unflatten(0, (batch, count))
    return images if coverage is None else images * coverage


def sharp_canvas(picture: Image.Image, path: TransformationPath, side: int) -> Canvas:
    """The same middle square as `SplitModel.canvas` at the resolution of views with `side` pixels, for people."""
    crop = strict_crop(path)
    square = math.ceil(side / crop)
    return Canvas(_to_tensor(ImageOps.fit(picture, (square, square), Image.Resampling.BICUBIC))[None], crop)


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    """RGB picture -> (3, h, w) in [0, 1]."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


def psnr(image: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], at most `MAX_PSNR`."""
    error = F.mse_loss(image, target).item()
    return min(MAX_PSNR, -10 * torch.tensor(max(error, 1e-12)).log10().item())


def similarity_to_start(pooled: torch.Tensor, center: torch.Tensor) -> list[float]:
    """Cosine of each of the pooled features (T, d) with the first one, after subtracting `center` (d,): 1 is unmoved, 0
    unrelated."""
    centered = pooled - center
    return F.cosine_similarity(centered, centered[:1], dim=-1).tolist()


def principal_colors(features: torch.Tensor) -> torch.Tensor:
    """The three principal components of patch features (2, h, w, d) of both images together, as colors (2, h, w, 3) in
    [0, 1]."""
    flat = features.flatten(0, 2).float()
    flat = flat - flat.mean(dim=0)
    components = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
    signs = torch.gather(
        components, 1, components.abs().argmax(dim=1, keepdim=True)
    ).sign()  # the sign of an axis is arbitrary
    scores = flat @ (components * signs).T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    return ((scores - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).view(*features.shape[:3], 3)


def patch_similarity(features: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Cosine (2, h, w) of all patches of both images with one patch of the first, after subtracting the mean patch;
    features (2, h, w, d)."""
    centered = features.float() - features.float().mean(dim=(0, 1, 2))
    return F.cosine_similarity(centered, centered[0, row, column], dim=-1)
