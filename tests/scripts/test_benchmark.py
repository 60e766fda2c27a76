import json
import time

import pytest
import torch
from tests.conftest import load_script


@pytest.fixture
def benchmark(monkeypatch):
    """The script with cases that take no time."""
    module = load_script("benchmark")
    tiny = [module.Case("micro", 16, 2, patch_size=8)]
    monkeypatch.setattr(module, "CASES", {suite: {"cpu": tiny} for suite in module.SUITES})
    return module


def burn(seconds):
    """Keep the processor busy, as long as any other thread of this process leaves it alone."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_take_turns_measures_processor_time_round_by_round(benchmark):
    functions = {"short": lambda: burn(0.01), "long": lambda: burn(0.03), "idle": lambda: time.sleep(0.01)}
    times = benchmark.take_turns(functions, torch.device("cpu"), seconds=0.01)
    assert [len(values) for values in times.values()] == [benchmark.MIN_ROUNDS] * 3
    assert benchmark.paired_ratio(times["long"], times["short"])["ratio"] == pytest.approx(3, rel=0.1)
    assert max(times["idle"]) < 0.005


def test_paired_ratio_is_not_moved_by_a_machine_that_slows_down(benchmark):
    slowdown = [1, 1, 5, 5, 1]
    ratio = benchmark.paired_ratio([1.1 * s for s in slowdown], [1.0 * s for s in slowdown])
    assert ratio == pytest.approx({"ratio": 1.1, "ratio_q1": 1.1, "ratio_q3": 1.1})


def test_output_is_written_and_compared(benchmark, tmp_path, capsys):
    output = tmp_path / "result.json"
    flags = ["--suite", "inference", "--seconds", "0.01", "--device", "cpu"]
    assert benchmark.cli([*flags, "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert written["versions"]["torch"] == torch.__version__ and written["settings"]["device"] == "cpu"
    row = written["results"][0]
    assert row["figures"]["split_ms"] > 0 and row["figures"]["ratio_q1"] <= row["figures"]["ratio"] <= row["figures"]["ratio_q3"]
    row["figures"] = {name: value / 1e3 for name, value in row["figures"].items()}
    output.write_text(json.dumps(written))
    capsys.readouterr()
    assert benchmark.cli([*flags, "--compare", str(output)]) == 0
    ratios = [float(part.split(")")[0]) for part in capsys.readouterr().out.split("(x ")[1:]]
    assert len(ratios) == 5 and all(ratio > 10 for ratio in ratios)


def test_verdict_compares_the_figure_with_its_target(benchmark):
    figures = {"ratio": 1.04, "views": 3.0}
    assert benchmark.Result("s", "c", figures, ("ratio", "<=", 1.03)).verdict == "ratio <= 1.03: missed"
    assert benchmark.Result("s", "c", figures, ("views", ">=", 3)).verdict == "views >= 3: met"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "inference", "--compare", "missing.json"], "cannot read missing.json: No such file or directory"),
        (["--suite", "inference", "--seconds", "0"], "seconds must be positive, got 0.0"),
        (["--suite", "inference", "--device", "tpu"], "device must be cpu, or cuda where there is one, got 'tpu'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(benchmark, flags, message, capsys):
    assert benchmark.cli(flags) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_stored_file_that_is_no_result_is_refused(benchmark, tmp_path, capsys):
    (tmp_path / "other.json").write_text("[1]")
    assert benchmark.cli(["--suite", "inference", "--compare", str(tmp_path / "other.json")]) == 2
    assert "is not a result of scripts/benchmark.py --output" in capsys.readouterr().err
