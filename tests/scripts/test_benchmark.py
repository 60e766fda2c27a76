import importlib
import json
import statistics
import time

import pytest
import torch
from tests.conftest import load_script


@pytest.fixture
def benchmark(monkeypatch):
    """The script with models that take no time."""
    module = load_script("benchmark")
    suites = importlib.import_module("benchmarks.suites")
    sized, recipe = suites.sized_settings, suites.recipe_settings
    monkeypatch.setattr(
        suites, "sized_settings", lambda preset, batch, size=224, **changes: sized("micro", 4, 16, **changes)
    )
    monkeypatch.setattr(suites, "recipe_settings", lambda name, batch, *flags: recipe(name, 2, *flags))
    return module


@pytest.fixture
def measure(benchmark):
    return importlib.import_module("benchmarks.measure")


def burn(seconds):
    """Keep the processor busy."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_take_turns_measures_processor_time_round_by_round(measure):
    functions = {"short": lambda: burn(0.01), "long": lambda: burn(0.03), "idle": lambda: time.sleep(0.01)}
    times = measure.take_turns(functions, torch.device("cpu"), seconds=0.01)
    assert [len(values) for values in times.values()] == [measure.MIN_ROUNDS] * 3
    assert measure.paired_ratio(times["long"], times["short"])["ratio"] == pytest.approx(3, rel=0.1)
    assert max(times["idle"]) < 0.005


def test_paired_ratio_is_not_moved_by_a_machine_that_slows_down(measure):
    slowdown = [1, 1, 5, 5, 1]
    ratio = measure.paired_ratio([1.1 * s for s in slowdown], [1.0 * s for s in slowdown])
    assert ratio == pytest.approx({"ratio": 1.1, "ratio_q1": 1.1, "ratio_q3": 1.1})


def test_peak_memory_counts_what_the_backward_pass_needs_once(measure):
    weight = torch.zeros(1000, 64, requires_grad=True)
    x = torch.zeros(512, 1000)

    def two_uses():
        ((x @ weight).sum() + (x @ weight).sum()).backward()

    kept = measure.peak_memory(two_uses, torch.device("cpu"))["kept_mib"]
    assert kept == pytest.approx(512 * 1000 * 4 / 2**20, rel=0.3)  # x, and not twice; the weight is small


def test_verdict_compares_the_figure_with_its_target(measure):
    figures = {"ratio": 1.04, "views": 3.0}
    assert measure.Result("s", "c", figures, ("ratio", "<=", 1.03)).verdict == "ratio <= 1.03: missed"
    assert measure.Result("s", "c", figures, ("views", ">=", 3)).verdict == "views >= 3: met"


def test_a_case_that_fails_is_named_and_the_others_are_measured(benchmark, measure, monkeypatch, tmp_path, capsys):
    def fail():
        raise torch.cuda.OutOfMemoryError("no\nmemory")

    good = measure.Result("inference", "good", {"ratio": 1.01}, ("ratio", "<=", 1.03))
    cases = [measure.Case("bad", fail), measure.Case("good", lambda: [good])]

    def suite(_setup):
        """Two cases."""
        return cases

    monkeypatch.setitem(importlib.import_module("benchmarks.suites").SUITES, "inference", suite)
    output = tmp_path / "result.json"
    assert benchmark.cli(["--suite", "inference", "--device", "cpu", "--output", str(output)]) == 1
    printed = capsys.readouterr()
    assert "failed: OutOfMemoryError: no memory" in printed.out and "ratio <= 1.03: met" in printed.out
    assert printed.err == "error: 1 cases failed; the table says why\n"
    assert [(row["case"], bool(row["failure"])) for row in json.loads(output.read_text())["results"]] == [
        ("bad", True),
        ("good", False),
    ]


def test_print_operations_names_what_takes_the_most(measure, capsys):
    matrix, small = torch.zeros(300, 300), torch.zeros(3)
    measure.print_operations(lambda: (matrix @ matrix, small + 1), torch.device("cpu"), number=5)
    assert "aten::mm" in capsys.readouterr().out


@pytest.mark.parametrize(
    "suite",
    ["inference", *(pytest.param(name, marks=pytest.mark.slow) for name in ("overhead", "data", "train", "scaling"))],
)
def test_suite_gives_positive_figures_that_are_written_and_compared(benchmark, tmp_path, capsys, suite):
    output = tmp_path / "result.json"
    flags = ["--suite", suite, "--quick", "--seconds", "0.01", "--device", "cpu"]
    assert benchmark.cli([*flags, "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert written["versions"]["torch"] == torch.__version__ and written["settings"]["device"] == "cpu"
    for row in written["results"]:
        assert row["suite"] == suite and row["figures"]["ratio"] > 0, row
        assert all(
            value > 0 for name, value in row["figures"].items() if name.endswith(("_ms", "_mib", "per_s", "per_sample"))
        ), row
        row["figures"] = {name: value / 1e3 for name, value in row["figures"].items()}
    output.write_text(json.dumps(written))
    capsys.readouterr()
    assert benchmark.cli([*flags, "--compare", str(output)]) == 0
    ratios = [float(part.split(")")[0].replace(",", "")) for part in capsys.readouterr().out.split("(x ")[1:]]
    assert len(ratios) >= 5 and statistics.median(ratios) > 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "inference", "--compare", "missing.json"], "cannot read missing.json: No such file or directory"),
        (["--suite", "inference", "--seconds", "0"], "seconds must be positive, got 0.0"),
        (["--suite", "inference", "--device", "tpu"], "device must be cpu, or cuda if available, got 'tpu'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(benchmark, flags, message, capsys):
    assert benchmark.cli(flags) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_stored_file_that_is_no_result_is_refused(benchmark, tmp_path, capsys):
    (tmp_path / "other.json").write_text("[1]")
    assert benchmark.cli(["--suite", "inference", "--compare", str(tmp_path / "other.json")]) == 2
    assert "is not a result of scripts/benchmark.py --output" in capsys.readouterr().err
