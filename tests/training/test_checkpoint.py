from pathlib import Path

import pytest
from accelerate import Accelerator

from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.checkpoint import find_checkpoint, list_checkpoints, prepare_output_dir, read_state, save_checkpoint


def save(output_dir: Path, step: int, keep: int = 2, fail: bool = False) -> None:
    def write(folder: str) -> None:
        (Path(folder) / "weights").write_text(str(step))
        if fail:
            raise OSError("disk full")

    save_checkpoint(Accelerator(cpu=True), output_dir, step, {"step": step}, write, keep)


def test_checkpoints_are_found_by_step_and_old_ones_removed(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-10", "step-100"]
    latest = find_checkpoint(tmp_path, "latest")
    assert read_state(latest) == {"step": 100} and (latest / "weights").read_text() == "100"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoints" / "step-10")).name == "step-10"


def test_failed_save_leaves_the_previous_checkpoint_and_no_half_written_one(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 6, fail=True)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-5"]
    save(tmp_path, 6)
    assert find_checkpoint(tmp_path, "latest").name == "step-6"


def test_folder_without_state_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "step-7").mkdir(parents=True)
    assert find_checkpoint(tmp_path, "latest") is None
    with pytest.raises(ValueError, match="no checkpoint at .*step-7"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoints" / "step-7"))


def test_prepare_output_dir_keeps_other_runs_safe(tmp_path):
    args = PretrainArguments()
    prepare_output_dir(tmp_path / "new", args)
    with pytest.raises(ValueError, match="holds another run"):
        prepare_output_dir(tmp_path / "new", args)
    prepare_output_dir(tmp_path / "new", PretrainArguments(resume_from_checkpoint="latest"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        prepare_output_dir(tmp_path, args)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "notes.txt"]
