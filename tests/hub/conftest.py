import numpy as np
import pytest
from PIL import Image
from tests.hub.hub_tools import link_distributions, seeded, tiny_config

from eqcohvit import EqCohViTForPreTraining
from eqcohvit.publish.folder import save_hub_folder


@pytest.fixture(scope="session")
def photo():
    """A smooth colored image of 40 x 52 pixels."""
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
