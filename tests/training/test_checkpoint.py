import contextlib
import json
import os
import pickle
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
    verify_checkpoint,
)
from eqcohvit.training.run_folder import open_run, prepare_output_dir


def save(output_dir: Path, step: int, keep: int = 2, keep_every: int = 0, fail: bool = False) -> Path:
    def write(folder: str) -> None:
        (Path(folder) / "weights").write_text(f"weights of step {step}")
        if fail:
            raise OSError("disk full")

    return save_checkpoint(
        Accelerator(cpu=True), output_dir, step, {"step": step, "ranks": [{}]}, write, keep, keep_every
    )


def names(output_dir: Path) -> list[str]:
    return sorted(p.name for p in (output_dir / "checkpoints").iterdir())


def test_checkpoints_are_found_by_step_and_old_ones_removed(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-10", "step-100"]
    latest = find_checkpoint(tmp_path, "latest")
    assert read_state(latest)["step"] == 100 and (latest / "weights").read_text() == "weights of step 100"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoints" / "step-10")).name == "step-10"


def test_checkpoints_at_multiples_of_keep_every_stay(tmp_path):
    for step in range(5, 60, 5):
        save(tmp_path, step, keep=2, keep_every=20)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-20", "step-40", "step-50", "step-55"]


def test_failed_save_leaves_the_previous_checkpoint_and_no_half_written_one(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(CheckpointError, match="step 6: OSError: disk full .*step-5 is untouched"):
        save(tmp_path, 6, fail=True)
    assert names(tmp_path) == ["step-5"]
    save(tmp_path, 6)
    assert find_checkpoint(tmp_path, "latest").name == "step-6"


def test_left_overs_of_a_killed_save_are_removed_and_never_taken(tmp_path):
    save(tmp_path, 5)
    for name in (".step-6.tmp", ".step-4.old", ".step-x.tmp"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "weights").write_text("half")
    assert find_checkpoint(tmp_path, "latest").name == "step-5"
    save(tmp_path, 7)
    assert names(tmp_path) == [".step-x.tmp", "step-5", "step-7"]


DAMAGES = {
    "weights has 2 bytes, expected 17": lambda folder: (folder / "weights").write_text("we"),
    "weights has changed since it was saved": lambda folder: (folder / "weights").write_text("Weights of step 6"),
    "weights is missing": lambda folder: (folder / "weights").unlink(),
    "cannot read manifest.json (No such file or directory)": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json is damaged": lambda folder: (folder / "manifest.json").write_text('{"files": {"weig'),
    "manifest.json does not list run_state.json": lambda folder: (folder / "manifest.json").write_text('{"files": {}}'),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_latest_passes_over_damaged_checkpoints_and_says_why(tmp_path, capsys, reason):
    for step in (5, 6):
        save(tmp_path, step)
    damaged = tmp_path / "checkpoints" / "step-6"
    DAMAGES[reason](damaged)
    assert find_checkpoint(tmp_path, "latest").name == "step-5"
    assert capsys.readouterr().out == f"passing over a damaged checkpoint, step-6: {reason}\n"
    with pytest.raises(ValueError, match=r"no checkpoint at .*step-6: .*; expected a folder with manifest.json"):
        find_checkpoint(tmp_path, str(damaged))


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    (tmp_path / "checkpoints" / "step-7").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="none of the checkpoints in .* is whole .step-7: cannot read manifest.json.*remove them"
    ):
        find_checkpoint(tmp_path, "latest")


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    folder = save(tmp_path, 5)
    (tmp_path / "outside").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../outside"] = {"size": 1, "sha256": "x"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="../../outside is missing"):
        verify_checkpoint(folder)


def test_going_on_from_an_earlier_step_sets_later_checkpoints_aside(tmp_path, capsys):
    prepare_output_dir(tmp_path, PretrainArguments())
    for step in (5, 6, 7):
        save(tmp_path, step, keep=9)
    (tmp_path / "checkpoints/step-7/weights").write_text("half")
    args = PretrainArguments(resume_from_checkpoint="latest", output_dir=str(tmp_path))
    assert open_run(tmp_path, args).name == "step-6"
    assert names(tmp_path) == ["step-5", "step-6", "step-7.aside"]
    said = capsys.readouterr().out
    assert "passing over a damaged checkpoint, step-7" in said and "step-7.aside" in said
    args.resume_from_checkpoint = str(tmp_path / "checkpoints/step-5")
    assert open_run(tmp_path, args).name == "step-5"
    save(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["step-6", "step-6.aside", "step-7.aside"]


# Real states of Accelerate


def trained(seed: int, width: int = 3) -> tuple[Accelerator, torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    module = torch.nn.Linear(width, width)
    module, optimizer = accelerator.prepare(module, torch.optim.AdamW(module.parameters()))
    accelerator.backward(module(torch.randn(4, width)).sum())
    optimizer.step()
    return accelerator, module, optimizer


def save_real(output_dir: Path, accelerator: Accelerator, step: int = 1) -> Path:
    return save_checkpoint(accelerator, output_dir, step, {"step": step, "ranks": [{}]}, accelerator.save_state, 2)


def test_load_checkpoint_restores_weights_optimizer_and_random_state(tmp_path):
    accelerator, module, optimizer = trained(0)
    folder = save_real(tmp_path, accelerator)
    expected = torch.randn(3)
    accelerator, other, other_optimizer = trained(1)
    assert load_checkpoint(accelerator, folder)["step"] == 1
    assert torch.equal(torch.randn(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    states, others = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert all(torch.equal(states[i][key], others[i][key]) for i in states for key in states[i])


def test_load_checkpoint_of_another_number_of_processes_hands_all_positions_to_each(tmp_path, capsys):
    accelerator, module, _ = trained(0)
    ranks = [{"position": {"row": rank}, "progress": {"batches": 1, "sums": {}}} for rank in range(2)]
    folder = save_checkpoint(accelerator, tmp_path, 1, {"step": 1, "ranks": ranks}, accelerator.save_state, 2)
    accelerator, other, _ = trained(1)
    assert load_checkpoint(accelerator, folder)["ranks"] == [{"position": [{"row": 0}, {"row": 1}], "progress": None}]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    assert "is of 2 processes; 1 go on with the rest of its epoch" in capsys.readouterr().out


def test_a_fine_tuning_run_without_positions_goes_on_with_another_number_of_processes(tmp_path):
    accelerator, *_ = trained(0)
    state = {"step": 1, "ranks": [{"progress": None}] * 2}
    folder = save_checkpoint(accelerator, tmp_path, 1, state, accelerator.save_state, 2)
    accelerator, *_ = trained(1)
    (rank,) = load_checkpoint(accelerator, folder)["ranks"]
    assert rank["progress"] is None


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
@pytest.mark.parametrize("plain_pickle", [True, False])
def test_pickled_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, name, plain_pickle):
    accelerator, *_ = trained(0)
    folder = save_real(tmp_path, accelerator)
    payload = Payload(tmp_path / "ran")
    if plain_pickle:
        (folder / name).write_bytes(pickle.dumps(payload))
    else:
        torch.save({"state": payload}, folder / name)
    accelerator, *_ = trained(1)
    with pytest.raises(ValueError, match="cannot load .*step-1"):
        load_checkpoint(accelerator, folder)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(payload))  # the payload does work where it is let
    assert (tmp_path / "ran").exists()


# Places that cannot be written


@pytest.fixture
def disk(tmp_path):
    """A separate file system of 3 MB, or None where this user may not mount one."""
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True
        ).returncode
        == 0
    )
    yield tmp_path if mounted else None
    if mounted:
        subprocess.run(["umount", str(tmp_path)], check=True)


@contextlib.contextmanager
def limited_file_size(num_bytes: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_second_save_fails(output_dir: Path, accelerator: Accelerator, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot save the checkpoint of step 2: .*{reason}.*step-1 is untouched"):
        save_real(output_dir, accelerator, step=2)
    assert [p.name for p in list_checkpoints(output_dir)] == ["step-1"]
    verify_checkpoint(output_dir / "checkpoints" / "step-1")


@pytest.mark.parametrize("limit", [100, 700_000])
def test_a_quota_that_ends_while_saving_spares_the_previous_checkpoint(tmp_path, limit):
    """The limit hits the writer of the weights (640 kB), or that of the optimizer (1.3 MB)."""
    accelerator, *_ = trained(0, width=400)
    save_real(tmp_path, accelerator)
    with limited_file_size(limit):
        assert_second_save_fails(tmp_path, accelerator, "File too large" if limit == 100 else "")
    assert names(tmp_path) == ["step-1"]


def test_a_full_or_read_only_disk_spares_the_previous_checkpoint(disk, tmp_path):
    accelerator, *_ = trained(0, width=400)
    save_real(tmp_path, accelerator)
    if disk is None:  # the quota above is the same error by other means; what is left to show is the read-only folder
        (tmp_path / "checkpoints").chmod(0o500)
        assert_second_save_fails(tmp_path, accelerator, "Permission denied")
        (tmp_path / "checkpoints").chmod(0o700)
        return
    assert_second_save_fails(disk, accelerator, "")
    assert names(disk) == ["step-1"]  # what was half written does not go on filling the disk
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert_second_save_fails(disk, accelerator, "Read-only file system")


def test_prepare_output_dir_keeps_other_runs_safe(tmp_path):
    args = PretrainArguments()
    prepare_output_dir(tmp_path / "new", args)
    prepare_output_dir(tmp_path / "new", PretrainArguments(seed=1))  # no step was made there
    prepare_output_dir(tmp_path / "new", PretrainArguments(seed=2, resume_from_checkpoint="latest"))
    prepare_output_dir(tmp_path / "new", args)
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 0}\n')
    prepare_output_dir(tmp_path / "new", args)
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    with pytest.raises(ValueError, match="cannot resume with other settings: seed was 0, is 1"):
        prepare_output_dir(tmp_path / "new", PretrainArguments(seed=1, resume_from_checkpoint="latest"))
    with pytest.raises(ValueError, match="holds another run"):
        prepare_output_dir(tmp_path / "new", args)
    prepare_output_dir(tmp_path / "new", PretrainArguments(resume_from_checkpoint="latest"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        prepare_output_dir(tmp_path, args)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "notes.txt"]
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.yaml.new").write_text("see")  # a run that was killed before it had begun
    prepare_output_dir(tmp_path / "killed", args)
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["config.yaml"]


def test_prepare_output_dir_says_that_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to output_dir .*file/run: Not a directory"):
        prepare_output_dir(tmp_path / "file" / "run", PretrainArguments())
    if os.path.isdir("/proc/self"):  # not even root may make a folder there
        with pytest.raises(ValueError, match="cannot write to output_dir /proc/self/run: "):
            prepare_output_dir(Path("/proc/self/run"), PretrainArguments())
