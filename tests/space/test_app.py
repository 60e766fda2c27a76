"""Starting the page: which model it takes, what it says when there is none, and the Space that is uploaded."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import gradio
import pytest
import yaml
from tests.patience import PATIENCE

import app
import standin
from eqcohvit.publish.card import check_card
from walk import SplitModel

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space_app"


def test_find_model_takes_the_one_named_then_the_released_then_the_standin(monkeypatch, folder, tmp_path):
    assert app.find_model("user/name") == ("user/name", "")
    monkeypatch.setattr(app, "RELEASED", (tmp_path / "absent", folder))
    assert app.find_model(None) == (str(folder), "")
    monkeypatch.setattr(app, "RELEASED", ())
    monkeypatch.setattr(app, "train_standin", lambda cache, say: tmp_path / "standin")
    name, note = app.find_model(None)
    assert name == str(tmp_path / "standin") and "stand-in" in note and "never seen a photograph" in note


def test_released_checkpoint_is_whole_small_and_shown_by_default():
    folder = app.RELEASED[1]
    assert app.find_model(None) == (str(folder.resolve()), "")
    names = {path.name for path in folder.iterdir()}
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "modeling_eqcohvit.py",
    } <= names
    assert (folder / "model.safetensors").stat().st_size <= 5_000_000
    assert SplitModel(str(folder)).config.path == "se2+color_jitter"
    check_card((folder / "README.md").read_text())


def test_standin_is_trained_once(tmp_path):
    said = []
    folder = standin.train_standin(tmp_path, said.append, num_steps=2)
    model = SplitModel(str(folder))
    assert model.config.path == "rotation" and "2 steps" in said[0]
    count = len(said)
    assert standin.train_standin(tmp_path, said.append, num_steps=2) == folder and len(said) == count


def test_app_with_no_such_model_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # the page sets it, for its own process
    assert app.cli(["--model", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: no model at {tmp_path / 'nothing'}: ")


def test_space_front_matter_is_what_the_hub_wants():
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", (SPACE / "README.md").read_text(), re.DOTALL)[1])
    assert data["sdk"] == "gradio" and data["sdk_version"] == gradio.__version__
    assert (SPACE / data["app_file"]).is_file() and data["license"] == "apache-2.0"
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {data["colorFrom"], data["colorTo"]} <= colours and len(data["short_description"]) <= 60


def test_space_runs_with_what_its_requirements_say(push_to_hub, folder, tmp_path):
    """Lay the Space out as it is uploaded and start a process of it, where of the package's extras nothing can be
    imported."""
    space = tmp_path / "space"
    for name, path in push_to_hub.space_files(folder).items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(path.read_bytes())
    assert (
        (space / "app.py").is_file()
        and (space / "eqcohvit" / "__init__.py").is_file()
        and not list((space / "model").glob("*.py"))
    )
    wanted = {
        re.match(r"[\w-]+", line)[0] for line in (space / "requirements.txt").read_text().splitlines() if line[0] != "#"
    }
    assert wanted == {
        "gradio",
        "huggingface-hub",
        "numpy",
        "pandas",
        "pillow",
        "pyyaml",
        "safetensors",
        "torch",
        "transformers",
    }
    code = (
        "import sys\n"
        "for name in 'accelerate datasets evaluate peft scipy matplotlib pycocotools torchvision'.split(): sys.modules[name] = None\n"
        "sys.path.insert(0, '.')\n"
        "import app, controls, eqcohvit, pathlib, probe\n"
        "assert pathlib.Path(eqcohvit.__file__).parent == pathlib.Path('eqcohvit').resolve(), eqcohvit.__file__\n"
        "name, note = app.find_model(None)\n"
        "probe.num_pairs = lambda side: 32\n"
        "model = app.SplitModel(name)\n"
        "demo = app.Demo(model, app.load_probe(model, app._say), app.draw_examples(pathlib.Path('.')))\n"
        "app.build(demo, note)\n"
        "values = [control.start for control in controls.ALL_CONTROLS]\n"
        "print(len(demo.show({'path': 'fish.png'}, demo.start, 1, 1, *values)), model.name, note == '')\n"
    )
    environment = {**os.environ, "EQCOHVIT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=space, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "9 model True"


def test_the_page_s_files_import_only_what_the_space_has():
    allowed = {"eqcohvit", "gradio", "numpy", "pandas", "PIL", "safetensors", "torch", "transformers"}
    allowed |= {path.stem for path in SPACE.glob("*.py")} | set(sys.stdlib_module_names)
    for path in SPACE.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        assert {name.split(".")[0] for name in names} <= allowed, path.name


@pytest.fixture(scope="module")
def push_to_hub():
    from eqcohvit.commands import push_to_hub

    return push_to_hub
