"""Register EqCohViT with transformers' Auto classes and pipelines: the package's only side effect at import."""

from __future__ import annotations

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # the public name needs torchvision
from transformers.pipelines import PIPELINE_REGISTRY

from .hub.configuration_eqcohvit import EqCohViTConfig
from .hub.image_processing_eqcohvit import EqCohViTImageProcessorPil
from .hub.modeling_eqcohvit import (
    EqCohViTBackbone,
    EqCohViTForImageClassification,
    EqCohViTForPreTraining,
    EqCohViTModel,
)
from .hub.pipeline_eqcohvit import EqCohViTFeatureExtractionPipeline

PIPELINE_TASK = "equivariant-feature-extraction"
_MODEL_CLASSES = {
    AutoModel: EqCohViTModel,
    AutoModelForPreTraining: EqCohViTForPreTraining,
    AutoModelForImageClassification: EqCohViTForImageClassification,
    AutoBackbone: EqCohViTBackbone,
}


def register() -> None:
    """Register the classes with their Auto classes, and their source files to be saved with a model."""
    AutoConfig.register(EqCohViTConfig.model_type, EqCohViTConfig, exist_ok=True)
    EqCohViTConfig.register_for_auto_class()
    for auto_class, model_class in _MODEL_CLASSES.items():
        auto_class.register(EqCohViTConfig, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class.__name__)
    AutoImageProcessor.register(
        EqCohViTConfig, image_processor_classes={"pil": EqCohViTImageProcessorPil}, exist_ok=True
    )
    EqCohViTImageProcessorPil.register_for_auto_class("AutoImageProcessor")
    # EqCohViT has no video processor. Without this entry pipelines look for one in the folder's code and ask to run it.
    AutoVideoProcessor.register(EqCohViTConfig, video_processor_classes={}, exist_ok=True)
    if PIPELINE_TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            PIPELINE_TASK, pipeline_class=EqCohViTFeatureExtractionPipeline, pt_model=AutoModel, type="image"
        )
