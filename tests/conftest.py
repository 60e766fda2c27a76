"""Shared fixtures: tiny images and the scripts as modules."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.run_server import RunServer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SCRIPTS = Path(__file__).parents[1] / "scripts"
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def load_script(name: str):
    """The script as a module, so that its `cli(argv)` runs in this process."""
    if str(SCRIPTS) not in sys.path:  # as where the script is run
        sys.path.append(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
