import pytest
from tests.conftest import save_tiny_encoder

from eqcohvit.downstream.backbones import EncoderFolder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A tiny encoder for images of 64 pixels: the heads of instances halve its maps more often."""
    return EncoderFolder.open(str(save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "model", image_size=64)))
