"""Checkpoints of a run: written whole or not at all, found again by step."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arguments import PretrainArguments, check_resumable, load_recipe

_STATE_FILE = "run_state.json"
_NAME = re.compile(r"step-(\d+)")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [p for p in (output_dir / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name) and (p / _STATE_FILE).is_file()]
    return sorted(folders, key=lambda p: int(_NAME.fullmatch(p.name)[1]))


def find_checkpoint(output_dir: Path, resume_from: str) -> Path | None:
    """The checkpoint that `resume_from` means: `"latest"` of this run (None where there is none yet), or a folder.

    Raises:
        ValueError: the named folder is not a complete checkpoint.
    """
    if resume_from == "latest":
        found = list_checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(resume_from)
    if not (path / _STATE_FILE).is_file():
        raise ValueError(f"no checkpoint at {path}: expected a folder with {_STATE_FILE}, as in OUTPUT_DIR/checkpoints/step-N, or 'latest'")
    return path


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain state that was saved with a checkpoint."""
    return json.loads((checkpoint / _STATE_FILE).read_text())


def save_checkpoint(
    accelerator: Any, output_dir: Path, step: int, state: dict[str, Any], save_state: Callable[[str], Any], keep: int
) -> Path:
    """Write `checkpoints/step-N` on all processes: into a hidden folder first, renamed when everything is on disk.

    Args:
        state: JSON-able; the same on all processes.
        save_state: writes weights, optimizer and random state of all processes into the folder that it is given.
        keep: how many of the newest checkpoints stay.
    """
    folder = output_dir / "checkpoints"
    temporary, final = folder / f".step-{step}.tmp", folder / f"step-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / _STATE_FILE).write_text(json.dumps(state, indent=1))
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _flush(folder)
        for old in list_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_output_dir(output_dir: Path, args: PretrainArguments) -> None:
    """Make the folder of a run and write its settings to config.yaml.

    Raises:
        ValueError: it holds another run and none is to be resumed, or the resumed run has other settings.
    """
    config_path = output_dir / "config.yaml"
    if config_path.exists():
        if not args.resume_from_checkpoint:
            raise ValueError(f"{output_dir} holds another run: give another --output_dir, or --resume_from_checkpoint latest")
        check_resumable(args, load_recipe(config_path))
    elif output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty and holds no run: give another --output_dir")
    output_dir.mkdir(parents=True, exist_ok=True)
    args.save(config_path)
