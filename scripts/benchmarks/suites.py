"""What scripts/benchmark.py measures: one function for each suite."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from eqcohvit.data import Batch, CanvasStream, ResidentCanvases, jpeg, open_source
from eqcohvit.data.decode import decode_image
from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_model, build_renderer
from eqcohvit.training.prefetch import DevicePrefetcher
from eqcohvit.training.signals import StopSignals
from eqcohvit.transforms import Draws, ViewRenderer, Views

from .cases import case_name, recipe_settings, sized_settings
from .cost import step_cost
from .measure import (
    Case,
    Result,
    Setup,
    clock,
    milliseconds,
    paired_ratio,
    peak_flops,
    peak_memory,
    print_operations,
    take_turns,
)
from .peers import dinov2_step, ibot_step, vicreg_step
from .photos import photo, write_photos
from .reference import PlainViews, plain_views
from .steps import PlainStep, Step, in_processes

Target = tuple[str, str, float] | None

COST_RECIPES = {"imagenet1k_vicreg_vits16": 256, "imagenet1k_ibot_vits16": 128, "imagenet1k_dinov2_vitl16": 64}

# ---------------------------------------------------------------------------------------------------------------------
# Suites
# ---------------------------------------------------------------------------------------------------------------------


def inference(setup: Setup) -> list[Case]:
    """The split model beside its own backbone: what the feature head and the split cost a user who extracts
    features."""
    batch_sizes = (1, 256) if setup.is_cuda else (1, 4)
    args = sized_settings("small", 2)
    cases = [
        (replace(args, per_device_train_batch_size=n), ("ratio", "<=", 1.03) if n > 1 else None) for n in batch_sizes
    ]
    return [
        Case(case_name(args), partial(_inference, setup, args, target, setup.seconds / len(cases)))
        for args, target in cases
    ]


def _inference(setup: Setup, args: PretrainArguments, target: Target, seconds: float) -> list[Result]:
    dtype = torch.bfloat16 if setup.is_cuda else torch.float32
    model = build_model(args).eqcohvit.to(setup.device, dtype).eval()
    size = (args.per_device_train_batch_size, 3, args.image_size, args.image_size)
    pixels = torch.randn(size, device=setup.device, dtype=dtype)
    with torch.inference_mode():
        times = take_turns(
            {"split": lambda: model(pixels), "backbone": lambda: model.backbone(pixels)}, setup.device, seconds
        )
    figures = {**milliseconds(times), **paired_ratio(times["split"], times["backbone"])}
    return [Result("inference", case_name(args), figures, target)]


def overhead(setup: Setup) -> list[Case]:
    """A step with the reconstruction beside one without it; render_share is the part of the difference that goes into
    its targets."""
    if setup.is_cuda:
        cases = [(sized_settings("small", 256), 1.05), (sized_settings("large", 64, objective="dinov2"), 1.03)]
        recipes, batch_size = {"simclr": "imagenette_simclr", "ibot": "imagenet1k_ibot_vits16"}, 128
    else:
        cases = [(sized_settings("small", 2), 1.05)]
        recipes, batch_size = {objective: f"cifar10_{objective}" for objective in ("simclr", "ibot", "dinov2")}, 8
    cases += [(recipe_settings(name, batch_size, "--recon_from", "unmasked"), None) for name in recipes.values()]
    cases.append((recipe_settings(recipes["ibot"], batch_size, "--recon_from", "masked"), None))
    return [
        Case(case_name(args), partial(_overhead, setup, args, limit, setup.seconds / len(cases)))
        for args, limit in cases
    ]


def _overhead(setup: Setup, args: PretrainArguments, limit: float | None, seconds: float) -> list[Result]:
    with_task, without = Step(args, setup), Step(replace(args, recon_weight=0.0), setup)
    functions = {"step": with_task, "without": without, "render": with_task.render, "render_without": without.render}
    times = take_turns(functions, setup.device, seconds)
    medians = milliseconds(times)
    figures = {**medians, **paired_ratio(times["step"], times["without"])}
    figures["render_share"] = (medians["render_ms"] - medians["render_without_ms"]) / medians["without_ms"]
    if setup.profile:
        print_operations(with_task, setup.device)
    return [Result("overhead", case_name(args), figures, ("ratio", "<=", limit) if limit else None)]


def data(setup: Setup) -> list[Case]:
    """From file contents to a batch of two views and two targets: milliseconds per sample on one core, beside Pillow
    view by view."""
    photos = [("JPEG", 500, 375, 224), ("JPEG", 1600, 1200, 224), ("WEBP", 500, 375, 224)]
    kinds = [(*photos[0], "path_only"), *((*kind, "vicreg") for kind in photos), ("JPEG", 32, 32, 32, "small")]
    seconds = setup.seconds / len(kinds)
    cases = [Case(_kind(*kind), partial(_data, setup, *kind, seconds)) for kind in kinds]
    cases.append(Case("resident", partial(_resident, setup, seconds)))
    if jpeg.jpeg_decoder() == "simplejpeg":
        cases += [Case(f"decoders {size}", partial(_decoders, setup, size, seconds)) for size in (32, 96, 224, 792)]
    return cases


def _decoders(setup: Setup, size: int, seconds: float) -> list[Result]:
    """A file to a canvas, by simplejpeg beside Pillow."""
    contents = [photo(seed, 500, 375) for seed in range(8)]

    def by_simplejpeg() -> None:
        for content in contents:
            decode_image(content, size)

    by_pillow = patch.object(jpeg, "_simplejpeg", None)(by_simplejpeg)
    times = take_turns({"simplejpeg": by_simplejpeg, "pillow": by_pillow}, setup.device, seconds)
    figures = {**milliseconds(times, per=len(contents)), **paired_ratio(times["simplejpeg"], times["pillow"])}
    return [Result("data", f"JPEG 500 x 375 to a canvas of {size} px, by simplejpeg and by Pillow", figures)]


def _resident(setup: Setup, seconds: float) -> list[Result]:
    """Batches of a folder of photographs after its first epoch: decoded again beside kept on the device."""
    count, batch_size, size = 64, 16, 280
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), count)
        source = open_source(train_dir=folder)
        kept = {"decoded": None, "resident": ResidentCanvases(source, size, setup.device)}
        streams = {name: CanvasStream(source, size, batch_size, resident=resident) for name, resident in kept.items()}
        renderer = build_renderer(sized_settings("small", batch_size))
        draw = partial(_draw, renderer)
        batches = {name: DevicePrefetcher(iter(stream), setup.device, draw) for name, stream in streams.items()}
        for _ in range(count // batch_size):
            next(batches["resident"])
        functions = {name: partial(next, iterator) for name, iterator in batches.items()}
        times = take_turns(functions, setup.device, seconds)
    figures = {**milliseconds(times, per=batch_size), **paired_ratio(times["decoded"], times["resident"])}
    return [Result("data", f"JPEG 500 x 375 to a canvas of {size} px, after the first epoch", figures)]


def _draw(renderer: ViewRenderer, batch: Batch) -> Draws:
    return renderer.draw(batch.sizes, batch.keys, batch.epochs)


def _kind(image_format: str, width: int, height: int, image_size: int, augmentation: str) -> str:
    return f"{image_format} {width} x {height} to {image_size} px, {augmentation}"


def _data(
    setup: Setup, image_format: str, width: int, height: int, image_size: int, augmentation: str, seconds: float
) -> list[Result]:
    number = 16
    count = 256 if setup.is_cuda else number  # a GPU renders them, so in a batch that fills it
    args = sized_settings("small", count, image_size, augmentation=augmentation)
    renderer, content = build_renderer(args), photo(0, width, height, image_format)
    decoded = decode_image(content, args.canvas_size)
    keys = torch.arange(count)
    sizes = torch.tensor([decoded.size]).expand(count, 2)
    canvases = torch.from_numpy(decoded.canvas).to(setup.device).expand(count, -1, -1, -1).contiguous()
    few_keys = torch.arange(number)
    few_sizes = sizes[:number]
    first, second, path = renderer.sample(sizes=few_sizes, keys=few_keys, epochs=torch.zeros_like(few_keys))
    samples = [(first[rows], second[rows], path[rows]) for rows in (slice(i, i + 1) for i in range(number))]
    functions = {
        "decode": lambda: [decode_image(content, args.canvas_size) for _ in range(number)],
        "render": lambda: renderer(canvases, sizes=sizes, keys=keys, epochs=torch.zeros_like(keys)),
        "plain": lambda: default_collate([plain_views(content, renderer, *sample) for sample in samples]),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = take_turns(functions, setup.device, seconds)
    if setup.profile:
        print_operations(functions["render"], setup.device)
    torch.set_num_threads(threads)
    times["render"] = [value * number / count for value in times["render"]]
    on_core = [d + (0 if setup.is_cuda else r) for d, r in zip(times["decode"], times["render"], strict=True)]
    figures = {**milliseconds(times, per=number), "views_per_s": 4 * number / statistics.median(on_core)}
    figures |= paired_ratio(times["plain"], on_core)
    return [Result("data", _kind(image_format, width, height, image_size, augmentation), figures)]


def train(setup: Setup) -> list[Case]:
    """End to end from files on a disk, beside the plain pipeline: samples per second, share of waiting, memory, model
    FLOPs utilisation."""
    if setup.is_cuda:
        cases = [(sized_settings(preset, size, dataloader_num_workers=15), target) for preset, size, target in (
            ("small", 256, ("ours_samples_per_s", ">=", 2600.0)), ("large", 64, ("mfu", ">=", 0.5)))]  # fmt: skip
    else:
        cases = [(sized_settings("micro", 8, 64) if setup.quick else sized_settings("small", 8), None)]
    return [
        Case(case_name(args), partial(_train, setup, args, target, setup.seconds / len(cases)))
        for args, target in cases
    ]


def _train(setup: Setup, args: PretrainArguments, target: Target, seconds: float) -> list[Result]:
    batch_size = args.per_device_train_batch_size
    waits: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), 2 * batch_size if setup.is_cuda else 16)
        ours, plain = Step(args, setup), PlainStep(args, setup)
        loops = {"ours": _our_loop(ours, folder), "plain": _plain_loop(plain, paths)}
        functions: dict[str, Callable[[], None]] = {
            name: lambda n=name: waits[n].append(next(loops[n])) for name in loops
        }
        times = take_turns(functions, setup.device, seconds)
        memory = {name: peak_memory(functions[name], setup.device) for name in loops}
    figures = {f"{name}_samples_per_s": batch_size / statistics.median(values) for name, values in times.items()}
    figures["ratio"] = paired_ratio(times["plain"], times["ours"])["ratio"]
    figures["wait_share"] = statistics.median(waits["ours"][1:-1]) / statistics.median(times["ours"])
    if peak := peak_flops(setup.device):
        figures["mfu"] = _encoder_flops(ours) / statistics.median(times["ours"]) / peak
    needed = {f"{name}_{key}": value for name, sizes in memory.items() for key, value in sizes.items()}
    needed["ratio"] = next(iter(memory["ours"].values())) / next(iter(memory["plain"].values()))
    return [
        Result("train", case_name(args), figures, target if target and target[0] in figures else None),
        Result("train", f"{case_name(args)}: memory of a step", needed, ("ratio", "<=", 1.0)),
    ]


def _our_loop(step: Step, folder: str) -> Iterator[float]:
    """Trains a step at each `next`; yields the seconds that it waited for its batch."""
    args, device = step.args, step.setup.device
    stream = CanvasStream(
        open_source(train_dir=folder),
        args.canvas_size,
        args.per_device_train_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    batches = DevicePrefetcher(iter(stream), device, partial(_draw, step.renderer))
    signals = StopSignals()
    while True:
        started = clock(device)
        batch, draws = next(batches)
        waited = clock(device) - started
        step.train(step.renderer.render(batch.canvases, draws))
        waited += batches.fetch(signals)
        yield waited


def _plain_loop(step: PlainStep, paths: list[Path]) -> Iterator[float]:
    args, device = step.args, step.setup.device
    indices = np.random.default_rng(0).integers(0, len(paths), (10_000, args.per_device_train_batch_size)).tolist()
    loader = torch.utils.data.DataLoader(
        PlainViews(paths, step.renderer),
        batch_sampler=indices,
        num_workers=args.dataloader_num_workers,
        pin_memory=step.setup.is_cuda,
    )
    batches = iter(loader)
    while True:
        started = clock(device)
        views = [tensor.to(device, non_blocking=True) for tensor in next(batches)]
        waited = clock(device) - started
        step.train(Views(*views, parameters=views[0].new_zeros(len(views[0]), 1)))
        yield waited


def _encoder_flops(step: Step) -> float:
    """Of the backbone and the feature head on both views, forward and backward; decoders, heads and rendering do not
    count."""
    pixels = torch.zeros(1, 3, step.args.image_size, step.args.image_size, device=step.setup.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step.module.model.eqcohvit(pixels)
    return 3.0 * 2 * step.args.per_device_train_batch_size * counter.get_total_flops()


def scaling(setup: Setup) -> list[Case]:
    """A step beside the base case, per sample: what more states, wider parts, other batches, images and numbers of
    processes cost."""
    base = (
        sized_settings("small", 128)
        if setup.is_cuda
        else sized_settings("micro", 8, 32)
        if setup.quick
        else sized_settings("micro", 16, 64)
    )
    batch_size, image_size = base.per_device_train_batch_size, base.image_size
    changes: dict[str, dict[str, Any]] = {
        "no reconstruction": {"recon_weight": 0.0},
        "K 1": {"num_intermediates": 1},
        "K 4": {"num_intermediates": 4},
        "d_equi 64": {"equivariant_dim": 64},
        "d_equi 448": {"equivariant_dim": 448},
        "decoder_dim 128": {"decoder_dim": 128},
        "batch x 2": {"per_device_train_batch_size": 2 * batch_size},
        "image side x 2": {"image_size": 2 * image_size},
        "activation checkpointing": {"gradient_checkpointing": True},
    }
    number = torch.cuda.device_count() if setup.is_cuda else 2
    seconds = setup.seconds / (len(changes) + 1)
    cases = [Case(name, partial(_scaling, setup, base, name, change, seconds)) for name, change in changes.items()]
    return cases + [Case(f"{number} processes", partial(in_processes, setup, base, number, f"{number} processes"))] * (
        number > 1
    )


def _scaling(setup: Setup, base: PretrainArguments, name: str, change: dict[str, Any], seconds: float) -> list[Result]:
    steps = {"step": Step(replace(base, **change), setup), "base": Step(base, setup)}
    if change.get("gradient_checkpointing"):
        steps["step"].module.model.eqcohvit.backbone.activation_checkpointing_enable()
    times = take_turns(steps, setup.device, seconds)
    memory = {}
    for key, step in steps.items():
        size = step.args.per_device_train_batch_size
        times[key] = [value / size for value in times[key]]
        memory |= {f"{key}_{unit}": value / size for unit, value in peak_memory(step, setup.device).items()}
    figures = {**milliseconds(times), **paired_ratio(times["step"], times["base"]), **memory}
    return [Result("scaling", f"{name}, beside {case_name(base)}", figures)]


def cost(setup: Setup) -> list[Case]:
    """What a step costs on a GPU by its operations, counted on meta tensors on any machine: see cost.py."""
    return [
        Case(f"{name}, batch {size}, task {task}", partial(_cost, name, size, task))
        for name, size in COST_RECIPES.items()
        for task in ("on", "off")
    ]


def _cost(name: str, batch_size: int, task: str) -> list[Result]:
    args = recipe_settings(name, batch_size, *(("--recon_weight", "0") if task == "off" else ()))
    figures = step_cost(args).figures()
    return [Result("cost", f"{name}, batch {batch_size}, task {task}", figures, ("render_share", "<=", 0.03))]


def peers(setup: Setup) -> list[Case]:
    """Our step beside the official one on the same views, task off and on: needs --peers FOLDER (peers.py)."""
    batch_size = 64 if setup.is_cuda else 2
    names = {
        "ibot": "imagenet1k_ibot_vits16",
        "vicreg": "imagenet1k_vicreg_vits16",
        "dinov2": "imagenet1k_dinov2_vitl16",
    }
    if setup.quick:
        names = {objective: f"cifar10_{objective}" for objective in names}
    size = () if setup.quick else ("--model_preset", "small")
    cases = {objective: recipe_settings(name, batch_size, *size) for objective, name in names.items()}
    return [
        Case(case_name(args), partial(_peers, setup, objective, args, setup.seconds / len(cases)))
        for objective, args in cases.items()
    ]


def _peers(setup: Setup, objective: str, args: PretrainArguments, seconds: float) -> list[Result]:
    if setup.peers is None:
        raise ValueError("--peers FOLDER is needed, with the official repositories in it")
    steps = {name: Step(replace(args, recon_weight=weight), setup) for name, weight in (("on", 1.0), ("off", 0.0))}
    views, config = steps["on"].render(), steps["on"].module.model.config
    if objective in ("ibot", "dinov2"):
        make = ibot_step if objective == "ibot" else dinov2_step
        options = args.parsed_objective_options()
        official = make(setup.peers, config, options, args.projector_dim, views, setup.autocast)
    else:
        widths = "-".join([str(args.projector_dim)] * 3)
        official = vicreg_step(setup.peers, config, widths, views, setup.autocast)
    functions = {f"task_{name}": partial(step.train, views) for name, step in steps.items()}
    times = take_turns({**functions, "official": official}, setup.device, seconds)
    ratios = {name: paired_ratio(times[name], times["official"])["ratio"] for name in functions}
    figures = {**milliseconds(times), **{f"{name}_ratio": ratio for name, ratio in ratios.items()}}
    return [Result("peers", case_name(args), figures, ("task_on_ratio", "<=", 0.95))]


SUITES: dict[str, Callable[[Setup], list[Case]]] = {
    "inference": inference,
    "overhead": overhead,
    "data": data,
    "train": train,
    "scaling": scaling,
    "cost": cost,
    "peers": peers,
}
