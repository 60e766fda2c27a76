"""`eqcohvit.pretrain` and `eqcohvit.evaluate`: the commands from Python."""

import json
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file
from tests.patience import PATIENCE
from tests.tiny import TINY, load_script

import eqcohvit

SETTINGS = {flag.removeprefix("--"): int(value) for flag, value in zip(TINY[::2], TINY[1::2], strict=True)}
SMALL = {"head": "linear", "max_samples": 40, "max_test_samples": 20}


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


def test_no_module_hides_the_functions_and_importing_the_package_imports_no_training():
    script = (
        "import sys, eqcohvit, eqcohvit.commands.pretrain, eqcohvit.commands.evaluate, eqcohvit.training; "
        "assert callable(eqcohvit.pretrain) and callable(eqcohvit.evaluate); "
        "assert not {'datasets', 'eqcohvit.data'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_evaluate_does_what_the_command_does(encoder_folder, tmp_path, capsys):
    settings = {"model": encoder_folder, "task": ["r2", "knn"], **SMALL, "cache_dir": tmp_path / "cache"}
    rows = eqcohvit.evaluate(**settings, output=tmp_path / "python.json")
    printed = capsys.readouterr().out
    flags = f"--model {encoder_folder} --task r2 knn --head linear --max_samples 40 --max_test_samples 20"
    places = ["--cache_dir", str(tmp_path / "other"), "--output", str(tmp_path / "command.json")]
    assert load_script("evaluate").cli([*flags.split(), *places]) == 0
    assert capsys.readouterr().out == printed.replace("python.", "command.")
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("python", "command"))
    assert ours["rows"] == theirs["rows"]
    assert [[row.encoder, row.metric, row.mean, row.half] for row in rows] == [
        [row["encoder"], row["metric"], sum(row["values"]) / len(row["values"]), row["half_width"]]
        for row in theirs["rows"]
    ]
    assert ours["command"].startswith(f"eqcohvit.evaluate(model={encoder_folder!r}, task=['r2', 'knn'], head='linear'")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modle": "x"}, "unknown setting 'modle'; did you mean 'model'?"),
        ({"task": "r2"}, "model is missing: give at least one folder or repository"),
        ({"model": "runs/none/model"}, "no such folder: runs/none/model"),
        (
            {"model": "x", "task": "r3"},
            "task must be one of r2, knn, linear, disentanglement, retrieval, reconstruction, ",
        ),
        ({"model": "x", "seeds": 0}, "seeds must be positive, got 0"),
    ],
)
def test_what_evaluate_cannot_do_is_a_value_error_of_one_line(settings, message):
    with pytest.raises(ValueError) as error:
        eqcohvit.evaluate(**settings)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
