"""The images of a pretraining run, by its settings."""

from __future__ import annotations

from ..data import Source, open_source
from .arguments import PretrainArguments


def open_training_source(args: PretrainArguments, columns: tuple[str | None, ...]) -> Source:
    """The images to train on, without what the run itself writes among them."""
    where = (args.dataset_name, args.dataset_config_name, args.dataset_split, args.data_files)
    try:
        return open_source(*where, *columns, leave_out=args.output_dir)
    except ValueError as error:
        places = {"train_dir", "data_files", "dataset_name"}
        moved = args.resume_from_checkpoint and not places & args.given and any(getattr(args, name) for name in places)
        raise ValueError(f"{error}; where the images have moved, give --train_dir or --data_files anew" if moved else str(error)) from None
