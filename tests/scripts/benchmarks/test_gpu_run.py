"""The script of a GPU run keeps what is finished, names what is not, and goes on with that."""

import dataclasses
import importlib.util
import json
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


def test_a_second_call_leaves_out_what_the_first_has_finished(gpu_run, monkeypatch, tmp_path):
    previous = tmp_path / "results.jsonl"
    rows = [{"stage": "preflight", "exit_code": 0}, {"stage": "loader", "exit_code": "time limit"}]
    previous.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--minutes", "0.1", "--previous", str(previous))
    _, rows = run(gpu_run, monkeypatch, tmp_path / "out", *flags)
    names = [row["stage"] for row in rows]
    assert "preflight" not in names and "loader" in names
