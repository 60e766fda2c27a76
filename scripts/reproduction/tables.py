"""Tables A to E: which runs they need, and how they are written from results.json files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqcohvit.evaluation.results import Row, format_table
from eqcohvit.evaluation.suite import check_same_version

METHODS = {"vicreg": "VICReg", "simclr": "SimCLR", "ibot": "iBOT", "dinov2": "DINOv2"}
PATHS = {  # key of a run's name -> its label, its flags
    "none": ("λ = 0", ("--recon_weight", "0", "--path", "se2")),  # the views of the runs that table A compares
    "rotation": ("+ rotation", ("--path", "rotation")),
    "se2": ("+ SE(2)", ("--path", "se2")),
    "color_jitter": ("+ color", ("--path", "color_jitter")),
    "gaussian_blur": ("+ blur", ("--path", "gaussian_blur")),
    "translation": ("+ translation", ("--path", "translation")),
    "all": ("+ all", ("--path", "se2+color_jitter+gaussian_blur")),
}
_COMPARED = ("none", "se2")  # in table A; the other paths are in table E
TRANSFORMS = ("rotation", "color_jitter", "gaussian_blur", "translation")
_MOVES = ("rotation", "translation")  # where the two protocols differ
PROTOCOLS = ("paper", "strict")
PARTS = ("invariant", "equivariant", "backbone")
BASE = "vicreg-rotation"  # what tables B and C vary
_COMPARISONS = {"A": "SSL methods with and without the task", "E": "other paths"}
_ABLATIONS = {
    "B": "number of intermediate states (VICReg, rotation)",
    "C": "λ, d_equi, border, decoders (VICReg, rotation)",
}


@dataclass(frozen=True)
class Run:
    """A training run: a recipe of `method` with `flags`, and the transformations that probes regress."""

    name: str
    label: str
    method: str
    flags: tuple[str, ...]
    transforms: tuple[str, ...] = ("rotation",)
    equivariant_share: float | None = None  # of the recipe's feature_dim
    dense: bool = False  # table D: its backbone is read by dense and geometric tasks
    untrained: bool = False  # no training: the other dense runs' backbone with random weights


def _runs_of_a(paths: Sequence[str]) -> list[Run]:
    return [Run(f"{m}-{p}", f"{METHODS[m]} {PATHS[p][0]}", m, PATHS[p][1], TRANSFORMS) for m in METHODS for p in paths]


_KNOWN_G = ("--recon_weight", "0")  # these two train the equivariant part by their own loss
_REFERENCES = [
    Run(
        "identity",
        "VICReg, g = identity: the decoders rebuild the view itself",
        "vicreg",
        ("--path", "se2:1e-6", "--probe_samples", "0"),
        TRANSFORMS,
    ),
    Run("sie", "SIE, rotation", "vicreg", ("--objective", "sie", *_KNOWN_G), TRANSFORMS),
    Run(
        "cross_attention",
        "cross-attention reconstruction, rotation",
        "vicreg",
        ("--objective", "cross_attention", *_KNOWN_G),
        TRANSFORMS,
    ),
]
_MASKED = [  # as the paper has it; in the others the decoders read a second pass over the whole views
    Run(
        f"{method}-masked",
        f"{METHODS[method]} + rotation, decoders read the masked views",
        method,
        ("--recon_from", "masked"),
        TRANSFORMS,
    )
    for method in ("ibot", "dinov2")
]
_B = [
    Run("k-1", "K = 1", "vicreg", ("--num_intermediates", "1")),
    Run(BASE, "K = 2", "vicreg", PATHS["rotation"][1], TRANSFORMS),
    Run("k-3", "K = 3", "vicreg", ("--num_intermediates", "3")),
    Run("k-2-final", "K = 2 and the final view", "vicreg", ("--include_final",)),
]
_C = [
    Run(
        "split-none",
        "the invariant part reads all directions (paper)",
        "vicreg",
        ("--invariant_rank", "0"),
    ),
    Run(
        "context-none",
        "decoders read each patch alone (paper)",
        "vicreg",
        ("--decoder_context", "none", "--decoder_patch_dropout", "0"),
    ),
    Run("border-canvas", "border: the photograph goes on", "vicreg", ("--border", "canvas")),
    Run("border-reflection", "border: its mirror image", "vicreg", ("--border", "reflection")),
    Run("lambda-100", "λ = 100", "vicreg", ("--recon_weight", "100")),
    Run("lambda-1", "λ = 1", "vicreg", ("--recon_weight", "1")),
    Run("d_equi-quarter", "d_equi a quarter of d_patch", "vicreg", (), equivariant_share=0.25),
    Run("d_equi-three-quarters", "d_equi three quarters of d_patch", "vicreg", (), equivariant_share=0.75),
]
TABLES: dict[str, list[Run]] = {
    "A": _runs_of_a(_COMPARED) + _REFERENCES,
    "B": _B,
    "C": [
        Run(
            BASE,
            "λ of the recipe, d_equi half, black border, decoders read the mean too",
            "vicreg",
            (),
            TRANSFORMS,
        ),
        *_C,
    ],
    "D": [
        Run("dense-none", "VICReg λ = 0", "vicreg", ("--recon_weight", "0"), dense=True),
        Run("dense-rotation", "VICReg + rotation", "vicreg", PATHS["rotation"][1], dense=True),
        Run("dense-random", "random weights", "vicreg", (), dense=True, untrained=True),
    ],
    "E": _runs_of_a([path for path in PATHS if path not in _COMPARED]) + _MASKED,
}
# Table D: task -> script, folder of the data, flags, and the number that is shown. Sized for minutes on a CPU.
DENSE: dict[str, tuple[str, str, str, str]] = {
    "segmentation": (
        "finetune",
        "camvid",
        "--train head --head linear --image_size 128 --num_labels 11 --ignore_label 11 --max_steps 600 "
        "--learning_rate 5e-3 "
        "--per_device_train_batch_size 8 --data_files train-*.parquet --test_data_files val-*.parquet",
        "mIoU",
    ),
    "keypoints": (
        "finetune",
        "face_keypoints",
        "--train all --max_steps 300 --per_device_train_batch_size 16 "
        "--data_files train-*.parquet --test_data_files test-*.parquet",
        "PCK@0.1",
    ),
    "homography": (
        "finetune",
        "imagenette",
        "--train head --max_steps 500 --per_device_train_batch_size 32 --max_test_samples 1000 "
        "--data_files train-*.parquet "
        "--test_data_files val-*.parquet",
        "mean corner error (px) ↓",
    ),
    "depth": (
        "finetune",
        "",
        "--train head --max_depth 2 --max_steps 120 --per_device_train_batch_size 16",
        "RMSE ↓",
    ),
    "detection": (
        "finetune",
        "bccd",
        "--train all --image_size 128 --max_steps 400 --per_device_train_batch_size 4 --learning_rate 5e-4 "
        "--backbone_lr_scale 0.3 "
        "--warmup_steps 10 --data_files train-*.parquet --test_data_files test-*.parquet",
        "AP50",
    ),
    "video_segmentation": (
        "evaluate",
        "davis2016",
        "--frame_size 240 --max_frames 15 --data_files val-*.parquet",
        "video segmentation J&F",
    ),
}


def chosen_runs(tables: Sequence[str]) -> list[Run]:
    """The runs of these tables, each once: the comparison of table A first, then the small tables, then the rest."""
    return list({run.name: run for table in "ADBCE" if table in tables for run in TABLES[table]}.values())


class Results:
    """The results.json files below a folder, one folder for each run (and `-seedN` for its repetitions)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, name: str, *below: str) -> list[dict[str, Any]]:
        """The results of all seeds of a run, in the order of the seeds; empty if it has not been evaluated."""
        folders = [self.folder / name, *sorted(self.folder.glob(f"{name}-seed*"))]
        files = [folder.joinpath(*below, "results.json") for folder in folders]
        return [json.loads(file.read_text()) for file in files if file.is_file()]

    def cell(self, name: str, encoder: str | None, part: str, *metrics: str) -> str:
        """A cell of a table: a number, or the mean of several metrics; empty if one is missing.

        For one training run: with its interval. For several: mean and standard deviation over them.
        """
        runs = []
        for results in self.read(name):
            own = encoder or results["models"][0]["name"]
            known = {row["metric"]: row for row in results["rows"] if (row["encoder"], row["part"]) == (own, part)}
            if len(metrics) == 1 and metrics[0] in known:
                runs.append(Row(**known[metrics[0]]))
            elif all(metric in known for metric in metrics):
                by_seed = zip(*(known[metric]["values"] for metric in metrics), strict=True)
                runs.append(Row(own, part, metrics[0], [sum(each) / len(metrics) for each in by_seed]))
        return _over_runs(runs)

    def dense_cell(self, run: Run, task: str, metric: str) -> str:
        """The number of a dense task for the backbone, over training seeds.

        The number of an untrained run may be in the file of another run.
        """
        runs = [run, *TABLES["D"]] if run.untrained else [run]
        found = next((found for each in runs if (found := self.read(each.name, task))), [])
        encoder = "random weights" if run.untrained and not self.read(run.name, task) else None
        rows = []
        for results in found:
            own = [Row(**row) for row in results["rows"] if (row["part"], row["metric"]) == ("backbone", metric)]
            rows += [row for row in own if encoder is None or row.encoder == encoder][:1]
        return _over_runs(rows)


def _over_runs(rows: Sequence[Row]) -> str:
    """One row as it is; the mean and standard deviation of several training runs; empty for none."""
    if len(rows) < 2:
        return "".join(map(str, rows))
    means = [row.mean for row in rows]
    return f"{statistics.mean(means):.3f} ± {statistics.stdev(means):.3f} ({len(rows)} runs)"


def r2_columns(transforms: Sequence[str]) -> dict[str, str]:
    """Heading -> metric. If nothing moves, there is one column for both protocols."""
    columns = {}
    for transform in transforms:
        for protocol in PROTOCOLS if transform in _MOVES else PROTOCOLS[:1]:
            columns[transform.replace("_", " ") + (f", {protocol}" if transform in _MOVES else "")] = (
                f"R2 {transform}, {protocol}"
            )
    return columns


def _lines(results: Results, runs: Sequence[Run], columns: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """One line for each run that has numbers, then the controls. Columns: heading, part, metrics."""
    lines = [["", *(heading for heading, *_ in columns)]]
    for run in runs:
        cells = [results.cell(run.name, None, part, *metrics) for _, part, *metrics in columns]
        lines += [[run.label, *cells]] if any(cells) else []
    for control, own_part in (("random weights", None), ("raw pixels", "pixels")):
        source = next((run.name for run in runs if results.read(run.name)), "")
        cells = [results.cell(source, control, own_part or part, *metrics) for _, part, *metrics in columns]
        lines += [[control, *cells]] if any(cells) else []
    return lines


def _comparison(results: Results, title: str, runs: Sequence[Run]) -> list[str]:
    """Table A or E: R2 of all transformations, R2 of the rotation by part, and accuracies by part."""
    columns: list[tuple[str, ...]] = [
        (heading, "equivariant", metric) for heading, metric in r2_columns(TRANSFORMS).items()
    ]
    means = [f"R2 {transform}, paper" for transform in TRANSFORMS]
    columns.append(("mean of the four, paper", "equivariant", *means))
    rotation = r2_columns(["rotation"])
    by_part = [(f"{heading}: {part}", part, metric) for heading, metric in rotation.items() for part in PARTS]
    classes = [(f"{metric}: {part}", part, metric) for metric in ("kNN-20", "linear") for part in PARTS]
    return [
        f"## Table {title}\n\nR2 of the parameters of each transformation, equivariant part.",
        format_table(_lines(results, runs, columns)),
        "R2 of the rotation, by part.",
        format_table(_lines(results, runs, by_part)),
        "Top-1 accuracy, by part.",
        format_table(_lines(results, runs, classes)),
    ]


def _ablation(results: Results, name: str, title: str, runs: Sequence[Run]) -> list[str]:
    """Table B or C: R2 of the rotation, and how the other parts fare."""
    columns = [
        *((heading, "equivariant", metric) for heading, metric in r2_columns(["rotation"]).items()),
        ("R2 strict: invariant", "invariant", "R2 rotation, strict"),
        ("kNN-20: backbone", "backbone", "kNN-20"),
        ("linear: backbone", "backbone", "linear"),
    ]
    heading = f"## Table {name}: {title}\n\nR2 of the rotation from the equivariant part."
    return [heading, format_table(_lines(results, runs, columns))]


def _table_d(results: Results) -> list[str]:
    """Dense and geometric tasks; empty if none was run."""
    metrics = {task: metric for task, (_, _, _, metric) in DENSE.items()}
    lines = [["", *(f"{task}: {metric}" for task, metric in metrics.items())]]
    for run in TABLES["D"]:
        cells = [results.dense_cell(run, task, metric) for task, metric in metrics.items()]
        if any(cells):
            lines.append([run.label, *cells])
    if len(lines) == 1:
        return []
    return ["## Table D: dense and geometric tasks, features of the backbone", format_table(lines)]


def render_tables(folder: Path, tables: Sequence[str] = tuple(TABLES)) -> str:
    """Markdown of the tables that have numbers, from the results.json files below `folder`.

    Raises:
        ValueError: the results of the tables were measured with different versions of the protocol.
    """
    results = Results(folder)
    chosen = [name for name in "ABCE" if name in tables]
    names = dict.fromkeys(run.name for name in chosen for run in TABLES[name])
    check_same_version((name, found) for name in names for found in results.read(name))
    sections = [section for name in chosen for section in _sections(results, name)]
    if "D" in tables:
        sections += _table_d(results)
    return "\n\n".join(sections) + "\n"


def _sections(results: Results, name: str) -> list[str]:
    """Any table but D; empty if no run has numbers for it."""
    runs = [run for run in TABLES[name] if results.read(run.name)]
    least = 2 if name in _ABLATIONS else 1  # one of their runs is the one that the others vary
    if len(runs) < least:
        return []
    if name in _ABLATIONS:
        sections = _ablation(results, name, _ABLATIONS[name], runs)
    else:
        sections = _comparison(results, f"{name}: {_COMPARISONS[name]}", runs)
    missing = [run.label for run in TABLES[name] if run not in runs]
    return [*sections, f"Not run: {', '.join(missing)}."] if missing else sections
