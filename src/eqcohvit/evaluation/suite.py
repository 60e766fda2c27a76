"""The benchmark to compare models: everything that decides a figure, under one version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .results import Row
from .settings import EvaluationSettings

# Raise it whenever the same model and data give other figures than before: after a change of transformations,
# protocols, decoding, pooling, probes or counts. tests/evaluation/test_protocol_version.py holds the figures of a
# version. How many draws each of few images is shown under is a count that results.json states: `train_draws` and
# `test_draws`, without which it is 1.
PROTOCOL_VERSION = "5"
_WITHOUT_VERSION = "1"  # of results that do not name one


@dataclass(frozen=True)
class Suite:
    """Settings by the name of their flag of scripts/evaluate.py.

    `max_samples` and `max_test_samples` may be lowered for smaller data.
    """

    task: tuple[str, ...]
    transform: tuple[str, ...]
    protocol: tuple[str, ...]
    pooling: tuple[str, ...]
    head: tuple[str, ...]
    layer: tuple[str, ...]
    seeds: int
    max_samples: int
    max_test_samples: int

    def fixed(self) -> dict[str, Any]:
        """What no flag may change, as lists, as a command line gives them."""
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in settings.items() if name not in ("max_samples", "max_test_samples")}


SUITES: dict[str, Suite] = {
    "r2": Suite(
        task=("r2",),
        transform=("rotation", "translation", "perspective", "zoom", "color_jitter", "gaussian_blur"),
        protocol=("strict", "paper"),
        pooling=("cls_mean",),
        head=("mlp", "linear"),
        layer=("last",),
        seeds=3,
        max_samples=2048,
        max_test_samples=1024,
    )
}


@dataclass(frozen=True)
class Size:
    """Settings that decide how long an evaluation takes, by the name of their flag.

    `alone`: which parts get a row of the transformed image only, `"all"` or `"pixels"`.
    """

    protocol: tuple[str, ...]
    pooling: tuple[str, ...]
    seeds: int
    max_samples: int
    max_test_samples: int
    alone: str


_FEW = 500  # images to fit on; the released model reads R2 0.81 with 200 and 0.95 with 2,048 (scripts/guides/uses.md)
# Without --full: about a minute for a model on a laptop.
QUICK = Size(("strict",), ("cls_mean",), seeds=1, max_samples=1024, max_test_samples=512, alone="pixels")
FULL = Size(("paper", "strict"), ("cls_mean", "grid"), seeds=3, max_samples=4096, max_test_samples=2048, alone="all")


def with_size(settings: EvaluationSettings) -> EvaluationSettings:
    """The settings with those that no flag gave: from `FULL` with `--full` or a suite, else from `QUICK`."""
    size = FULL if settings.full or settings.suite else QUICK
    left_open = {name: value for name, value in vars(size).items() if getattr(settings, name) is None}
    return replace(settings, **left_open)


def describe_size(settings: Mapping[str, Any]) -> str:
    """Lines: how the figures of these settings were measured, whether few images were, and what `--full` does."""
    lines = [f"Measured: {_in_words(settings)}."]
    if few := few_images(settings["max_samples"]):
        hint = "" if "kernel" in settings["head"] else " --head kernel reads more from few."
        lines.append(few[0] + hint)
    if not settings["full"] and not settings["suite"]:
        lines.append(f"--full takes longer: {_in_words(asdict(FULL))}.")
    return "\n".join(lines)


def few_images(number: int | None) -> list[str]:
    """A line if `number` images are few to fit a probe on."""
    if number is None or number >= _FEW:
        return []
    return [f"{number} images are few to fit a probe on: expect wide intervals below {_FEW}."]


def _in_words(settings: Mapping[str, Any]) -> str:
    seeds = "1 seed" if settings["seeds"] == 1 else f"{settings['seeds']} seeds"
    names = f"{' and '.join(settings['protocol'])} protocol, pooling {' and '.join(settings['pooling'])}"
    counts = f"at most {settings['max_samples']:,} images to fit on and {settings['max_test_samples']:,} to test on"
    draws = [settings.get(name, 1) for name in ("train_draws", "test_draws")]
    if max(draws) > 1:
        counts += f", each under {draws[0]} and {draws[1]} draws of the transformation"
    return f"{names}, {seeds}, {counts}"


def protocol_version(results: Mapping[str, Any]) -> str:
    """The version that a results.json was measured with."""
    return str(results.get("protocol_version", _WITHOUT_VERSION))


def check_same_version(results: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Check results that will be shown side by side, given with the name of their file.

    Raises:
        ValueError: their protocol versions differ.
    """
    versions: dict[str, str] = {}
    for name, found in results:
        versions.setdefault(protocol_version(found), name)
    if len(versions) > 1:
        listed = ", ".join(f"{name} has {version}" for version, name in versions.items())
        problem = "figures of different protocol versions cannot stand side by side"
        raise ValueError(f"{problem}: {listed}; measure the older ones again")


def check_comparable(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Check results of the suite that will be shown in one table, by the name of their file.

    Raises:
        ValueError: their protocol versions, suites, counts, draws or test images differ.
    """
    check_same_version(results.items())
    names = ("train_images", "test_images", "data_fingerprint", "test_data_fingerprint")
    draws = ("train_draws", "test_draws")
    first: tuple[str, dict[str, Any]] | None = None
    for name, found in results.items():
        protocol = found.get("protocol", {})
        decides = {"suite": found.get("suite"), **{key: protocol.get(key) for key in names}}
        decides |= {key: protocol.get(key, 1) for key in draws}
        if first is None:
            first = (name, decides)
        for key, value in decides.items():
            if value != first[1][key]:
                difference = f"{key} is {value} and {first[1][key]}"
                raise ValueError(f"{name} and {first[0]} cannot stand in one table: {difference}")


def read_beside(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The content of results.json files, by path.

    Raises:
        ValueError: one is missing, or is not a results.json with rows.
    """
    found = {}
    for path in paths:
        try:
            found[path] = json.loads(Path(path).read_text(encoding="utf-8"))
            assert found[path]["rows"] and found[path]["models"]
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            raise ValueError(f"beside needs results.json files that --suite has written, got {path}") from None
    return found


def rows_beside(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[Row]:
    """The rows of the models of results.json files, without their controls, to show beside models of `names`.

    Raises:
        ValueError: two models have one name.
    """
    rows = []
    taken = set(names)
    for path, found in results.items():
        models = {model["name"] for model in found["models"]}
        if models & taken:
            shared = ", ".join(sorted(models & taken))
            raise ValueError(f"two models of one name cannot stand in one table: {shared} of {path}")
        taken |= models
        rows += [Row(**row) for row in found["rows"] if row["encoder"] in models]
    return rows
