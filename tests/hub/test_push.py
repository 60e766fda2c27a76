"""Upload and download over real HTTP, against a Hub on the loopback interface."""

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hub.hub_tools import run_python
from tests.hub.loopback_hub import TOKEN, LoopbackHub
from tests.patience import PATIENCE
from tests.tiny import SIZES
from transformers import AutoModel

PUSH = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"
DOWNLOAD = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, pipeline
model = AutoModel.from_pretrained("user/name", trust_remote_code=True)
with torch.no_grad():
    features = model(load_file("x.safetensors")["x"]).equivariant_features
    backbone = AutoBackbone.from_pretrained("user/name", trust_remote_code=True)
    maps = backbone(load_file("x.safetensors")["x"]).feature_maps
AutoImageProcessor.from_pretrained("user/name", trust_remote_code=True)
extract = pipeline("equivariant-feature-extraction", model="user/name", trust_remote_code=True)
invariant = extract("photo.png", return_tensors=True)["invariant"]
model.save_pretrained("again")
with torch.no_grad():
    again = AutoModel.from_pretrained("again", trust_remote_code=True)(load_file("x.safetensors")["x"])
assert torch.equal(again.equivariant_features, features)
save_file({"features": features.contiguous(), "map": maps[0], "pipeline": invariant}, "out.safetensors")
"""


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


def push(hub, home, folder, *flags, token=TOKEN):
    command = [sys.executable, str(PUSH), "--folder", str(folder), "--repo_id", "user/name", *flags]
    return subprocess.run(command, env=hub.environment(home, token), capture_output=True, text=True, timeout=PATIENCE)


def test_push_then_load_by_name_in_a_process_without_the_package(hub, tmp_path, folder, photo, bare_site):
    done = push(hub, tmp_path / "hf", folder, "--private")
    assert done.returncode == 0, done.stderr
    assert hub.count("POST /api/models/user/name/commit/main") == 1  # all files in one commit
    assert hub.repos["user/name"]["private"]
    assert hub.files("user/name") == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.count("PUT /lfs/") == 1  # the weights went through LFS

    torch.manual_seed(1)
    x = torch.randn(2, 3, 32, 32)
    save_file({"x": x}, tmp_path / "x.safetensors")
    photo.save(tmp_path / "photo.png")
    run_python(DOWNLOAD, tmp_path, bare_site, hub.environment(tmp_path / "other"))
    found = load_file(tmp_path / "out.safetensors")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder)(x).equivariant_features
    torch.testing.assert_close(found["features"], expected, rtol=1e-5, atol=1e-5)
    assert found["map"].shape == (2, 32, 4, 4) and found["pipeline"].shape == (14,)


def test_push_goes_on_after_broken_connections_without_sending_weights_twice(hub, tmp_path, folder):
    hub.break_next("PUT /lfs/", 1)
    hub.break_next("POST /api/models/user/name/commit", 1)
    done = push(hub, tmp_path / "hf", folder)
    assert done.returncode == 0, done.stderr
    assert hub.count("POST /api/models/user/name/commit/main") == 2  # the broken one and the one that arrived
    assert hub.count("PUT /lfs/") == 2  # likewise, and none after the commit broke
    assert set(hub.files("user/name")) == {path.name for path in folder.iterdir()}


def test_push_on_a_branch_replaces_stale_weights_and_leaves_main_alone(hub, tmp_path, folder):
    assert push(hub, tmp_path / "hf", folder).returncode == 0
    main = dict(hub.files("user/name"))
    hub.files("user/name")["model-00001-of-00002.safetensors"] = b"stale"
    hub.files("user/name")["notes.txt"] = b"kept"
    done = push(hub, tmp_path / "hf", folder, "--revision", "step-100", "--commit_message", "step 100")
    assert done.returncode == 0, done.stderr
    assert set(hub.files("user/name", "step-100")) == {*main, "notes.txt"}
    assert "model-00001-of-00002.safetensors" in hub.files("user/name")


def test_push_without_write_access_is_one_line_and_exit_code_2(hub, tmp_path, folder):
    done = push(hub, tmp_path / "hf", folder, token="hf_wrong")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "401" in done.stderr and "HF_TOKEN" in done.stderr
    assert "user/name" not in hub.repos


def test_range_requests_are_answered_with_the_asked_bytes(hub):
    hub.repos["user/name"] = {
        "private": False,
        "branches": {"main": "a" * 40},
        "commits": {"a" * 40: {"f.bin": bytes(range(100))}},
    }
    request = urllib.request.Request(f"{hub.url}/user/name/resolve/main/f.bin", headers={"Range": "bytes=10-19"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 206 and answer.read() == bytes(range(10, 20))
        assert answer.headers["Content-Range"] == "bytes 10-19/100"


def test_pretraining_pushes_its_model_card_and_training_state_and_another_run_goes_on_from_there(hub, tmp_path):
    flags = (
        f"{SIZES} "
        "--warmup_steps 1 --per_device_train_batch_size 4 --max_steps 2 --save_steps 1 --push_to_hub "
        "--push_training_state --hub_model_id user/tiny"
    ).split()

    def pretrain(name, *flags):
        command = [sys.executable, str(PUSH.with_name("pretrain.py")), "--output_dir", str(tmp_path / name), *flags]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, env=hub.environment(tmp_path / "home")
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert pretrain("run", *flags).count("pushed to ") == 2  # at each checkpoint
    expected = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "modeling_eqcohvit.py"}
    expected |= {
        f"training_state/{name}" for name in ("model.safetensors", "optimizer.bin", "config.yaml", "run_state.json")
    }
    assert expected <= set(hub.files("user/tiny"))
    assert "step 3/3" in pretrain("continued", "--resume_from_checkpoint", "user/tiny", "--max_steps", "3")
