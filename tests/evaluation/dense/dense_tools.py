"""What the tests of the dense tasks share: a tiny encoder's folder, and datasets made of arrays."""

import io

import datasets
import numpy as np
import torch
from PIL import Image

from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining
from eqcohvit.export import save_hub_folder


def save_tiny_encoder(folder, image_size=32, layers=4):
    """A Hub folder of a ViT of width 16 with patches of 8 pixels."""
    backbone = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = EqCohViTConfig.from_preset("micro", image_size, 8, backbone_kwargs=backbone, feature_dim=12, equivariant_dim=6, decoder_dim=16)
    torch.manual_seed(0)
    return save_hub_folder(folder, EqCohViTForPreTraining(config))


def png(array):
    """uint8 (H, W) or (H, W, 3) -> the cell of an undecoded image column."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_rows(**columns):
    """Rows of lists; columns of arrays become images."""
    features = {}
    for name, values in columns.items():
        if isinstance(values[0], np.ndarray):
            columns[name] = [png(value) for value in values]
            features[name] = datasets.Image(decode=False)
    inferred = datasets.Dataset.from_dict({name: values for name, values in columns.items() if name not in features}).features
    return datasets.Dataset.from_dict(columns, features=datasets.Features({**inferred, **features}))
