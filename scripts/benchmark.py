#!/usr/bin/env python
"""What does it cost? Ratios against the plain alternatives, measured in turns in one process, and absolute speeds.

    python scripts/benchmark.py --suite inference --quick                       # each suite: within 60 s on two CPU cores
    python scripts/benchmark.py --suite all --output benchmark.json             # under 10 minutes on one GPU
    python scripts/benchmark.py --suite all --compare benchmark.json            # beside a stored result
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from eqcohvit import EqCohViTConfig
from eqcohvit.evaluation.results import format_table, versions, write_results
from eqcohvit.hub.modeling_eqcohvit import EqCohViTModel

MIN_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """A model on a batch."""

    preset: str
    image_size: int
    batch_size: int
    patch_size: int = 16

    def config(self) -> EqCohViTConfig:
        return EqCohViTConfig.from_preset(self.preset, self.image_size, self.patch_size)

    def __str__(self) -> str:
        return f"ViT-{self.preset}/{self.patch_size}, {self.image_size} px, batch {self.batch_size}"


# Batches that fill the device.
CASES: dict[str, dict[str, list[Case]]] = {
    "inference": {"cpu": [Case("small", 224, 4), Case("small", 224, 1)], "cuda": [Case("small", 224, 256), Case("small", 224, 1)]},
}


@dataclass(frozen=True)
class Setup:
    """Where and how long to measure; `seconds` is the time of one suite's measurements, without building and warm-up."""

    device: torch.device
    quick: bool
    seconds: float

    @property
    def dtype(self) -> torch.dtype:
        """What a user of this device computes in."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def cases(self, suite: str) -> list[Case]:
        """The suite's cases for this device."""
        return CASES[suite][self.device.type]


@dataclass(frozen=True)
class Result:
    """One line of a suite's table. `target` names the figure that has one, with the relation and the limit: ("ratio", "<=", 1.03)."""

    suite: str
    case: str
    figures: dict[str, float]
    target: tuple[str, str, float] | None = None

    @property
    def verdict(self) -> str:
        """`<= 1.03: met`, `<= 1.03: missed`, or nothing."""
        if self.target is None:
            return ""
        name, relation, limit = self.target
        met = self.figures[name] <= limit if relation == "<=" else self.figures[name] >= limit
        return f"{name} {relation} {limit:g}: {'met' if met else 'missed'}"


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def take_turns(functions: dict[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Call the functions in turns, in a new order each round, until `seconds` have passed: seconds per call, one number per round.

    What slows the machine for a while then slows all alike. The first call of each is not counted. On a CPU the seconds are processor
    time, added up over the threads, so that other programs on the machine do not count.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    names, times = list(functions), {name: [] for name in functions}
    deadline, rounds = float("inf"), -1
    while rounds < MIN_ROUNDS or time.perf_counter() < deadline:
        for name in names:
            synchronize(device)
            started = clock()
            functions[name]()
            synchronize(device)
            times[name].append(clock() - started)
        if rounds == -1:
            deadline = time.perf_counter() + seconds
        names = names[1:] + names[:1]
        rounds += 1
    return {name: values[1:] for name, values in times.items()}


def synchronize(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired_ratio(times: list[float], reference: list[float]) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios."""
    ratios = [ours / theirs for ours, theirs in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"ratio": median, "ratio_q1": low, "ratio_q3": high}


# ---------------------------------------------------------------------------------------------------------------------
# Suites
# ---------------------------------------------------------------------------------------------------------------------


def inference(setup: Setup) -> list[Result]:
    """The split model beside its own backbone: what the feature head and the split cost a user who extracts features."""
    results = []
    for case in setup.cases("inference"):
        model = EqCohViTModel(case.config()).to(setup.device, setup.dtype).eval()
        pixels = torch.randn(case.batch_size, 3, case.image_size, case.image_size, device=setup.device, dtype=setup.dtype)
        with torch.inference_mode():
            functions = {"split": lambda m=model, x=pixels: m(x), "backbone": lambda m=model, x=pixels: m.backbone(x)}
            times = take_turns(functions, setup.device, setup.seconds / len(setup.cases("inference")))
        figures = {f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()}
        figures |= paired_ratio(times["split"], times["backbone"])
        results.append(Result("inference", str(case), figures, ("ratio", "<=", 1.03) if case.batch_size > 1 else None))
    return results


SUITES: dict[str, Callable[[Setup], list[Result]]] = {"inference": inference}


# ---------------------------------------------------------------------------------------------------------------------
# Reporting
# ---------------------------------------------------------------------------------------------------------------------


def make_table(results: list[Result], stored: dict[tuple[str, str], dict[str, float]] | None = None) -> str:
    """One line per case; with stored figures each number is followed by its ratio to the stored one."""
    names = list(dict.fromkeys(name for result in results for name in result.figures))
    rows = [["case", *names, "target"]]
    for result in results:
        old = (stored or {}).get((result.suite, result.case), {})
        cells = [_cell(result.figures.get(name), old.get(name)) for name in names]
        rows.append([result.case, *cells, result.verdict])
    return format_table(rows)


def _cell(value: float | None, old: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return f"{text} (x {value / old:.2f})" if old else text


def read_stored(path: str) -> dict[tuple[str, str], dict[str, float]]:
    """The figures of an earlier run's JSON, by suite and case.

    Raises:
        ValueError: the file cannot be read or is not the result of a benchmark.
    """
    try:
        return {(row["suite"], row["case"]): row["figures"] for row in json.loads(Path(path).read_text())["results"]}
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a result of scripts/benchmark.py --output") from None


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--suite", nargs="+", required=True, choices=[*SUITES, "all"], help="what to measure")
    parser.add_argument("--quick", action="store_true", help="smaller cases and fewer rounds: each suite within 60 s on two CPU cores")
    parser.add_argument("--seconds", type=float, help="time of one suite's measurements; default: 20, with --quick 12")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda where there is one")
    parser.add_argument("--output", help="JSON to write: results, device, versions")
    parser.add_argument("--compare", metavar="STORED.json", help="an earlier --output: print the ratios to it")
    args = parser.parse_args(argv)
    if args.seconds is not None and args.seconds <= 0:
        raise ValueError(f"seconds must be positive, got {args.seconds}")
    if args.device.split(":")[0] not in ("cpu", "cuda") or (args.device.startswith("cuda") and not torch.cuda.is_available()):
        raise ValueError(f"device must be cpu, or cuda where there is one, got {args.device!r}")
    return args


def main(args: argparse.Namespace) -> None:
    transformers_logging.disable_progress_bar()
    torch.set_float32_matmul_precision("high")
    stored = read_stored(args.compare) if args.compare else None
    setup = Setup(torch.device(args.device), args.quick, args.seconds or (12.0 if args.quick else 20.0))
    environment = versions()
    print(f"{environment['device']}; torch {environment['torch']}, transformers {environment['transformers']}")
    results: list[Result] = []
    for suite in SUITES if "all" in args.suite else dict.fromkeys(args.suite):
        started = time.perf_counter()
        print(f"\n{suite}: {' '.join(SUITES[suite].__doc__.split())}", flush=True)
        torch.manual_seed(0)
        new = SUITES[suite](setup)
        results += new
        print(f"{make_table(new, stored)}\n{time.perf_counter() - started:.0f} s", flush=True)
        if args.output:  # after each suite: a run that is cut off keeps what it has
            settings = {"suites": args.suite, "quick": args.quick, "seconds": setup.seconds, "device": args.device}
            write_results(args.output, {"settings": settings, "versions": environment, "results": [asdict(result) for result in results]})


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; the exit code is 2 for bad input."""
    try:
        main(parse(argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(cli())
