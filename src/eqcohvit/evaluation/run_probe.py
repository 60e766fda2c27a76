"""What the parts of a model know about the transformation of its run, measured during training.

No labels are needed: R2 of the parameters of g, as in `scripts/evaluate.py --task r2 --head kernel`, on images that the
run does not train on. Images, g and renderings are the same in every measurement, so only the model moves a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import length_hint
from typing import Any

import numpy as np
import torch

from ..data import Source, SpritesSource, TooManyBadImages, hold_out
from ..hub.modeling_eqcohvit import EqCohViTModel
from ..preprocessing import Preprocessing
from ..transforms import TransformationPath
from .draws import DrawsView, draws_for, pairs_of
from .features import LAST, ModelEncoder, select
from .images import TEST_SPRITES, ProbeImages
from .kernel_regression import kernel_regression
from .metrics.r2.coefficients import r2_per_parameter
from .pair_regression import PairData
from .probes import knn_accuracy

LEAST_PROBE_SAMPLES = 96  # with fewer pairs of images the figures would say little
_LARGEST_SHARE = 8  # of the training images at most 1 / 8 are held out
_LARGEST_SHARE_OF_FEW = 3  # of fewer than 768 at most 1 / 3, until there are 96
_LEAST_IMAGES = 10  # held out
_NUM_FOLDS = 5  # of few images; each is tested on once
_BATCH_SIZE = 64
_PARTS = ("equivariant", "invariant", "backbone")
_NAMES = {"strict": "probe/r2", "paper": "probe/r2_paper"}


def open_probe(
    source: Source, num_samples: int, *settings: Any, report: Callable[[str], None] = print, **options: Any
) -> tuple[Source, RunProbe | None]:
    """The images to train on, and a probe of other images; all images and None if there are too few.

    `report` gets the reason, or how many images are held out. Of the embedded sprites, the test sprites are used and
    all training sprites stay. Of other sources, at most an eighth is held out. Of fewer than 768 images it is 96 or a
    third, whichever is less, and each is shown under several draws of g, so that there are `num_samples` pairs.

    Args:
        settings, options: as of `RunProbe`, after `num_samples`.
    """
    if isinstance(source, SpritesSource):
        return source, RunProbe(
            SpritesSource(num_samples, source.seed, offset=TEST_SPRITES), num_samples, *settings, **options
        )
    number = length_hint(source)  # 0 where only reading would tell
    share = _LARGEST_SHARE
    wanted = min(num_samples, number // share) if number else num_samples
    num_draws = 1
    if wanted < LEAST_PROBE_SAMPLES:
        share = _LARGEST_SHARE_OF_FEW
        wanted = min(LEAST_PROBE_SAMPLES, number // share)
        num_draws = draws_for(wanted, num_samples)
    rest, held_out = hold_out(source, wanted, share)
    try:
        if wanted < _LEAST_IMAGES:
            raise ValueError(
                f"expected at least {_LEAST_IMAGES * _LARGEST_SHARE_OF_FEW} images, found {number} in {source.name}"
            )
        probe = RunProbe(held_out, num_samples, *settings, num_draws=num_draws, **options)
    except (ValueError, TooManyBadImages) as error:
        report(f"no probe while it trains: {error}")
        return source, None
    count = f"{length_hint(held_out)} of {number}" if number else str(len(probe.labels))
    draws = f", each under {num_draws} draws of the transformation" if num_draws > 1 else ""
    report(f"{count} images are held out of training to measure R2 while it trains{draws}")
    return rest, probe


class RunProbe:
    """R2 of the run's path from each part, in both protocols, and kNN accuracy if the images have labels.

    A third of the images is for testing, the others are fitted on. If each image has several draws, there are few: then
    each fifth is for testing in turn, the others are fitted on, and R2 is computed from all predictions. Each of
    several processes renders and encodes a share.

    Args:
        source: images that are not trained on.
        num_samples: how many of them to take.
        image_size: side in pixels, as in training.
        path: the run's own.
        num_draws: of g for each image. More than one lets fewer images do.
        max_bad_fraction: share of unreadable images above which it gives up.
        num_workers: processes that decode.
        rank, world_size: of this process.

    Raises:
        ValueError: the source has too few images: fewer than 10, or fewer than `LEAST_PROBE_SAMPLES` pairs.
        TooManyBadImages: too many of them cannot be read.
    """

    def __init__(
        self,
        source: Source,
        num_samples: int,
        image_size: int,
        path: TransformationPath,
        max_bad_fraction: float = 0.01,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_draws: int = 1,
    ):
        self.image_size = image_size
        self.path = path
        self.num_draws = num_draws
        self.world_size = world_size
        samples = ProbeImages(source, source, num_samples, 0, num_workers, max_bad_fraction)
        views = {protocol: DrawsView(path, protocol, num_draws) for protocol in _NAMES}
        if views["strict"].name == views["paper"].name:  # nothing moves
            del views["paper"]
        self.images: dict[str, torch.Tensor] = {}  # by protocol, uint8 (n, 1 + D, 3, H, H): this process's share
        for protocol, view in views.items():
            images = []
            parameters = []
            labels = []
            for batch, _ in samples.blocks("train", view.canvas_size(image_size)):
                rendered, drawn = view(batch, image_size)
                images.append((rendered.transpose(0, 1) * 255).round().to(torch.uint8))
                parameters.append(drawn)
                labels.append(batch.labels)
            found = sum(map(len, labels))
            least = LEAST_PROBE_SAMPLES if num_draws == 1 else _LEAST_IMAGES
            if found < least:
                raise ValueError(f"expected at least {least} images to probe with, found {found} in {source.name}")
            used = found // world_size * world_size  # as many for each process
            self.images[protocol] = torch.cat(images)[rank:used:world_size].clone()
            self.parameters = torch.cat(parameters)[:used]
            self.labels = torch.cat(labels)[:used]

    @property
    def sizes(self) -> str:
        """How many images are fitted on and tested on, in words."""
        count = len(self.labels)
        if self.num_draws == 1:
            return f"fitted on {count - count // 3} images, tested on {count // 3}"
        return f"{count} images, {self.num_draws} draws of each, a fifth tested on in turn"

    def splits(self) -> list[tuple[slice | torch.Tensor, slice | torch.Tensor]]:
        """Which images to fit on, and which to test on, once or several times."""
        count = len(self.labels)
        if self.num_draws == 1:
            return [(slice(count // 3, None), slice(None, count // 3))]
        fold = torch.arange(count) % _NUM_FOLDS
        return [(fold != own, fold == own) for own in range(_NUM_FOLDS)]

    def measure(
        self,
        model: EqCohViTModel,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        gather: Callable[[torch.Tensor], torch.Tensor] = lambda share: share,
        is_main: bool = True,
    ) -> dict[str, float]:
        """`probe/r2/PART` (strict), `probe/r2_paper/PART` and `probe/knn/PART` of the model as it is now.

        R2 is the mean over the parameters. If there are several, `probe/r2_of/PARAMETER/PART` is the strict R2 of each.
        All processes have to call it; only the main one gets figures. It draws no random numbers and leaves the mode of
        the model unchanged.

        Args:
            gather: concatenates the tensors (n, ...) of all processes.
        """
        training = model.training
        encoder = ModelEncoder("run", model, Preprocessing(self.image_size, tuple(image_mean), tuple(image_std)))
        vectors = {protocol: self._encode(encoder, images, gather) for protocol, images in self.images.items()}
        model.train(training)
        if not is_main:
            return {}
        figures = {}
        for protocol, parts in vectors.items():
            for part, features in parts.items():
                r2 = self._r2(features, protocol)
                figures[f"{_NAMES[protocol]}/{part}"] = float(r2.mean())
                if protocol == "strict" and len(r2) > 1:
                    names = self.path.parameter_names
                    figures |= {f"probe/r2_of/{name}/{part}": float(r2[i]) for i, name in enumerate(names)}
        if (self.labels >= 0).all() and len(self.labels.unique()) > 1:
            for part, features in vectors.get("paper", vectors["strict"]).items():  # whole images
                labels, x = self.labels.to(features.device), features[:, 0]
                found = [knn_accuracy(x[fit], labels[fit], x[test], labels[test]) for fit, test in self.splits()]
                figures[f"probe/knn/{part}"] = sum(found) / len(found)
        return figures

    def _r2(self, features: torch.Tensor, protocol: str) -> np.ndarray:
        """R2 of each of the P parameters from features (N, 1 + D, d)."""
        parameters = self.parameters.to(features.device)
        predicted = []
        true = []
        for fit, test in self.splits():
            o, (g,), (targets,) = pairs_of(features[fit], parameters[fit])
            test_o, (test_g,), (test_targets,) = pairs_of(features[test], parameters[test])
            reverse = self.path.inverse(targets) if protocol == "strict" else None
            predicted.append(kernel_regression(PairData(o, g, targets, test_o, test_g, self.num_draws, reverse)))
            true.append(test_targets)
        return r2_per_parameter(torch.cat(predicted).cpu().numpy(), torch.cat(true).cpu().numpy())

    def _encode(
        self, encoder: ModelEncoder, images: torch.Tensor, gather: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Pooled features (N, 1 + D, d) of each part, for the images of all processes in their original order."""
        blocks: dict[str, list[torch.Tensor]] = {part: [] for part in _PARTS}
        num_views = images.shape[1]
        for block in images.split(max(1, _BATCH_SIZE // num_views)):
            vectors = encoder(block.flatten(0, 1).float() / 255)
            for part in _PARTS:
                blocks[part].append(select(vectors, part, LAST, "cls_mean").unflatten(0, (-1, num_views)).clone())
        shares = {part: gather(torch.cat(values)) for part, values in blocks.items()}
        return {
            part: share.unflatten(0, (self.world_size, -1)).transpose(0, 1).flatten(0, 1)
            for part, share in shares.items()
        }
