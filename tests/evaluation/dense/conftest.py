import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))  # so that test files can import dense_tools

from dense_tools import save_tiny_encoder  # noqa: E402

logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def one_thread():
    """The models are tiny: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "model")
