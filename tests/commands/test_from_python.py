"""`eqcohvit.pretrain`: the command from Python."""

import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file
from tests.patience import PATIENCE
from tests.tiny import TINY, load_script

import eqcohvit

SETTINGS = {flag.removeprefix("--"): int(value) for flag, value in zip(TINY[::2], TINY[1::2], strict=True)}


def test_it_does_what_the_command_does(photos, tmp_path):
    folder = eqcohvit.pretrain(train_dir=photos, output_dir=tmp_path / "python", max_steps=2, **SETTINGS)
    assert folder == tmp_path / "python" / "model"
    flags = [*TINY, "--max_steps", "2", "--train_dir", str(photos), "--output_dir", str(tmp_path / "command")]
    assert load_script("pretrain").cli(flags) == 0
    ours = load_file(folder / "model.safetensors")
    theirs = load_file(tmp_path / "command" / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    saved = yaml.safe_load((tmp_path / "python" / "config.yaml").read_text())
    assert saved["train_dir"] == str(photos) and saved["max_steps"] == 2


def test_it_goes_on_and_takes_recipes(photos, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: simclr\nmax_steps: 9\n")
    run = {"config": recipe, "output_dir": tmp_path / "run", "train_dir": photos, **SETTINGS}
    eqcohvit.pretrain(**run, max_steps=1)
    eqcohvit.pretrain(**run, max_steps=2, resume_from_checkpoint="latest")
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["objective"], saved["max_steps"]) == ("simclr", 2)


def test_what_cannot_work_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="unknown setting 'max_step'; did you mean 'max_steps'?"):
        eqcohvit.pretrain(max_step=1)
    with pytest.raises(ValueError, match="max_steps must be positive, got 0"):
        eqcohvit.pretrain(max_steps=0, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_module_hides_the_function_and_importing_the_package_imports_no_training():
    script = (
        "import sys, eqcohvit, eqcohvit.commands.pretrain, eqcohvit.training; assert callable(eqcohvit.pretrain); "
        "assert not {'datasets', 'eqcohvit.data'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
