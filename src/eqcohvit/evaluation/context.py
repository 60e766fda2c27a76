"""What the tasks of one evaluation share: settings, encoders with controls, images, the cache, and figures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..preprocessing import FIT
from .draws import ENOUGH_PAIRS, draws_for
from .extraction import View, extract
from .feature_cache import Features
from .features import Encoder, ModelEncoder, PixelEncoder, load_encoder, random_controls
from .images import ProbeImages, missing_classes
from .results import Row
from .settings import EvaluationSettings


@dataclass(frozen=True)
class ReportFigure:
    """A plot of the report. `draw()` returns a matplotlib figure and is called only if a report is written."""

    name: str
    caption: str
    draw: Callable[[], Any]


@dataclass
class Evaluation:
    """The models and images of one command. A task is a function of it that returns rows and may add figures.

    Encoders and images are opened when a task first uses them, so that a task that needs neither does not wait.

    Args:
        settings: all of them, those that depend on the size too (`suite.with_size`).
        open_samples: opens the images to fit and to test probes on.
    """

    settings: EvaluationSettings
    open_samples: Callable[[], ProbeImages]
    figures: list[ReportFigure] = field(default_factory=list)
    _rows: dict[Callable, list[Row]] = field(default_factory=dict)
    _labels: dict[str, torch.Tensor] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    @cached_property
    def samples(self) -> ProbeImages:
        """The images to fit on and to test on."""
        return self.open_samples()

    @cached_property
    def model_encoders(self) -> list[ModelEncoder]:
        """The models of the command, without controls."""
        settings = self.settings
        return [
            load_encoder(path, settings.layer, name, settings.trust_remote_code)
            for path, name in zip(settings.model, short_names(settings.model), strict=True)
        ]

    @cached_property
    def encoders(self) -> list[Encoder]:
        """The models, then the controls: random weights and raw pixels."""
        models = self.model_encoders
        return [*models, *random_controls(models), PixelEncoder(models[0].image_size)]

    def open(self) -> None:
        """Open models and images now, instead of when a task first uses them."""
        _ = self.model_encoders, self.samples

    def facts(self) -> dict[str, Any]:
        """What results.json says about the models, images and protocol that the tasks have opened."""
        settings = self.settings
        facts: dict[str, Any] = {"protocol": {"tasks": settings.task, "seeds": settings.seeds, "fit": FIT}}
        if "model_encoders" in self.__dict__:
            facts["models"] = [
                {"name": encoder.name, "image_size": encoder.image_size, "fingerprint": encoder.fingerprint.split()[0]}
                | {"mean": encoder.preprocessing.mean, "std": encoder.preprocessing.std, "layers": encoder.layers}
                for encoder in self.model_encoders
            ]
        if "samples" in self.__dict__:
            samples = self.samples
            draws = {f"{part}_draws": self.num_draws(part) for part in ("train", "test")}
            measures_r2 = {"r2", "disentanglement"} & set(settings.task) and not settings.target_columns
            if max(draws.values()) == 1 or not measures_r2:
                draws = {}
            names = ("full", "transform", "protocol", "pooling", "head", "k", "temperature")
            facts["protocol"] |= {
                "source": samples.train.name,
                "test_source": samples.test.name,
                "train_images": samples.num_train,
                "test_images": samples.num_test,
                **draws,
                "data_fingerprint": samples.fingerprint("train").split()[0],
                "test_data_fingerprint": samples.fingerprint("test").split()[0],
                **{name: getattr(settings, name) for name in names},
            }
        return facts

    def run(self, task: Callable[[Evaluation], list[Row]]) -> list[Row]:
        """The rows of a task. It runs once, even if several others build on it."""
        if task not in self._rows:
            self._rows[task] = task(self)
        return self._rows[task]

    def num_draws(self, part: str) -> int:
        """How many draws of a transformation R2 shows each of the `"train"` or `"test"` images under; 1 unless they are
        few."""
        return draws_for(self.samples.count(part), ENOUGH_PAIRS)

    def features(self, part: str, view: View, encoders: Sequence[Encoder] | None = None) -> dict[str, Features]:
        """Features of the encoders (default: all) for the `"train"` or `"test"` images, by name."""
        found = extract(
            self.encoders if encoders is None else encoders, self.samples, part, view, self.settings.cache_dir
        )
        self._labels[part] = next(iter(found.values())).labels
        self._warn_of_missing_classes()
        return found

    def _warn_of_missing_classes(self) -> None:
        """Warn once of each part whose images cover too few classes.

        The number of classes is the largest one that the sources name or that any part has shown.
        """
        sources = {part: getattr(self.samples, part) for part in self._labels}
        named = [len(source.label_names or ()) for source in sources.values()]
        highest = [(int(labels.max()), len(labels)) for labels in self._labels.values()]
        shown = [label + 1 for label, number in highest if label < 100 * number]  # larger ones are ids, not classes
        for part, source in sources.items():
            problem = missing_classes(self._labels[part], max(named + shown, default=0))
            if problem and part not in self._warned:
                self._warned.add(part)
                use = "fit on" if part == "train" else "test on"
                warnings.warn(f"images of {source.name} to {use}: {problem}", stacklevel=4)


def short_names(models: Sequence[str]) -> list[str]:
    """A name for each model: the shortest end of its path that is unique.

    A last folder `model`, which every run has, is left out.
    """
    parts = [[part for part in path.rstrip("/").split("/") if part] for path in models]
    parts = [part[:-1] if len(part) > 1 and part[-1] == "model" else part for part in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part)} ({index})" for index, part in enumerate(parts, 1)]
