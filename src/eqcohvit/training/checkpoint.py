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

from ..files import CHECKPOINTS, METRICS_FILE, SETTINGS_FILE, STATE_FILE, flush_to_disk, path_beside
from .arguments import PretrainArguments, load_settings
from .checks import check_resumable
from .monitor import read_metrics
from .run_lock import LOCK_FILE, lock_run

MANIFEST_FILE = "manifest.json"
_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = re.compile(r"\.step-\d+\.(tmp|old)")
# What the writers of accelerate, torch and safetensors raise when a disk is full or goes away.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, CheckpointException)
_Result = TypeVar("_Result")


class CheckpointError(Exception):
    """A checkpoint could not be written; the earlier ones are untouched."""


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; whether they are whole is not looked at."""
    folders = [p for p in (output_dir / CHECKPOINTS).glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(folders, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def find_checkpoint(output_dir: Path, resume_from: str, report: Callable[[str], None] = print) -> Path | None:
    """The checkpoint that `resume_from` means: the newest whole one for `"latest"` (None where there is none at all),
    or a folder.

    Args:
        report: is told of each newer checkpoint that is passed over, and why.

    Raises:
        ValueError: the named folder is no whole checkpoint, or there are checkpoints and none is whole.
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
            report(f"passing over a damaged checkpoint, {reason}")
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
        inside = Path(os.path.normpath(path)).is_relative_to(
            os.path.normpath(folder)
        )  # by name: the Hub's cache holds links
        if not inside or not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, expected {size}")
    for name, (_, digest) in expected.items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} has another content than when it was saved")


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
        keep_every: checkpoints at multiples of this step stay besides; 0 for none.

    Raises:
        CheckpointError: on all processes, if one of them cannot write.
    """
    folder = output_dir / CHECKPOINTS
    temporary, final = folder / f".step-{step}.tmp", folder / f"step-{step}"

    def prepare() -> None:
        remove_unfinished(output_dir)
        temporary.mkdir(parents=True)

    def finish() -> None:
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=1))
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {
            p.relative_to(temporary).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files
        }
        (temporary / MANIFEST_FILE).write_text(json.dumps({"files": manifest}, indent=1))
        for path in [*temporary.rglob("*"), temporary]:
            flush_to_disk(path)
        if final.exists():
            final.rename(folder / f".step-{step}.old")
        temporary.rename(final)
        flush_to_disk(folder)
        _remove_old(output_dir, step, keep, keep_every)
        remove_unfinished(output_dir)

    main_only = accelerator.is_main_process
    steps = (prepare if main_only else None), (lambda: save_state(str(temporary))), (finish if main_only else None)
    for write in steps:
        problem = None
        try:
            if write is not None:
                write()
        except _WRITE_ERRORS as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        problems = [
            text for text in gather_object([problem]) if text is not None
        ]  # also the point where all wait for each other
        if problems:
            if main_only:
                shutil.rmtree(temporary, ignore_errors=True)
            last = list_checkpoints(output_dir)
            kept = f"{last[-1]} is untouched" if last else "there is no earlier one"
            raise CheckpointError(f"cannot save the checkpoint of step {step}: {problems[0]} ({kept})")
    return final


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
    """Rename checkpoints after `step` to `step-N.aside`: a run that goes on from `step` must not find them as its
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

    Where it is of another number of processes, each rank's position is the list of all of theirs, which `CanvasStream`
    deals out anew, random states begin anew, and the running means since the last logged step are dropped.

    Raises:
        ValueError: a file does not fit this run.
    """
    state, num_processes = read_state(checkpoint), accelerator.num_processes
    same_group = len(state["ranks"]) == num_processes
    has_shards, takes_shards = (
        any(checkpoint.glob("pytorch_model_fsdp*")),
        accelerator.distributed_type == DistributedType.FSDP,
    )
    if has_shards != takes_shards:
        kinds = ("a sharded run", "a run without shards")
        raise ValueError(
            f"cannot load {checkpoint}: expected a checkpoint of {kinds[not takes_shards]}, "
            f"found one of {kinds[takes_shards]}; "
            "go on as it was begun, or begin another run with --init_from"
        )
    try:
        accelerator.load_state(str(checkpoint))
        # Accelerate passes over random states that it cannot read, which would make the resumed run another one.
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
        raise ValueError(f"cannot load {checkpoint}: {' '.join(str(error).split())[:400]}") from None
    if not same_group:
        accelerator.print(
            f"the checkpoint is of {len(state['ranks'])} processes; {num_processes} go on with the rest of its epoch"
        )
        set_seed(state["step"], device_specific=True)
        state["ranks"] = [{"position": [rank["position"] for rank in state["ranks"]], "progress": None}] * num_processes
    return state


def on_main_process(accelerator: Any, function: Callable[[], _Result]) -> _Result:
    """Run `function` on the main process alone; every process gets its result.

    Raises:
        ValueError: what the function raised, on the main process; the others leave with exit code 2, without a word.
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


def open_run(output_dir: Path, args: PretrainArguments, data: dict[str, Any] | None = None) -> Path | None:
    """Lock the folder of a run and make it ready (`prepare_output_dir`); the checkpoint to go on from, if that is asked
    for.

    Args:
        data: what images there are (`describe_data`), which must be those of the checkpoint.

    Raises:
        ValueError: as `find_checkpoint` and `prepare_output_dir`, another process writes there, or the images are
            others.
    """
    checkpoint = find_checkpoint(output_dir, args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    if checkpoint is not None and data is not None:
        check_same_data(read_state(checkpoint).get("data"), data)
    check_output_dir(output_dir, args)
    try:
        lock_run(output_dir)
    except OSError as error:
        raise ValueError(f"cannot write to output_dir {output_dir}: {error.strerror or error}") from None
    prepare_output_dir(output_dir, args)
    if checkpoint is not None:
        for moved in set_later_aside(output_dir, read_state(checkpoint)["step"]):
            print(f"kept as {moved}, because the run goes on from an earlier step")
    return checkpoint


def check_output_dir(output_dir: Path, args: PretrainArguments) -> None:
    """Whether a run may be begun or resumed in a folder; nothing is written. One that has not made a step may be begun
    anew.

    Raises:
        ValueError: it holds another run and none is to be resumed, the resumed run has other settings, or it cannot be
            read.
    """
    config_path = output_dir / SETTINGS_FILE
    try:
        if config_path.exists():
            if has_step(output_dir) and not args.resume_from_checkpoint:
                raise ValueError(
                    f"{output_dir} holds another run: give another --output_dir, or --resume_from_checkpoint latest"
                )
            if has_step(output_dir):
                newest = list_checkpoints(output_dir)[-1:]
                knows_its_data = all("data" in read_state(path) for path in newest if (path / STATE_FILE).is_file())
                check_resumable(args, load_settings(config_path), may_move=knows_its_data)
        elif output_dir.is_dir() and any(
            path not in (path_beside(config_path), output_dir / LOCK_FILE) for path in output_dir.iterdir()
        ):
            raise ValueError(f"{output_dir} is not empty and holds no run: give another --output_dir")
    except OSError as error:
        raise ValueError(f"cannot write to output_dir {output_dir}: {error.strerror or error}") from None


def has_step(output_dir: Path) -> bool:
    """Whether a run has made a step that is worth keeping: it has a checkpoint, or logged one."""
    return bool(list_checkpoints(output_dir)) or any(
        line["step"] > 0 for line in read_metrics(output_dir / METRICS_FILE)
    )


def prepare_output_dir(output_dir: Path, args: PretrainArguments) -> None:
    """Make the folder of a run and write its settings to config.yaml.

    Raises:
        ValueError: as `check_output_dir`, or it cannot be written.
    """
    check_output_dir(output_dir, args)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        args.save(output_dir / SETTINGS_FILE)
        remove_unfinished(output_dir)
    except OSError as error:
        raise ValueError(f"cannot write to output_dir {output_dir}: {error.strerror or error}") from None


def check_same_data(saved: dict[str, Any] | None, data: dict[str, Any]) -> None:
    """Raise a `ValueError` where the images are not those of the checkpoint: its positions would mean other ones."""
    names = ("identity", "content")
    if saved is None or all(saved.get(name, data[name]) == data[name] for name in names):
        return
    difference = "other content in files of the same names"
    if saved["num_images"] != data["num_images"]:
        difference = f"{saved['num_images']} then, {data['num_images']} now"
    elif saved["identity"] != data["identity"]:
        difference = "other files"
    raise ValueError(
        f"cannot resume over other images ({difference}): restore them, or start a new run from this one, "
        "with --init_from CHECKPOINT and another --output_dir"
    )
