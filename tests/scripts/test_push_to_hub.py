"""The command line of scripts/push_to_hub.py; uploads themselves are tested in tests/hub/test_push.py."""

import subprocess
import sys
from pathlib import Path

import yaml
from tests.hub.loopback_hub import LoopbackHub

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.publish.folder import save_hub_folder

SCRIPT = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"
BACKBONE = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def run(*arguments, env=None):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], env=env, capture_output=True, text=True, timeout=300
    )


def test_folder_that_is_none_is_one_line_and_exit_code_2(tmp_path):
    done = run("--folder", tmp_path / "nothing", "--repo_id", "user/name")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path / 'nothing'} is no model folder: expected config.json and *.safetensors in it\n"
    )


def test_missing_flags_are_exit_code_2():
    done = run("--folder", "somewhere")
    assert done.returncode == 2 and "--repo_id" in done.stderr


def test_training_state_that_is_none_is_one_line_and_exit_code_2(tmp_path):
    done = run("--folder", tmp_path, "--repo_id", "user/name", "--training_state", tmp_path / "step-3")
    assert done.returncode == 2 and done.stderr.startswith(
        f"error: no checkpoint at {tmp_path / 'step-3'}: expected a folder such as"
    )


def test_card_and_training_state_are_uploaded_with_the_model(tmp_path):
    config = EqCohViTConfig(
        backbone_config={**BACKBONE, "image_size": 32, "patch_size": 16}, feature_dim=8, equivariant_dim=4
    )
    folder = save_hub_folder(tmp_path / "run" / "model", EqCohViTModel(config))
    settings = {
        "model_preset": "micro",
        "backbone": "vit",
        "image_size": 32,
        "feature_dim": 8,
        "equivariant_dim": 4,
        "path": "se2",
    }
    settings |= {
        "objective": "vicreg",
        "augmentation": "all",
        "border": "zeros",
        "recon_weight": 1.0,
        "num_intermediates": 2,
        "seed": 3,
    }
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 12, "loss": 2.5}\n')
    checkpoint = tmp_path / "run" / "checkpoints" / "step-12"
    checkpoint.mkdir(parents=True)
    (checkpoint / "run_state.json").write_text('{"step": 12}')
    with LoopbackHub() as hub:
        flags = (
            "--folder",
            folder,
            "--repo_id",
            "user/name",
            "--run_dir",
            tmp_path / "run",
            "--training_state",
            checkpoint,
        )
        done = run(*flags, env=hub.environment(tmp_path / "hf"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"uploaded {folder} to user/name: {hub.url}/user/name/commit/")
        card = hub.files("user/name")["README.md"].decode()
        assert hub.files("user/name")["training_state/run_state.json"] == b'{"step": 12}'
    assert 'model="user/name"' in card and "path `se2`" in card and "12 steps" in card


def test_space_is_uploaded_whole_page_package_and_model(tmp_path):
    config = EqCohViTConfig(
        backbone_config={**BACKBONE, "image_size": 32, "patch_size": 16}, feature_dim=8, equivariant_dim=4
    )
    folder = save_hub_folder(tmp_path / "model", EqCohViTModel(config))
    with LoopbackHub() as hub:
        done = run("--space", "--folder", folder, "--repo_id", "user/demo", env=hub.environment(tmp_path / "hf"))
        assert done.returncode == 0, done.stderr
        files = hub.files("spaces/user/demo")
    assert done.stdout.startswith(f"uploaded {len(files)} files to the Space user/demo: {hub.url}/")
    assert {
        "app.py",
        "README.md",
        "requirements.txt",
        "style.css",
        "eqcohvit/publish/folder.py",
        "model/model.safetensors",
    } <= set(files)
    assert b"sdk: gradio" in files["README.md"] and files["model/config.json"] == (folder / "config.json").read_bytes()
    assert not [name for name in files if "__pycache__" in name or (name.startswith("model/") and name.endswith(".py"))]


def test_space_without_a_model_is_one_line_and_exit_code_2(tmp_path):
    done = run("--space", "--folder", tmp_path / "nothing", "--repo_id", "user/demo")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path / 'nothing'} is no model folder: expected config.json and *.safetensors in it\n"
    )


def test_the_folder_of_a_run_is_its_model(tmp_path):
    config = EqCohViTConfig(
        backbone_config={**BACKBONE, "image_size": 32, "patch_size": 16}, feature_dim=8, equivariant_dim=4
    )
    folder = save_hub_folder(tmp_path / "run" / "model", EqCohViTModel(config))
    (tmp_path / "run" / "config.yaml").write_text("max_steps: 3\n")
    (tmp_path / "run" / "checkpoints").mkdir()
    with LoopbackHub() as hub:
        done = run("--folder", tmp_path / "run", "--repo_id", "user/name", env=hub.environment(tmp_path / "hf"))
        assert done.returncode == 0 and done.stdout.startswith(f"uploaded {folder} to user/name"), done.stderr
        assert hub.files("user/name")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
