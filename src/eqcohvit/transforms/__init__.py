"""Transformation paths, image operations and the views of a training sample. Imports torch alone."""

from .masks import BlockMasking
from .paths import PATHS, SampledPath, Transformation, TransformationPath, intermediate_fractions, make_path
from .views import AUGMENTATIONS, Augmentation, MultiCrop, ViewRenderer, Views, training_canvas_size

__all__ = [
    "AUGMENTATIONS",
    "PATHS",
    "Augmentation",
    "BlockMasking",
    "MultiCrop",
    "SampledPath",
    "Transformation",
    "TransformationPath",
    "ViewRenderer",
    "Views",
    "intermediate_fractions",
    "make_path",
    "training_canvas_size",
]
