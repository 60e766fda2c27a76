"""Transformation paths, image operations and the views of a training sample. Imports only torch."""

from .augmentations import AUGMENTATIONS, Augmentation, ViewParameters
from .masks import BlockMasking
from .paths import PATHS, SampledPath, Transformation, TransformationPath, intermediate_fractions, make_path
from .views import Draws, MultiCrop, ViewRenderer, Views, training_canvas_size

__all__ = [
    "AUGMENTATIONS",
    "PATHS",
    "Augmentation",
    "BlockMasking",
    "Draws",
    "MultiCrop",
    "SampledPath",
    "Transformation",
    "TransformationPath",
    "ViewParameters",
    "ViewRenderer",
    "Views",
    "intermediate_fractions",
    "make_path",
    "training_canvas_size",
]
