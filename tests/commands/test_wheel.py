"""The wheel brings the commands, their recipes and the template of cards: nothing of the clone is needed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.test_packaging import ROOT, build
from tests.tiny import TINY

from eqcohvit.cli import recipe_names


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The unpacked wheel."""
    wheel, _ = build(ROOT, tmp_path_factory.mktemp("dist"))
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)
    return folder


def run(site, cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(site), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def test_recipes_are_those_of_the_wheel(site, tmp_path):
    (site / "eqcohvit" / "recipes" / "only_here.yaml").write_text("# A recipe of the wheel.\nmax_steps: 1\n")
    done = run(site, tmp_path, "-m", "eqcohvit.commands.pretrain", "--list_recipes")
    (site / "eqcohvit" / "recipes" / "only_here.yaml").unlink()
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == sorted([*recipe_names(), "only_here"])


def test_pretraining_runs_and_writes_its_card(site, tmp_path):
    template = site / "eqcohvit" / "publish" / "TEMPLATE.md"
    template.write_text(template.read_text() + "\nFrom the wheel.\n")
    flags = [*TINY, "--config", "cifar10_vicreg", "--patch_size", "8", "--invariant_rank", "4", "--max_steps", "2"]
    done = run(site, tmp_path, "-m", "eqcohvit.commands.pretrain", *flags, "--output_dir", "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model" / "README.md").read_text().endswith("From the wheel.\n")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    imported = run(site, tmp_path, "-c", "import eqcohvit; print(eqcohvit.__file__)").stdout.strip()
    assert Path(imported).is_relative_to(site)
