#!/usr/bin/env python
"""What does an encoder know? R2 of transformation parameters and kNN accuracy per feature part, beside raw pixels and random weights.

    python scripts/evaluate.py --model outputs/pretrain/model --task r2 knn --output results.json
    python scripts/evaluate.py --model runs/a/model runs/b/model --task r2 --transform rotation \\
        --data_files 'data/train-*.parquet' --test_data_files 'data/test-*.parquet'

Without data flags: the embedded sprites (test sprites are never trained on).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

from transformers.utils import logging as transformers_logging

from eqcohvit.data import SpritesSource, open_source
from eqcohvit.evaluation.features import PixelEncoder, load_encoder, random_encoder
from eqcohvit.evaluation.pairs import PROTOCOLS
from eqcohvit.evaluation.report import format_table, mean_and_std, versions, write_results
from eqcohvit.evaluation.tasks import Row, Samples, knn_rows, r2_rows
from eqcohvit.transforms import make_path

_TEST_SPRITES = 1 << 40  # offset of sprites that no training run reaches


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", nargs="+", required=True, help="folders or repositories: ours, or a transformers ViT with a CLS token")
    parser.add_argument("--task", nargs="+", default=["r2"], choices=["r2", "knn"], help="default: r2")
    parser.add_argument("--transform", default="rotation", help="path whose parameters r2 regresses; default: rotation")
    parser.add_argument("--pooling", default="cls_mean", choices=["cls_mean", "cls", "mean"], help="tokens to vector; default: cls_mean")
    parser.add_argument("--dataset_name", help="Hub id, local folder or builder; streamed")
    parser.add_argument("--dataset_config_name", help="configuration of the dataset")
    parser.add_argument("--dataset_split", default="train", help="split that the probes are fitted on; default: train")
    parser.add_argument("--test_split", help="split that they are tested on; by default held out from dataset_split")
    parser.add_argument("--data_files", help="files that the probes are fitted on: a glob, or several separated by commas")
    parser.add_argument("--test_data_files", help="files that they are tested on; by default held out from data_files")
    parser.add_argument("--train_dir", help="folder tree of images instead of a dataset")
    parser.add_argument("--image_column", help="image column, where there are several")
    parser.add_argument("--label_column", help="label column; 'folder' with train_dir")
    parser.add_argument("--max_samples", type=int, default=4096, help="images to fit the probes on; default: 4096")
    parser.add_argument("--max_test_samples", type=int, default=2048, help="images to test them on; default: 2048")
    parser.add_argument("--seeds", type=int, default=3, help="probe heads with different seeds; default: 3")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images; default: 0")
    parser.add_argument("--output", help="results.json to write")
    args = parser.parse_args(argv)
    for name in ("max_samples", "max_test_samples", "seeds"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    return args


def open_samples(args: argparse.Namespace) -> Samples:
    """The sources of fitting and testing images."""
    given = (args.dataset_name, args.dataset_config_name)
    columns = (args.train_dir, args.image_column, args.label_column)
    train = open_source(*given, args.dataset_split, args.data_files, *columns)
    test = train
    if isinstance(train, SpritesSource):
        test = SpritesSource(offset=_TEST_SPRITES)
    elif args.test_data_files or args.test_split:
        test = open_source(*given, args.test_split or args.dataset_split, args.test_data_files or args.data_files, *columns)
    return Samples(train, test, args.max_samples, args.max_test_samples, args.num_workers)


def make_table(rows: list[Row]) -> str:
    """One line per encoder and part, one column per metric."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    cells = {(row.encoder, row.part, row.metric): mean_and_std(row.values) for row in rows}
    keys = dict.fromkeys((row.encoder, row.part) for row in rows)
    return format_table([["encoder", "part", *metrics]] + [[*key, *(cells.get((*key, m), "") for m in metrics)] for key in keys])


def main(args: argparse.Namespace) -> None:
    transformers_logging.disable_progress_bar()
    started = time.time()
    path = make_path(args.transform)
    samples = open_samples(args)
    encoders = [load_encoder(name, args.pooling, _short_name(name)) for name in args.model]
    encoders.append(random_encoder(args.model[0], pooling=args.pooling))
    encoders.append(PixelEncoder(encoders[0].image_size))
    rows = []
    if "r2" in args.task:
        for protocol in PROTOCOLS:
            rows += r2_rows(encoders, samples, path, protocol, args.seeds)
    if "knn" in args.task:
        rows += knn_rows(encoders, samples)
    print(make_table(rows))
    if args.output:
        sources = {"source": samples.train.name, "test_source": samples.test.name}
        settings = {**vars(args), **sources, "seconds": round(time.time() - started, 1)}
        write_results(args.output, {"settings": settings, "versions": versions(), "rows": [dataclasses.asdict(row) for row in rows]})


def _short_name(path: str) -> str:
    """`model` is what every run calls its folder; the run's name tells more."""
    parts = path.rstrip("/").split("/")
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def cli(argv: list[str] | None = None) -> int:
    """Run with command-line arguments; the exit code is 2 for bad input."""
    try:
        main(parse(argv))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(cli())
