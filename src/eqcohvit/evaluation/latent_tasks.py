"""R2 of columns of a dataset, from one picture and of the change between two pictures of a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..data import Source
from .context import Evaluation
from .extraction import CentralView, Features, Samples, extract, progress
from .features import LAST, PIXELS, Feature, part_name, parts_of, select
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
from .metrics.r2.coefficients import pooled_r2
from .results import ALONE, Row
from .tasks import r2_rows, regress, to_device


def latent_r2(evaluation: Evaluation) -> list[Row]:
    """R2 of each of `target_columns` from frozen features, for each part and control.

    "one picture": the value, from the features of one picture. With a `group_column` also "change": the change between
    two pictures of a group, from the features of both. No group is both fitted and tested on.
    """
    train, test = open_latents(evaluation)
    workers = evaluation.samples.num_workers
    pictures = Samples(train.pictures, test.pictures, train.num_pictures, test.num_pictures, workers)
    features = {
        part: extract(evaluation.encoders, pictures, part, CentralView(), evaluation.cache_dir)
        for part in ("train", "test")
    }
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
    """The rows of one column, by one picture or by the change between two. Changes also by the second picture alone."""
    latent = train.latents[column]
    poolings, heads = evaluation.settings["pooling"], evaluation.settings["head"]
    places, pairs = train.places(next(iter(features["train"].values())))
    test_places, test_pairs = test.places(next(iter(features["test"].values())))
    targets = make_targets(latent, pairs, test.latents[column], test_pairs, kind)
    true = np.broadcast_to(targets.test.numpy(), (evaluation.seeds, *targets.test.shape))
    jobs = list(_jobs(features["train"], poolings, kind))
    bar = progress(f"probes, {latent.name}, {kind}", len(jobs), unit="probe")
    rows: list[Row] = []
    shown: dict[tuple[str, str], np.ndarray] = {}
    known: dict[tuple, dict[str, np.ndarray]] = {}
    for encoder, part, layer, pooling, alone in jobs:
        own = features["train"][encoder].vectors
        own_test = features["test"][encoder].vectors
        is_one_vector = Feature(part, layer, "vector") in own  # the same for every pooling
        key = (encoder, part, layer, None if is_one_vector else pooling, alone)
        if key not in known:
            first, second = pick(select(own, part, layer, pooling)[:, 0], places)
            test_first, test_second = pick(select(own_test, part, layer, pooling)[:, 0], test_places)
            y = to_device(targets.train)
            if alone:
                tensors = (second, None, y, test_second, None)
            elif kind == ONE_PICTURE:
                tensors = (first, None, y, test_first, None)
            else:
                tensors = (first, second, y, test_first, test_second)
            settings = {"num_seeds": evaluation.seeds, "heads": tuple(heads)}
            known[key] = remembered(evaluation.cache_dir, regress, *tensors, **settings)
        bar.update()
        is_first = pooling == poolings[0]
        if is_first and layer == LAST and not alone:
            shown[encoder, part] = known[key][heads[0]][0]
        name = part_name(part, layer) + (ALONE if alone else "")
        settings = {"task": "r2", "transform": latent.name, "protocol": kind, "pooling": pooling, "layer": layer}
        settings |= {"kind": latent.kind, "train": len(pairs), "test": len(test_pairs)}
        for head in heads:
            made = r2_rows(encoder, name, known[key], head, true, targets.names, settings, is_first=is_first)
            made += _pooled_rows(made[0], known[key][head], true, targets) if len(targets.names) > 1 else []
            leads = head == heads[0] and (not alone or encoder == PIXELS)
            rows += [replace(row, headline=row.headline and leads) for row in made]
    bar.close()
    if evaluation.settings.get("output"):
        figure = scatter_figure(latent.name, kind, targets.names, shown, targets.test.numpy())
        evaluation.figures.append(replace(figure, name=f"{figure.name}_{kind.replace(' ', '_')}"))
    return rows


def _jobs(
    features: dict[str, Features], poolings: Sequence[str], kind: str
) -> Iterator[tuple[str, str, str, str, bool]]:
    """Encoder, part, layer, pooling, and whether the probe sees the second picture alone."""
    for encoder in features:
        for part, layer in parts_of(features[encoder].vectors):
            for pooling in poolings:
                yield encoder, part, layer, pooling, False
            if layer == LAST and kind == CHANGE:
                yield encoder, part, layer, poolings[0], True


def pick(vectors: torch.Tensor, places: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, d) of the first and of the last picture of each sample, (M, d) each."""
    first, last = (vectors[torch.from_numpy(places[:, column])] for column in (0, -1))
    return to_device(first), to_device(last)


def _pooled_rows(row: Row, predictions: np.ndarray, true: np.ndarray, targets: Targets) -> list[Row]:
    """R2 of all components about their one mean, as SIE's figures are: predictions and true values (S, M, P)."""
    values = [pooled_r2(*pair) for pair in zip(predictions + targets.mean, true + targets.mean, strict=True)]
    metric = row.metric.replace(f"R2 {row.settings['transform']}", f"R2 {row.settings['transform']} pooled", 1)
    return [Row(row.encoder, row.part, metric, values, False, row.settings | {"parameter": "pooled"})]
