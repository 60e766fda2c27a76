"""The stages of gpu_run.py. Each imports what it needs only when it runs, in its own process."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent

TEACHER = (
    "--local_crops_number 2 --local_crops_size 32 --augmentation dinov2 "
    "--objective_options num_prototypes=256,teacher_temperature_steps=4,freeze_last_layer_steps=2"
)
SMOKES = {
    "vicreg": "",
    "simclr": "",
    "ibot": TEACHER,
    "dinov2": f"{TEACHER} --drop_path_rate 0.3",
    "sie": "--recon_weight 0",
    "cross_attention": "--recon_weight 0",
    "vicreg compiled": "--compile",
    "ibot compiled": f"{TEACHER} --compile",
}
BATCHES = {"imagenet1k_vicreg_vits16": 256, "imagenet1k_ibot_vits16": 128, "imagenet1k_dinov2_vitl16": 64}


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one process does, and the seconds that it may take on a GPU."""

    work: Callable[[argparse.Namespace], None]
    limit: int


def preflight(args: argparse.Namespace) -> None:
    """The versions, and what the device reaches: products in bf16 and copies."""
    import accelerate
    import datasets  # noqa: F401  a missing package ends the run here
    import torch
    import transformers

    import eqcohvit

    packages = (torch, transformers, accelerate, eqcohvit)
    row: dict[str, Any] = {package.__name__: package.__version__ for package in packages}
    row |= {"cpus": os.cpu_count(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 256 if args.tiny else 8192
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    block = torch.empty(2**20 if args.tiny else 2**30, device=device, dtype=torch.uint8)
    row["tflop_per_s"] = 2 * size**3 / _seconds(lambda: matrix @ matrix, device) / 1e12
    row["tb_per_s"] = 2 * len(block) / _seconds(block.clone, device) / 1e12
    record(args, "preflight", **row)


def smoke(name: str, args: argparse.Namespace) -> None:
    """Six steps at once, and three, killed, resumed: the same losses up to what kernels leave open; then the export."""
    objective = name.split()[0]
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--objective {objective} --model_preset micro --patch_size 8 --image_size 64 --projector_dim 128 "
            f"--feature_dim 64 --equivariant_dim 32 --per_device_train_batch_size 16 --logging_steps 1 --save_steps 3 "
            f"--sample_steps 3 --warmup_steps 2 --probe_samples 0 --dataloader_num_workers 1 --max_steps 6 "
            f"{SMOKES[name]}"
        ).split()
        whole, resumed = Path(folder) / "whole", Path(folder) / "resumed"
        _script("pretrain", *flags, "--output_dir", str(whole))
        stopped = subprocess.Popen(_command("pretrain", *flags, "--output_dir", str(resumed)), env=environment())
        while stopped.poll() is None and not list(resumed.glob("checkpoints/step-3")):
            time.sleep(0.05)
        stopped.kill()
        stopped.wait()
        _script("pretrain", *flags, "--output_dir", str(resumed), "--resume_from_checkpoint", "latest")
        losses = [_losses(run) for run in (whole, resumed)]
        difference = max(abs(one - two) / abs(one) for one, two in zip(*losses, strict=True))
        model = whole / "model"
        record(args, f"smoke {name}", largest_relative_difference=difference, losses=losses[0], exported=model.is_dir())


def steps(recipe: str, compiled: bool, args: argparse.Namespace) -> None:
    """Steps of a recipe on canvases in memory, with and without the task, beside the cost model; then a trace."""
    import torch

    from benchmarks.cases import recipe_settings, sized_settings
    from benchmarks.cost import step_cost
    from benchmarks.measure import Setup, peak_flops
    from benchmarks.steps import Step

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    settings = recipe_settings(recipe, BATCHES[recipe])
    if args.tiny:
        crops = {} if settings.objective == "vicreg" else {"local_crops_number": 2, "local_crops_size": 32}
        settings = sized_settings("micro", 4, 64, objective=settings.objective, projector_dim=64, **crops)
    for weight in (settings.recon_weight, 0.0):
        started = time.perf_counter()
        chosen = dataclasses.replace(settings, recon_weight=weight)
        step = Step(chosen, Setup(device, quick=args.tiny, seconds=1.0, compile=compiled))
        for _ in range(2 if args.tiny else 6):
            step()
        row: dict[str, Any] = {"task": weight > 0, "first_steps_s": time.perf_counter() - started}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        number = 3 if args.tiny else 20
        row["step_ms"] = 1000 * _seconds(step, device, number)
        row["render_ms"] = 1000 * _seconds(step.render, device, number)
        row["samples_per_s"] = 1000 * chosen.per_device_train_batch_size / row["step_ms"]
        row["host_ms"] = 1000 * _host_seconds(step, device)
        model = step_cost(chosen)
        row["model_ms"] = 1000 * model.total.seconds
        if device.type == "cuda":
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if peak := peak_flops(device):
            row["mfu"] = model.total.flop / (row["step_ms"] / 1000) / peak
        record(args, f"steps {recipe}{' compiled' if compiled else ''}", **row)
        if weight > 0:
            _trace(step, device, args.output, f"{recipe}{'-compiled' if compiled else ''}")
        del step


def _trace(step: Callable[[], object], device: Any, folder: Path, name: str) -> None:
    """Of two steps: the operations by time in the log, and a file for a viewer."""
    from torch.profiler import ProfilerActivity, profile

    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda) as profiler:
        step()
        step()
    order = "self_cuda_time_total" if is_cuda else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=40), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "trace.json"
        profiler.export_chrome_trace(str(path))
        (folder / f"trace-{name}.json.gz").write_bytes(gzip.compress(path.read_bytes(), 6))


def loader(args: argparse.Namespace) -> None:
    """What the loader alone sustains once its queue has been emptied."""
    from benchmarks.photos import write_photos
    from eqcohvit.data import CanvasStream, open_source

    batch_size, cpus = (16, 1) if args.tiny else (256, max(1, (os.cpu_count() or 2) - 1))
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), 64 if args.tiny else 4096)
        for workers in sorted({max(1, cpus // 2), cpus}):
            stream = CanvasStream(open_source(train_dir=folder), 792, batch_size, num_workers=workers)
            batches = iter(stream)
            deadline = time.perf_counter() + (1 if args.tiny else 6)
            while time.perf_counter() < deadline:  # what was decoded ahead
                next(batches)
            started, number = time.perf_counter(), 0
            while time.perf_counter() - started < (1 if args.tiny else 8):
                number += len(next(batches))
            record(args, "loader", workers=workers, samples_per_s=number / (time.perf_counter() - started))


def files(args: argparse.Namespace) -> None:
    """Pretraining from files, as a user starts it: samples a second and the share of waiting."""
    from benchmarks.photos import write_photos

    with tempfile.TemporaryDirectory() as folder:
        photos, run = Path(folder) / "photos", Path(folder) / "run"
        photos.mkdir()
        write_photos(photos, 64 if args.tiny else 4096)
        size = "--model_preset micro --patch_size 8 --image_size 64 --per_device_train_batch_size 8 --max_steps 12"
        full = f"--config imagenet1k_vicreg_vits16 --per_device_train_batch_size 256 --max_steps {_STEPS_FROM_FILES}"
        flags = (
            f"{size if args.tiny else full} --dataloader_num_workers {1 if args.tiny else (os.cpu_count() or 2) - 1}"
        )
        every = f"--logging_steps {2 if args.tiny else 25} --save_steps 100000 --sample_steps 100000 --warmup_steps 5"
        _script("pretrain", *flags.split(), *every.split(), "--train_dir", str(photos), "--output_dir", str(run))
        rows = [row for row in read_rows(run / "metrics.jsonl") if "samples_per_second" in row]
        # Without the first ones, whose images were decoded while the model was built.
        names = ("samples_per_second", "data_wait_share")
        record(args, "files", **{name: statistics.median(row[name] for row in rows[2:]) for name in names})


_STEPS_FROM_FILES = 300


def sharded(args: argparse.Namespace) -> None:
    """FSDP2 through `accelerate launch`, on one process."""
    import torch

    if not torch.cuda.is_available():
        record(args, "sharded", skipped="accelerate shards only on a GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "fsdp.yaml"
        config.write_text(
            "distributed_type: FSDP\nnum_machines: 1\nnum_processes: 1\nfsdp_config:\n  fsdp_version: 2\n"
        )
        flags = f"--objective ibot --image_size 64 --max_steps 4 --save_steps 2 --logging_steps 1 {TEACHER}"
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command = [*launch, str(SCRIPTS / "pretrain.py"), *flags.split(), "--output_dir", f"{folder}/run"]
        subprocess.run(command, env=environment(), check=True)
        record(args, "sharded", losses=_losses(Path(folder) / "run"))


def imagenette(args: argparse.Namespace) -> None:
    """VICReg with the task and ViT-S/16 at 224 px for as many steps as the time allows, then kNN-20, linear, R2."""
    end = time.monotonic() + 60 * args.minutes - 10
    run = args.output / "imagenette"
    train, test = args.data_files, args.test_data_files
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny and not train:
            train, test = (_write_labeled(Path(folder) / f"{name}.parquet", 48) for name in ("train", "test"))
        if not train or not test:
            raise ValueError("imagenette needs --data_files and --test_data_files, parquet with image and label")
        batch_size, workers = (8, 1) if args.tiny else (256, max(1, (os.cpu_count() or 2) - 1))
        flags = f"--config imagenette_vicreg --image_size 224 --per_device_train_batch_size {batch_size} --resident "
        flags += f"--dataloader_num_workers {workers} --save_steps 100000 --sample_steps 100000 --probe_samples 0 "
        if args.tiny:
            flags = flags.replace("224", "64") + "--model_preset micro --patch_size 8 --projector_dim 64 "
        command = [*flags.split(), "--data_files", train]
        short = 8 if args.tiny else 120  # three epochs: the first one decodes
        started = time.monotonic()
        every = str(short // 4)
        short_run = Path(folder) / "short"
        common = ["--warmup_steps", "2", "--logging_steps", every, "--max_steps", str(short)]
        _script("pretrain", *command, *common, "--output_dir", str(short_run))
        speed = read_rows(short_run / "metrics.jsonl")[-1]["samples_per_second"]
        start = max(0.0, time.monotonic() - started - short * batch_size / speed)  # of the process and the first epoch
        left = end - time.monotonic() - start - (60 if args.tiny else 100)  # for the evaluation
        number = max(short, int(left * speed / batch_size))
        number = min(number, 2 * short) if args.tiny else number
        record(args, "imagenette", speed=speed, start_s=start, steps=number, samples=number * batch_size)
        common = ["--warmup_steps", str(number // 20), "--logging_steps", str(max(1, number // 50))]
        common += ["--max_steps", str(number), "--output_dir", str(run)]
        _script("pretrain", *command, *common)
        record(args, "imagenette", trained_s=time.monotonic() - started)
        probe = ["--model", str(run / "model"), "--task", "knn", "linear", "r2", "--data_files", train]
        probe += ["--test_data_files", test, "--output", str(args.output / "imagenette.json")]
        probe += ["--max_samples", "32" if args.tiny else "20000", "--max_test_samples", "24" if args.tiny else "4000"]
        _script("evaluate", *probe, "--cache_dir", f"{folder}/cache")
        results = json.loads((args.output / "imagenette.json").read_text())
        record(args, "imagenette", results=results["rows"])


def _write_labeled(path: Path, count: int) -> str:
    """A parquet file of pictures of two labels."""
    from datasets import ClassLabel, Dataset, Features, Image

    from benchmarks.photos import photo

    images = [{"bytes": photo(seed, 96, 72), "path": None} for seed in range(count)]
    features = Features({"image": Image(), "label": ClassLabel(names=["one", "other"])})
    rows = {"image": images, "label": [index % 2 for index in range(count)]}
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def record(args: argparse.Namespace, stage: str, **values: Any) -> None:
    """Append a line to the results, on the disk before anything else is begun."""
    line = json.dumps({"stage": stage, **values})
    with open(args.output / "results.jsonl", "a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(line[:600], flush=True)


def _seconds(function: Callable[[], object], device: Any, number: int = 10) -> float:
    """Mean of a few calls."""
    from benchmarks.measure import synchronize

    function()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(number):
        function()
    synchronize(device)
    return (time.perf_counter() - started) / number


def _host_seconds(step: Callable[[], object], device: Any) -> float:
    """How long the host takes to queue a step."""
    from benchmarks.measure import synchronize

    synchronize(device)
    started = time.perf_counter()
    step()
    seconds = time.perf_counter() - started
    synchronize(device)
    return seconds


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results or metrics."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_rows(run / "metrics.jsonl") if "loss" in row]


def environment() -> dict[str, str]:
    """Of the scripts that a stage starts: ours first, and what the caller has put into PYTHONPATH, such as wheels."""
    places = [str(SCRIPTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}


def _command(script: str, *flags: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / f"{script}.py"), *flags]


def _script(script: str, *flags: str) -> None:
    subprocess.run(_command(script, *flags), env=environment(), check=True)


STAGES: dict[str, Stage] = {
    "preflight": Stage(preflight, 60),
    **{f"smoke {name}": Stage(partial(smoke, name), 150 if "compiled" in name else 60) for name in SMOKES},
    **{f"steps {name}": Stage(partial(steps, name, False), 90) for name in BATCHES},
    "loader": Stage(loader, 60),
    "files": Stage(files, 110),
    **{f"steps {name} compiled": Stage(partial(steps, name, True), 150) for name in BATCHES},
    "sharded": Stage(sharded, 60),
    "imagenette": Stage(imagenette, 540),
}
