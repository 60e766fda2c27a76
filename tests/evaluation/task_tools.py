"""What the tests of the tasks share: encoders by a function, and an evaluation of them."""

import torch

from eqcohvit.data import SpritesSource
from eqcohvit.evaluation import r2_tasks
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.features import LAST, Feature
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.settings import EvaluationSettings


class Encoder:
    """Features by a function of the images (B, 3, H, H), of one part called as the encoder."""

    image_size = 16

    def __init__(self, name, function):
        self.name, self.function, self.fingerprint = name, function, name

    def __call__(self, images):
        return {Feature(self.name, LAST, "mean"): self.function(images)}


def rings(images):
    """Means over three rings about the center: nothing in them changes when the image turns."""
    axis = (torch.arange(16) - 7.5) / 8
    radius = torch.hypot(axis[:, None], axis[None, :])
    masks = torch.stack([(radius >= low) & (radius < low + 0.3) for low in (0.0, 0.3, 0.6)]).float().flatten(1)
    return (images.flatten(2) @ (masks / masks.sum(dim=1, keepdim=True)).T).flatten(1)


def make(tmp_path, encoders, samples=None, seeds=2, **settings):
    samples = samples or ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 300, 150)
    defaults = {
        "transform": ["rotation"],
        "protocol": ["strict"],
        "pooling": ["cls_mean"],
        "head": list(r2_tasks.FITTED_HEADS),
        "k": 3,
        "temperature": 0.07,
        "alone": "pixels",
        "seeds": seeds,
        "cache_dir": tmp_path,
    }
    evaluation = Evaluation(EvaluationSettings(**defaults | settings), lambda: samples)
    evaluation.encoders = encoders
    evaluation.num_draws = lambda part: 1  # however few the images are; see test_draws.py
    return evaluation
