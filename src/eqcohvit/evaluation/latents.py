"""Columns of a dataset as regression targets: which pictures or pairs of pictures are used, and what is predicted.

One picture: the value itself. Two pictures of one group (an object, a scene): the change from the first to the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..data import DatasetSource, Record, Source
from ..data.fingerprint import digest
from ..data.sources import SourceView
from .feature_cache import Features

ONE_PICTURE, CHANGE = "one picture", "change"
_CONSTANT = 1e-11  # a component with a smaller standard deviation, relative to its size, varies only by rounding


# -------------------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Latent:
    """A column of numbers.

    Args:
        name: of the column.
        values: (N, L) float64, one row for each picture; L = 1 for a column of single numbers.
        kind: "number"; "quaternion", a rotation (x, y, z, w) with the scalar last; or "circular", a number that starts
            again after `period`.
        period: of a circular column, in its own units: 360 for degrees, 1 for a hue in [0, 1].
    """

    name: str
    values: np.ndarray
    kind: str = "number"
    period: float = 1.0

    @property
    def components(self) -> list[str]:
        """Name of each target."""
        if self.kind == "quaternion":
            return ["x", "y", "z", "w"]
        count = self.values.shape[1]
        numbers = [f"{index}" for index in range(count)] if count > 1 else [""]
        if self.kind == "circular":
            return [f"{function} {number}".strip() for number in numbers for function in ("cos", "sin")]
        return numbers

    def of_pictures(self, index: np.ndarray) -> np.ndarray:
        """Targets (M, P) of the pictures at `index` (M,)."""
        values = self.values[index]
        if self.kind == "quaternion":
            return unit_quaternion(values)
        return self._on_circle(values) if self.kind == "circular" else values

    def of_changes(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Targets (M, P): the change from the pictures at `first` (M,) to those at `second` (M,)."""
        if self.kind == "quaternion":
            return relative_rotation(self.values[first], self.values[second])
        change = self.values[second] - self.values[first]
        return self._on_circle(change) if self.kind == "circular" else change

    def _on_circle(self, values: np.ndarray) -> np.ndarray:
        angles = 2 * np.pi * values / self.period
        return np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(len(values), -1)


def unit_quaternion(values: np.ndarray) -> np.ndarray:
    """Quaternions (M, 4), scalar last, with length 1 and the sign that makes the scalar positive."""
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    # If the scalar is 0, the first other component decides.
    order = unit[:, [3, 0, 1, 2]]
    first = np.argmax(np.abs(order) > 1e-12, axis=1)
    sign = np.sign(order[np.arange(len(order)), first])
    return unit * sign[:, None]


def relative_rotation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first^-1 second of rotations (M, 4), scalar last: the rotation in the frame of the first object.

    SIE's dataset has the same targets, except for the sign (arXiv:2302.10283).
    """
    first, second = unit_quaternion(first), unit_quaternion(second)
    axis, scalar = -first[:, :3], first[:, 3:]
    other_axis, other_scalar = second[:, :3], second[:, 3:]
    vector = scalar * other_axis + other_scalar * axis + np.cross(axis, other_axis)
    product = np.concatenate([vector, scalar * other_scalar - (axis * other_axis).sum(axis=1, keepdims=True)], axis=1)
    return unit_quaternion(product)


def parse_circular(columns: Sequence[str]) -> dict[str, float]:
    """`["yaw=360", "hue=1"]` -> {"yaw": 360.0, "hue": 1.0}.

    Raises:
        ValueError: a column has no period, or its period is not positive.
    """
    periods = {}
    for column in columns:
        name, _, period = column.partition("=")
        try:
            periods[name] = float(period)
        except ValueError:
            periods[name] = 0.0
        if not name or not 0 < periods[name] < float("inf"):
            raise ValueError(f"circular_columns must be COLUMN=PERIOD, such as yaw=360 or hue=1, got {column!r}")
    return periods


def read_latents(
    source: Source,
    columns: Sequence[str],
    group_column: str | None,
    quaternions: Sequence[str] = (),
    periods: dict[str, float] | None = None,
) -> tuple[np.ndarray, list[Latent], np.ndarray]:
    """The keys of all rows, int64 (N,), the columns as latents, and the name of each row's group, (N,).

    Without a group column each row is a group.

    Raises:
        ValueError: the source has no columns, or a column is missing, not numeric, incomplete, or has another shape
            than its kind needs.
    """
    if not isinstance(source, DatasetSource):
        allowed = "give dataset_name or data_files"
        raise ValueError(f"target_columns needs a dataset with columns, got {source.name}: {allowed}")
    names = list(dict.fromkeys([*columns, *([group_column] if group_column else [])]))
    keys, found = source.read_columns(names)
    periods = periods or {}
    latents = []
    for name in columns:
        values = _numbers(source, name, found[name])
        kind = "quaternion" if name in quaternions else "circular" if name in periods else "number"
        if kind == "quaternion":
            if values.shape[1] != 4:
                expected = "4 numbers (x, y, z, w)"
                raise ValueError(
                    f"quaternion column {name} of {source.name} must hold {expected}, got {values.shape[1]}"
                )
            if (np.linalg.norm(values, axis=1) < 1e-6).any():
                raise ValueError(f"quaternion column {name} of {source.name} holds quaternions of length 0")
        latents.append(Latent(name, values, kind, periods.get(name, 1.0)))
    if group_column is None:
        return keys, latents, np.arange(len(keys))
    if any(not isinstance(value, (str, int)) for value in found[group_column]):
        raise ValueError(f"group_column {group_column} of {source.name} must hold names or integers in all rows")
    return keys, latents, np.array(found[group_column]).astype(str)


def _numbers(source: DatasetSource, name: str, values: list[Any]) -> np.ndarray:
    """(N, L) float64."""
    if getattr(source.features[name], "names", None) is not None:
        allowed = "expected numbers or lists of numbers (for classes: --task knn linear)"
        raise ValueError(f"column {name} of {source.name} holds classes, {allowed}")
    if any(isinstance(value, (str, bytes, dict)) for value in values):
        kind = next(type(value).__name__ for value in values if isinstance(value, (str, bytes, dict)))
        raise ValueError(f"column {name} of {source.name} must hold numbers or lists of numbers, got {kind}")
    empty = sum(value is None for value in values)
    if empty:
        raise ValueError(f"column {name} of {source.name} is empty in {empty} of {len(values)} rows")
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        expected = "numbers, or lists of numbers of one length"
        raise ValueError(f"column {name} of {source.name} must hold {expected}") from None
    if numbers.ndim not in (1, 2) or numbers.size == 0:
        expected = f"numbers or flat lists of them, got the shape {numbers.shape[1:]} a row"
        raise ValueError(f"column {name} of {source.name} must hold {expected}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"column {name} of {source.name} holds values that are not finite")
    return numbers.reshape(len(numbers), -1)


# ------------------------------------------------------------------------------------------------------------- pictures


def split_groups(groups: np.ndarray, num_train: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to test on, as masks (N,): whole groups, in the ratio of `num_train` to `num_test`.

    Raises:
        ValueError: there is only one group.
    """
    names, number = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError("all rows are of one group, expected at least 2: one to fit on and one to test on")
    held_out = min(max(1, round(len(names) * num_test / (num_train + num_test))), len(names) - 1)
    order = np.random.default_rng(0).permutation(len(names))
    is_test = np.isin(number, order[:held_out])
    return ~is_test, is_test


def choose_pairs(groups: np.ndarray, rows: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Up to `count` pairs of rows, (M, 2), drawn from the rows of the mask. The rows of a pair are of one group.

    No row is in two pairs. Every group gives its first pair before any gives its second.

    Raises:
        ValueError: no group has two rows.
    """
    shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(rows))
    _, first_seen, group = np.unique(groups[shuffled], return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each row in its group
    has_partner = place < np.repeat(sizes // 2 * 2, sizes)
    pairs = shuffled[order[has_partner]].reshape(-1, 2)
    if not len(pairs):
        raise ValueError(f"a change needs two pictures of one group, and each of the {len(sizes)} groups has one")
    number = place[has_partner][::2] // 2
    rank = first_seen[group[order[has_partner]][::2]]
    return pairs[np.lexsort((rank, number))[:count]]


def choose_pictures(rows: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows of the mask, in a shuffled order: (M,)."""
    return np.random.default_rng(0).permutation(np.flatnonzero(rows))[:count]


class RowsOfSource(SourceView):
    """Some rows of a source, by their keys. It has the shards of the source that hold any of them."""

    def __init__(self, source: Source, keys: np.ndarray):
        super().__init__(source)
        self._keys = np.sort(keys)
        self._shards = np.unique(self._keys >> 32)
        self.num_shards = len(self._shards)

    @property
    def fingerprint(self) -> str:
        """Changes with the source and with the rows."""
        return digest([self._source.fingerprint, self._keys.tobytes()])

    def read_shard(self, shard: int, epoch: int) -> Iterator[Record]:
        """The wanted records of a shard. Reading stops after the last of them."""
        number = int(self._shards[shard])
        start, stop = np.searchsorted(self._keys, [number << 32, (number + 1) << 32])
        left = set(self._keys[start:stop].tolist())
        for record in self._source.read_shard(number, epoch):
            if record.key in left:
                left.remove(record.key)
                yield record
                if not left:
                    return


# -------------------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class LatentSamples:
    """Pictures, or pairs of pictures, and what a probe predicts of them.

    Args:
        source: where the pictures are.
        keys: of all rows of the source, int64 (N,).
        latents: columns of all rows.
        pairs: rows of the pictures, (M, 2) or (M, 1).
    """

    source: Source
    keys: np.ndarray
    latents: list[Latent]
    pairs: np.ndarray

    @cached_property
    def pictures(self) -> RowsOfSource:
        """The pictures as a source."""
        return RowsOfSource(self.source, self.keys[self.pairs.ravel()])

    @property
    def num_pictures(self) -> int:
        """Number of pictures."""
        return self.pairs.size

    def places(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the features that belong to each pair, (M', 1 or 2), and the pairs, (M', 1 or 2).

        Pairs with an unreadable picture are left out.
        """
        key = features.keys.numpy()
        order = np.argsort(key)
        wanted = self.keys[self.pairs]
        place = np.searchsorted(key, wanted, sorter=order).clip(max=len(key) - 1)
        there = (key[order[place]] == wanted).all(axis=1)
        return order[place[there]], self.pairs[there]


@dataclass(frozen=True)
class Targets:
    """What a probe predicts.

    Args:
        train: float32 (N, P) to fit on, minus `mean`.
        test: float32 (M, P) to test on, minus `mean`.
        names: of the P components.
        mean: (P,) over the samples to fit on.
        reverse: float32 (N, P), minus `mean`: the changes from the second pictures to the first. None for one picture.
    """

    train: torch.Tensor
    test: torch.Tensor
    names: list[str]
    mean: np.ndarray
    reverse: torch.Tensor | None


def make_targets(latent: Latent, pairs: np.ndarray, test_latent: Latent, test_pairs: np.ndarray, kind: str) -> Targets:
    """Targets of pictures (the first of each pair, (N, 2) or (N, 1)), or of the changes from the first to the second.

    Components that do not vary are left out, because R2 is not defined for them.

    Raises:
        ValueError: no component varies, or the two latents have different numbers of components.
    """
    if latent.values.shape[1] != test_latent.values.shape[1]:
        counts = f"{latent.values.shape[1]} to fit on and {test_latent.values.shape[1]} to test on"
        raise ValueError(f"column {latent.name} must hold lists of one length, got {counts}")
    fit = _values(latent, pairs, kind)
    held_out = _values(test_latent, test_pairs, kind)
    size = np.abs(fit).max(axis=0).clip(min=1e-3)
    kept = np.flatnonzero(np.minimum(fit.std(axis=0), held_out.std(axis=0)) > _CONSTANT * size)
    if not len(kept):
        where = f"among the {len(pairs)} samples to fit on or the {len(test_pairs)} to test on"
        raise ValueError(f"column {latent.name} does not vary ({kind}) {where}")
    mean = fit.mean(axis=0)

    def centered(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((values - mean)[:, kept].astype(np.float32))

    reverse = None if kind == ONE_PICTURE else centered(_values(latent, pairs[:, ::-1], kind))
    names = [latent.components[index] for index in kept]
    return Targets(centered(fit), centered(held_out), names, mean[kept], reverse)


def _values(latent: Latent, pairs: np.ndarray, kind: str) -> np.ndarray:
    return latent.of_pictures(pairs[:, 0]) if kind == ONE_PICTURE else latent.of_changes(pairs[:, 0], pairs[:, 1])
