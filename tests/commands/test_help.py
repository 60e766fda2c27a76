"""The help of the commands comes at once: nothing heavy is imported before the flags are read."""

import os
import subprocess
import sys

import pytest
from tests.patience import PATIENCE
from tests.tiny import SCRIPTS

WAYS = [["-m", "eqcohvit.commands.pretrain"], [str(SCRIPTS / "pretrain.py")]]
HEAVY = {"torch", "transformers", "datasets", "accelerate", "numpy"}
SECONDS_OF_PYTHON = 60  # 1.5 s where an empty program takes 25 ms


def cpu_seconds(*arguments):
    """Processor time of a Python process, which a busy machine does not change much."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=PATIENCE)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("way", WAYS, ids=["module", "script"])
@pytest.mark.parametrize("flag", ["--help", "--list_recipes"])
def test_nothing_heavy_is_imported(way, flag):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *way, flag], capture_output=True, text=True, timeout=PATIENCE
    )
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0
    assert "eqcohvit.cli" in imported and not imported & HEAVY


def test_help_takes_few_times_as_long_as_an_empty_program():
    empty = min(cpu_seconds("-c", "pass") for _ in range(5))
    assert min(cpu_seconds(*WAYS[0], "--help") for _ in range(3)) < SECONDS_OF_PYTHON * empty


def test_common_settings_come_first_and_choices_are_shown():
    done = subprocess.run([sys.executable, *WAYS[0], "--help"], capture_output=True, text=True, timeout=PATIENCE)
    text = done.stdout
    assert text.index("--train_dir") < text.index("--output_dir") < text.index("--dataset_split")
    assert "(vicreg, simclr, ibot, dinov2" in " ".join(text.split())
    assert len(text.split("\n\n")[0].splitlines()) <= 2  # the usage


@pytest.mark.parametrize("way", WAYS, ids=["module", "script"])
def test_a_misspelled_flag_is_one_line_with_a_suggestion(way):
    done = subprocess.run([sys.executable, *way, "--max_step", "3"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr == "error: unrecognized arguments: --max_step 3; did you mean '--max_steps'?\n"
