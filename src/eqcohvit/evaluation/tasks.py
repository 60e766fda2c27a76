"""Evaluation tasks: encoders and image sources in, one result row per encoder and part out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..data import Batch, CanvasStream, Source
from ..transforms import TransformationPath
from .features import Encoder
from .pairs import canvas_size, render_pairs
from .probes import knn_accuracy, mlp_regression, r2_score

_BATCH_SIZE = 128


@dataclass(frozen=True)
class Row:
    """One number of a table: the values of all seeds for an encoder's part."""

    encoder: str
    part: str
    metric: str
    values: list[float]


@dataclass(frozen=True)
class Samples:
    """Where probe images come from: `num_train` to fit and `num_test` to test, from sources that share no image.

    With one source for both, the first `num_test` images of its shuffled order are the test images.
    """

    train: Source
    test: Source
    num_train: int
    num_test: int
    num_workers: int = 0

    def batches(self, part: str, canvas: int) -> Iterator[Batch]:
        """The images of `"train"` or `"test"` as canvases of side `canvas`, in a fixed shuffled order, each once."""
        shared = self.train is self.test
        start, source = (self.num_test if shared and part == "train" else 0), getattr(self, part)
        return _take(CanvasStream(source, canvas, _BATCH_SIZE, num_workers=self.num_workers), start, getattr(self, f"num_{part}"))


def _take(stream: CanvasStream, start: int, count: int) -> Iterator[Batch]:
    """Samples start .. start + count of the first epoch."""
    seen = 0
    for batch in stream:
        first_epoch = batch.epochs == 0
        index = torch.arange(seen, seen + len(batch))
        wanted = first_epoch & (index >= start) & (index < start + count)
        seen += len(batch)
        if wanted.any():
            yield Batch(*(t[wanted] for t in (batch.canvases, batch.sizes, batch.keys, batch.epochs, batch.labels)), batch.position)
        if seen >= start + count or not first_epoch.all():
            return


def r2_rows(
    encoders: list[Encoder], samples: Samples, path: TransformationPath, protocol: str, seeds: int, transform_seed: int = 0
) -> list[Row]:
    """R2 of the parameters of g from the features of the image and of the transformed image (paper, section 5), mean over parameters."""
    data: dict[str, dict] = {}
    for part in ("train", "test"):
        features, parameters = defaultdict(list), []
        for size in sorted({encoder.image_size for encoder in encoders}):
            batches = samples.batches(part, canvas_size(size, path, protocol))
            drawn = []
            for pair in render_pairs(batches, path, protocol, size, transform_seed):
                drawn.append(pair.parameters)
                for encoder in (e for e in encoders if e.image_size == size):
                    both = encoder(torch.cat([pair.original, pair.transformed]))
                    for name, values in both.items():
                        original, transformed = values.chunk(2)
                        # The concatenation of both, turned so that standardising does not drown their small difference.
                        features[encoder.name, name].append(torch.cat([original, transformed - original], dim=-1))
            parameters = torch.cat(drawn)
        data[part] = {"x": {key: torch.cat(values) for key, values in features.items()}, "y": parameters}
    rows = []
    for (encoder, part), train_x in data["train"]["x"].items():
        scores = []
        for seed in range(seeds):
            predicted = mlp_regression(train_x, data["train"]["y"], data["test"]["x"][encoder, part], seed)
            scores.append(r2_score(predicted, data["test"]["y"]).mean().item())
        rows.append(Row(encoder, part, f"R2 {path.name}, {protocol}", scores))
    return rows


def knn_rows(encoders: list[Encoder], samples: Samples, k: int = 20) -> list[Row]:
    """Top-1 accuracy of k nearest neighbours on the labels of the source."""
    data = {}
    for part in ("train", "test"):
        features, labels = defaultdict(list), []
        for size in sorted({encoder.image_size for encoder in encoders}):
            seen = []
            for pair_batch in samples.batches(part, size):
                seen.append(pair_batch.labels)
                images = pair_batch.canvases.float() / 255
                for encoder in (e for e in encoders if e.image_size == size):
                    for name, values in encoder(images).items():
                        features[encoder.name, name].append(values)
            labels = torch.cat(seen)
        data[part] = ({key: torch.cat(values) for key, values in features.items()}, labels)
    (train_x, train_y), (test_x, test_y) = data["train"], data["test"]
    if (train_y < 0).any():
        raise ValueError("kNN needs labels, and this source has none: give --label_column")
    return [
        Row(encoder, part, f"kNN-{k}", [knn_accuracy(values, train_y, test_x[encoder, part], test_y, k)])
        for (encoder, part), values in train_x.items()
    ]
