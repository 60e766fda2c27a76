"""R2 of columns of a dataset, from one picture and of the change between two pictures of a group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..data import Source
from .context import Evaluation
from .extraction import CentralView, extract
from .feature_cache import Features
from .features import select
from .figures import scatter_figure
from .images import ProbeImages
from .latents import (
    CHANGE,
    ONE_PICTURE,
    LatentSamples,
    choose_pairs,
    choose_pictures,
    make_targets,
    parse_circular,
    read_latents,
    split_groups,
)
from .pair_regression import PairData
from .r2_tasks import ProbeJob, probe_jobs, rows_of_jobs, run_probes, shown_predictions, to_device
from .results import Row


def latent_r2(evaluation: Evaluation) -> list[Row]:
    """R2 of each of `target_columns` from frozen features, for each part and control.

    "one picture": the value, from the features of one picture. With a `group_column` also "change": the change between
    two pictures of a group, from the features of both. No group is both fitted on and tested on.
    """
    train, test = open_latents(evaluation)
    workers = evaluation.samples.num_workers
    pictures = ProbeImages(train.pictures, test.pictures, train.num_pictures, test.num_pictures, workers)
    features = {
        part: extract(evaluation.encoders, pictures, part, CentralView(), evaluation.settings.cache_dir)
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
    settings = evaluation.settings
    samples = evaluation.samples
    group_column = settings.group_column

    def read(source: Source) -> tuple:
        quaternions = settings.quaternion_columns
        periods = parse_circular(settings.circular_columns)
        return read_latents(source, settings.target_columns, group_column, quaternions, periods)

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
    """The rows of one column, by one picture or by the change between two.

    Changes are also regressed from the second picture only.
    """
    settings = evaluation.settings
    latent = train.latents[column]
    places, pairs = train.places(next(iter(features["train"].values())))
    test_places, test_pairs = test.places(next(iter(features["test"].values())))
    targets = make_targets(latent, pairs, test.latents[column], test_pairs, kind)
    y = to_device(targets.train)
    reverse = None if targets.reverse is None else to_device(targets.reverse)

    def data_of(job: ProbeJob) -> PairData:
        vectors = select(features["train"][job.encoder].vectors, job.part, job.layer, job.pooling)
        test_vectors = select(features["test"][job.encoder].vectors, job.part, job.layer, job.pooling)
        first, second = pick(vectors[:, 0], places)
        test_first, test_second = pick(test_vectors[:, 0], test_places)
        if job.alone:
            return PairData(second, None, y, test_second, None)
        if kind == ONE_PICTURE:
            return PairData(first, None, y, test_first, None)
        return PairData(first, second, y, test_first, test_second, reverse_targets=reverse)

    alone = settings.alone if kind == CHANGE else "none"
    jobs = probe_jobs(features["train"], settings.pooling, alone)
    found = run_probes(evaluation, f"{latent.name}, {kind}", jobs, features["train"], data_of)
    true = np.broadcast_to(targets.test.numpy(), (evaluation.settings.seeds, *targets.test.shape))
    row_settings = {"transform": latent.name, "protocol": kind, "kind": latent.kind}
    row_settings |= {"train": len(pairs), "test": len(test_pairs)}
    if settings.output:
        shown = shown_predictions(evaluation, found)
        figure = scatter_figure(latent.name, kind, targets.names, shown, targets.test.numpy())
        evaluation.figures.append(replace(figure, name=f"{figure.name}_{kind.replace(' ', '_')}"))
    return rows_of_jobs(evaluation, found, true, targets.names, row_settings, targets.mean)


def pick(vectors: torch.Tensor, places: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, d) of the first and of the last picture of each sample, (M, d) each."""
    first = vectors[torch.from_numpy(places[:, 0])]
    last = vectors[torch.from_numpy(places[:, -1])]
    return to_device(first), to_device(last)
