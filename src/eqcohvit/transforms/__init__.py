"""Transformation paths, image operations and the views of a training sample. Imports torch alone."""

from .paths import PATHS, SampledPath, Transformation, TransformationPath, intermediate_fractions, make_path
from .views import AUGMENTATIONS, Augmentation, ViewRenderer, Views

__all__ = [
    "AUGMENTATIONS",
    "PATHS",
    "Augmentation",
    "SampledPath",
    "Transformation",
    "TransformationPath",
    "ViewRenderer",
    "Views",
    "intermediate_fractions",
    "make_path",
]
