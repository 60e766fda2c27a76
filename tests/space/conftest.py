"""A tiny split model, the page that shows it, a server of it on the loopback, and a real browser."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.patience import PATIENCE

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
pytest.importorskip("gradio", reason="the tests of the page need the extra 'space'")
sys.path.insert(0, str(Path(__file__).parents[2] / "space_app"))

from app import find_examples  # noqa: E402
from demo import Demo  # noqa: E402
from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining  # noqa: E402
from eqcohvit.publish.folder import save_hub_folder  # noqa: E402
from eqcohvit.transforms import make_path  # noqa: E402
from layout import build, launch  # noqa: E402
from probe import fit_probe  # noqa: E402
from walk import SplitModel  # noqa: E402

PATH = "se2+color_jitter"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Hub folder of a tiny model with random weights, whose reconstructions are neither flat nor equal for all
    pictures."""
    torch.manual_seed(0)
    backbone = {
        "model_type": "dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "use_mask_token": False,
    }
    config = EqCohViTConfig(
        backbone_config={**backbone, "image_size": 32, "patch_size": 8},
        feature_dim=16, equivariant_dim=8, decoder_dim=16, initializer_range=0.5, path=PATH, border="zeros",
    )  # fmt: skip
    model = EqCohViTForPreTraining(config)
    model.decoders.convs[-1].weight.data.mul_(10)
    return save_hub_folder(tmp_path_factory.mktemp("checkpoint") / "tiny", model)


@pytest.fixture(scope="session")
def model(folder):
    return SplitModel(str(folder))


@pytest.fixture(scope="session")
def probe(model):
    return fit_probe(model, make_path(PATH), 24, [picture(seed) for seed in range(3)], steps=20)


@pytest.fixture(scope="session")
def examples():
    return find_examples()


@pytest.fixture(scope="session")
def demo(model, probe, examples):
    return Demo(model, probe, examples)


@pytest.fixture(scope="session")
def server(demo, tmp_path_factory):
    """Address of the page; GRADIO_TEMP_DIR, where visitors' files go, is a folder of the tests."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("visitors"))
    page = build(demo, file_life=(1, 600))
    _, url, _ = launch(page, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield url
    page.close(verbose=False)
    if before is None:
        del os.environ["GRADIO_TEMP_DIR"]
    else:
        os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium of the system; scripts/test.sh installs it where apt-get can."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser tests need the extra 'dev' (playwright)"
    )
    if CHROMIUM is None:
        pytest.skip("the browser tests need chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=FLAGS.split(), timeout=1000 * PATIENCE
        )
        yield opened
        opened.close()


def picture(seed: int, size=(40, 40)) -> Image.Image:
    """A smooth colored picture, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def make_picture():
    return picture


@pytest.fixture(scope="session")
def picture_files(tmp_path_factory):
    """Twelve PNG files of different pictures."""
    root = tmp_path_factory.mktemp("pictures")
    files = [root / f"{seed}.png" for seed in range(12)]
    for seed, file in enumerate(files):
        picture(seed).save(file)
    return files
