"""R2 of columns of a dataset, from one picture and of the change between two pictures of a group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..data import Source
from .context import Evaluation
from .extraction import CentralView, Features, Samples, extract, progress
from .features import LAST, Feature, part_name, parts_of, select
from .figures import scatter_figure
from .latents import (
    CHANGE,
    ONE_PICTURE,
    LatentSamples,
    Targets,
    choose_pairs,
    choose_pictures,
    make_targets,
    parse_circular,
    read_latents,
    split_groups,
)
from .memory import remembered
from .metrics.r2.coefficients import pooled_r2, r2_per_parameter
from .results import Row
from .tasks import HEADS, regress, to_device


def latent_r2(evaluation: Evaluation) -> list[Row]:
    """R2 of each of `target_columns` from frozen features, for each part and control.

    "one picture": the value, from the features of one picture. With a `group_column` also "change": the change between
    two pictures of a group, from the features of both. No group is both fitted and tested on.
    """
    train, test = open_latents(evaluation)
    workers = evaluation.samples.num_workers
    pictures = Samples(train.pictures, test.pictures, train.num_pictures, test.num_pictures, workers)
    cache_dir = evaluation.cache_dir
    features = {part: extract(evaluation.encoders, pictures, part, CentralView(), cache_dir) for part in ("train", "test")}
    kinds = (ONE_PICTURE, CHANGE) if train.pairs.shape[1] == 2 else (ONE_PICTURE,)
    rows: list[Row] = []
    for column in range(len(train.latents)):
        for kind in kinds:
            rows += _rows_of(evaluation, features, train, test, column, kind)
    return rows


def open_latents(evaluation: Evaluation) -> tuple[LatentSamples, LatentSamples]:
    """The pictures or pairs to fit on and those to test on, at most `max_samples` and `max_test_samples` of them.

    Raises:
        ValueError: the columns cannot be regressed (see `read_latents`), there are too few groups, or the two sources
            share some.
    """
    settings, samples = evaluation.settings, evaluation.samples
    group_column = settings.get("group_column")

    def read(source: Source) -> tuple:
        quaternions = settings.get("quaternion_columns", ())
        periods = parse_circular(settings.get("circular_columns", ()))
        return read_latents(source, settings["target_columns"], group_column, quaternions, periods)

    def choose(groups: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        if group_column is not None:
            return choose_pairs(groups, rows, count)
        return choose_pictures(rows, count)[:, None]

    keys, latents, groups = read(samples.train)
    if samples.test is samples.train:
        fit_rows, test_rows = split_groups(groups, samples.num_train, samples.num_test)
        train = LatentSamples(samples.train, keys, latents, choose(groups, fit_rows, samples.num_train))
        return train, LatentSamples(samples.test, keys, latents, choose(groups, test_rows, samples.num_test))
    test_keys, test_latents, test_groups = read(samples.test)
    shared = np.intersect1d(groups, test_groups) if group_column is not None else []
    if len(shared):
        raise ValueError(
            f"{len(shared)} groups of {group_column} are both fitted and tested on, such as {shared[0]}: "
            "give files that share none, or leave out the test files to hold some out"
        )
    all_rows, all_test_rows = np.ones(len(keys), dtype=bool), np.ones(len(test_keys), dtype=bool)
    train = LatentSamples(samples.train, keys, latents, choose(groups, all_rows, samples.num_train))
    test = LatentSamples(samples.test, test_keys, test_latents, choose(test_groups, all_test_rows, samples.num_test))
    return train, test


def _rows_of(
    evaluation: Evaluation,
    features: dict[str, dict[str, Features]],
    train: LatentSamples,
    test: LatentSamples,
    column: int,
    kind: str,
) -> list[Row]:
    """The rows of one column, by one picture or by the change between two."""
    latent = train.latents[column]
    poolings, heads = evaluation.settings["pooling"], evaluation.settings["head"]
    places, pairs = train.places(next(iter(features["train"].values())))
    test_places, test_pairs = test.places(next(iter(features["test"].values())))
    targets = make_targets(latent, pairs, test.latents[column], test_pairs, kind)
    jobs = [(encoder, *key) for encoder in features["train"] for key in parts_of(features["train"][encoder].vectors)]
    bar = progress(f"probes, {latent.name}, {kind}", len(jobs) * len(poolings), unit="probe")
    rows: list[Row] = []
    shown: dict[tuple[str, str], np.ndarray] = {}
    for encoder, part, layer in jobs:
        own = features["train"][encoder].vectors
        own_test = features["test"][encoder].vectors
        is_one_vector = Feature(part, layer, "vector") in own  # the same for every pooling
        found: dict[str, np.ndarray] = {}
        for pooling in poolings:
            if not (found and is_one_vector):
                fitted = pick(select(own, part, layer, pooling)[:, 0], places, kind)
                tested = pick(select(own_test, part, layer, pooling)[:, 0], test_places, kind)
                tensors = [to_device(tensor) for tensor in (*fitted, targets.train, *tested)]
                found = remembered(evaluation.cache_dir, regress, *tensors, num_seeds=evaluation.seeds)
            bar.update()
            is_first = pooling == poolings[0]
            if is_first and layer == LAST:
                shown[encoder, part] = found[heads[0]][0]
            for head in heads:
                settings = {"task": "r2", "transform": latent.name, "protocol": kind, "head": head, "pooling": pooling}
                settings |= {"layer": layer, "kind": latent.kind, "train": len(pairs), "test": len(test_pairs)}
                suffix = ("" if is_first else f", {pooling}") + ("" if head == HEADS[0] else f", {head} head")
                made = score_rows(encoder, part_name(part, layer), settings, suffix, found[head], targets)
                rows += [replace(row, headline=row.headline and is_first and head == heads[0]) for row in made]
    bar.close()
    if evaluation.settings.get("output"):
        true = targets.test.numpy()
        evaluation.figures.append(scatter_figure(f"{latent.name}_{kind}".replace(" ", "_"), kind, targets.names, shown, true))
    return rows


def pick(vectors: torch.Tensor, places: np.ndarray, kind: str) -> list[torch.Tensor]:
    """Features (N, d) -> those of the first picture of each pair, (M, d), and for changes of the second one too."""
    columns = [0] if kind == ONE_PICTURE else [0, 1]
    return [vectors[torch.from_numpy(places[:, column].copy())] for column in columns]


def score_rows(
    encoder: str, part: str, settings: dict[str, Any], suffix: str, predictions: np.ndarray, targets: Targets
) -> list[Row]:
    """Rows of predictions (S, M, P): the mean R2 of the components, for several of them also each alone and all pooled."""
    true = targets.test.numpy()
    name, kind = settings["transform"], settings["protocol"]
    scores = [r2_per_parameter(seed, true).tolist() for seed in predictions]
    means = [sum(score) / len(score) for score in scores]
    rows = [Row(encoder, part, f"R2 {name}, {kind}{suffix}", means, True, settings | {"parameter": None})]
    if len(targets.names) == 1:
        return rows
    for index, component in enumerate(targets.names):
        values = [score[index] for score in scores]
        metric = f"R2 {name} {component}, {kind}{suffix}"
        rows.append(Row(encoder, part, metric, values, False, settings | {"parameter": component}))
    # About one mean of all components, as SIE's figures are.
    shift = targets.mean.astype(np.float64)
    pooled = [pooled_r2(seed + shift, true + shift) for seed in predictions]
    rows.append(Row(encoder, part, f"R2 {name} pooled, {kind}{suffix}", pooled, False, settings | {"parameter": "pooled"}))
    return rows
