"""Tasks on pooled frozen features: R2 of transformation parameters, nearest neighbours, linear classification,
disentanglement.

A task takes an `Evaluation` and returns rows; its settings are `evaluation.settings`, named as the flags of
scripts/evaluate.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

from ..data import Batch
from ..transforms import TransformationPath, make_path
from .context import Evaluation
from .extraction import CentralView, Features, PairView, progress
from .features import LAST, PIXELS, Feature, part_name, parts_of, select
from .figures import neighbours_figure, pca_figure, scatter_figure
from .intervals import accuracy_resampled, half_width, r2_resampled
from .kernel_probe import kernel_regress
from .memory import remembered
from .metrics.r2.coefficients import r2_per_parameter
from .pairs import render_pairs
from .probes import HEADS as MLP_HEADS
from .probes import (
    LEARNING_RATES,
    change_under,
    knn_correct,
    linear_cka,
    linear_classification,
    predictability,
    regress_pair,
)
from .results import ALONE, Row

HEADS = ("mlp", "linear")
ALL_HEADS = (*HEADS, "kernel")


def r2(evaluation: Evaluation) -> list[Row]:
    """R2 of the parameters of g from the features of the image and of the transformed image (paper, section 5).

    Pooled over the parameters and for each alone; on pooled features and on the patch grid; by the chosen head and by
    ridge regression. Each seed of the probe has its own draw of g. Of the first pooling there is a row of the
    transformed image alone: it tells what of the parameters shows without the original.
    """
    rows: list[Row] = []
    poolings, heads = evaluation.settings["pooling"], evaluation.settings["head"]
    for path, protocol, train, test in pairs(evaluation):
        jobs = list(_r2_jobs(train, poolings))
        bar = progress(f"probes, {path.name}, {protocol}", len(jobs), unit="probe")
        shown, known = {}, {}
        for encoder, part, layer, pooling, alone in jobs:
            one_vector = Feature(part, layer, "vector") in train[encoder].vectors  # the same for every pooling
            key = (encoder, part, layer, None if one_vector else pooling, alone)
            fit, tested = (
                draws(features[encoder], part, layer, pooling, evaluation.seeds) for features in (train, test)
            )
            if key not in known:
                tensors = (*fit, *tested[:2])
                if alone:
                    tensors = (fit[1], None, fit[2], tested[1], None)
                known[key] = predictions(evaluation, *tensors)
            found, true = known[key], tested[2].cpu().numpy()
            if pooling == poolings[0] and layer == LAST and not alone:
                shown[encoder, part] = found[heads[0]][0]
            bar.update()
            name = part_name(part, layer) + (ALONE if alone else "")
            settings = {"task": "r2", "transform": path.name, "protocol": protocol, "pooling": pooling, "layer": layer}
            for head in heads:
                own = r2_rows(
                    encoder, name, found, head, true, path.parameter_names, settings, is_first=pooling == poolings[0]
                )
                leads = head == heads[0] and (not alone or encoder == PIXELS)
                rows += [replace(row, headline=row.headline and leads) for row in own]
        bar.close()
        if evaluation.settings.get("output") and protocol == evaluation.settings["protocol"][-1] and shown:
            true = draws(next(iter(test.values())), *_first_key(test), poolings[0], 1)[2][0].cpu().numpy()
            evaluation.figures.append(scatter_figure(path.name, protocol, path.parameter_names, shown, true))
            if path.name == evaluation.settings["transform"][0]:
                evaluation.figures.append(pca_figure(evaluation, PairView(path, protocol)))
    return rows


def _r2_jobs(train: dict[str, Features], poolings: Sequence[str]) -> Iterator[tuple[str, str, str, str, bool]]:
    """Encoder, part, layer, pooling, and whether the probe sees the transformed image alone."""
    for encoder in train:
        for part, layer in parts_of(train[encoder].vectors):
            for pooling in poolings:
                yield encoder, part, layer, pooling, False
            if layer == LAST:
                yield encoder, part, layer, poolings[0], True


def _first_key(features: dict[str, Features]) -> tuple[str, str]:
    return parts_of(next(iter(features.values())).vectors)[0]


def predictions(evaluation: Evaluation, *tensors: torch.Tensor | None) -> dict[str, np.ndarray]:
    """What the heads that the settings name find, as `regress` gives it, also `"kernel"` (S, M, P); its tensors."""
    heads = evaluation.settings["head"]
    found: dict[str, np.ndarray] = {}
    if "kernel" in heads:
        found |= remembered(evaluation.cache_dir, kernel_regress, *tensors, num_seeds=evaluation.seeds)
    if fitted := tuple(head for head in heads if head in HEADS):
        found |= remembered(evaluation.cache_dir, regress, *tensors, num_seeds=evaluation.seeds, heads=fitted)
    return found


def regress(
    original: torch.Tensor,
    moved: torch.Tensor | None,
    targets: torch.Tensor,
    test_original: torch.Tensor,
    test_moved: torch.Tensor | None,
    num_seeds: int,
    heads: Sequence[str] = HEADS,
) -> dict[str, np.ndarray]:
    """What `regress_pair` finds, as arrays: `"mlp"` and `"linear"` (S, M, P), `"chosen"` (S,). No MLP is fitted that is
    not asked for."""
    choice = MLP_HEADS if "mlp" in heads else ()
    found = regress_pair(original, moved, targets, test_original, test_moved, num_seeds, choice)
    return {"chosen": np.array(found.pop("chosen")), **{head: values.cpu().numpy() for head, values in found.items()}}


class DrawsView:
    """The image, and its transformed versions by S draws of g: images (1 + S, B, 3, H, H), parameters (B, S P) draw by
    draw."""

    def __init__(self, path: TransformationPath, protocol: str, num_draws: int):
        self.pair, self.num_draws = PairView(path, protocol), num_draws
        self.name = self.pair.name if num_draws == 1 else f"{self.pair.name}, {num_draws} draws"

    def canvas_size(self, image_size: int) -> int:
        """What the protocol needs."""
        return self.pair.canvas_size(image_size)

    def __call__(self, batch: Batch, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = render_pairs(batch, self.pair.path, self.pair.protocol, image_size, range(self.num_draws))
        images = torch.stack([found[0].original, *(pair.transformed for pair in found)])
        return images, torch.cat([pair.parameters for pair in found], dim=-1)


def pairs(evaluation: Evaluation) -> Iterator[tuple[TransformationPath, str, dict[str, Features], dict[str, Features]]]:
    """Path, protocol, and the features of fitting and testing images in the `DrawsView` of all encoders, one after the
    other."""
    for name in evaluation.settings["transform"]:
        path = make_path(name)
        for protocol in evaluation.settings["protocol"]:
            view = DrawsView(path, protocol, evaluation.seeds)
            train, test = (evaluation.features(part, view) for part in ("train", "test"))
            yield path, protocol, train, test


def draws(
    features: Features, part: str, layer: str, pooling: str, num_draws: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of the images (N, d), of their transformed versions (S, N, d), and the parameters (S, N, P)."""
    vectors = to_device(select(features.vectors, part, layer, pooling)).transpose(0, 1)
    parameters = to_device(features.parameters).unflatten(-1, (vectors.shape[0] - 1, -1)).transpose(0, 1)
    return vectors[0], vectors[1 : 1 + num_draws], parameters[:num_draws]


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor where probes run: on a GPU if there is one."""
    return tensor.cuda() if torch.cuda.is_available() else tensor


def r2_rows(
    encoder: str,
    part: str,
    found: dict[str, np.ndarray],
    head: str,
    true: np.ndarray,
    names: Sequence[str],
    settings: dict[str, Any],
    is_first: bool = True,
) -> list[Row]:
    """The rows of one probe: R2 pooled over the targets, and of each alone where there are several.

    Args:
        found: what `regress` gives.
        true: targets (S, M, P).
        names: of the targets.
        settings: `task`, `transform`, `protocol` (or None), `pooling`, `layer`.
        is_first: whether the pooling leads the table; others are named in the metric.
    """
    values = np.stack([r2_per_parameter(*pair) for pair in zip(found[head], true, strict=True)])
    resampled = r2_resampled(found[head], true)
    settings = {**settings, "head": head, "chosen": found["chosen"].tolist()}
    place = f", {settings['protocol']}" if settings["protocol"] else ""
    suffix = place + ("" if is_first else f", {settings['pooling']}") + ("" if head == HEADS[0] else f", {head} head")
    title = f"R2 {settings['transform']}"
    pooled = values.mean(axis=1).tolist()
    half = half_width(pooled, resampled.mean(axis=1))
    rows = [Row(encoder, part, f"{title}{suffix}", pooled, True, {**settings, "parameter": None}, half)]
    if len(names) > 1:
        for index, name in enumerate(names):
            own = values[:, index].tolist()
            half = half_width(own, resampled[:, index])
            rows.append(
                Row(encoder, part, f"{title} {name}{suffix}", own, False, {**settings, "parameter": name}, half)
            )
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


def _classification_jobs(
    evaluation: Evaluation,
) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Encoder, part, and features and labels to fit on and to test on."""
    train, test = labelled(evaluation)
    for encoder, features in train.items():
        for part, layer in parts_of(features.vectors):
            x, test_x = (
                select(f.vectors, part, layer, evaluation.settings["pooling"][0])[:, 0]
                for f in (features, test[encoder])
            )
            labels, test_labels = to_device(features.labels), to_device(test[encoder].labels)
            yield encoder, part_name(part, layer), to_device(x), labels, to_device(test_x), test_labels


def knn(evaluation: Evaluation) -> list[Row]:
    """Top-1 accuracy of weighted k nearest neighbours, k and temperature as in arXiv:2104.14294 by default."""
    k, temperature = evaluation.settings["k"], evaluation.settings["temperature"]
    settings = {"task": "knn", "k": k, "temperature": temperature, "pooling": evaluation.settings["pooling"][0]}
    rows = []
    for encoder, part, *tensors in _classification_jobs(evaluation):
        correct = knn_correct(*tensors, k=k, temperature=temperature).cpu().numpy()[None]
        rows.append(_accuracy_row(encoder, part, f"kNN-{k}", correct, settings))
    if evaluation.settings.get("output"):
        evaluation.figures.append(neighbours_figure(evaluation))
    return rows


def linear(evaluation: Evaluation) -> list[Row]:
    """Top-1 accuracy of a linear classifier on frozen features, its learning rate chosen by validation among a sweep in
    one pass."""
    rows = []
    settings = {"task": "linear", "learning_rates": list(LEARNING_RATES), "pooling": evaluation.settings["pooling"][0]}
    for encoder, part, *tensors in _classification_jobs(evaluation):
        found = remembered(evaluation.cache_dir, classify, *tensors, num_seeds=evaluation.seeds)
        chosen = found["learning_rates"].tolist()
        rows.append(_accuracy_row(encoder, part, "linear", found["correct"], {**settings, "chosen": chosen}))
    return rows


def classify(
    x: torch.Tensor, y: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor, num_seeds: int
) -> dict[str, np.ndarray]:
    """Which test images (S, M) are classified right by S linear classifiers, and their learning rates (S,)."""
    found = [linear_classification(x, y, test_x, seed=seed) for seed in range(num_seeds)]
    correct = torch.stack([classes == test_y for classes, _ in found])
    return {"correct": correct.cpu().numpy(), "learning_rates": np.array([rate for _, rate in found])}


def _accuracy_row(encoder: str, part: str, metric: str, correct: np.ndarray, settings: dict[str, Any]) -> Row:
    """correct: (S, M), whether each test image was classified right."""
    values = correct.mean(axis=1).tolist()
    return Row(
        encoder, part, metric, values, settings=settings, half_width=half_width(values, accuracy_resampled(correct))
    )


def disentanglement(evaluation: Evaluation) -> list[Row]:
    """Which part knows what: the probes of the other tasks across parts; how far and how linearly parts move under g;
    CKA."""
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
                control = [predictability(_unrelated(fit), _unrelated(held_out))]
                rows.append(
                    Row(encoder, name, f"linearity of {path.name}, {protocol}, shuffled", control, settings=settings)
                )
    return rows + _cka_rows(test, pooling)


def _moves(features: Features, part: str, layer: str, pooling: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors of images (N, d) and of their transformed versions (N, d), and the parameters (N, P), of the first
    draw."""
    original, moved, parameters = draws(features, part, layer, pooling, 1)
    return original, moved[0], parameters[0]


def _unrelated(
    moves: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same with the transformed version of another image, and its parameters: what `predictability` gives without
    any action."""
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
