"""The help of every command comes at once: nothing heavy is imported before the flags are read."""

import resource
import subprocess
import sys
import tomllib

import pytest
from tests.patience import PATIENCE
from tests.tiny import COMMANDS, SCRIPTS

ENTRIES = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text())["project"]["scripts"]
MODULES = [["-m", f"eqcohvit.commands.{name}"] for name in COMMANDS]
FILES = [[str(path)] for path in sorted(SCRIPTS.glob("*.py"))]
PRETRAIN = [["-m", "eqcohvit.commands.pretrain"], [str(SCRIPTS / "pretrain.py")]]
HEAVY = {"torch", "transformers", "datasets", "accelerate"}
SECONDS_OF_PYTHON = 60  # 1.5 s where an empty program takes 25 ms


def named(way):
    return way[-1].rsplit("/", 1)[-1]


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=PATIENCE)


def imported_by(*arguments):
    """The modules that a program imports which prints its help or the like."""
    done = run("-X", "importtime", *arguments)
    assert done.returncode == 0 and done.stdout
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def cpu_seconds(*arguments):
    """Processor time of a Python process, which a busy machine does not change much."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # os.times counts hundredths, an empty program takes two
    assert run(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def empty_program():
    """Processor time of a program that does nothing, in seconds."""
    return min(cpu_seconds("-c", "pass") for _ in range(5))


@pytest.mark.parametrize("way", [*MODULES, *FILES], ids=named)
def test_help_imports_nothing_heavy_and_takes_few_times_as_long_as_an_empty_program(way, empty_program):
    assert not imported_by(*way, "--help") & HEAVY
    assert min(cpu_seconds(*way, "--help") for _ in range(3)) < SECONDS_OF_PYTHON * empty_program


@pytest.mark.parametrize("name", ENTRIES)
def test_installed_entries_import_nothing_heavy(name, tmp_path):
    module, function = ENTRIES[name].split(":")
    entry = tmp_path / name  # as pip writes it
    entry.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    imported = imported_by(str(entry), "--help")
    assert module in imported and not imported & HEAVY


@pytest.mark.parametrize("way", PRETRAIN, ids=named)
def test_the_list_of_recipes_imports_nothing_heavy(way):
    assert not imported_by(*way, "--list_recipes") & HEAVY


def test_common_settings_come_first_and_choices_are_shown():
    text = run(*PRETRAIN[0], "--help").stdout
    assert text.index("--train_dir") < text.index("--output_dir") < text.index("--dataset_split")
    assert "(vicreg, simclr, ibot, dinov2" in " ".join(text.split())


@pytest.mark.parametrize("way", MODULES, ids=named)
def test_help_begins_with_a_short_usage_and_fits_a_terminal(way):
    text = run(*way, "--help").stdout
    assert len(text.split("\n\n")[0].splitlines()) <= 2
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("way", "wrong", "message"),
    [
        (PRETRAIN[0], "--max_step 3", "--max_step 3; did you mean '--max_steps'?"),
        (PRETRAIN[1], "--train_dirr x", "--train_dirr x; did you mean '--train_dir'?"),
        (PRETRAIN[1], "--lr 1", "--lr 1; did you mean '--list_recipes' or '--lora_rank' or '--learning_rate'?"),
        (MODULES[1], "--model x --suit r2", "--suit r2; did you mean '--suite'?"),
        (MODULES[2], "--model x --task depth --max_step 3", "--max_step 3; did you mean '--max_steps'?"),
        (MODULES[3], "--folder x --repo_ids a/b --repo_id a/b", "--repo_ids a/b; did you mean '--repo_id'?"),
    ],
)
def test_a_misspelled_flag_is_one_line_with_a_suggestion(way, wrong, message):
    done = run(*way, *wrong.split())
    assert (done.returncode, done.stderr) == (2, f"error: unrecognized arguments: {message}\n")
