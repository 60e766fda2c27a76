"""The command line of scripts/push_to_hub.py; uploads themselves are tested in tests/hub/test_push.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import save_tiny_encoder
from tests.hub.loopback_hub import LoopbackHub
from tests.patience import PATIENCE

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.commands.push_to_hub import cli
from eqcohvit.files import PLACEHOLDER
from eqcohvit.publish.folder import save_hub_folder

SCRIPT = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"
BACKBONE = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}

CARD = """---
license: mit
---

# default

extract = pipeline("equivariant-feature-extraction", model="default", trust_remote_code=True)
"""


def run(*arguments, env=None):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], env=env, capture_output=True, text=True, timeout=PATIENCE
    )


def call(*arguments):
    """The exit code, in this process."""
    return cli([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--folder PLACE/nothing --repo_id user/name", "no such folder: PLACE/nothing"),
        ("--space --folder PLACE/nothing --repo_id user/name", "no such folder: PLACE/nothing"),
        ("--folder PLACE", "the following arguments are required: --repo_id"),
        ("--repo_id user/name", "the following arguments are required: --folder"),
        ("--folder PLACE --repo_id a/b/c", "expected a repository name like user/name, got 'a/b/c'"),
        (
            "--folder PLACE --repo_id user/name --training_state PLACE/step-3",
            "no checkpoint at PLACE/step-3: expected a folder such as",
        ),
        ("--space --metric r2 --repo_id user/name", "--space and --metric exclude each other"),
        ("--folder PLACE --dataset user/birds --repo_id user/name", "--dataset needs --run_dir"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    assert call(*flags.replace("PLACE", str(tmp_path)).split()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert message.replace("PLACE", str(tmp_path)) in last


def test_dry_run_shows_files_and_card_with_the_repository_and_changes_nothing(tmp_path, capsys):
    folder = save_tiny_encoder(tmp_path / "model")
    (folder / "README.md").write_text(CARD)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert call("--folder", folder, "--repo_id", "me/birds", "--dry_run") == 0
    shown = capsys.readouterr().out
    size = f"{(folder / 'model.safetensors').stat().st_size:,d}  model.safetensors"
    assert shown.startswith(f"would upload {len(before)} files (") and size in shown
    assert shown.endswith("\n\nNothing was uploaded to me/birds. Without --dry_run the same command uploads it.\n")
    assert "# birds\n" in shown and 'model="me/birds", trust' in shown and "default" not in shown
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert call("--folder", folder, "--repo_id", PLACEHOLDER, "--dry_run") == 0
    assert capsys.readouterr().out.endswith("Replace USER/NAME with your own repository first: name/model.\n")


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
        files = hub.files("user/name")
        assert done.stdout.startswith(
            f"uploaded {len(files)} files to the model user/name: {hub.url}/user/name/commit/"
        )
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


def test_the_folder_of_a_run_is_its_model(tmp_path):
    config = EqCohViTConfig(
        backbone_config={**BACKBONE, "image_size": 32, "patch_size": 16}, feature_dim=8, equivariant_dim=4
    )
    folder = save_hub_folder(tmp_path / "run" / "model", EqCohViTModel(config))
    (tmp_path / "run" / "config.yaml").write_text("max_steps: 3\n")
    (tmp_path / "run" / "checkpoints").mkdir()
    with LoopbackHub() as hub:
        done = run("--folder", tmp_path / "run", "--repo_id", "user/name", env=hub.environment(tmp_path / "hf"))
        assert done.returncode == 0 and " files to the model user/name: " in done.stdout, done.stderr
        assert hub.files("user/name")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
