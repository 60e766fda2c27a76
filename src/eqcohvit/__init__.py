"""Equivariance-coherent self-supervised vision transformers (arXiv:2503.18753) for Hugging Face Transformers."""

from .hub.configuration_eqcohvit import EqCohViTConfig
from .hub.image_processing_eqcohvit import EqCohViTImageProcessorPil
from .hub.modeling_eqcohvit import (
    EqCohViTBackbone,
    EqCohViTForImageClassification,
    EqCohViTForPreTraining,
    EqCohViTModel,
    pool_tokens,
    split_features,
)
from .hub.pipeline_eqcohvit import EqCohViTFeatureExtractionPipeline
from .registration import PIPELINE_TASK, register

__version__ = "0.1.0"

register()

__all__ = [
    "PIPELINE_TASK",
    "EqCohViTBackbone",
    "EqCohViTConfig",
    "EqCohViTFeatureExtractionPipeline",
    "EqCohViTForImageClassification",
    "EqCohViTForPreTraining",
    "EqCohViTImageProcessorPil",
    "EqCohViTModel",
    "pool_tokens",
    "split_features",
]
