"""Shared fixtures: tiny images, a tiny encoder, and the scripts as modules."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.run_server import RunServer
from tests.tiny import SCRIPTS as SCRIPTS  # many tests import these two from here
from tests.tiny import load_script as load_script

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the Hub's library reads it when it is imported

from transformers.utils import logging

from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining
from eqcohvit.data import jpeg
from eqcohvit.publish.folder import save_hub_folder

torch.set_num_threads(1)  # the models are tiny: a second thread only waits for the first
logging.disable_progress_bar()


def save_tiny_encoder(folder: Path, image_size: int = 32, num_layers: int = 4) -> Path:
    """A Hub folder of a ViT of width 16 with patches of 8 pixels."""
    backbone = {"hidden_size": 16, "num_hidden_layers": num_layers, "num_attention_heads": 2}
    config = EqCohViTConfig.from_preset(
        "micro", image_size, 8, backbone_kwargs=backbone, feature_dim=12, equivariant_dim=6, decoder_dim=16
    )
    torch.manual_seed(0)
    return save_hub_folder(folder, EqCohViTForPreTraining(config))


@pytest.fixture(params=["Pillow", "simplejpeg"])
def jpeg_decoder(request, monkeypatch):
    """What holds for every decoder of JPEGs: a test is run with each."""
    reason = "the extra jpeg is not installed"
    library = None if request.param == "Pillow" else pytest.importorskip("simplejpeg", reason=reason)
    monkeypatch.setattr(jpeg, "_simplejpeg", library)


@pytest.fixture(autouse=True)
def one_thread():
    """A test that wants more threads has them to its end."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run_server():
    """Starts real runs of scripts/pretrain.py in milliseconds (see run_server.py)."""
    server = RunServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder tree of 24 small photographs in two folders, as noise of several sizes."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(24):
        folder = root / ("a" if i % 2 else "b/c")
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40 + i, 36), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> str:
    """A tiny encoder for images of 32 pixels, in the folder of a run that is named "tiny"."""
    return str(save_tiny_encoder(tmp_path_factory.mktemp("runs") / "tiny" / "model"))
