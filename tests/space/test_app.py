"""Starting the page: which model it takes, its examples and read-outs, and the Space that is uploaded."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import gradio
import pytest
import yaml
from PIL import Image
from tests.patience import PATIENCE

import app
from eqcohvit.publish.card import check_card
from eqcohvit.publish.spaces import demo_files
from probe import load_probe
from walk import SplitModel

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space_app"


def test_find_model_takes_the_one_named_then_the_released(monkeypatch, folder, tmp_path):
    assert app.find_model("user/name") == "user/name"
    monkeypatch.setattr(app, "RELEASED", (tmp_path / "absent", folder))
    assert app.find_model(None) == str(folder)
    monkeypatch.setattr(app, "RELEASED", (tmp_path / "absent",))
    with pytest.raises(ValueError, match="no model in .*absent: choose one with --model FOLDER_OR_REPO"):
        app.find_model(None)


def test_released_checkpoint_is_whole_small_and_shown_by_default():
    folder = app.RELEASED[1]
    assert app.find_model(None) == str(folder.resolve())
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= names
    assert (folder / "model.safetensors").stat().st_size <= 50_000_000
    check_card((folder / "README.md").read_text())


def test_read_outs_of_the_shown_model_come_with_the_page_and_its_parts_differ():
    """On this model the page makes its point: R2 of the rotation angle in the strict view, on the examples."""
    said = []
    probe = load_probe(SplitModel(app.find_model(None)), said.append)
    assert said == []
    assert probe.r2_of("equivariant", 0) > 0.7 and probe.r2_of("invariant", 0) < 0.3


def test_examples_are_small_square_pictures():
    examples = app.find_examples()
    assert len(examples) == 8
    for file in examples.values():
        assert Image.open(file).size == (384, 384) and file.stat().st_size < 100_000


def test_app_with_no_such_model_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # the page sets it, for its own process
    assert app.cli(["--model", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: no such folder: {tmp_path / 'nothing'}")


def test_space_front_matter_is_what_the_hub_wants():
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", (SPACE / "README.md").read_text(), re.DOTALL)[1])
    assert data["sdk"] == "gradio" and data["sdk_version"] == gradio.__version__
    assert (SPACE / data["app_file"]).is_file() and data["license"] == "apache-2.0"
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {data["colorFrom"], data["colorTo"]} <= colors and len(data["short_description"]) <= 60


def test_space_runs_with_what_its_requirements_say(folder, tmp_path):
    """Lay the Space out as it is uploaded and start a process of it, where of the package's extras nothing can be
    imported."""
    space = tmp_path / "space"
    for name, path in demo_files(folder).items():
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
        "pillow",
        "pyyaml",
        "safetensors",
        "torch",
        "transformers",
    }
    code = (
        "import sys\n"
        "for name in 'accelerate datasets evaluate peft scipy matplotlib pycocotools torchvision'.split():\n"
        "    sys.modules[name] = None\n"
        "sys.path.insert(0, '.')\n"
        "import app, eqcohvit, pathlib, probe\n"
        "assert pathlib.Path(eqcohvit.__file__).parent == pathlib.Path('eqcohvit').resolve(), eqcohvit.__file__\n"
        "model = app.SplitModel(app.find_model(None))\n"
        "read_outs = probe.fit_probe(model, probe.make_path(model.config.path), 12, probe._examples()[:1], 5)\n"
        "demo = app.Demo(model, read_outs, app.find_examples())\n"
        "app.build(demo)\n"
        "values = [control.start for control in demo.controls]\n"
        "shown = demo.show({'path': str(demo.examples['house'])}, demo.start, False, 1, 1, *values)\n"
        "print(len(shown), model.name)\n"
    )
    environment = {**os.environ, "EQCOHVIT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=space, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "7 model"


def test_the_page_s_files_import_only_what_the_space_has():
    allowed = {"eqcohvit", "gradio", "numpy", "PIL", "safetensors", "torch", "transformers"}
    allowed |= {path.stem for path in SPACE.glob("*.py")} | set(sys.stdlib_module_names)
    for path in SPACE.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        assert {name.split(".")[0] for name in names} <= allowed, path.name
