"""The images of a pretraining run, by its settings."""

from __future__ import annotations

from collections.abc import Callable
from operator import length_hint

from ..data import FolderSource, Source, check_first_rows, open_source
from .arguments import PretrainArguments


def open_training_source(
    args: PretrainArguments,
    columns: tuple[str | None, ...],
    num_processes: int = 1,
    report: Callable[[str], None] = print,
) -> Source:
    """The images to train on, without what the run itself writes among them; the first of them are read and decoded.

    Args:
        columns: `train_dir`, `image_column` and `label_column` of `open_source`.
        num_processes: of the run.
        report: is told how many images a folder has, what is left out, and where they do not fill a batch.

    Raises:
        ValueError: there are none, or none that can be read.
    """
    where = (args.dataset_name, args.dataset_config_name, args.dataset_split, args.data_files)
    try:
        source = open_source(*where, *columns, leave_out=args.output_dir)
    except ValueError as error:
        places = {"train_dir", "data_files", "dataset_name"}
        moved = args.resume_from_checkpoint and not places & args.given and any(getattr(args, name) for name in places)
        raise ValueError(
            f"{error}; where the images have moved, give --train_dir or --data_files anew" if moved else str(error)
        ) from None
    if isinstance(source, FolderSource):
        report(source.summary)
    number = length_hint(source)
    batch = args.per_device_train_batch_size * num_processes
    if 0 < number < batch:
        report(f"warning: a batch of {batch} is more than the {number} images there are, so images come twice in it")
    check_first_rows(source, args.canvas_size, args.max_bad_fraction)
    return source
