"""How well the decoders rebuild the states between two views of test images, in dB."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..hub.configuration_eqcohvit import EqCohViTConfig
from ..hub.modeling_eqcohvit import EqCohViTForPreTraining
from ..loading import load_whole
from ..preprocessing import Preprocessing
from ..transforms import TransformationPath, intermediate_fractions, make_path
from .context import Evaluation
from .extraction import progress
from .intervals import accuracy_resampled, half_width
from .pairs import canvas_size, render_states
from .results import BLEND, NEARER, Row


@dataclass(frozen=True)
class Decoder:
    """A model with its decoders, the path that they were trained on, and the places of the states on it, in (0, 1]."""

    name: str
    model: EqCohViTForPreTraining
    preprocessing: Preprocessing
    path: TransformationPath
    fractions: list[float]


def reconstruction(evaluation: Evaluation) -> list[Row]:
    """PSNR of the reconstructed states of test images, on the path that each model was trained on, beside two pictures
    that need no model: the nearer of the two views, and both views blended as the state's place on the path says.

    10 log10(1 / MSE) of colors in [0, 1], for each image and state; the mean over the states. Each seed has its own
    draw of g. Nothing is fitted.

    Raises:
        ValueError: no model has decoders.
    """
    settings = evaluation.settings
    rows: list[Row] = []
    for decoder in _decoders(evaluation):
        for protocol in settings.protocol:
            metric = f"PSNR {decoder.path.name}, {protocol} (dB)"
            about = {"task": "reconstruction", "transform": decoder.path.name, "protocol": protocol}
            for (name, part), found in _measure(evaluation, decoder, protocol).items():
                values = found.mean(axis=1).tolist()
                half = half_width(values, accuracy_resampled(found))
                row = Row(name, part, metric, values, True, about, half)
                if row not in rows:  # models of one path and size share the pictures without a model
                    rows.append(row)
    if not rows:
        raise ValueError(
            f"reconstruction needs a model with decoders, got {', '.join(settings.model)}: give one from pretraining"
        )
    return rows


def _decoders(evaluation: Evaluation) -> Iterator[Decoder]:
    """The models that have decoders, one at a time."""
    for place, encoder in zip(evaluation.settings.model, evaluation.model_encoders, strict=True):
        config = encoder.model.config
        if isinstance(config, EqCohViTConfig):
            model = load_whole(EqCohViTForPreTraining, place, dtype=torch.float32).eval().to(encoder.device)
            fractions = intermediate_fractions(config.num_intermediates) + [1.0] * config.include_final
            yield Decoder(encoder.name, model, encoder.preprocessing, make_path(config.path), fractions)


def _measure(evaluation: Evaluation, decoder: Decoder, protocol: str) -> dict[tuple[str, str], np.ndarray]:
    """PSNR of each test image (S, M), the mean over the states, by encoder and part."""
    size, seeds = decoder.preprocessing.image_size, range(evaluation.settings.seeds)
    samples = evaluation.samples
    found: dict[tuple[str, str], list[torch.Tensor]] = defaultdict(list)
    bar = progress(f"reconstruction, {protocol}", samples.num_test, unit="img")
    for batch, _ in samples.blocks("test", canvas_size(size, decoder.path, protocol)):
        of_batch: dict[tuple[str, str], list[torch.Tensor]] = defaultdict(list)
        for drawn in render_states(batch, decoder.path, protocol, size, seeds, [*decoder.fractions, 1.0]):
            targets, end = drawn.on_path[:, :-1], drawn.on_path[:, -1]
            for key, pictures in _estimates(decoder, drawn.original, end).items():
                of_batch[key].append(_psnr(pictures, targets))
        for key, values in of_batch.items():
            found[key].append(torch.stack(values))
        bar.update(len(batch))
    bar.close()
    return {key: torch.cat(values, dim=1).numpy() for key, values in found.items()}


def _estimates(decoder: Decoder, first: torch.Tensor, end: torch.Tensor) -> dict[tuple[str, str], torch.Tensor]:
    """Both views (B, 3, H, H) -> what stands for the K states (B, K, 3, H, H), by encoder and part."""
    views = f"views of {first.shape[-1]} px"
    way = torch.tensor(decoder.fractions).view(1, -1, 1, 1, 1)
    return {
        (decoder.name, "equivariant"): _rebuild(decoder, first, end),
        (NEARER, views): torch.where(way < 0.5, first[:, None], end[:, None]),
        (BLEND, views): (1 - way) * first[:, None] + way * end[:, None],
    }


@torch.no_grad()
def _rebuild(decoder: Decoder, first: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Both views (B, 3, H, H) in [0, 1] -> the reconstructed states (B, K, 3, H, H) in [0, 1]."""
    preprocessing, device = decoder.preprocessing, next(decoder.model.parameters()).device
    first, end = (preprocessing.normalize(view).to(device) for view in (first, end))
    rebuilt = decoder.model(first, end).reconstructions.cpu()
    std, mean = (torch.tensor(values)[:, None, None] for values in (preprocessing.std, preprocessing.mean))
    return (rebuilt * std + mean).clamp(0, 1)


def _psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio: two (B, K, 3, H, H) in [0, 1] -> (B,) in dB, the mean over the K states."""
    errors = (images - targets).square().flatten(2).mean(dim=-1).clamp_min(1e-10)  # at most 100 dB
    return (-10 * errors.log10()).mean(dim=-1).double()
