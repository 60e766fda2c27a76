"""Runs from a real pretrained ViT in half precision, which no other test has: frozen, with LoRA, whole, and guarded.

EQCOHVIT_REAL_VIT names the folder of one: any ViT of transformers with patches of at most 28 pixels.
"""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.tiny import load_script
from transformers import AutoModel

pytestmark = pytest.mark.slow
RUN = (
    "--label_column folder --image_size 56 --path se2 --per_device_train_batch_size 4 --max_steps 3 --warmup_steps 1 "
    "--save_steps 3 --sample_steps 3 --probe_samples 0 --feature_dim 32 --equivariant_dim 16 --decoder_dim 16 "
    "--projector_dim 32"
).split()


@pytest.fixture(scope="module")
def vit():
    """The folder, and its weights in float32 by name."""
    folder = os.environ.get("EQCOHVIT_REAL_VIT", "")
    if not os.path.isdir(folder):
        pytest.skip("EQCOHVIT_REAL_VIT names no folder of a pretrained ViT")
    stored = load_file(f"{folder}/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} <= {torch.float16, torch.bfloat16}
    return folder, AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """60 pictures with rows and 60 with columns, at all places and with noise, in two folders."""
    root = tmp_path_factory.mktemp("stripes")
    generator = np.random.default_rng(0)
    for index in range(120):
        folder = root / ("rows" if index % 2 else "columns")
        folder.mkdir(exist_ok=True)
        wave = 128 + 100 * np.sin(np.arange(56) * 0.4 + generator.uniform(0, 7))
        image = np.broadcast_to(wave[:, None] if index % 2 else wave, (56, 56)) + generator.normal(0, 10, (56, 56))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).convert("RGB").save(folder / f"{index}.png")
    return root


def run(*flags):
    return load_script("pretrain").cli([str(flag) for flag in flags])


def backbone_of(folder):
    model = AutoModel.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return model.backbone.state_dict()


def changed(vit, folder):
    """Names of the backbone's tensors that differ from the start's."""
    ours = backbone_of(folder)
    return {name for name, tensor in vit[1].items() if not torch.equal(tensor, ours[name])}


@pytest.mark.parametrize("how", ["frozen", "lora", "whole"])
def test_half_precision_start_trains_what_it_should(vit, stripes, tmp_path, how):
    flags = {"frozen": ["--freeze_backbone"], "lora": ["--peft", "lora", "--lora_rank", "4"], "whole": []}[how]
    output_dir = tmp_path / "run"
    assert run("--init_from", vit[0], "--train_dir", stripes, "--output_dir", output_dir, *RUN, *flags) == 0
    names = changed(vit, output_dir / "model")
    layers = {name for name in names if ".layer." in name}
    if how == "frozen":
        assert not layers
    if how == "lora":
        assert layers and all(name.endswith(".weight") and vit[1][name].ndim == 2 for name in layers)
    if how == "whole":
        assert len(layers) > 0.9 * sum(".layer." in name for name in vit[1])


@pytest.mark.parametrize(("rate", "code"), [(1e-5, 0), (0.01, 1)])
def test_guard_stops_the_run_that_ruins_the_start(vit, stripes, tmp_path, capsys, rate, code):
    flags = "--max_steps 12 --knn_guard_steps 4 --knn_guard_samples 60 --knn_guard_drop 0.1".split()
    start = ["--init_from", vit[0], "--train_dir", stripes, "--output_dir", tmp_path / "run"]
    assert run(*start, *RUN, *flags, "--learning_rate", rate) == code
    assert ("kNN accuracy fell" in capsys.readouterr().err) == bool(code)
