"""A guard for runs that continue from a good model: its kNN accuracy must not fall far below that at the start."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data import Source, sequential
from ..hub.modeling_eqcohvit import EqCohViTModel
from ..preprocessing import FIT, Preprocessing
from .features import LAST, ModelEncoder, select
from .probes import knn_accuracy

_BATCH_SIZE = 128


class AccuracyFell(Exception):
    """The kNN accuracy has fallen by more than allowed."""


class KnnGuard:
    """Measures the backbone's kNN accuracy (k = 20, CLS and mean of the patches) and stops a run if it falls too far.

    Args:
        source: labeled images that are not trained on.
        num_samples: number of images to use; every other one is a neighbor, and the rest are tested.
        image_size: side in pixels, as in training.
        max_drop: how far the accuracy, between 0 and 1, may fall below `start`.

    Raises:
        ValueError: the source has no labels, or fewer than `num_samples` images.
    """

    def __init__(self, source: Source, num_samples: int, image_size: int, max_drop: float):
        if not source.has_labels:
            raise ValueError(
                f"the kNN guard needs labeled images, but {source.name} has no label column: give --knn_guard_steps 0"
            )
        batches = list(sequential(source, image_size, _BATCH_SIZE, num_samples, fit=FIT))
        self.images = torch.cat([batch.canvases for batch in batches])
        self.labels = torch.cat([batch.labels for batch in batches])
        too_few = len(self.labels) < 0.9 * num_samples  # some may be unreadable
        if too_few or (self.labels < 0).any() or len(self.labels.unique()) < 2:
            found = f"{int((self.labels >= 0).sum())} of {len(self.labels.unique())} classes"
            raise ValueError(
                f"the kNN guard expected {num_samples} labeled images of at least 2 classes from {source.name}, "
                f"found {found}; lower knn_guard_samples (at most half of the training images are used) "
                "or give knn_guard_data_files"
            )
        self.max_drop = max_drop
        self.start: float | None = None  # accuracy at the start of the run

    def measure(self, model: EqCohViTModel, image_mean: Sequence[float], image_std: Sequence[float]) -> float:
        """The present accuracy of the model, with its mean and standard deviation; its mode does not change."""
        training = model.training
        encoder = ModelEncoder(
            "guard", model, Preprocessing(self.images.shape[-1], tuple(image_mean), tuple(image_std))
        )
        vectors = (encoder(images.float() / 255) for images in self.images.split(_BATCH_SIZE))
        features = torch.cat([select(block, "backbone", LAST, "cls_mean").cpu() for block in vectors])
        model.train(training)
        return knn_accuracy(features[::2], self.labels[::2], features[1::2], self.labels[1::2])

    def check(self, accuracy: float, step: int) -> None:
        """Take the first accuracy as the start; raise `AccuracyFell` if a later one is more than `max_drop` lower."""
        if self.start is None:
            self.start = accuracy
        if self.start - accuracy > self.max_drop:
            raise AccuracyFell(
                f"kNN accuracy fell from {self.start:.3f} at the start to {accuracy:.3f} at step {step}, by more than "
                f"knn_guard_drop={self.max_drop:g}; try a lower learning_rate, more head_warmup_steps, a smaller "
                "layer_decay, or --peft lora"
            )
