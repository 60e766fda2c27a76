"""What a newcomer sees of a run: its first words, its lines, and the commands at its end."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from tests.patience import PATIENCE
from tests.tiny import TINY, load_script

import eqcohvit.commands.evaluate
import eqcohvit.commands.push_to_hub
from eqcohvit.training.arguments import parse_arguments
from eqcohvit.training.output import COLUMNS, entry_of, fitted, fitted_command, viewer
from eqcohvit.training.pretrain import next_steps


def test_the_first_words_come_before_torch_is_imported():
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['eqcohvit-pretrain', '--output_dir', 'runs/a']\n"
    code += "from eqcohvit.commands.pretrain import entry; entry()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "starting a run in runs/a: loading torch and transformers\n"
    assert "import of torch halted" in done.stderr


@pytest.fixture(scope="module")
def printed(photos, tmp_path_factory):
    """Folder of a run on 24 photographs, and what the run printed; in a process, because it changes its folder."""
    folder = tmp_path_factory.mktemp("hour")
    shutil.copytree(photos, folder / "my photos")
    flags = [*TINY, "--max_steps", "9", "--logging_steps", "3", "--knn_guard_steps", "9", "--knn_guard_samples", "8"]
    flags += ["--train_dir", "my photos", "--label_column", "folder", "--output_dir", "runs/photos"]
    command = [sys.executable, "-m", "eqcohvit.commands.pretrain", *flags]
    clean = {"PATH": "/usr/bin:/bin", "DISPLAY": ":0"}  # a screen, and none of our entries installed
    done = subprocess.run(command, cwd=folder, env=os.environ | clean, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def test_no_line_of_a_run_has_more_than_100_columns(printed):
    lines = printed[1].splitlines()
    assert max(map(len, lines)) <= COLUMNS == 100
    beginnings = (
        "starting a run in runs/photos",
        "24 images in my photos",
        "vicreg + rotation, steps 0 to 9",
        "about 1 min",
    )
    for beginning in (*beginnings, "step 3/9  loss", "step 9/9  loss", "model: runs/photos/model"):
        assert [line for line in lines if line.startswith(beginning)], beginning


def test_the_three_commands_at_the_end_are_complete(printed, monkeypatch):
    folder, text = printed
    monkeypatch.chdir(folder)
    commands = text.split("next:\n")[1].replace("\\\n", " ").splitlines()
    look, evaluate, publish = (shlex.split(command) for command in commands)
    assert look[:3] == ["python", "-m", "webbrowser"] and (folder / look[3]).is_file()
    assert evaluate[:3] == ["python", "-m", "eqcohvit.commands.evaluate"]
    settings = eqcohvit.commands.evaluate.parse(evaluate[3:])
    assert (settings.model, settings.train_dir) == (["runs/photos/model"], "my photos")
    assert publish[:3] == ["python", "-m", "eqcohvit.commands.push_to_hub"] and publish[-1] == "--dry_run"
    assert load_script("push_to_hub").cli(publish[3:]) == 0


def test_few_images_are_evaluated_by_the_head_that_needs_fewest():
    args = parse_arguments(["--train_dir", "photos", "--output_dir", "runs/photos"])
    for few in (False, True):
        text = next_steps(args, num_bad=0, has_few_images=few).replace("\\\n", " ")
        assert ("--train_dir photos --head kernel --output" in " ".join(text.split())) == few


def test_commands_are_the_installed_entries_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert entry_of("evaluate") == ["python", "-m", "eqcohvit.commands.evaluate"]
    for name in ("eqcohvit-evaluate", "eqcohvit-push"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert entry_of("evaluate") == ["eqcohvit-evaluate"] and entry_of("push_to_hub") == ["eqcohvit-push"]
    assert entry_of("pretrain") == ["python", "-m", "eqcohvit.commands.pretrain"]


def test_a_machine_without_a_screen_serves_the_page(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    serve = ["python", "-m", "http.server", "--bind", "127.0.0.1", "--directory"]
    assert viewer("runs/a/report.html") == [*serve, "runs/a"] and viewer("report.html") == [*serve, "."]
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert viewer("runs/a/report.html") == ["python", "-m", "webbrowser", "runs/a/report.html"]


def test_long_texts_get_lines_and_paths_stay_whole():
    path = "/data/" + "x" * 120
    assert fitted("short  text") == "short  text"
    assert fitted(f"images in {path} and elsewhere") == f"images in\n  {path}\n  and elsewhere"
    command = [
        "python",
        "-m",
        "tool",
        *(f"a file  {i}" for i in range(9)),
        *(w for i in range(9) for w in ("--flag", f"{i}")),
    ]
    lines = fitted_command(command).splitlines()
    assert max(map(len, lines)) <= COLUMNS and shlex.split("\n".join(lines).replace("\\\n", "")) == command
    assert not [line for line in lines if line.endswith("--flag \\")]
