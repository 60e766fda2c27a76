#!/usr/bin/env python
"""The paper's tables, at the size of the device: trains and evaluates what is missing, and writes the tables.

    python scripts/reproduce.py --data_files 'cifar10/train-*.parquet' --test_data_files 'cifar10/test-*.parquet' \\
        --max_steps 300
    python scripts/reproduce.py --table B --budget 60 --output_dir runs/k_ablation    # takes about an hour in all
    python scripts/reproduce.py --data imagenette --budget 1200 --time_limit 9        # on a GPU; repeat until done

A: SSL methods with and without the task, and controls. B: number of intermediate states. C: lambda, d_equi, border,
what the decoders and the invariant part read. D: dense and geometric tasks. E: other paths. Each run has a folder with
its recipe, metrics, model and results.json. tables.md is written only from the results.json files. The same command
continues where it was, even in the middle of a run; the model of an evaluated run may be deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from eqcohvit.cli import CommandParser
from eqcohvit.evaluation.results import versions
from eqcohvit.files import message_of, write_text_whole
from eqcohvit.training.arguments import parse_arguments
from eqcohvit.training.output import safe_output
from eqcohvit.training.signals import EXIT_STOPPED
from reproduction.tables import DENSE, PROTOCOLS, TABLES, Run, chosen_runs, render_tables

SCRIPTS = Path(__file__).parent
HUB = {
    "cifar10": ["--dataset_name", "uoft-cs/cifar10"],
    "imagenette": ["--dataset_name", "frgfm/imagenette", "--dataset_config_name", "160px"],
}
TEST_SPLIT = {"cifar10": "test", "imagenette": "validation"}
_CALIBRATION_STEPS = 24
_TRAINING_SHARE = 0.7  # of a budget; the rest is for evaluation and starting
_MIN_STEPS = 20


class TimeIsUp(Exception):
    """The time limit of this call is reached. The same command continues."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(__doc__, "python scripts/reproduce.py [settings]")
    parser.add_argument(
        "--table",
        nargs="+",
        default=["A", "B", "C"],
        choices=list(TABLES),
        help="default: A B C; the most informative runs come first",
    )
    parser.add_argument(
        "--data",
        choices=list(HUB),
        help="dataset of the recipes; default: imagenette on a GPU, else cifar10",
    )
    parser.add_argument("--data_files", help="training files (glob) instead of the dataset on the Hub")
    parser.add_argument("--test_data_files", help="test files (glob)")
    parser.add_argument(
        "--dense_data",
        help="for table D: folder with imagenette, camvid, bccd, face_keypoints, davis2016 as parquet files",
    )
    parser.add_argument(
        "--output_dir", type=os.path.expanduser, default="runs/reproduction", help="default: runs/reproduction"
    )
    parser.add_argument("--max_steps", type=int, help="training steps of each run; default: the recipes'")
    parser.add_argument("--budget", type=float, help="minutes that all runs may take together; this chooses max_steps")
    parser.add_argument("--time_limit", type=float, help="minutes after which this call saves its work and ends")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, order and views; each seed has separate runs; default: 0"
    )
    parser.add_argument("--max_samples", type=int, default=4096, help="images to fit probes on; default: 4096")
    parser.add_argument("--max_test_samples", type=int, default=2048, help="images to test them on; default: 2048")
    args = parser.parse_args(argv)
    import torch

    args.data = args.data or ("imagenette" if torch.cuda.is_available() else "cifar10")
    for name in ("max_steps", "budget", "time_limit", "max_samples", "max_test_samples"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise ValueError(f"{name} must be positive, got {getattr(args, name)}")
    if args.max_steps and args.budget:
        raise ValueError("max_steps and budget both choose the size of the runs: give only one of them")
    if bool(args.data_files) != bool(args.test_data_files):
        raise ValueError(
            "data_files and test_data_files go together: probes are tested on images that are not fitted on"
        )
    return args


@dataclass(frozen=True)
class Stage:
    """A command of a run, and the file that exists once it has finished."""

    name: str
    command: list[str]
    product: Path


class Reproduction:
    """The runs of one folder. All have one size, which plan.json holds."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        self.deadline = time.monotonic() + 60 * args.time_limit if args.time_limit else None
        self.runs = chosen_runs(args.table)
        if any(run.dense for run in self.runs) and not args.dense_data:
            raise ValueError(
                "table D needs dense_data, a folder with imagenette, camvid, bccd, face_keypoints and davis2016"
            )
        self.plan = self._open_plan()

    # ------------------------------------------------------------------ size
    def _open_plan(self) -> dict:
        """The size of the runs: the one in plan.json if it exists, else from the flags."""
        path = self.folder / "plan.json"
        wanted = {
            "data": self.args.data,
            "max_samples": self.args.max_samples,
            "max_test_samples": self.args.max_test_samples,
        }
        if path.is_file():
            plan = json.loads(path.read_text())
            steps = self.args.max_steps if self.args.max_steps else plan["max_steps"]
            for name, value in {**wanted, "max_steps": steps}.items():
                if plan[name] != value:
                    raise ValueError(
                        f"{self.folder} holds runs with {name} {plan[name]}, not {value}: choose another output_dir"
                    )
            return plan
        steps = self._steps_of_budget() if self.args.budget else self.args.max_steps
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, json.dumps({**wanted, "max_steps": steps}, indent=1) + "\n")
        return {**wanted, "max_steps": steps}

    def _steps_of_budget(self) -> int:
        """Time some steps of each recipe, and compute how many steps fit into the budget."""
        seconds: dict[str, float] = {}
        trained = [run for run in self.runs if not run.untrained]
        for run in trained:
            recipe = self._recipe(run)
            if recipe in seconds:
                continue
            print(f"timing {_CALIBRATION_STEPS} steps of {recipe} ...", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                steps = _flags(
                    {"max_steps": _CALIBRATION_STEPS, "logging_steps": _CALIBRATION_STEPS // 2, "output_dir": folder}
                )
                command = self._command("pretrain", "--config", recipe, *self._data(run, train=True), *steps)
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"timing {recipe} failed: {_last_line(done.stderr or done.stdout)}")
                metrics = json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])
            batch = parse_arguments(["--config", recipe]).per_device_train_batch_size
            seconds[recipe] = batch / metrics["samples_per_second"]
        step_of_all = sum(seconds[self._recipe(run)] for run in trained)
        most = max(parse_arguments(["--config", recipe]).max_steps for recipe in seconds)
        steps = min(int(_TRAINING_SHARE * 60 * self.args.budget / step_of_all), most)
        if steps < _MIN_STEPS:
            needed = _MIN_STEPS * step_of_all / 60 / _TRAINING_SHARE
            problem = f"a budget of {self.args.budget:g} minutes is {steps} steps a run"
            raise ValueError(f"{problem}; at least {needed:.0f} minutes are needed")
        return steps // 10 * 10

    # ------------------------------------------------------------------ commands
    def _command(self, script: str, *flags: object) -> list[str]:
        return [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, flags)]

    def _recipe(self, run: Run) -> str:
        small = run.dense and self.args.data == "cifar10"  # the dense tasks' images are larger than those of CIFAR-10
        return f"{'imagenette64' if small else self.args.data}_{run.method}"

    def _data(self, run: Run, train: bool) -> list[str]:
        if run.dense:
            return ["--data_files", str(Path(self.args.dense_data) / "imagenette" / "train-*.parquet")]
        if self.args.data_files:
            test = [] if train else ["--test_data_files", self.args.test_data_files]
            return ["--data_files", self.args.data_files, *test]
        return HUB[self.args.data] + ([] if train else ["--test_split", TEST_SPLIT[self.args.data]])

    def home(self, run: Run) -> Path:
        return self.folder / (f"{run.name}-seed{self.args.seed}" if self.args.seed else run.name)

    def stages(self, run: Run) -> list[Stage]:
        """The stages of a run, in order: pretraining, probes, and for table D the dense tasks."""
        home, args = self.home(run), self.args
        recipe = parse_arguments(["--config", self._recipe(run)])
        steps = self.plan["max_steps"] or recipe.max_steps
        warmup = round(steps * recipe.warmup_steps / recipe.max_steps)
        size = {
            "max_steps": steps,
            "warmup_steps": warmup,
            "save_steps": max(steps // 4, 1),
            "sample_steps": steps,
            "seed": args.seed,
        }
        if run.equivariant_share is not None:
            size["equivariant_dim"] = round(recipe.feature_dim * run.equivariant_share)
        train = [
            "--config",
            self._recipe(run),
            *self._data(run, train=True),
            *("--path", "rotation"),  # unless the run has another; the recipes differ
            *_flags(size),
            *run.flags,
            "--output_dir",
            home,
        ]
        train += ["--resume_from_checkpoint", "latest"]
        stages = [Stage("pretrain", self._command("pretrain", *train), home / "model" / "config.json")]
        if run.dense:
            dense = [self._dense_stage(run, task) for task in DENSE]
            return [stage for stage in (*([] if run.untrained else stages), *dense) if stage is not None]
        probe = ["--model", home / "model", "--task", "r2", "knn", "linear"]
        probe += ["--protocol", *PROTOCOLS, "--seeds", 3, "--head", "mlp"]
        probe += [
            "--transform",
            *run.transforms,
            *_flags({name: self.plan[name] for name in ("max_samples", "max_test_samples")}),
        ]
        probe += [
            *self._data(run, train=False),
            "--cache_dir",
            self.folder / "cache",
            "--output",
            home / "results.json",
        ]
        return [*stages, Stage("evaluate", self._command("evaluate", *probe), home / "results.json")]

    def _dense_stage(self, run: Run, task: str) -> Stage | None:
        """Fit a head for `task` on the backbone of the run.

        None if the results of another run hold the same figures, because videos need no head.
        """
        script, data, flags, _ = DENSE[task]
        if script == "evaluate" and run.untrained:
            return None
        files = [
            str(Path(self.args.dense_data) / data / flag) if flag.endswith(".parquet") else flag
            for flag in flags.split()
        ]
        trained = run if not run.untrained else next(other for other in TABLES["D"] if not other.untrained)
        command = ["--task", task, "--model", self.home(trained) / "model", *files]
        product = self.home(run) / task / "results.json"
        if script == "evaluate":
            return Stage(
                task,
                self._command(script, *command, "--cache_dir", self.folder / "cache", "--output", product),
                product,
            )
        command += [
            "--seed",
            self.args.seed,
            "--save_steps",
            100,
            "--output_dir",
            product.parent,
            "--resume_from_checkpoint",
            "latest",
        ]
        return Stage(task, self._command(script, *command, *(["--random_weights"] if run.untrained else [])), product)

    # ------------------------------------------------------------------ work
    def work(self) -> None:
        """Do what is missing, run by run. A run that fails is reported, and the others continue.

        Raises:
            RuntimeError: a run has failed. It is raised after all others are done.
        """
        todo = [(run, stage) for run in self.runs for stage in self._missing(run)]
        failed: dict[str, str] = {}
        for index, (run, stage) in enumerate(todo):
            if run.name in failed:
                continue
            left = self._estimate(todo[index:])
            about = f", about {left / 60:.0f} min left" if left else ""
            print(f"[{index + 1}/{len(todo)}] {run.name}: {stage.name}{about}", flush=True)
            code, seconds, log = self._execute(run, stage)
            if code == 0:
                self._keep(run, stage, seconds)
                write_text_whole(self.folder / "tables.md", render_tables(self.folder, list(TABLES)))
            elif code == 2 or self.deadline is None or time.monotonic() < self.deadline:
                failed[run.name] = (
                    f"{run.name} failed in {stage.name} (exit code {code}): {_last_line(log.read_text())}"
                )
                print(failed[run.name], file=sys.stderr, flush=True)
            else:
                raise TimeIsUp
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(self.runs)} runs failed; first: {next(iter(failed.values()))}")

    def _missing(self, run: Run) -> list[Stage]:
        """The stages whose product is not there. A run that has been evaluated needs no model any more."""
        stages = self.stages(run)
        if not run.dense and stages[-1].product.is_file():  # dense tasks may read the model of another run
            return []
        return [stage for stage in stages if not stage.product.is_file()]

    def _execute(self, run: Run, stage: Stage) -> tuple[int, float, Path]:
        """Run a stage with its output in logs/RUN-STAGE.txt.

        At the deadline, or if this process is stopped, the stage is told to save and to end.
        """
        started = time.monotonic()
        # Not in the folder of the run, which must be empty before it starts.
        log = self.folder / "logs" / f"{self.home(run).name}-{stage.name}.txt"
        log.parent.mkdir(exist_ok=True)
        with log.open("a") as out:
            print(f"$ {shlex.join(stage.command)}", file=out, flush=True)
            process = subprocess.Popen(stage.command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                left = None if self.deadline is None else max(self.deadline - time.monotonic(), 0.1)
                code = process.wait(left)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as stopped:
                process.terminate()  # not SIGINT, which is ignored below a shell's background job
                code = process.wait()
                if isinstance(stopped, KeyboardInterrupt):
                    raise
            finally:
                if process.poll() is None:
                    process.kill()
        return code, time.monotonic() - started, log

    def _keep(self, run: Run, stage: Stage, seconds: float) -> None:
        """Write the command of a stage and its time into run.json."""
        path = self.home(run) / "run.json"
        known = json.loads(path.read_text()) if path.is_file() else {"stages": {}}
        known |= {"name": run.name, "label": run.label, "seed": self.args.seed, "versions": versions()}
        known["stages"][stage.name] = {
            "command": shlex.join(["python", os.path.relpath(stage.command[1], SCRIPTS.parent), *stage.command[2:]]),
            "seconds": round(seconds, 1),
        }
        write_text_whole(path, json.dumps(known, indent=1) + "\n")

    def _estimate(self, todo: list[tuple[Run, Stage]]) -> float | None:
        """Seconds that the rest may take, from the mean time of each kind of stage so far. None before the first."""
        taken: dict[str, list[float]] = {}
        for path in self.folder.glob("*/run.json"):
            for name, stage in json.loads(path.read_text())["stages"].items():
                taken.setdefault(name, []).append(stage["seconds"])
        every = [seconds for values in taken.values() for seconds in values]
        if not every:
            return None
        return sum(sum(values) / len(values) for values in (taken.get(stage.name, every) for _, stage in todo))


def _flags(values: dict[str, object]) -> list[object]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


@safe_output()
def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; exit codes: 1 a run failed, 2 bad input, 75 the time limit came first."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the current stage saves its work
    try:
        reproduction = Reproduction(parse(argv))
        reproduction.work()
        tables = reproduction.folder / "tables.md"
        print(tables.read_text() if tables.is_file() else "nothing to do")
    except TimeIsUp:
        print("the time limit is reached and everything is saved: the same command continues", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted, everything is saved: the same command continues", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {message_of(error, 2000)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(cli())
