"""The images of a pretraining run, from its settings: to train on, to probe with, and for the kNN guard."""

from __future__ import annotations

from collections.abc import Callable
from operator import length_hint
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator

from ..data import FolderSource, Source, check_first_rows, hold_out, open_source
from ..evaluation.guard import KnnGuard
from ..evaluation.run_probe import RunProbe, open_probe
from ..transforms import make_path
from .arguments import PretrainArguments
from .data_settings import FEW_IMAGES
from .output import teller

_FEW_BATCHES = 5  # fewer than this many batches of different images are worth a warning


class Images(NamedTuple):
    """The images to train on; the images of the probe and the guard are not trained on."""

    source: Source
    probe: RunProbe | None
    guard: KnnGuard | None


def open_images(args: PretrainArguments, accelerator: Accelerator) -> Images:
    """The images that the settings name.

    Raises:
        ValueError: there are none, or none that can be read.
    """
    columns = (args.train_dir, args.image_column, args.label_column)
    report = teller(accelerator.print)
    source = open_training_source(args, columns, accelerator.num_processes, report)
    probe = None
    if args.probe_samples:
        path = make_path(args.path)
        how = (args.max_bad_fraction, args.dataloader_num_workers, accelerator.process_index, accelerator.num_processes)
        source, probe = open_probe(source, args.probe_samples, args.image_size, path, *how, report=report)
    if args.knn_guard_steps == 0:
        return Images(source, probe, None)
    files = args.knn_guard_data_files
    if files and Path(files).is_dir():
        labeled = open_source(train_dir=files, label_column="folder")
    elif files and args.train_dir:
        labeled = open_source(data_files=files)
    elif files or args.knn_guard_split:
        split = args.knn_guard_split or args.dataset_split
        labeled = open_source(args.dataset_name, args.dataset_config_name, split, files or args.data_files, *columns)
    else:
        source, labeled = hold_out(source, args.knn_guard_samples)
    guard = KnnGuard(labeled, args.knn_guard_samples, args.image_size, args.knn_guard_drop)
    return Images(source, probe, guard)


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
        report: called with the number of images in a folder, what is left out, and a warning about few images.

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
            f"{error}; if the images have moved, give --train_dir or --data_files again" if moved else str(error)
        ) from None
    if isinstance(source, FolderSource):
        report(source.summary)
    number = length_hint(source)
    batch = args.per_device_train_batch_size * num_processes
    if 0 < number < batch:
        report(f"warning: a batch of {batch} is more than the {number} images, so each batch has some images twice")
    if 0 < number < FEW_IMAGES and not args.init_from:
        report(
            f"warning: {number} images are few to learn from random weights; with fewer than {FEW_IMAGES:,}, use a "
            "trained model as it is, or continue it by --init_from MODEL"
        )
    elif batch <= number < _FEW_BATCHES * batch:
        report(f"warning: {number} images are few for batches of {batch}")
    check_first_rows(source, args.canvas_size, args.max_bad_fraction)
    return source
