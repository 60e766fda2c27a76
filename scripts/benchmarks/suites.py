"""What scripts/benchmark.py measures: one function for each suite."""

from __future__ import annotations

import dataclasses
import io
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from eqcohvit.data import CanvasStream, open_source
from eqcohvit.data.decode import decode_image
from eqcohvit.training.arguments import PretrainArguments, parse_arguments
from eqcohvit.training.build import build_model, build_module, build_renderer
from eqcohvit.training.optim import make_optimizer
from eqcohvit.training.prefetch import DevicePrefetcher
from eqcohvit.training.schedules import step_values
from eqcohvit.transforms import Views

from .measure import Result, Setup, milliseconds, paired_ratio, peak_flops, peak_memory, seconds, take_turns
from .reference import PlainDecoders, PlainViews, plain_loss, plain_views

_RECIPES = Path(__file__).parents[1] / "recipes"

# The paper's decoders: they read the patches alone.
_COMMON: dict[str, Any] = {"patch_size": 16, "decoder_context": "none", "decoder_patch_dropout": 0.0, "border": "zeros"}
_VICREG: dict[str, Any] = {**_COMMON, "objective": "vicreg", "augmentation": "vicreg", "feature_dim": 512, "equivariant_dim": 256}
_DINOV2: dict[str, Any] = {
    **_COMMON, "objective": "dinov2", "augmentation": "dinov2", "feature_dim": 2048, "equivariant_dim": 512,
    "projector_dim": 2048, "local_crops_number": 8, "local_crops_size": 96,
}  # fmt: skip


def _settings(preset: str, batch_size: int, image_size: int = 224, **changes: Any) -> PretrainArguments:
    recipe = _DINOV2 if changes.get("objective") == "dinov2" else _VICREG
    values = {**recipe, "model_preset": preset, "image_size": image_size, "per_device_train_batch_size": batch_size, **changes}
    if preset == "micro":
        values |= {"patch_size": 8}
    args = PretrainArguments(**values)
    args.check()
    return args


def _recipe(name: str, batch_size: int, *flags: str) -> PretrainArguments:
    return parse_arguments(["--config", str(_RECIPES / f"{name}.yaml"), "--per_device_train_batch_size", str(batch_size), *flags])


def _name(args: PretrainArguments) -> str:
    size = {"micro": "micro", "small": "S", "base": "B", "large": "L"}[args.model_preset]
    objective = f"{args.objective} (recon_from {args.recon_from})" if args.masking() else args.objective
    return f"ViT-{size}/{args.patch_size}, {objective}, {args.image_size} px, batch {args.per_device_train_batch_size}"


class Step:
    """One step of pretraining on a fixed batch of random canvases: render, forward, backward, clip, update."""

    def __init__(self, args: PretrainArguments, setup: Setup):
        torch.manual_seed(0)
        self.args, self.setup = args, setup
        self.module = build_module(args, build_model(args)).to(setup.device).train()
        self.renderer = build_renderer(args)
        if setup.compile:
            self.module.compile()
            if setup.is_cuda:
                self.renderer.compile()
        self.optimizer = make_optimizer(self.module, args.learning_rate, args.weight_decay)
        batch = args.per_device_train_batch_size
        keys = torch.arange(batch, device=setup.device)
        canvases = torch.randint(0, 256, (batch, 3, args.canvas_size, args.canvas_size), device=setup.device).to(torch.uint8)
        self.batch = (canvases, torch.full((batch, 2), 2 * args.image_size, device=setup.device), torch.zeros_like(keys), keys)

    def render(self) -> Views:
        """The views of the batch."""
        return self.renderer(*self.batch, with_intermediates=self.args.recon_weight > 0)

    def train(self, views: Views) -> None:
        """Forward, backward and update on views."""
        values = step_values(1, self.args)
        with self.setup.autocast():
            loss = self.module(views, values)["loss"]
        self.update(loss)
        self.module.update_teacher(values.teacher_momentum)

    def update(self, loss: torch.Tensor) -> None:
        """Backward pass, clipping, optimizer."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        self.train(self.render())


class PlainStep(Step):
    """The same step as most people write it: encoder passes one after the other, decoders in a loop, eager."""

    def __init__(self, args: PretrainArguments, setup: Setup):
        super().__init__(args, dataclasses.replace(setup, compile=False))
        self.decoders = PlainDecoders(self.module.model.decoders).to(setup.device)
        self.module.model.decoders.requires_grad_(False)
        self.decoder_optimizer = make_optimizer(self.decoders, args.learning_rate, args.weight_decay)

    def train(self, views: Views) -> None:
        with self.setup.autocast():
            loss = plain_loss(self.module, self.decoders, views.first, views.end, views.intermediates)
        self.update(loss)
        self.decoder_optimizer.step()
        self.decoder_optimizer.zero_grad()


# ---------------------------------------------------------------------------------------------------------------------
# Suites
# ---------------------------------------------------------------------------------------------------------------------


def inference(setup: Setup) -> list[Result]:
    """The split model beside its own backbone: what the feature head and the split cost a user who extracts features."""
    batch_sizes = (1, 256) if setup.is_cuda else (1, 4)
    dtype = torch.bfloat16 if setup.is_cuda else torch.float32
    args = _settings("small", 2)
    model = build_model(args).eqcohvit.to(setup.device, dtype).eval()
    results = []
    for batch_size in batch_sizes:
        pixels = torch.randn(batch_size, 3, args.image_size, args.image_size, device=setup.device, dtype=dtype)
        with torch.inference_mode():
            functions = {"split": lambda x=pixels: model(x), "backbone": lambda x=pixels: model.backbone(x)}
            times = take_turns(functions, setup.device, setup.seconds / len(batch_sizes))
        figures = {**milliseconds(times), **paired_ratio(times["split"], times["backbone"])}
        case = dataclasses.replace(args, per_device_train_batch_size=batch_size)
        results.append(Result("inference", _name(case), figures, ("ratio", "<=", 1.03) if batch_size > 1 else None))
    return results


def overhead(setup: Setup) -> list[Result]:
    """A step with the reconstruction beside one without it; render_share is the part of the difference that goes into its targets."""
    if setup.is_cuda:
        cases = [(_settings("small", 256), 1.05), (_settings("large", 64, objective="dinov2"), 1.03)]
        recipes, batch_size = {"simclr": "imagenette_simclr", "ibot": "imagenet1k_ibot_vits16"}, 128
    else:
        cases = [(_settings("small", 2), 1.05)]
        recipes, batch_size = {objective: f"cifar10_{objective}" for objective in ("simclr", "ibot", "dinov2")}, 8
    cases += [(_recipe(name, batch_size), None) for name in recipes.values()]
    cases.append((_recipe(recipes["ibot"], batch_size, "--recon_from", "masked"), None))
    results = []
    for args, limit in cases:
        with_task, without = Step(args, setup), Step(dataclasses.replace(args, recon_weight=0.0), setup)
        functions = {"step": with_task, "without": without, "render": with_task.render, "render_without": without.render}
        times = take_turns(functions, setup.device, setup.seconds / len(cases))
        medians = milliseconds(times)
        figures = {**medians, **paired_ratio(times["step"], times["without"])}
        figures["render_share"] = (medians["render_ms"] - medians["render_without_ms"]) / medians["without_ms"]
        results.append(Result("overhead", _name(args), figures, limit and ("ratio", "<=", limit)))
        del with_task, without, functions
    return results


def data(setup: Setup) -> list[Result]:
    """From file contents to the two views and two targets of 224 px: milliseconds per sample on one core, beside Pillow view by view."""
    photos = {"JPEG 500 x 375": photo(0, 500, 375), "JPEG 1600 x 1200": photo(0, 1600, 1200), "WebP 500 x 375": photo(0, 500, 375, "WEBP")}
    cases = [("JPEG 500 x 375", "vicreg"), ("JPEG 500 x 375", "path_only"), ("JPEG 1600 x 1200", "vicreg"), ("WebP 500 x 375", "vicreg")]
    count = 64 if setup.is_cuda else 4
    results, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for kind, augmentation in cases:
        args = _settings("small", count, augmentation=augmentation)
        renderer, content = build_renderer(args), photos[kind]
        decoded = decode_image(content, args.canvas_size)
        keys = torch.arange(count, device=setup.device)
        sizes = torch.tensor([decoded.size], device=setup.device).expand(count, 2)
        canvases = torch.from_numpy(decoded.canvas).to(setup.device).expand(count, -1, -1, -1).contiguous()
        functions = {
            "decode": lambda c=content, a=args: [decode_image(c, a.canvas_size) for _ in range(4)],
            "render": lambda r=renderer, c=canvases, s=sizes, k=keys: r(c, s, torch.zeros_like(k), k),
            "plain": lambda c=content, r=renderer: [plain_views(c, r, 0, key) for key in range(4)],
        }
        times = take_turns(functions, setup.device, setup.seconds / len(cases))
        times["render"] = [value * 4 / count for value in times["render"]]
        figures = milliseconds(times, per=4)
        on_core = [d + (0 if setup.is_cuda else r) for d, r in zip(times["decode"], times["render"], strict=True)]
        speedup = paired_ratio(times["plain"], on_core)
        figures |= {"views_per_s": 4000 / (statistics.median(on_core) * 250), **speedup}
        results.append(Result("data", f"{kind}, {augmentation}", figures, ("ratio", ">=", 3.0)))
    torch.set_num_threads(threads)
    return results


def train(setup: Setup) -> list[Result]:
    """End to end from files on a disk, beside the plain pipeline: samples per second, share of waiting, memory, model FLOPs utilisation."""
    cases = [("small", 256, 224), ("large", 64, 224)] if setup.is_cuda else [("micro", 32, 64) if setup.quick else ("small", 8, 224)]
    results = []
    for preset, batch_size, image_size in cases:
        args = _settings(preset, batch_size, image_size, dataloader_num_workers=15 if setup.is_cuda else 0)
        with tempfile.TemporaryDirectory() as folder:
            paths = write_photos(Path(folder), 2 * batch_size if setup.is_cuda else 32)
            ours, plain = Step(args, setup), PlainStep(args, setup)
            loops = {"ours": _our_loop(ours, folder), "plain": _plain_loop(plain, paths)}
            waits: dict[str, list[float]] = {name: [] for name in loops}

            def run(name: str, loops: dict = loops, waits: dict = waits) -> None:
                waits[name].append(next(loops[name]))

            functions: dict[str, Callable[[], None]] = {name: lambda n=name, run=run: run(n) for name in loops}
            times = take_turns(functions, setup.device, setup.seconds / len(cases))
            memory = {name: peak_memory(functions[name], setup.device) for name in loops}
        figures = {f"{name}_samples_per_s": batch_size / statistics.median(values) for name, values in times.items()}
        figures["ratio"] = paired_ratio(times["plain"], times["ours"])["ratio"]
        figures["wait_share"] = statistics.median(waits["ours"][1:-1]) / statistics.median(times["ours"])
        figures |= {f"{name}_{key}": value for name, sizes in memory.items() for key, value in sizes.items()}
        if peak := peak_flops(setup.device):
            figures["mfu"] = _encoder_flops(ours) / statistics.median(times["ours"]) / peak
        target = {"small": ("ours_samples_per_s", ">=", 2600.0), "large": ("mfu", ">=", 0.5)}[preset] if setup.is_cuda else None
        results.append(Result("train", _name(args), figures, target if target and target[0] in figures else None))
        del ours, plain, loops, functions
    return results


def _our_loop(step: Step, folder: str) -> Iterator[float]:
    """Trains a step at each `next`; yields the seconds that it waited for its batch."""
    args, device = step.args, step.setup.device
    stream = CanvasStream(
        open_source(train_dir=folder), args.canvas_size, args.per_device_train_batch_size, num_workers=args.dataloader_num_workers
    )
    batches = DevicePrefetcher(iter(stream), device)
    while True:
        started = seconds(device)
        batch = next(batches)
        waited = seconds(device) - started
        step.train(step.renderer(batch.canvases, batch.sizes, batch.epochs, batch.keys))
        yield waited


def _plain_loop(step: PlainStep, paths: list[Path]) -> Iterator[float]:
    args, device = step.args, step.setup.device
    indices = np.random.default_rng(0).integers(0, len(paths), (10_000, args.per_device_train_batch_size)).tolist()
    loader = torch.utils.data.DataLoader(
        PlainViews(paths, step.renderer), batch_sampler=indices, num_workers=args.dataloader_num_workers, pin_memory=step.setup.is_cuda
    )
    batches = iter(loader)
    while True:
        started = seconds(device)
        views = [tensor.to(device, non_blocking=True) for tensor in next(batches)]
        waited = seconds(device) - started
        step.train(Views(*views, parameters=views[0].new_zeros(len(views[0]), 1)))
        yield waited


def _encoder_flops(step: Step) -> float:
    """Of the backbone and the feature head on both views, forward and backward; decoders, heads and rendering do not count."""
    pixels = torch.zeros(1, 3, step.args.image_size, step.args.image_size, device=step.setup.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step.module.model.eqcohvit(pixels)
    return 3.0 * 2 * step.args.per_device_train_batch_size * counter.get_total_flops()


def scaling(setup: Setup) -> list[Result]:
    """A step beside the base case, per sample: what more states, wider parts, other batches and images cost."""
    preset, batch_size, image_size = ("small", 128, 224) if setup.is_cuda else ("micro", 16, 64)
    base = _settings(preset, batch_size, image_size)
    changes: dict[str, dict[str, Any]] = {
        "base: K 2, d_equi 256, decoder_dim 64": {},
        "no reconstruction": {"recon_weight": 0.0},
        "K 1": {"num_intermediates": 1},
        "K 4": {"num_intermediates": 4},
        "d_equi 64": {"equivariant_dim": 64},
        "d_equi 448": {"equivariant_dim": 448},
        "decoder_dim 128": {"decoder_dim": 128},
        "batch x 2": {"per_device_train_batch_size": 2 * batch_size},
        "image side / 2": {"image_size": image_size // 2},
        "activation checkpointing": {"gradient_checkpointing": True},
    }
    steps: dict[str, Step] = {name: Step(dataclasses.replace(base, **change), setup) for name, change in changes.items()}
    steps["activation checkpointing"].module.model.eqcohvit.backbone.activation_checkpointing_enable()
    first = next(iter(steps))
    times = take_turns(steps, setup.device, setup.seconds)
    results = []
    for name, step in steps.items():
        size = step.args.per_device_train_batch_size
        per_sample = {key: [value / steps[key].args.per_device_train_batch_size for value in times[key]] for key in (name, first)}
        figures = {"ms_per_sample": 1000 * statistics.median(per_sample[name]), **paired_ratio(per_sample[name], per_sample[first])}
        figures |= {f"{key}_per_sample": value / size for key, value in peak_memory(step, setup.device).items()}
        results.append(Result("scaling", f"{_name(base)}: {name}", figures))
    return results


SUITES: dict[str, Callable[[Setup], list[Result]]] = {
    "inference": inference,
    "overhead": overhead,
    "data": data,
    "train": train,
    "scaling": scaling,
}


# ---------------------------------------------------------------------------------------------------------------------
# Photographs
# ---------------------------------------------------------------------------------------------------------------------


def photo(seed: int, width: int, height: int, image_format: str = "JPEG") -> bytes:
    """The content of an image file with the spectrum of a photograph (amplitude ~ 1 / frequency) and so about its size in bytes."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    fields = []
    for _ in range(4):  # three colours and what they have in common
        field = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((height, width))) / frequency, (height, width))
        fields.append(field / field.std())
    pixels = np.stack([45 * fields[3] + 18 * field + 120 for field in fields[:3]], axis=-1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, quality=90 if image_format == "JPEG" else 85)
    return buffer.getvalue()


def write_photos(folder: Path, count: int) -> list[Path]:
    """`count` JPEG files of 500 x 375 pixels, of 16 different pictures."""
    contents = [photo(seed, 500, 375) for seed in range(min(count, 16))]
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(contents[i % len(contents)])
    return paths
