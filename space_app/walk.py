"""What the page shows, as numbers: one picture walked along a transformation path, seen through a model. No page, no
server in here."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForPreTraining

import eqcohvit  # noqa: F401  (registers the model)
from controls import Choice
from eqcohvit import pool_tokens
from eqcohvit.hub.image_reading_eqcohvit import quiet, read_image
from eqcohvit.loading import check_loaded, find_model
from eqcohvit.transforms import TransformationPath, intermediate_fractions

MAX_BYTES = 10 * 1024**2
MAX_PIXELS = 25_000_000
MIN_SIDE = 8
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PSNR = 99.0  # of two equal images, which have none
PARTS = ("equivariant", "invariant")


class BadPicture(ValueError):
    """The visitor's file is no picture that the page takes; the message is for the visitor."""


def read_picture(file: Path) -> Image.Image:
    """A file -> RGB picture, upright as its EXIF data says.

    Raises:
        BadPicture: too large, too small, or no picture.
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
class Walk:
    """A picture at T fractions of the way along a path; K of them are the states that the decoders reconstruct.

    parameters: (P,) of the path, at its end.
    fractions: T numbers from 0 (the picture, the first view) to 1 (the end view).
    states: indices of the K intermediate states among them.
    images: (T, 3, H, H) in [0, 1].
    reconstructions: (K, 3, H, H) in [0, 1], of the states, from the equivariant features of the first and the end view.
    psnr: of each reconstruction, in dB; nearest_psnr: of whichever of the two views is closer to the state.
    sweep: (T, 3, H, H), the last state's reconstruction when the path ends at each of the fractions already.
    sweep_targets: (T, 3, H, H), what it should be.
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
    sweep: torch.Tensor
    sweep_targets: torch.Tensor
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
        except (OSError, RuntimeError) as error:
            raise ValueError(f"no model at {name_or_path}: {str(error).splitlines()[0]}") from None
        if model.config.model_type != "eqcohvit":
            raise ValueError(f"expected an EqCohViT model, {name_or_path} is of model_type {model.config.model_type!r}")
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(
                f"expected a model with its decoders, {name_or_path} lacks {len(missing)} weights, first {missing[0]}"
            )
        check_loaded(model, info, name_or_path)
        self.name = Path(name_or_path).name if Path(name_or_path).exists() else name_or_path
        self.model, self.config = model.float().eval(), model.config
        self.processor = processor
        self.mean, self.std = (
            torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        self.side = self.config.square_image_size
        self.grid = self.side // self.config.square_patch_size
        # Beyond the picture there is no canvas here: its mirror image is what training with a canvas of the same size
        # shows.
        self.border = "zeros" if self.config.border == "zeros" else "reflection"

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.eqcohvit.parameters())

    def view(self, picture: Image.Image) -> torch.Tensor:
        """The middle square of a picture at the model's size: (1, 3, H, H) in [0, 1]."""
        square = ImageOps.fit(picture, (self.side, self.side), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        return pixels.view(1, self.side, self.side, 3).permute(0, 3, 1, 2).float() / 255

    def move(
        self, images: torch.Tensor, path: TransformationPath, parameters: torch.Tensor, t: float | torch.Tensor
    ) -> torch.Tensor:
        """Images (B, 3, H, H) in [0, 1], parameters (B, P) -> their states at the fraction t, a number or (B,)."""
        return path.at(parameters, t)(images, self.border).clamp(0, 1)

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, 3, H, H) in [0, 1] -> token features (B, P + N, d) of each part."""
        outputs = self.model.eqcohvit((images - self.mean) / self.std)
        return {part: outputs[f"{part}_features"] for part in PARTS}

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Token features (B, P + N, d) -> CLS and mean of the patches side by side, (B, 2 d)."""
        return pool_tokens(features, self.config.num_prefix_tokens, "cls_mean")

    @torch.inference_mode()
    def decode(self, equivariant: torch.Tensor, equivariant_end: torch.Tensor) -> torch.Tensor:
        """Equivariant token features of both views -> reconstructions (B, K, 3, H, H) in [0, 1]."""
        reconstructions = self.model.reconstruct(equivariant, equivariant_end, (self.side, self.side))
        return (reconstructions * self.std + self.mean).clamp(0, 1)

    def walk(self, picture: Image.Image, choice: Choice, values: dict[str, float]) -> Walk:
        """Walk a picture along the chosen path to the end that the sliders' values say."""
        parameters = choice.parameters(values)
        num_states = self.config.num_intermediates
        num_steps = 2 * (num_states + 1)
        states = list(range(2, num_steps, 2))
        fractions = [step / num_steps for step in range(num_steps + 1)]
        first = self.view(picture)
        t = torch.tensor(fractions)
        images = self.move(first.expand(len(t), -1, -1, -1), choice.path, parameters.expand(len(t), -1), t)
        features = self.encode(images)
        equivariant = features["equivariant"]
        decoded = self.decode(equivariant[:1].expand_as(equivariant), equivariant)
        last = intermediate_fractions(num_states)[-1]
        return Walk(
            parameters=parameters[0],
            fractions=fractions,
            states=states,
            images=images,
            reconstructions=decoded[-1],
            psnr=[psnr(decoded[-1, k], images[step]) for k, step in enumerate(states)],
            nearest_psnr=[max(psnr(images[0], images[step]), psnr(images[-1], images[step])) for step in states],
            sweep=decoded[:, -1],
            sweep_targets=self.move(
                first.expand(len(t), -1, -1, -1), choice.path, parameters.expand(len(t), -1), last * t
            ),
            pooled={part: self.pool(tokens) for part, tokens in features.items()},
            patches=self._patches({part: tokens[[0, -1]] for part, tokens in features.items()}),
        )

    def patches(self, picture: Image.Image, choice: Choice, values: dict[str, float]) -> dict[str, torch.Tensor]:
        """Patch features of the picture and of its end view by part: (2, h, w, d)."""
        first = self.view(picture)
        return self._patches(
            self.encode(torch.cat([first, self.move(first, choice.path, choice.parameters(values), 1.0)]))
        )

    def _patches(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = {part: values[:, self.config.num_prefix_tokens :] for part, values in features.items()}
        return {part: values.unflatten(1, (self.grid, self.grid)) for part, values in tokens.items()}


def psnr(image: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], at most `MAX_PSNR`."""
    error = F.mse_loss(image, target).item()
    return min(MAX_PSNR, -10 * torch.tensor(max(error, 1e-12)).log10().item())


def similarity_to_start(pooled: torch.Tensor, centre: torch.Tensor) -> list[float]:
    """Cosine of each of the pooled features (T, d) with the first one, after taking `centre` (d,) away: 1 is unmoved, 0
    unrelated."""
    centred = pooled - centre
    return F.cosine_similarity(centred, centred[:1], dim=-1).tolist()


def principal_colours(features: torch.Tensor) -> torch.Tensor:
    """The three principal components of patch features (2, h, w, d), found over both images together, as colours (2, h,
    w, 3) in [0, 1]."""
    flat = features.flatten(0, 2).float()
    flat = flat - flat.mean(dim=0)
    components = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
    signs = torch.gather(
        components, 1, components.abs().argmax(dim=1, keepdim=True)
    ).sign()  # an axis has no direction of its own
    scores = flat @ (components * signs).T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    return ((scores - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).view(*features.shape[:3], 3)


def patch_similarity(features: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Cosine (2, h, w) of all patches of both images with one patch of the first, the mean patch taken away; features
    (2, h, w, d)."""
    centred = features.float() - features.float().mean(dim=(0, 1, 2))
    return F.cosine_similarity(centred, centred[0, row, column], dim=-1)
