#!/usr/bin/env python
"""What a step, a batch of views or a forward pass costs: ratios to plain alternatives that take turns in one process,
and absolute speeds.

    python scripts/benchmark.py --suite inference --quick    # each suite: within 60 s on two CPU cores
    python scripts/benchmark.py --suite cost                 # FLOP, bytes and launches of a GPU step, on any machine
    python scripts/benchmark.py --suite all --seconds 10 --output benchmark.json
    python scripts/benchmark.py --suite overhead train --compile --seconds 10 --compare benchmark.json

The last two make the table for a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from eqcohvit.cli import CommandParser, registered
from eqcohvit.training.output import safe_output

if TYPE_CHECKING:
    from benchmarks.measure import Result

_SUITES = registered(str(Path(__file__).parent / "benchmarks"), "SUITES")


def make_table(results: list[Result], stored: dict[tuple[str, str], dict[str, float]] | None = None) -> str:
    """One line per case; with stored figures each number is followed by its ratio to the stored one."""
    from eqcohvit.evaluation.results import format_table

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
    parser = CommandParser(__doc__, "python scripts/benchmark.py --suite SUITE [SUITE ...] [settings]")
    parser.add_argument("--suite", nargs="+", required=True, choices=[*_SUITES, "all"], help="what to measure")
    parser.add_argument(
        "--quick", action="store_true", help="smaller cases and fewer rounds: each suite within 60 s on two CPU cores"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile our step with torch.compile; the plain pipeline stays eager"
    )
    parser.add_argument(
        "--profile", action="store_true", help="suites overhead and data: also print the most expensive operations"
    )
    parser.add_argument("--seconds", type=float, help="time of one suite's measurements; default: 20, with --quick 12")
    parser.add_argument("--device", help="device to measure on; default: cuda if available")
    parser.add_argument("--output", type=os.path.expanduser, help="JSON file for results, device and versions")
    parser.add_argument("--peers", type=Path, help="suite peers: folder with clones of ibot, dinov2 and vicreg")
    parser.add_argument("--compare", metavar="STORED.json", help="an earlier --output: print the ratios to it")
    args = parser.parse_args(argv)
    if args.seconds is not None and args.seconds <= 0:
        raise ValueError(f"seconds must be positive, got {args.seconds}")
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device.split(":")[0] not in ("cpu", "cuda") or (
        args.device.startswith("cuda") and not torch.cuda.is_available()
    ):
        raise ValueError(f"device must be cpu, or cuda if available, got {args.device!r}")
    return args


def main(args: argparse.Namespace) -> int:
    """Measure, print and write; returns the number of failed cases."""
    import torch
    from transformers.utils import logging

    from benchmarks.measure import Setup, measured
    from benchmarks.suites import SUITES
    from eqcohvit.evaluation.results import versions, write_results
    from eqcohvit.registration import register

    register()
    logging.disable_progress_bar()
    torch.set_float32_matmul_precision("high")
    stored = read_stored(args.compare) if args.compare else None
    setup = Setup(
        torch.device(args.device),
        args.quick,
        args.seconds or (12.0 if args.quick else 20.0),
        args.compile,
        args.profile,
        args.peers,
    )
    settings = {
        "suites": args.suite,
        "quick": args.quick,
        "seconds": setup.seconds,
        "device": args.device,
        "compile": args.compile,
    }
    environment = versions()
    print(f"{environment['device']}; torch {environment['torch']}, transformers {environment['transformers']}")
    results: list[Result] = []
    every = [name for name in SUITES if name != "peers" or args.peers]
    for suite in every if "all" in args.suite else dict.fromkeys(args.suite):
        started = time.perf_counter()
        print(f"\n{suite}: {' '.join((SUITES[suite].__doc__ or '').split())}", flush=True)
        torch.manual_seed(0)
        new: list[Result] = []
        for case in SUITES[suite](setup):
            new += measured(suite, case)
            if args.output:  # after each case, so that an interrupted run keeps its results
                done = [asdict(result) for result in results + new]
                write_results(args.output, {"settings": settings, "versions": environment, "results": done})
        results += new
        print(f"{make_table(new, stored)}\n{time.perf_counter() - started:.0f} s", flush=True)
    return sum(1 for result in results if result.failure)


@safe_output()
def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments. Exit code 2: bad input; 1: some cases failed, and the others were measured."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as scripts/pretrain.py does; for the plain pipeline too
    try:
        num_failed = main(parse(argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if num_failed:
        print(f"error: {num_failed} cases failed; the table says why", file=sys.stderr)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(cli())
