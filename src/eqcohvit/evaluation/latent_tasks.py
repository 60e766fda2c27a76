"""R2 of columns of a dataset, from one picture and of the change between two pictures of a group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .context import Evaluation
from .extraction import CentralView, Features, Samples, extract, progress
from .features import LAST, Feature, parts_of, select
from .figures import scatter_figure
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
from .memory import remembered
from .metrics.r2.coefficients import pooled_r2, r2_per_parameter
from .results import Row
from .tasks import HEADS, regress, to_device


def latent_r2(evaluation: Evaluation) -> list[Row]:
    """R2 of each of `target_columns` from frozen features, for each part and control.

    "one picture": the value, from the features of one picture. With a `group_column` also "change": the change between two pictures of a
    group, from the features of both. No group is both fitted and tested on.
    """
    train, test = open_latents(evaluation)
    pictures = Samples(train.pictures, test.pictures, train.num_pictures, test.num_pictures, evaluation.samples.num_workers)
    features = {part: extract(evaluation.encoders, pictures, part, CentralView(), evaluation.cache_dir) for part in ("train", "test")}
    rows: list[Row] = []
    for index in range(len(train.latents)):
        for kind in (ONE_PICTURE, CHANGE) if train.pairs.shape[1] == 2 else (ONE_PICTURE,):
            rows += _rows_of(evaluation, features, train, test, index, kind)
    return rows
