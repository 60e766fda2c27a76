"""Tasks on pooled frozen features: R2 of transformation parameters, nearest neighbours, linear classification, disentanglement.

A task takes an `Evaluation` and returns rows; its settings are `evaluation.settings`, named as the flags of scripts/evaluate.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from ..transforms import TransformationPath, make_path
from .context import Evaluation
from .extraction import CentralView, Features, PairView, progress
from .features import LAST, Feature, part_name, parts_of, select
from .figures import neighbours_figure, pca_figure, scatter_figure
from .memory import remembered
from .metrics.r2.coefficients import r2_per_parameter
from .probes import (
    LEARNING_RATES,
    change_under,
    knn_accuracy,
    linear_cka,
    linear_classification,
    predictability,
    regress_pair,
)
from .results import Row

HEADS = ("mlp", "linear")


def r2(evaluation: Evaluation) -> list[Row]:
    """R2 of the parameters of g from the features of the image and of the transformed image (paper, section 5).

    Pooled over the parameters and for each alone; on pooled features and on the patch grid; by the MLP and by its linear path alone.
    """
    rows: list[Row] = []
    poolings, heads = evaluation.settings["pooling"], evaluation.settings["head"]
    for path, protocol, train, test in pairs(evaluation):
        jobs = [(encoder, *key, pooling) for encoder in train for key in parts_of(train[encoder].vectors) for pooling in poolings]
        bar = progress(f"probes, {path.name}, {protocol}", len(jobs), unit="probe")
        shown, known = {}, {}
        for encoder, part, layer, pooling in jobs:
            one_vector = Feature(part, layer, "vector") in train[encoder].vectors  # the same for every pooling
            key = (encoder, part, layer, None if one_vector else pooling)
            true = test[encoder].parameters.numpy()
            if key not in known:
                x, test_x = (regression_inputs(features[encoder], part, layer, pooling) for features in (train, test))
                y = to_device(train[encoder].parameters)
                known[key] = remembered(evaluation.cache_dir, regress, x, y, test_x, num_seeds=evaluation.seeds, heads=tuple(heads))
            scores = {head: [r2_per_parameter(seed, true).tolist() for seed in values] for head, values in known[key].items()}
            if pooling == poolings[0] and layer == LAST:
                shown[encoder, part] = known[key][heads[0]][0]
            bar.update()
            own = _r2_rows(scores, encoder, part, layer, pooling, path, protocol, is_first=pooling == poolings[0])
            rows += [replace(row, headline=row.headline and row.settings["head"] == heads[0]) for row in own]
        bar.close()
        if evaluation.settings.get("output") and protocol == evaluation.settings["protocol"][-1] and shown:
            true = next(iter(test.values())).parameters.numpy()
            evaluation.figures.append(scatter_figure(path.name, protocol, path.parameter_names, shown, true))
            if path.name == evaluation.settings["transform"][0]:
                evaluation.figures.append(pca_figure(evaluation, PairView(path, protocol)))
    return rows


def regress(
    original: torch.Tensor,
    moved: torch.Tensor | None,
    targets: torch.Tensor,
    test_original: torch.Tensor,
    test_moved: torch.Tensor | None,
    num_seeds: int,
) -> dict[str, np.ndarray]:
    """What `regress_pair` finds, as arrays: `"mlp"` and `"linear"` (S, M, P), `"chosen"` (S,)."""
    found = regress_pair(original, moved, targets, test_original, test_moved, num_seeds)
    return {"chosen": np.array(found.pop("chosen")), **{head: values.cpu().numpy() for head, values in found.items()}}


def pairs(evaluation: Evaluation) -> Iterator[tuple[TransformationPath, str, dict[str, Features], dict[str, Features]]]:
    """Path, protocol, and the features of fitting and testing pairs of all encoders, one after the other."""
    for name in evaluation.settings["transform"]:
        path = make_path(name)
        for protocol in evaluation.settings["protocol"]:
            view = PairView(path, protocol)
            train, test = (evaluation.features(part, view) for part in ("train", "test"))
            yield path, protocol, train, test


def regression_inputs(features: Features, part: str, layer: str, pooling: str) -> torch.Tensor:
    """Features of image and transformed image side by side (N, 2 d), turned so that standardising does not drown their difference."""
    original, transformed = to_device(select(features.vectors, part, layer, pooling)).unbind(dim=1)
    return torch.cat([original, transformed - original], dim=-1)


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor where probes run: on a GPU if there is one."""
    return tensor.cuda() if torch.cuda.is_available() else tensor


def _r2_rows(
    scores: dict[str, list], encoder: str, part: str, layer: str, pooling: str, path: TransformationPath, protocol: str, is_first: bool
) -> list[Row]:
    rows = []
    for head, values in scores.items():
        settings = {"task": "r2", "transform": path.name, "protocol": protocol, "head": head, "pooling": pooling, "layer": layer}
        suffix = ("" if is_first else f", {pooling}") + ("" if head == HEADS[0] else f", {head} head")
        metric = f"R2 {path.name}, {protocol}{suffix}"
        pooled = [sum(value) / len(value) for value in values]
        rows.append(Row(encoder, part_name(part, layer), metric, pooled, True, {**settings, "parameter": None}))
        if path.num_parameters > 1:
            for index, name in enumerate(path.parameter_names):
                own = [value[index] for value in values]
                metric = f"R2 {path.name} {name}, {protocol}{suffix}"
                rows.append(Row(encoder, part_name(part, layer), metric, own, False, {**settings, "parameter": name}))
    return rows


def labelled(evaluation: Evaluation) -> tuple[dict[str, Features], dict[str, Features]]:
    """Features of the images as they are, of sources with labels.

    Raises:
        ValueError: a source has no labels.
    """
    for source in (evaluation.samples.train, evaluation.samples.test):
        if not source.has_labels:
            raise ValueError(f"classification needs labels, and {source.name} has none: give --label_column")
    train, test = (evaluation.features(part, CentralView()) for part in ("train", "test"))
    for source, features in ((evaluation.samples.train, train), (evaluation.samples.test, test)):
        unknown = int((next(iter(features.values())).labels < 0).sum())
        if unknown:
            raise ValueError(f"classification needs labels, and {unknown} images of {source.name} have none")
    return train, test


def _classification_jobs(evaluation: Evaluation) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Encoder, part, and features and labels to fit on and to test on."""
    train, test = labelled(evaluation)
    for encoder, features in train.items():
        for part, layer in parts_of(features.vectors):
            x, test_x = (select(f.vectors, part, layer, evaluation.settings["pooling"][0])[:, 0] for f in (features, test[encoder]))
            labels, test_labels = to_device(features.labels), to_device(test[encoder].labels)
            yield encoder, part_name(part, layer), to_device(x), labels, to_device(test_x), test_labels


def knn(evaluation: Evaluation) -> list[Row]:
    """Top-1 accuracy of weighted k nearest neighbours, k and temperature as in arXiv:2104.14294 by default."""
    k, temperature = evaluation.settings["k"], evaluation.settings["temperature"]
    settings = {"task": "knn", "k": k, "temperature": temperature, "pooling": evaluation.settings["pooling"][0]}
    rows = [
        Row(encoder, part, f"kNN-{k}", [knn_accuracy(*tensors, k=k, temperature=temperature)], settings=settings)
        for encoder, part, *tensors in _classification_jobs(evaluation)
    ]
    if evaluation.settings.get("output"):
        evaluation.figures.append(neighbours_figure(evaluation))
    return rows


def linear(evaluation: Evaluation) -> list[Row]:
    """Top-1 accuracy of a linear classifier on frozen features, its learning rate chosen by validation among a sweep in one pass."""
    rows = []
    settings = {"task": "linear", "learning_rates": list(LEARNING_RATES), "pooling": evaluation.settings["pooling"][0]}
    for encoder, part, *tensors in _classification_jobs(evaluation):
        found = remembered(evaluation.cache_dir, classify, *tensors, num_seeds=evaluation.seeds)
        chosen = found["learning_rates"].tolist()
        rows.append(Row(encoder, part, "linear", found["accuracies"].tolist(), settings={**settings, "chosen": chosen}))
    return rows


def classify(x: torch.Tensor, y: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor, num_seeds: int) -> dict[str, np.ndarray]:
    """Accuracies (S,) and chosen learning rates (S,) of S linear classifiers."""
    found = [linear_classification(x, y, test_x, test_y, seed=seed) for seed in range(num_seeds)]
    return dict(zip(("accuracies", "learning_rates"), np.array(found).T, strict=True))


def disentanglement(evaluation: Evaluation) -> list[Row]:
    """Which part knows what: the probes of the other tasks across parts; how far and how linearly parts move under g; CKA."""
    tasks = [r2, knn, linear] if evaluation.samples.train.has_labels and evaluation.samples.test.has_labels else [r2]
    rows = [row for task in tasks for row in evaluation.run(task)]
    pooling = evaluation.settings["pooling"][0]
    for path, protocol, train, test in pairs(evaluation):
        settings = {"task": "disentanglement", "transform": path.name, "protocol": protocol, "pooling": pooling}
        for encoder, features in train.items():
            for part, layer in parts_of(features.vectors):
                fit, held_out = (_moves(f, part, layer, pooling) for f in (features, test[encoder]))
                name = part_name(part, layer)
                moved = change_under(held_out[0], held_out[1])
                rows.append(Row(encoder, name, f"change under {path.name}, {protocol}", [moved], settings=settings))
                scores = [predictability(fit, held_out, seed=seed) for seed in range(evaluation.seeds)]
                rows.append(Row(encoder, name, f"linearity of {path.name}, {protocol}", scores, settings=settings))
    return rows + _cka_rows(test, pooling)


def _moves(features: Features, part: str, layer: str, pooling: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors of images (N, d) and of their transformed versions (N, d), and the parameters (N, P)."""
    vectors = to_device(select(features.vectors, part, layer, pooling))
    return vectors[:, 0], vectors[:, 1], to_device(features.parameters)


def _cka_rows(test: dict[str, Features], pooling: str) -> list[Row]:
    rows = []
    for encoder, features in test.items():
        parts = [part for part, layer in parts_of(features.vectors) if layer == LAST and part != "both"]
        vectors = {part: select(features.vectors, part, LAST, pooling)[:, 0] for part in parts}
        for part, other in combinations(parts, 2):
            value = linear_cka(to_device(vectors[part]), to_device(vectors[other]))
            rows.append(Row(encoder, part, f"CKA with {other}", [value], settings={"task": "disentanglement", "pooling": pooling}))
    return rows
