"""Read-outs of a path's parameters from each part's pooled features, fitted on random scenes and kept on disk.

    python space_app/probe.py --model FOLDER_OR_REPO

This fits the read-outs of a model and stores them in space_app/read_outs, so that the page starts at once.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter
from eqcohvit.transforms import TransformationPath, make_path
from scenes import draw_scene, find_examples
from walk import PARTS, SplitModel, read_picture, views

SHIPPED = Path(__file__).parent / "read_outs"
MOVES = 4
TEST_MOVES = 64  # of each scene, of each picture in the test
STEPS = 1000
_WIDTH = 128
_BATCH = 32  # pictures encoded at a time
_VERSION = "2"
_BORDERS = {False: "strict", True: "black"}
_LAYERS = ("0", "3", "6")  # of the network, those with weights


@dataclass(frozen=True)
class Probe:
    """One network for each part and kind of border.

    Args:
        tensors: by "border.part.name": weights of the network, mean and std of its inputs, and the part's center.
        limits: (P, 2) of the parameters; read-outs stay between them.
        r2: by "border.part", of each parameter, on the example pictures, which no network was fitted on.
        error: the mean absolute error likewise, in units of the path.
        num_tested: pairs of views that r2 and error come from.
    """

    tensors: dict[str, torch.Tensor]
    limits: torch.Tensor
    r2: dict[str, list[float]]
    error: dict[str, list[float]]
    num_tested: int

    def read(self, part: str, pooled: torch.Tensor, black: bool = False) -> torch.Tensor:
        """Pooled features (T, d) of an image, first, and its moved versions -> parameters (T, P) of the motion from the
        first."""
        name = f"{_BORDERS[black]}.{part}"
        return _apply(_own(self.tensors, name), _inputs(pooled[:1].expand_as(pooled), pooled), self.limits)

    def center(self, part: str, black: bool = False) -> torch.Tensor:
        """(d,), the mean of the part's pooled features."""
        return self.tensors[f"{_BORDERS[black]}.{part}.center"]

    def r2_of(self, part: str, index: int, black: bool = False) -> float:
        return self.r2[f"{_BORDERS[black]}.{part}"][index]

    def error_of(self, part: str, index: int, black: bool = False) -> float:
        return self.error[f"{_BORDERS[black]}.{part}"][index]


def num_scenes(side: int) -> int:
    """How many scenes a probe takes. Large images get fewer, so that a first start takes minutes, not hours."""
    return 1500 if side <= 64 else 600 if side <= 128 else 240


def fit_probe(
    model: SplitModel, path: TransformationPath, count: int, pictures: list[Image.Image], steps: int = STEPS
) -> Probe:
    """Fit on `count` random scenes with `MOVES` moves each, and test on other pictures with `TEST_MOVES` moves each."""
    limits = torch.tensor(path.limits)
    parameters = _draw(path, count * MOVES, seed=0)
    scenes = (draw_scene(index, 3 * model.side) for index in range(count))
    tensors = {}
    for name, (first, moved) in _encode(model, path, parameters, scenes, MOVES).items():
        own = _fit(_inputs(first, moved), parameters, limits, steps)
        tensors |= {f"{name}.{key}": value for key, value in own.items()}
        tensors[f"{name}.center"] = first.mean(dim=0)
    return with_figures(model, path, tensors, pictures)


def with_figures(
    model: SplitModel, path: TransformationPath, tensors: dict[str, torch.Tensor], pictures: list[Image.Image]
) -> Probe:
    """The probe with these tensors, and its figures on pictures that it was not fitted on."""
    limits = torch.tensor(path.limits)
    parameters = _draw(path, len(pictures) * TEST_MOVES, seed=1)
    r2 = {}
    error = {}
    for name, (first, moved) in _encode(model, path, parameters, iter(pictures), TEST_MOVES).items():
        read = _apply(_own(tensors, name), _inputs(first, moved), limits)
        r2[name] = r2_per_parameter(read, parameters).tolist()
        error[name] = (read - parameters).abs().mean(dim=0).tolist()
    return Probe(tensors, limits, r2, error, len(parameters))


def _draw(path: TransformationPath, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return path.sample(torch.rand(count, path.num_parameters, generator=generator)).parameters


def _own(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Those of one network."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _encode(
    model: SplitModel, path: TransformationPath, parameters: torch.Tensor, pictures: Iterator[Image.Image], moves: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pooled features of N pictures and of their moved versions, both (N * moves, d), by "border.part".

    parameters: (N * moves, P).
    """
    found: dict[str, list[torch.Tensor]] = {f"{border}.{part}": [] for border in _BORDERS.values() for part in PARTS}
    still = torch.zeros(1, path.num_parameters)
    for rows in parameters.split(_BATCH * moves):
        number = len(rows) // moves
        canvas = model.canvas(list(itertools.islice(pictures, number)), path)
        first = views(canvas, path, still.expand(number, -1), 0.0, model.side)
        moved = [views(canvas, path, rows, 1.0, model.side, black) for black in _BORDERS]
        pooled = model.pooled(torch.cat([first, *moved], dim=1).flatten(0, 1))
        for part, values in pooled.items():
            start, *ends = values.unflatten(0, (number, -1)).split([1, moves, moves], dim=1)
            for border, end in zip(_BORDERS.values(), ends, strict=True):
                found[f"{border}.{part}"].append(torch.cat([start, end], dim=1))
    whole = {name: torch.cat(values) for name, values in found.items()}
    return {
        name: (values[:, :1].expand(-1, moves, -1).flatten(0, 1), values[:, 1:].flatten(0, 1))
        for name, values in whole.items()
    }


def _inputs(first: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    return torch.cat([first, moved - first], dim=-1)


def _network(in_dim: int, out_dim: int) -> nn.Sequential:
    hidden = [nn.GELU(), nn.Dropout(0.3)]
    return nn.Sequential(
        nn.Linear(in_dim, _WIDTH), *hidden, nn.Linear(_WIDTH, _WIDTH), *hidden, nn.Linear(_WIDTH, out_dim)
    )


def _fit(inputs: torch.Tensor, parameters: torch.Tensor, limits: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """Weights of a network with two hidden layers, (n, 2 d) -> (n, P), by AdamW on the mean squared error."""
    mean = inputs.mean(dim=0)
    std = inputs.std(dim=0).clamp_min(1e-6)
    x = (inputs - mean) / std
    y = (parameters - limits.mean(dim=1)) / _half_range(limits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _network(x.shape[1], y.shape[1])
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (256,))
            loss = F.mse_loss(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return {"mean": mean, "std": std, **{name: value.detach() for name, value in network.state_dict().items()}}


@torch.inference_mode()
def _apply(own: dict[str, torch.Tensor], inputs: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Parameters (n, P) that a network reads from inputs (n, 2 d)."""
    x = ((inputs - own["mean"]) / own["std"]).clamp(-6, 6)  # an unusual picture does not throw it off
    for layer in _LAYERS:
        x = F.linear(x, own[f"{layer}.weight"], own[f"{layer}.bias"])
        if layer != _LAYERS[-1]:
            x = F.gelu(x)
    read = x * _half_range(limits) + limits.mean(dim=1)
    return torch.minimum(torch.maximum(read, limits[:, 0]), limits[:, 1])


def _half_range(limits: torch.Tensor) -> torch.Tensor:
    return (limits[:, 1] - limits[:, 0]) / 2


# ---------------------------------------------------------------------------------------------------------------- files


def cache_dir() -> Path:
    """Where read-outs are kept: EQCOHVIT_CACHE, or a folder of the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqcohvit"
    return Path(os.environ.get("EQCOHVIT_CACHE") or default)


def file_name(model: SplitModel) -> str:
    """A name for the read-outs of exactly these weights and this path."""
    text = f"{_VERSION} {model.config.path} {model.mean.tolist()} {model.std.tolist()}"
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return f"{digest.hexdigest()[:16]}.safetensors"


def load_probe(model: SplitModel, progress=print) -> Probe:
    """The read-outs of a model: those that come with the page, those in the cache, or new ones."""
    name = file_name(model)
    for folder in (SHIPPED, cache_dir()):
        try:
            return _read(folder / name)
        except (OSError, ValueError, KeyError, SafetensorError):  # missing or broken
            continue
    path = make_path(model.config.path)
    count = num_scenes(model.side)
    progress(f"fitting the read-outs on {count} drawn scenes, once for this model ...")
    started = time.perf_counter()
    probe = fit_probe(model, path, count, _examples())
    progress(f"read-outs fitted in {time.perf_counter() - started:.0f} s")
    try:
        write_probe(cache_dir() / name, probe)
    except OSError as error:
        progress(f"the read-outs are not kept for the next start: {error}")
    return probe


def write_probe(file: Path, probe: Probe) -> None:
    """Write the read-outs in half precision; readers never see half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{os.getpid()}.{file.name}")
    tensors = {name: value.half().contiguous() for name, value in probe.tensors.items()}
    figures = {"r2": probe.r2, "error": probe.error, "num_tested": probe.num_tested}
    save_file({**tensors, "limits": probe.limits}, temporary, metadata={"figures": json.dumps(figures)})
    temporary.replace(file)


def _examples() -> list[Image.Image]:
    return [read_picture(file) for file in find_examples().values()]


def _read(file: Path) -> Probe:
    with safe_open(file, framework="pt") as opened:
        figures = json.loads(opened.metadata()["figures"])
    tensors = load_file(file)
    limits = tensors.pop("limits")
    return Probe({name: value.float() for name, value in tensors.items()}, limits, **figures)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="EqCohViT folder or repository with decoders")
    parser.add_argument("--output_dir", type=Path, default=SHIPPED, help="default: space_app/read_outs")
    parser.add_argument("--scenes", type=int, help="number of scenes to fit on; default: by the model's image size")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each fit; default: {STEPS}")
    args = parser.parse_args(argv)
    model = SplitModel(args.model)
    path = make_path(model.config.path)
    probe = fit_probe(model, path, args.scenes or num_scenes(model.side), _examples(), args.steps)
    write_probe(args.output_dir / file_name(model), probe)
    for name, values in probe.r2.items():
        print(
            name, "R2", [round(value, 2) for value in values], "error", [round(value, 4) for value in probe.error[name]]
        )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
