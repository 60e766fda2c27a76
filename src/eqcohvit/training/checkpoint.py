"""Checkpoints of a run: written whole or not at all, checked before they are used, found again by step.

`checkpoints/step-N` holds what `Accelerator.save_state` writes (weights as safetensors; optimizer and random states,
which are read with `weights_only=True`), `run_state.json` (step, positions in the data, running means) and
`manifest.json` (size and SHA-256 of each other file). A folder is a checkpoint once it has its name: it is filled as
`.step-N.tmp`, flushed to the disk, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, load, set_seed
from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException

from ..files import CHECKPOINTS, STATE_FILE, flush_to_disk, message_of
from .signals import RunFailed

MANIFEST_FILE = "manifest.json"
_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = re.compile(r"\.step-\d+\.(tmp|old)")
# What the writers of accelerate, torch and safetensors raise when a disk is full or goes away.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, CheckpointException)
_Result = TypeVar("_Result")


class CheckpointError(RunFailed):
    """A checkpoint could not be written; the earlier ones are untouched."""


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, without a check that they are whole."""
    folders = [p for p in (output_dir / CHECKPOINTS).glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(folders, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def find_checkpoint(output_dir: Path, resume_from: str) -> Path | None:
    """The checkpoint that `resume_from` names: a folder, or for `"latest"` the newest whole one; None without any.

    Prints which damaged checkpoints it passes over, and why.

    Raises:
        ValueError: the named folder is not a whole checkpoint, or there are checkpoints and none is whole.
    """
    if resume_from != "latest":
        try:
            verify_checkpoint(Path(resume_from))
        except ValueError as error:
            expected = f"expected a folder with {MANIFEST_FILE}, as in OUTPUT_DIR/checkpoints/step-N, or 'latest'"
            raise ValueError(f"no checkpoint at {resume_from}: {error}; {expected}") from None
        return Path(resume_from)
    reasons = []
    for folder in reversed(list_checkpoints(output_dir)):
        try:
            verify_checkpoint(folder)
        except ValueError as error:
            reasons.append(f"{folder.name}: {error}")
            continue
        for reason in reasons:
            print(f"passing over a damaged checkpoint, {reason}")
        return folder
    if reasons:
        raise ValueError(
            f"none of the checkpoints in {output_dir / 'checkpoints'} is whole ({'; '.join(reasons)}); "
            "remove them to start from the beginning"
        )
    return None


def verify_checkpoint(folder: Path) -> None:
    """Read every file of a checkpoint once and compare it with the manifest.

    Raises:
        ValueError: one line that says what is missing or differs.
    """
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except OSError as error:
        raise ValueError(f"cannot read {MANIFEST_FILE} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{MANIFEST_FILE} is damaged") from None
    if STATE_FILE not in expected:
        raise ValueError(f"{MANIFEST_FILE} does not list {STATE_FILE}")
    for name, (size, _) in expected.items():  # sizes first: they cost nothing
        path = folder / name
        # By name, because the Hub's cache holds links.
        inside = Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))
        if not inside or not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, expected {size}")
    for name, (_, digest) in expected.items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} has changed since it was saved")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain state that was saved with a checkpoint."""
    return json.loads((checkpoint / STATE_FILE).read_text())


def save_checkpoint(
    accelerator: Any,
    output_dir: Path,
    step: int,
    state: dict[str, Any],
    save_state: Callable[[str], Any],
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write `checkpoints/step-N` on all processes: into a hidden folder first, renamed when everything is on disk.

    Args:
        state: JSON-able; the same on all processes.
        save_state: writes weights, optimizer and random state of all processes into the folder that it is given.
        keep: how many of the newest checkpoints stay.
        keep_every: checkpoints at multiples of this step stay as well; 0 for none.

    Raises:
        CheckpointError: on all processes, if one of them cannot write.
    """
    temporary = output_dir / CHECKPOINTS / f".step-{step}.tmp"
    final = output_dir / CHECKPOINTS / f"step-{step}"

    def prepare() -> None:
        remove_unfinished(output_dir)
        temporary.mkdir(parents=True)

    def finish() -> None:
        _complete(temporary, final, state)
        _remove_old(output_dir, step, keep, keep_every)
        remove_unfinished(output_dir)

    for write, main_only in ((prepare, True), (lambda: save_state(str(temporary)), False), (finish, True)):
        problem = None
        try:
            if accelerator.is_main_process or not main_only:
                write()
        except _WRITE_ERRORS as error:
            problem = f"{type(error).__name__}: {message_of(error, 300)}"
        # All processes wait for each other here.
        problems = [text for text in gather_object([problem]) if text is not None]
        if problems:
            if accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            last = list_checkpoints(output_dir)
            kept = f"{last[-1]} is untouched" if last else "there is no earlier one"
            raise CheckpointError(f"cannot save the checkpoint of step {step}: {problems[0]} ({kept})")
    return final


def _complete(temporary: Path, final: Path, state: dict[str, Any]) -> None:
    """Add the plain state and the manifest to a checkpoint that all processes have written, and give it its name."""
    (temporary / STATE_FILE).write_text(json.dumps(state, indent=1))
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {p.relative_to(temporary).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    (temporary / MANIFEST_FILE).write_text(json.dumps({"files": manifest}, indent=1))
    for path in [*temporary.rglob("*"), temporary]:
        flush_to_disk(path)
    if final.exists():
        final.rename(final.with_name(f".{final.name}.old"))
    temporary.rename(final)
    flush_to_disk(final.parent)


def _remove_old(output_dir: Path, step: int, keep: int, keep_every: int) -> None:
    older = [p for p in list_checkpoints(output_dir) if _step_of(p) <= step]
    for old in older[:-keep]:
        if not keep_every or _step_of(old) % keep_every:
            # Renamed first, so that a kill does not leave a checkpoint without some of its files.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))


def remove_unfinished(output_dir: Path) -> None:
    """Remove what a killed process left of checkpoints that it was writing or removing."""
    for path in (output_dir / CHECKPOINTS).glob(".step-*"):
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)


def set_later_aside(output_dir: Path, step: int) -> list[Path]:
    """Rename checkpoints after `step` to `step-N.aside`: a run that resumes from `step` must not take them for its
    own."""
    moved = []
    for path in list_checkpoints(output_dir):
        if _step_of(path) > step:
            aside = path.with_name(f"{path.name}.aside")
            if aside.exists():
                shutil.rmtree(aside)
            moved.append(path.rename(aside))
    return moved


def load_checkpoint(accelerator: Any, checkpoint: Path) -> dict[str, Any]:
    """Load weights, optimizer and random state of this process from a verified checkpoint; returns its plain state.

    If it was saved by another number of processes, each rank gets the positions of all ranks, which `CanvasStream`
    deals out again. Random states then start over, and the running means since the last logged step are dropped.

    Raises:
        ValueError: a file does not fit this run.
    """
    state = read_state(checkpoint)
    num_processes = accelerator.num_processes
    same_group = len(state["ranks"]) == num_processes
    has_shards = any(checkpoint.glob("pytorch_model_fsdp*"))
    takes_shards = accelerator.distributed_type == DistributedType.FSDP
    if has_shards != takes_shards:
        kinds = ("a sharded run", "a run without shards")
        raise ValueError(
            f"cannot load {checkpoint}: expected a checkpoint of {kinds[not takes_shards]}, "
            f"found one of {kinds[takes_shards]}; "
            "resume it the way it was started, or start another run with --init_from"
        )
    try:
        accelerator.load_state(str(checkpoint))
        # Accelerate skips random states that it cannot read, and the resumed run would differ.
        random_file = checkpoint / f"random_states_{accelerator.process_index}.pkl"
        if same_group and not torch.equal(torch.get_rng_state(), load(random_file)["torch_manual_seed"]):
            raise ValueError("its random state does not fit this version of accelerate or torch")
    except (
        pickle.UnpicklingError,
        RuntimeError,
        KeyError,
        ValueError,
        OSError,
        SafetensorError,
        CheckpointException,
    ) as error:
        raise ValueError(f"cannot load {checkpoint}: {message_of(error)}") from None
    if not same_group:
        accelerator.print(
            f"the checkpoint is of {len(state['ranks'])} processes; {num_processes} go on with the rest of its epoch"
        )
        set_seed(state["step"], device_specific=True)
        positions = [rank.get("position") for rank in state["ranks"]]
        state["ranks"] = [{"position": positions, "progress": None}] * num_processes
    return state


def on_main_process(accelerator: Any, function: Callable[[], _Result]) -> _Result:
    """Run `function` on the main process only; every process gets its result.

    Raises:
        ValueError: what the function raised, on the main process; the others exit silently with code 2.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [function(), None]
        except ValueError as error:
            outcome = [None, error]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    result, error = outcome
    if error is not None:
        raise error if accelerator.is_main_process else SystemExit(2)
    return result
