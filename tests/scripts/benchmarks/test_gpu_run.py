"""The script of a GPU run keeps what is finished, names what is not, and goes on with that."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "benchmarks" / "gpu_run.py"


@pytest.fixture
def gpu_run(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_run", module)
    spec.loader.exec_module(module)
    return module


def run(gpu_run, monkeypatch, folder, *flags):
    """Exit code and rows of a call."""
    argv = ["--output", str(folder), "--tiny", *flags]
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", *argv])
    code = gpu_run.main(gpu_run.parse(argv))
    return code, [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_stage_writes_its_case_and_then_its_exit_code(gpu_run, monkeypatch, tmp_path):
    code, [case, end] = run(gpu_run, monkeypatch, tmp_path, "--only", "preflight")
    assert code == 0
    assert case["stage"] == end["stage"] == "preflight"
    assert case["tflop_per_s"] > 0 and case["eqcohvit"]
    assert end["exit_code"] == 0


def test_a_stage_is_ended_at_its_limit_and_what_has_no_time_is_named(gpu_run, monkeypatch, tmp_path):
    monkeypatch.setitem(gpu_run.STAGES, "preflight", dataclasses.replace(gpu_run.STAGES["preflight"], limit=0.01))
    code, rows = run(gpu_run, monkeypatch, tmp_path / "first", "--only", "preflight")
    assert code == 1
    assert rows[-1]["exit_code"] == "time limit"
    code, rows = run(gpu_run, monkeypatch, tmp_path / "second", "--minutes", "0.1")
    assert code == 1
    assert [row["stage"] for row in rows] == [name for name in gpu_run.STAGES if name != "imagenette"]
    assert all("skipped" in row for row in rows)


def test_a_started_script_finds_ours_and_what_the_caller_has_carried(gpu_run, monkeypatch, tmp_path):
    (tmp_path / "carried.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    from benchmarks.gpu_stages import environment

    program = "import carried, importlib.util; print(importlib.util.find_spec('eqcohvit').origin)"
    command = [sys.executable, "-P", "-c", program]  # without the folder that it is started in
    found = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(SCRIPT.parents[2] / "src" / "eqcohvit" / "__init__.py")


@pytest.mark.slow
def test_steps_of_a_recipe_are_timed_with_and_without_the_task_and_traced(gpu_run, monkeypatch, tmp_path):
    name = "steps imagenet1k_vicreg_vits16"
    code, [with_task, without, end] = run(gpu_run, monkeypatch, tmp_path, "--only", name)
    assert code == 0 and end["exit_code"] == 0
    assert with_task["task"] and not without["task"]
    assert min(with_task["step_ms"], with_task["render_ms"], without["model_ms"]) > 0
    assert [path.name for path in tmp_path.glob("trace-*")] == ["trace-imagenet1k_vicreg_vits16.json.gz"]


def test_a_second_call_leaves_out_what_the_first_has_finished(gpu_run, monkeypatch, tmp_path):
    previous = tmp_path / "results.jsonl"
    rows = [{"stage": "preflight", "exit_code": 0}, {"stage": "loader", "exit_code": "time limit"}]
    previous.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--minutes", "0.1", "--previous", str(previous))
    _, rows = run(gpu_run, monkeypatch, tmp_path / "out", *flags)
    names = [row["stage"] for row in rows]
    assert "preflight" not in names and "loader" in names
