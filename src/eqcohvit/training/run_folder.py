"""The folder of a run: which run it holds, and whether a run may start or resume in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cli import RunSettings
from ..files import METRICS_FILE, path_beside
from .checkpoint import find_checkpoint, list_checkpoints, read_state, remove_unfinished, set_later_aside
from .monitor import read_metrics
from .run_lock import LOCK_FILE, lock_run


def open_run(output_dir: Path, args: RunSettings, data: dict[str, Any] | None = None) -> Path | None:
    """Lock the folder and prepare it (`prepare_output_dir`).

    Args:
        data: which images there are (`describe_data`); the checkpoint must have the same.

    Returns:
        The checkpoint to resume from, if `args` ask for one and the run has any.

    Raises:
        ValueError: as `find_checkpoint` and `prepare_output_dir`, another process writes there, or the images differ.
    """
    checkpoint = find_checkpoint(output_dir, args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    if checkpoint is not None and data is not None:
        check_same_data(checkpoint, data)
    check_output_dir(output_dir, args)
    try:
        lock_run(output_dir)
    except OSError as error:
        raise _cannot_write(output_dir, error) from None
    prepare_output_dir(output_dir, args)
    if checkpoint is not None:
        if data is not None:
            tell_other_decoder(checkpoint, data)
        for moved in set_later_aside(output_dir, read_state(checkpoint)["step"]):
            print(f"kept as {moved}, because the run resumes from an earlier step")
    elif args.resume_from_checkpoint:
        print(f"no checkpoint in {output_dir} yet: starting from the beginning")
    return checkpoint


def check_output_dir(output_dir: Path, args: RunSettings) -> None:
    """Check that a run may begin or resume in a folder; writes nothing. A run that has no step yet may start over.

    Raises:
        ValueError: the folder holds another run and none is to be resumed, the resumed run has other settings, or the
            folder cannot be read.
    """
    settings_path = output_dir / args.file_name
    try:
        if settings_path.exists():
            if not has_step(output_dir):
                return
            if not args.resume_from_checkpoint:
                advice = "give another --output_dir, or --resume_from_checkpoint latest"
                raise ValueError(f"{output_dir} holds another run: {advice}")
            args.check_resumable(args.saved(settings_path))
            return
        allowed = (path_beside(settings_path), output_dir / LOCK_FILE)
        if output_dir.is_dir() and any(path not in allowed for path in output_dir.iterdir()):
            raise ValueError(f"{output_dir} is not empty and holds no run: give another --output_dir")
    except OSError as error:
        raise _cannot_write(output_dir, error) from None


def has_step(output_dir: Path) -> bool:
    """Whether a run has finished a step: it has a checkpoint, or a logged step."""
    if list_checkpoints(output_dir):
        return True
    return any(line["step"] > 0 for line in read_metrics(output_dir / METRICS_FILE))


def prepare_output_dir(output_dir: Path, args: RunSettings) -> None:
    """Make the folder of a run and write its settings.

    Raises:
        ValueError: as `check_output_dir`, or the folder cannot be written.
    """
    check_output_dir(output_dir, args)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        args.save(output_dir / args.file_name)
        remove_unfinished(output_dir)
    except OSError as error:
        raise _cannot_write(output_dir, error) from None


def check_same_data(checkpoint: Path, data: dict[str, Any]) -> None:
    """Raise a `ValueError` if the images changed since the checkpoint: its positions would mean other images."""
    saved = read_state(checkpoint).get("data")
    if saved is None:
        raise ValueError(f"{checkpoint} is not a checkpoint of pretraining")
    if all(saved[name] == data[name] for name in ("identity", "content")):
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


def tell_other_decoder(checkpoint: Path, data: dict[str, Any]) -> None:
    """Print a line if another library decodes JPEGs now than before the checkpoint."""
    before = read_state(checkpoint)["data"].get("jpeg_decoder", "Pillow")
    now = data["jpeg_decoder"]
    if before != now:
        print(f"{before} has decoded the JPEGs of this run, from here on {now} does: pixels may differ by rounding")


def _cannot_write(output_dir: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot write to output_dir {output_dir}: {error.strerror or error}")
