"""Tasks on pooled frozen features: nearest neighbors, linear classification, disentanglement.

A task takes an `Evaluation` and returns rows. Its settings are `evaluation.settings`, named as the flags of
scripts/evaluate.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from .context import Evaluation
from .extraction import CentralView
from .feature_cache import Features
from .features import LAST, part_name, parts_of, select
from .figures import neighbors_figure
from .images import ProbeImages
from .intervals import accuracy_resampled, half_width
from .probe_cache import cached
from .probes import LEARNING_RATES, change_under, knn_correct, linear_cka, linear_classification, predictability
from .r2_tasks import draws, pair_features, r2, to_device
from .results import Row


@dataclass(frozen=True)
class Classification:
    """Features and labels of one part of an encoder, to fit on and to test on.

    x (N, d) and y (N,), test_x (M, d) and test_y (M,).
    """

    encoder: str
    part: str
    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def check_labels(samples: ProbeImages) -> None:
    """Raise a `ValueError` if the images to fit on or to test on have no labels."""
    for source in (samples.train, samples.test):
        if not source.has_labels:
            raise ValueError(f"classification needs labels, and {source.name} has none: give --label_column")


def labeled(evaluation: Evaluation) -> tuple[dict[str, Features], dict[str, Features]]:
    """Features of the images to fit on and to test on.

    Raises:
        ValueError: a source has no labels.
    """
    samples = evaluation.samples
    check_labels(samples)
    train = evaluation.features("train", CentralView())
    test = evaluation.features("test", CentralView())
    for source, features in ((samples.train, train), (samples.test, test)):
        unknown = int((next(iter(features.values())).labels < 0).sum())
        if unknown:
            raise ValueError(f"classification needs labels, and {unknown} images of {source.name} have none")
    return train, test


def classifications(evaluation: Evaluation) -> Iterator[Classification]:
    """One for each part and layer of each encoder."""
    train, test = labeled(evaluation)
    pooling = evaluation.settings.pooling[0]
    for encoder, features in train.items():
        for part, layer in parts_of(features.vectors):
            yield Classification(
                encoder=encoder,
                part=part_name(part, layer),
                x=to_device(select(features.vectors, part, layer, pooling)[:, 0]),
                y=to_device(features.labels),
                test_x=to_device(select(test[encoder].vectors, part, layer, pooling)[:, 0]),
                test_y=to_device(test[encoder].labels),
            )


def knn(evaluation: Evaluation) -> list[Row]:
    """Top-1 accuracy of weighted k nearest neighbors, k and temperature as in arXiv:2104.14294 by default."""
    k = evaluation.settings.k
    temperature = evaluation.settings.temperature
    settings = {"task": "knn", "k": k, "temperature": temperature, "pooling": evaluation.settings.pooling[0]}
    rows = []
    for data in classifications(evaluation):
        correct = knn_correct(data.x, data.y, data.test_x, data.test_y, k=k, temperature=temperature)
        rows.append(_accuracy_row(data, f"kNN-{k}", correct.cpu().numpy()[None], settings))
    if evaluation.settings.output:
        evaluation.figures.append(neighbors_figure(evaluation))
    return rows


def linear(evaluation: Evaluation) -> list[Row]:
    """Top-1 accuracy of a linear classifier on frozen features. Held-out samples choose its learning rate."""
    rows = []
    settings = {"task": "linear", "learning_rates": list(LEARNING_RATES), "pooling": evaluation.settings.pooling[0]}
    for data in classifications(evaluation):
        tensors = (data.x, data.y, data.test_x, data.test_y)
        found = cached(evaluation.settings.cache_dir, classify, *tensors, num_seeds=evaluation.settings.seeds)
        chosen = found["learning_rates"].tolist()
        rows.append(_accuracy_row(data, "linear", found["correct"], {**settings, "chosen": chosen}))
    return rows


def classify(
    x: torch.Tensor, y: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor, num_seeds: int
) -> dict[str, np.ndarray]:
    """Which test images (S, M) are classified correctly by S linear classifiers, and their learning rates (S,)."""
    found = [linear_classification(x, y, test_x, seed=seed) for seed in range(num_seeds)]
    correct = torch.stack([classes == test_y for classes, _ in found])
    return {"correct": correct.cpu().numpy(), "learning_rates": np.array([rate for _, rate in found])}


def _accuracy_row(data: Classification, metric: str, correct: np.ndarray, settings: dict[str, Any]) -> Row:
    """correct: (S, M), whether each test image was classified correctly."""
    values = correct.mean(axis=1).tolist()
    half = half_width(values, accuracy_resampled(correct))
    return Row(data.encoder, data.part, metric, values, settings=settings, half_width=half)


# ------------------------------------------------------------------------------------------------------ disentanglement


def disentanglement(evaluation: Evaluation) -> list[Row]:
    """Which part knows what: the other tasks across parts; how far and how linearly parts move under g; CKA."""
    tasks = [r2]
    if evaluation.samples.train.has_labels and evaluation.samples.test.has_labels:
        tasks += [knn, linear]
    rows = [row for task in tasks for row in evaluation.run(task)]
    pooling = evaluation.settings.pooling[0]
    for path, protocol, train, test in pair_features(evaluation):
        settings = {"task": "disentanglement", "transform": path.name, "protocol": protocol, "pooling": pooling}
        for encoder, features in train.items():
            for part, layer in parts_of(features.vectors):
                fit = _moves(features, part, layer, pooling)
                held_out = _moves(test[encoder], part, layer, pooling)
                values = {
                    f"change under {path.name}, {protocol}": [change_under(held_out[0], held_out[1])],
                    f"linearity of {path.name}, {protocol}": [
                        predictability(fit, held_out, seed=seed) for seed in range(evaluation.settings.seeds)
                    ],
                    f"linearity of {path.name}, {protocol}, shuffled": [
                        predictability(_unrelated(fit), _unrelated(held_out))
                    ],
                }
                name = part_name(part, layer)
                rows += [Row(encoder, name, metric, own, settings=settings) for metric, own in values.items()]
    return rows + _cka_rows(test, pooling)


def _moves(features: Features, part: str, layer: str, pooling: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first draw: vectors of images (N, d) and of their transformed versions (N, d), and the parameters (N, P)."""
    original, moved, parameters = draws(features, part, layer, pooling, 1)
    return original, moved[0], parameters[0]


def _unrelated(
    moves: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same with the transformed version of another image: what `predictability` gives without any action."""
    original, moved, parameters = moves
    order = shuffled(len(original)).to(original.device)
    return original, moved[order], parameters[order]


def _cka_rows(test: dict[str, Features], pooling: str) -> list[Row]:
    rows = []
    settings = {"task": "disentanglement", "pooling": pooling}
    for encoder, features in test.items():
        parts = [part for part, layer in parts_of(features.vectors) if layer == LAST and part != "both"]
        vectors = {part: to_device(select(features.vectors, part, LAST, pooling)[:, 0]) for part in parts}
        for part, other in combinations(parts, 2):
            value = linear_cka(vectors[part], vectors[other])
            rows.append(Row(encoder, part, f"CKA with {other}", [value], settings=settings))
            order = shuffled(len(vectors[part])).to(vectors[part].device)
            control = linear_cka(vectors[part], vectors[other][order])
            rows.append(Row(encoder, part, f"CKA with {other}, shuffled", [control], settings=settings))
    return rows


def shuffled(count: int) -> torch.Tensor:
    """A fixed random order, for controls."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
