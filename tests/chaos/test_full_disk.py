"""A disk that is full while a run saves: the run says so and ends; with more room it goes on, and ends like an
undisturbed one."""

import subprocess

import pytest
from tests.chaos.test_kills import SETTINGS, assert_same_end
from tests.patience import PATIENCE

from eqcohvit.training.checkpoint import list_checkpoints, verify_checkpoint

pytestmark = pytest.mark.chaos


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip(
            "needs the right to mount a file system; test_checkpoint.py does the same to single checkpoints, "
            "with a quota"
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_run_on_a_full_disk_ends_with_a_clear_error_and_resumes(run_server, photos, tmp_path, small_disk):
    flags = [
        *SETTINGS,
        *"--max_steps 6 --save_steps 2 --resume_from_checkpoint latest --train_dir".split(),
        str(photos),
    ]
    run_server.run([*flags, "--output_dir", str(tmp_path / "truth")], tmp_path / "true_record")

    output_dir = small_disk / "run"
    size = sum(path.stat().st_size for path in list_checkpoints(tmp_path / "truth")[-1].iterdir())
    subprocess.run(["mount", "-o", f"remount,size={size * 3 // 2}", str(small_disk)], check=True)
    run = run_server.start([*flags, "--output_dir", str(output_dir)], tmp_path / "record")[0]
    assert run.wait(PATIENCE) == 1, run.output()[-2000:]
    assert "error: cannot save the checkpoint of step 4: " in run.output() and "step-2 is untouched" in run.output()
    assert "Traceback" not in run.output()
    assert [path.name for path in list_checkpoints(output_dir)] == ["step-2"]
    verify_checkpoint(output_dir / "checkpoints" / "step-2")

    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    (resumed,) = run_server.run([*flags, "--output_dir", str(output_dir)], tmp_path / "record")
    assert "step-2" in resumed.output()
    assert_same_end(output_dir, tmp_path / "truth")
