"""Signals that are sent to real runs."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.patience import PATIENCE
from tests.run_server import Run

from eqcohvit.training.checkpoint import list_checkpoints, verify_checkpoint
from eqcohvit.training.signals import EXIT_STOPPED, REPEAT_SECONDS

SETTINGS = (
    "--image_size 16 --patch_size 8 --feature_dim 16 --equivariant_dim 8 --decoder_dim 16 --projector_dim 16 --num_intermediates 1 "
    "--per_device_train_batch_size 4 --warmup_steps 2 --logging_steps 5 --save_steps 1000 --sample_steps 1000 --max_steps 12"
).split()
pytestmark = pytest.mark.chaos
BOUND = 30  # seconds from a signal to the end; about 0.3 on a quiet machine


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


def test_each_signal_saves_the_finished_steps_and_the_run_resumed_after_all_three_ends_alike(run_server, truth, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--save_total_limit", "1"]
    step = 0
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        run = run_server.start([*argv, "--resume_from_checkpoint", "latest"], tmp_path / "record")[0]
        until(lambda run=run: run.num_batches() >= 2, run)
        run.signal(getattr(signal, name))
        assert run.wait(BOUND) == EXIT_STOPPED == 75, run.output()[-2000:]
        assert step < saved_step(tmp_path / "run") < 12
        step = saved_step(tmp_path / "run")
        assert f"stopped by {name} after step {step}; --resume_from_checkpoint latest goes on from there" in run.output()
        assert not (tmp_path / "run" / "model").exists()
    run_server.run([*argv, "--resume_from_checkpoint", "latest"], tmp_path / "record")
    assert_equal_weights(tmp_path / "run", truth(1))


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(run_server, truth, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    runs = run_server.start(argv, tmp_path / "record", num_processes=2)
    until(lambda: runs[1].num_batches() >= 4, runs[1])
    runs[1].signal(signal.SIGUSR1)
    assert [run.wait(BOUND) for run in runs] == [EXIT_STOPPED, EXIT_STOPPED], runs[0].output()[-2000:]
    step = saved_step(tmp_path / "run")
    assert 3 <= step < 12 and f"stopped by a signal to another process after step {step};" in runs[0].output()
    run_server.run([*argv, "--resume_from_checkpoint", "latest"], tmp_path / "record", num_processes=2)
    assert_equal_weights(tmp_path / "run", truth(2))


def test_a_signal_ends_the_wait_for_data(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    run = run_server.start(argv, tmp_path / "record", stall="5")[0]
    until(lambda: "stalled" in run.output(), run)
    run.signal(signal.SIGTERM)
    assert run.wait(BOUND) == EXIT_STOPPED, run.output()[-2000:]
    assert saved_step(tmp_path / "run") == 5


def test_a_signal_before_the_first_step_stops_without_a_checkpoint(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run")]
    run = run_server.start(argv, tmp_path / "record", stall="0")[0]
    until(lambda: "stalled" in run.output(), run)
    run.signal(signal.SIGTERM)
    assert run.wait(BOUND) == EXIT_STOPPED
    assert list_checkpoints(tmp_path / "run") == [] and "stopped by SIGTERM after step 0" in run.output()


def test_a_signal_while_saving_lets_the_checkpoint_be_finished(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--save_steps", "2", "--max_steps", "1000"]
    run = run_server.start(argv, tmp_path / "record")[0]
    until(lambda: any((tmp_path / "run" / "checkpoints").glob(".step-*.tmp")), run)
    run.signal(signal.SIGTERM)
    assert run.wait(BOUND) == EXIT_STOPPED, run.output()[-2000:]
    last = list_checkpoints(tmp_path / "run")[-1]
    verify_checkpoint(last)
    assert f"after step {last.name.removeprefix('step-')};" in run.output()
    assert not any((tmp_path / "run" / "checkpoints").glob(".step-*"))


def test_a_signal_during_the_last_export_lets_the_run_end(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    run = run_server.start(argv, tmp_path / "record")[0]
    until(lambda: (tmp_path / "run" / ".model.new").exists(), run)
    run.signal(signal.SIGTERM)
    assert run.wait(BOUND) == 0, run.output()[-2000:]
    assert weights(tmp_path / "run") and not (tmp_path / "run" / ".model.new").exists()


def test_the_second_signal_ends_the_run_at_once(run_server, photos, tmp_path):
    argv = [*SETTINGS, "--train_dir", str(photos), "--output_dir", str(tmp_path / "run"), "--save_steps", "2"]
    run = run_server.start(argv, tmp_path / "record", stall="checkpoint")[0]
    until(lambda: "stalled" in run.output(), run)
    run.signal(signal.SIGTERM)
    run.signal(signal.SIGTERM)  # within REPEAT_SECONDS: a launcher that passes on what the scheduler has sent to all
    assert run.wait(REPEAT_SECONDS + 0.3) is None
    run.signal(signal.SIGTERM)
    assert run.wait(BOUND) == 128 + signal.SIGTERM
