#!/usr/bin/env python
"""What a GPU shows in one short run: stages, each in its own process with its own time limit, results after each case.

    python scripts/benchmarks/gpu_run.py --output out                                   # 9 minutes
    python scripts/benchmarks/gpu_run.py --output more --previous out/results.jsonl     # what failed or was cut
    python scripts/benchmarks/gpu_run.py --output out --only imagenette --data_files 'train*.parquet' \\
        --test_data_files 'validation*.parquet'        # one method with the task, trained and evaluated: 9 minutes
    python scripts/benchmarks/gpu_run.py --output out --tiny                            # the same stages on a CPU

`results.jsonl` has a line for each case and each stage, `log.txt` what the stages print, `trace-*.json.gz` the traces
for https://ui.perfetto.dev. It runs from a clone. Where nothing can be installed from a network, these wheels are
needed beside torch 2.11 or newer, accelerate, pillow and pyarrow: transformers 5.23.0, datasets 5.2.0, multiprocess
0.70.19, dill 0.4.1, evaluate 0.4.6.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS.parent / "src"))
sys.path.append(str(SCRIPTS))  # last: it has an evaluate.py

from benchmarks.gpu_stages import STAGES, read_rows, record  # noqa: E402

START_SECONDS = 15  # a stage with less time left is not begun
_BY_DEFAULT = [name for name in STAGES if name != "imagenette"]


def drive(args: argparse.Namespace) -> int:
    """Run the stages in their order; returns the number of those that did not end well."""
    end = time.monotonic() + 60 * args.minutes
    done = {row["stage"] for row in read_rows(args.previous) if row.get("exit_code") == 0} if args.previous else set()
    failed = 0
    for name in args.only or [name for name in _BY_DEFAULT if name not in done]:
        left = end - time.monotonic() - 5
        if left < START_SECONDS:
            record(args, name, skipped=f"{left:.0f} s left")
            failed += 1
            continue
        started = time.monotonic()
        command = [sys.executable, __file__, *sys.argv[1:], "--stage", name]
        with open(args.output / "log.txt", "a") as log:
            log.write(f"\n##### {name}\n")
            log.flush()
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                code: int | str = process.wait(min(STAGES[name].limit * (10 if args.tiny else 1), left))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
                process.wait()
                code = "time limit"
        failed += code != 0
        record(args, name, exit_code=code, seconds=round(time.monotonic() - started, 1))
    return failed


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together; default: 9")
    parser.add_argument(
        "--previous", type=Path, help="results.jsonl of an earlier call: its finished stages are left out"
    )
    parser.add_argument("--only", nargs="+", choices=list(STAGES), help="run only these stages")
    parser.add_argument("--data_files", help="imagenette: parquet files to train on")
    parser.add_argument("--test_data_files", help="imagenette: parquet files to test on")
    parser.add_argument("--tiny", action="store_true", help="small models, for a CPU")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """One stage in this process, or all in theirs."""
    args.output.mkdir(parents=True, exist_ok=True)
    if args.stage:
        STAGES[args.stage].work(args)
        return 0
    return 1 if drive(args) else 0


if __name__ == "__main__":
    sys.exit(main(parse()))
