"""One writer for the folder of a run."""

import os
import signal

import pytest

from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.run_folder import open_run
from eqcohvit.training.run_lock import LOCK_FILE, lock_run, release_runs


@pytest.fixture(autouse=True)
def released():
    yield
    release_runs()


def other_process(output_dir):
    """A forked process that holds the folder; its id."""
    ready, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock_run(output_dir)
        os.write(says, b".")
        signal.pause()
    assert os.read(ready, 1) == b"."
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_second_writer_is_refused_and_a_dead_one_does_not_block(tmp_path):
    output_dir = tmp_path / "run"
    pid = other_process(output_dir)
    try:
        args = PretrainArguments(output_dir=str(output_dir))
        message = f"is being written by process {pid} on .*: wait for it, stop it, or give another --output_dir"
        with pytest.raises(ValueError, match=message):
            open_run(output_dir, args)
        assert sorted(path.name for path in output_dir.iterdir()) == [LOCK_FILE]
    finally:
        end(pid)
    assert open_run(output_dir, args) is None  # the lock file of the dead process is still there
    assert f"process {os.getpid()} on " in (output_dir / LOCK_FILE).read_text()


def test_a_forked_worker_does_not_hold_the_folder(tmp_path):
    lock_run(tmp_path)
    worker = os.fork()
    if worker == 0:
        signal.pause()
    release_runs()
    pid = other_process(tmp_path)
    end(pid)
    end(worker)


def test_one_process_may_open_its_folder_again(tmp_path):
    lock_run(tmp_path)
    lock_run(tmp_path)
