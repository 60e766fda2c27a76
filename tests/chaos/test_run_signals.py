"""Signals that are sent to real runs."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.patience import PATIENCE
from tests.run_server import Run
from tests.tiny import SCRIPTS, SIZES

from eqcohvit.training.checkpoint import list_checkpoints, verify_checkpoint
from eqcohvit.training.signals import EXIT_STOPPED, REPEAT_SECONDS

SETTINGS = (
    f"{SIZES} "
    "--num_intermediates 1 "
    "--per_device_train_batch_size 4 --warmup_steps 2 --logging_steps 5 --save_steps 1000 --sample_steps 1000 "
    "--max_steps 12"
).split()
pytestmark = pytest.mark.chaos


def until(condition, run: Run, timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert run.wait(0.0) is None and time.monotonic() < deadline, run.output()[-2000:]
        time.sleep(0.003)


def saved_step(output_dir: Path) -> int:
    (checkpoint,) = list_checkpoints(output_dir)
    verify_checkpoint(checkpoint)
    return json.loads((checkpoint / "run_state.json").read_text())["step"]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model" / "model.safetensors")


def assert_equal_weights(output_dir: Path, truth: Path) -> None:
    ours, theirs = weights(output_dir), weights(truth)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def truth(run_server, photos, tmp_path_factory):
    """Undisturbed runs by their number of processes."""
    made: dict[int, Path] = {}

    def make(num_processes: int) -> Path:
        if num_processes not in made:
            folder = tmp_path_factory.mktemp("truth")
            argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(folder / "run")]
            run_server.run(argv, folder / "record", num_processes)
            made[num_processes] = folder / "run"
        return made[num_processes]

    return make


def test_each_signal_saves_the_finished_steps_and_the_run_resumed_after_all_three_ends_alike(
    run_server, truth, photos, tmp_path
):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--save_total_limit", "1"]
    step = 0
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        run = run_server.start([*argv, "--resume_from_checkpoint", "latest"], tmp_path / "record")[0]
        until(lambda run=run: run.num_batches() >= 2, run)
        run.signal(getattr(signal, name))
        assert run.wait(PATIENCE) == EXIT_STOPPED == 75, run.output()[-2000:]
        assert step < saved_step(tmp_path / "run") < 12
        step = saved_step(tmp_path / "run")
        assert (
            f"stopped by {name} after step {step}; --resume_from_checkpoint latest goes on from there" in run.output()
        )
        assert not (tmp_path / "run" / "model").exists()
    run_server.run([*argv, "--resume_from_checkpoint", "latest"], tmp_path / "record")
    assert_equal_weights(tmp_path / "run", truth(1))


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(run_server, truth, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    runs = run_server.start(argv, tmp_path / "record", num_processes=2)
    until(lambda: runs[1].num_batches() >= 4, runs[1])
    runs[1].signal(signal.SIGUSR1)
    assert [run.wait(PATIENCE) for run in runs] == [EXIT_STOPPED, EXIT_STOPPED], runs[0].output()[-2000:]
    step = saved_step(tmp_path / "run")
    assert 3 <= step < 12 and f"stopped by a signal to another process after step {step};" in runs[0].output()
    run_server.run([*argv, "--resume_from_checkpoint", "latest"], tmp_path / "record", num_processes=2)
    assert_equal_weights(tmp_path / "run", truth(2))


def test_a_signal_ends_the_wait_for_data(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    run = run_server.start(argv, tmp_path / "record", stall="5")[0]
    until(lambda: "stalled" in run.output(), run)
    run.signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == EXIT_STOPPED, run.output()[-2000:]
    assert saved_step(tmp_path / "run") == 5


def test_a_signal_before_the_first_step_stops_without_a_checkpoint(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    run = run_server.start(argv, tmp_path / "record", stall="0")[0]
    until(lambda: "stalled" in run.output(), run)
    run.signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == EXIT_STOPPED
    assert list_checkpoints(tmp_path / "run") == [] and "stopped by SIGTERM after step 0" in run.output()


def test_a_signal_while_saving_lets_the_checkpoint_be_finished(run_server, photos, tmp_path):
    argv = [
        *SETTINGS,
        "--train_dir",
        str(photos),
        "--output_dir",
        str(tmp_path / "run"),
        "--save_steps",
        "2",
        "--max_steps",
        "1000",
    ]
    run = run_server.start(argv, tmp_path / "record")[0]
    until(lambda: any((tmp_path / "run" / "checkpoints").glob(".step-*.tmp")), run)
    run.signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == EXIT_STOPPED, run.output()[-2000:]
    last = list_checkpoints(tmp_path / "run")[-1]
    verify_checkpoint(last)
    assert f"after step {last.name.removeprefix('step-')};" in run.output()
    assert not any((tmp_path / "run" / "checkpoints").glob(".step-*"))


def test_a_signal_during_the_last_export_lets_the_run_end(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    run = run_server.start(argv, tmp_path / "record")[0]
    until(lambda: (tmp_path / "run" / ".model.new").exists(), run)
    run.signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == 0, run.output()[-2000:]
    assert weights(tmp_path / "run") and not (tmp_path / "run" / ".model.new").exists()


def test_the_second_signal_ends_the_run_at_once(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--save_steps", "2"]
    run = run_server.start(argv, tmp_path / "record", stall="checkpoint")[0]
    until(lambda: "stalled" in run.output(), run)
    run.signal(signal.SIGTERM)
    run.signal(signal.SIGTERM)  # within REPEAT_SECONDS: a launcher that passes on what the scheduler has sent to all
    assert run.wait(REPEAT_SECONDS + 0.3) is None
    run.signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == 128 + signal.SIGTERM


@pytest.mark.parametrize("name", ["SIGHUP", "SIGXCPU"])
def test_a_closed_terminal_and_a_spent_time_limit_save_like_any_signal(run_server, photos, tmp_path, name):
    argv = [
        *SETTINGS,
        "--train_dir",
        str(photos),
        "--output_dir",
        str(tmp_path / "run"),
        "--dataloader_num_workers",
        "1",
        "--max_steps",
        "500",  # so many that the signal arrives in time
    ]
    run = run_server.start(argv, tmp_path / "record")[0]
    until(lambda: run.num_batches() >= 2, run)
    run.signal(getattr(signal, name))
    assert run.wait(PATIENCE) == EXIT_STOPPED, run.output()[-2000:]
    assert 0 < saved_step(tmp_path / "run") < 500 and f"stopped by {name} after step" in run.output()


def test_the_system_may_repeat_that_the_time_is_spent(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--save_steps", "2"]
    run = run_server.start(argv, tmp_path / "record", stall="checkpoint")[0]
    until(lambda: "stalled" in run.output(), run)
    run.signal(signal.SIGXCPU)
    time.sleep(REPEAT_SECONDS + 0.3)
    run.signal(signal.SIGXCPU)
    assert run.wait(0.5) is None
    run.signal(signal.SIGTERM)
    assert run.wait(PATIENCE) == 128 + signal.SIGTERM


@pytest.mark.parametrize("end", ["| head -n 1", "> /dev/full", "> /dev/full 2>&1", ">&- 2>&-"])
def test_a_run_whose_output_goes_nowhere_finishes(photos, tmp_path, end):
    argv = [
        *SETTINGS,
        "--train_dir",
        str(photos),
        "--output_dir",
        str(tmp_path / "run"),
        "--logging_steps",
        "1",
        "--probe_samples",
        "0",
    ]
    done = run_in_shell(argv, end)
    assert done.returncode == 0, done.stderr[-2000:]
    assert saved_step(tmp_path / "run") == 12 and weights(tmp_path / "run")


def test_nohup_is_obeyed(photos, tmp_path):
    """The signal of a closed terminal does not stop a run that was started to outlive it."""
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--probe_samples", "0"]
    begun = f"[ -d {tmp_path}/run/checkpoints ] || [ -e {tmp_path}/run/metrics.jsonl ]"
    hang_up = f"( until {begun}; do sleep .05; done; kill -HUP $$ ) & "
    done = run_in_shell(argv, "", before=f"trap '' HUP; {hang_up}", replace=True)
    assert done.returncode == 0 and saved_step(tmp_path / "run") == 12, done.stderr[-2000:]


def run_in_shell(argv, end, before="", replace=False):
    command = shlex.join([sys.executable, str(SCRIPTS / "pretrain.py"), *argv])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    script = f"set -o pipefail; {before}{'exec ' if replace else ''}{command} {end}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE, env=environment)


def test_the_second_start_of_the_same_run_is_refused_and_the_first_goes_on(run_server, truth, photos, tmp_path):
    argv = [
        *SETTINGS,
        "--train_dir",
        str(photos),
        "--output_dir",
        str(tmp_path / "run"),
        "--resume_from_checkpoint",
        "latest",
    ]
    first = run_server.start(argv, tmp_path / "record", stall="5")[0]
    until(lambda: "stalled" in first.output(), first)
    second = run_server.start(argv, tmp_path / "record2")[0]
    assert second.wait(PATIENCE) == 2 and f"is being written by process {first.pid} on " in second.output()
    first.signal(signal.SIGKILL)
    assert first.wait(PATIENCE) == -signal.SIGKILL
    run_server.run(argv, tmp_path / "record")
    assert_equal_weights(tmp_path / "run", truth(1))
