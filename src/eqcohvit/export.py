"""First version by the lead so that scripts/pretrain.py runs; the export engineer replaces this file."""

from pathlib import Path

from .hub.image_processing_eqcohvit import EqCohViTImageProcessorPil


def save_hub_folder(folder, model, *, image_mean, image_std, card=None):
    side = model.config.square_image_size
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    EqCohViTImageProcessorPil(size={"height": side, "width": side}, image_mean=list(image_mean), image_std=list(image_std)).save_pretrained(folder)
