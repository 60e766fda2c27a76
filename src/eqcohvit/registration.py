"""Makes EqCohViT known to transformers' Auto classes and pipelines; the package's only side effect at import."""

from __future__ import annotations

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # the public name wants torchvision
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
    """Register the classes for `from_pretrained` by Auto class, and their source files for export with a saved
    model."""
    AutoConfig.register(EqCohViTConfig.model_type, EqCohViTConfig, exist_ok=True)
    EqCohViTConfig.register_for_auto_class()
    for auto_class, model_class in _MODEL_CLASSES.items():
        auto_class.register(EqCohViTConfig, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class.__name__)
    AutoImageProcessor.register(
        EqCohViTConfig, image_processor_classes={"pil": EqCohViTImageProcessorPil}, exist_ok=True
    )
    EqCohViTImageProcessorPil.register_for_auto_class("AutoImageProcessor")
    # There is none; said here, or the pipelines would look for one in the folder's code and ask whether to run it.
    AutoVideoProcessor.register(EqCohViTConfig, video_processor_classes={}, exist_ok=True)
    if PIPELINE_TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            PIPELINE_TASK, pipeline_class=EqCohViTFeatureExtractionPipeline, pt_model=AutoModel, type="image"
        )
