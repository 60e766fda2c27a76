import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))  # so that test files can import hub_tools and loopback_hub

from hub_tools import link_distributions, seeded, tiny_config  # noqa: E402

from eqcohvit import EqCohViTForPreTraining  # noqa: E402
from eqcohvit.export import save_hub_folder  # noqa: E402

logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def one_thread():
    """The models are tiny: a second thread only waits for the first, and long where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photo():
    """A smooth coloured image of 40 x 52 pixels."""
    y, x = np.mgrid[0:40, 0:52]
    return Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8))


@pytest.fixture(scope="session")
def pretrained():
    return seeded(EqCohViTForPreTraining, tiny_config())


@pytest.fixture(scope="session")
def folder(tmp_path_factory, pretrained):
    """A Hub folder as pretraining exports it."""
    return save_hub_folder(tmp_path_factory.mktemp("export") / "model", pretrained)


@pytest.fixture(scope="session")
def bare_site(tmp_path_factory):
    """An environment of torch, transformers and pillow alone, as a folder for `run_python`."""
    return link_distributions(tmp_path_factory.mktemp("site"), "torch", "transformers", "pillow")
