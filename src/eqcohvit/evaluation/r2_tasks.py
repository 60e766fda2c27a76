"""R2 of transformation parameters from frozen features, and what all R2 tasks share: jobs, probes, rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..transforms import TransformationPath, make_path
from .context import Evaluation
from .draws import DrawsView, pairs_of
from .extraction import PairView, progress
from .feature_cache import Features
from .features import LAST, PIXELS, Feature, part_name, parts_of, select
from .figures import pca_figure, scatter_figure
from .intervals import half_width, r2_resampled
from .kernel_regression import kernel_regress
from .metrics.r2.coefficients import pooled_r2, r2_per_parameter
from .pair_regression import MLP_HEADS, PairData, regress_pair
from .probe_cache import cached
from .results import ALONE, Row

FITTED_HEADS = ("mlp", "linear")
R2_HEADS = ("mlp", "linear", "kernel")


# ------------------------------------------------------------------------------------------------------------- features


def pair_features(
    evaluation: Evaluation, num_draws: Callable[[str], int] = lambda part: 1
) -> Iterator[tuple[TransformationPath, str, dict[str, Features], dict[str, Features]]]:
    """For each path and protocol: the features of all encoders for the images to fit on and to test on.

    `num_draws` says how many draws a seed has for each of the `"train"` or `"test"` images.
    """
    for name in evaluation.settings.transform:
        path = make_path(name)
        for protocol in evaluation.settings.protocol:
            found = []
            for part in ("train", "test"):
                view = DrawsView(path, protocol, evaluation.settings.seeds * num_draws(part))
                found.append(evaluation.features(part, view))
            yield path, protocol, found[0], found[1]


def draws(
    features: Features, part: str, layer: str, pooling: str, num_seeds: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of the images (N, d), of their transformed versions (S, N, d), and the parameters (S, N, P), where a
    seed has one draw of each image."""
    vectors = to_device(select(features.vectors, part, layer, pooling)).transpose(0, 1)
    parameters = to_device(features.parameters).unflatten(-1, (vectors.shape[0] - 1, -1)).transpose(0, 1)
    return vectors[0], vectors[1 : 1 + num_seeds], parameters[:num_seeds]


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor where probes run: on a GPU if there is one."""
    return tensor.cuda() if torch.cuda.is_available() else tensor


# --------------------------------------------------------------------------------------------------------------- probes


@dataclass(frozen=True)
class ProbeJob:
    """The features that a probe reads. `alone`: of the transformed image only."""

    encoder: str
    part: str
    layer: str
    pooling: str
    alone: bool = False

    @property
    def name(self) -> str:
        """Part and layer, as tables name them."""
        return part_name(self.part, self.layer) + (ALONE if self.alone else "")


def pairs(features: Features, job: ProbeJob, num_seeds: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a job reads, for each of S seeds: features of the images (M, d), of their transformed versions (S, M, d),
    and the parameters (S, M, P) of M pairs (`pairs_of`)."""
    vectors = to_device(select(features.vectors, job.part, job.layer, job.pooling))
    return pairs_of(vectors, to_device(features.parameters), num_seeds)


def probe_jobs(features: dict[str, Features], poolings: Sequence[str], alone: str = "all") -> list[ProbeJob]:
    """A job for each encoder, part, layer and pooling.

    Args:
        alone: which parts also get a job that sees the transformed image only, for the last layer and first pooling:
            `"all"`, `"pixels"` or `"none"`.
    """
    jobs = []
    for encoder, own in features.items():
        for part, layer in parts_of(own.vectors):
            jobs += [ProbeJob(encoder, part, layer, pooling) for pooling in poolings]
            if layer == LAST and (alone == "all" or (alone == "pixels" and encoder == PIXELS)):
                jobs.append(ProbeJob(encoder, part, layer, poolings[0], alone=True))
    return jobs


def run_probes(
    evaluation: Evaluation,
    title: str,
    jobs: Sequence[ProbeJob],
    features: dict[str, Features],
    data_of: Callable[[ProbeJob], PairData],
) -> dict[ProbeJob, dict[str, np.ndarray]]:
    """What `predict` returns for each job.

    A part with one vector, such as the pixels, is the same for every pooling and is fitted once.
    """
    found: dict[ProbeJob, dict[str, np.ndarray]] = {}
    fitted: dict[ProbeJob, dict[str, np.ndarray]] = {}
    bar = progress(f"probes, {title}", len(jobs), unit="probe")
    for job in jobs:
        has_one_vector = Feature(job.part, job.layer, "vector") in features[job.encoder].vectors
        key = replace(job, pooling="") if has_one_vector else job
        if key not in fitted:
            fitted[key] = predict(evaluation, data_of(job))
        found[job] = fitted[key]
        bar.update()
    bar.close()
    return found


def predict(evaluation: Evaluation, data: PairData) -> dict[str, np.ndarray]:
    """What the heads of the settings find: predictions (S, M, P) by head, and `"chosen HEAD"` (S,)."""
    heads = evaluation.settings.head
    num_seeds = evaluation.settings.seeds
    folder = evaluation.settings.cache_dir
    found: dict[str, np.ndarray] = {}
    if "kernel" in heads:
        own = cached(folder, kernel_regress, data, num_seeds=num_seeds)
        found |= {"kernel": own["kernel"], "chosen kernel": own["chosen"]}
    if fitted := tuple(head for head in heads if head in FITTED_HEADS):
        own = cached(folder, regress, data, num_seeds=num_seeds, heads=fitted)
        for head in fitted:
            found |= {head: own[head], f"chosen {head}": own["chosen"]}
    return found


def regress(data: PairData, num_seeds: int, heads: Sequence[str] = FITTED_HEADS) -> dict[str, np.ndarray]:
    """`regress_pair` as arrays: `"mlp"` and `"linear"` (S, M, P), `"chosen"` (S,). MLPs are fitted only if named."""
    choice = MLP_HEADS if "mlp" in heads else ()
    found = regress_pair(data, num_seeds, choice)
    return {"chosen": np.array(found.pop("chosen")), **{head: values.cpu().numpy() for head, values in found.items()}}


# ----------------------------------------------------------------------------------------------------------------- rows


def rows_of_jobs(
    evaluation: Evaluation,
    found: dict[ProbeJob, dict[str, np.ndarray]],
    true: np.ndarray,
    names: Sequence[str],
    settings: dict[str, Any],
    mean: np.ndarray | None = None,
    num_draws: int = 1,
    units: Sequence[str] = (),
) -> list[Row]:
    """The rows of all probes of one target.

    Args:
        found: what `run_probes` returns.
        true: targets (S, M, P).
        names: of the P targets.
        settings: of the rows, `transform` and `protocol` among them.
        mean: (P,) that was subtracted from the targets. With it there is also a row of R2 pooled over all components.
        num_draws: how many adjacent targets of the M belong to one image.
        units: of the targets. With them there are also rows of the errors of the first head and pooling.
    """
    first_pooling = evaluation.settings.pooling[0]
    heads = evaluation.settings.head
    rows = []
    for job, own in found.items():
        job_settings = {"task": "r2", **settings, "pooling": job.pooling, "layer": job.layer}
        for head in heads:
            is_headline = head == heads[0] and (not job.alone or job.encoder == PIXELS)
            made = r2_rows(job, own, head, true, names, job_settings, job.pooling == first_pooling, num_draws)
            rows += [replace(row, headline=row.headline and is_headline) for row in made]
            if mean is not None and len(names) > 1:
                rows.append(_pooled_row(made[0], own[head] + mean, true + mean))
        if units and job.pooling == first_pooling and not job.alone:
            rows += error_rows(job, own[heads[0]], true, dict(zip(names, units, strict=True)), job_settings)
    return rows


def error_rows(
    job: ProbeJob, predictions: np.ndarray, true: np.ndarray, units: dict[str, str], settings: dict[str, Any]
) -> list[Row]:
    """The median absolute error of each target, predictions and targets (S, M, P). Radians are given in degrees.

    Args:
        units: by the names of the P targets.
        settings: as of `r2_rows`.
    """
    rows = []
    for index, (name, unit) in enumerate(units.items()):
        errors = np.median(np.abs(predictions - true)[..., index], axis=1)
        if unit == "radians":
            errors, unit = np.rad2deg(errors), "degrees"
        metric = f"median error of {name}, {settings['transform']}, {settings['protocol']} ({unit})"
        about = {**settings, "parameter": name}
        rows.append(Row(job.encoder, job.name, metric, errors.tolist(), headline=False, settings=about))
    return rows


def r2_rows(
    job: ProbeJob,
    found: dict[str, np.ndarray],
    head: str,
    true: np.ndarray,
    names: Sequence[str],
    settings: dict[str, Any],
    is_first: bool = True,
    num_draws: int = 1,
) -> list[Row]:
    """The rows of one probe and head: the mean R2 of the targets, and each R2 if there are several targets.

    Args:
        found: what `predict` returns.
        true: targets (S, M, P).
        names: of the targets.
        settings: `task`, `transform`, `protocol`, `pooling`, `layer`.
        is_first: whether the pooling leads the table. Other poolings are named in the metric.
        num_draws: how many adjacent targets of the M belong to one image.
    """
    values = np.stack([r2_per_parameter(*pair) for pair in zip(found[head], true, strict=True)])
    resampled = r2_resampled(found[head], true, num_draws)
    num_images = true.shape[1] // num_draws if num_draws > 1 else None
    settings = {**settings, "head": head, "chosen": found[f"chosen {head}"].tolist()}
    title = f"R2 {settings['transform']}"
    suffix = f", {settings['protocol']}"
    suffix += "" if is_first else f", {settings['pooling']}"
    suffix += "" if head == FITTED_HEADS[0] else f", {head.replace('_', ' ')} head"
    mean = values.mean(axis=1).tolist()
    rows = [
        Row(
            job.encoder,
            job.name,
            f"{title}{suffix}",
            mean,
            settings={**settings, "parameter": None},
            half_width=half_width(mean, resampled.mean(axis=1), num_images),
        )
    ]
    for index, name in enumerate(names if len(names) > 1 else []):
        own = values[:, index].tolist()
        rows.append(
            Row(
                job.encoder,
                job.name,
                f"{title} {name}{suffix}",
                own,
                headline=False,
                settings={**settings, "parameter": name},
                half_width=half_width(own, resampled[:, index], num_images),
            )
        )
    return rows


def _pooled_row(row: Row, predictions: np.ndarray, true: np.ndarray) -> Row:
    """R2 of all components (S, M, P) about their common mean, as in SIE's figures."""
    values = [pooled_r2(*pair) for pair in zip(predictions, true, strict=True)]
    title = f"R2 {row.settings['transform']}"
    metric = row.metric.replace(title, f"{title} pooled", 1)
    return Row(row.encoder, row.part, metric, values, False, row.settings | {"parameter": "pooled"})


def shown_predictions(
    evaluation: Evaluation, found: dict[ProbeJob, dict[str, np.ndarray]]
) -> dict[tuple[str, str], np.ndarray]:
    """What the scatter plot shows: predictions (M, P) of the first seed, head and pooling, by encoder and part."""
    pooling = evaluation.settings.pooling[0]
    head = evaluation.settings.head[0]
    leading = [job for job in found if job.layer == LAST and job.pooling == pooling and not job.alone]
    return {(job.encoder, job.part): found[job][head][0] for job in leading}


# ----------------------------------------------------------------------------------------------------------------- task


def r2(evaluation: Evaluation) -> list[Row]:
    """R2 of the parameters of g from the features of the image and of the transformed image (paper, section 5).

    The mean over the parameters and each of them, and the median error of each; on pooled features and on the patch
    grid; by the chosen head and by ridge regression. Each seed of the probe has its own draw of g. For the first
    pooling there is also a row of the transformed image only: it shows how much of the parameters is visible without
    the original. Few images are shown under several draws each (`Evaluation.num_draws`).
    """
    return [row for pair in pair_features(evaluation, evaluation.num_draws) for row in _pair_rows(evaluation, *pair)]


def _pair_rows(
    evaluation: Evaluation,
    path: TransformationPath,
    protocol: str,
    train: dict[str, Features],
    test: dict[str, Features],
) -> list[Row]:
    """The rows of one path and protocol. With `output`, figures of the last protocol too."""
    settings = evaluation.settings
    num_draws, num_test_draws = (evaluation.num_draws(part) for part in ("train", "test"))

    def data_of(job: ProbeJob) -> PairData:
        original, moved, parameters = pairs(train[job.encoder], job, settings.seeds)
        test_original, test_moved, _ = pairs(test[job.encoder], job, settings.seeds)
        if job.alone:
            return PairData(moved, None, parameters, test_moved, None, num_draws)
        reverse = path.inverse(parameters.flatten(0, 1)) if protocol != "paper" else None
        reverse = None if reverse is None else reverse.view_as(parameters)
        return PairData(original, moved, parameters, test_original, test_moved, num_draws, reverse)

    jobs = probe_jobs(train, settings.pooling, settings.alone)
    found = run_probes(evaluation, f"{path.name}, {protocol}", jobs, train, data_of)
    _, _, parameters = pairs(test[jobs[0].encoder], jobs[0], settings.seeds)  # the same for all encoders
    true = parameters.cpu().numpy()
    names = path.parameter_names
    about = {"transform": path.name, "protocol": protocol}
    rows = rows_of_jobs(evaluation, found, true, names, about, num_draws=num_test_draws, units=path.units)
    shown = shown_predictions(evaluation, found)
    if settings.output and protocol == settings.protocol[-1] and shown:
        figure = scatter_figure(path.name, protocol, names, shown, true[0], num_test_draws, path.units)
        evaluation.figures.append(figure)
        if path.name == settings.transform[0]:
            evaluation.figures.append(pca_figure(evaluation, PairView(path, protocol)))
    return rows
