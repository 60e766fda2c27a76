"""Linear read-outs of a path's parameters from each part's pooled features, fitted on drawn sprites and kept on
disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from controls import Choice, Control
from eqcohvit.data.sprites import render_sprites
from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter
from eqcohvit.evaluation.probes import standardize
from eqcohvit.transforms import TransformationPath, make_path
from walk import PARTS, SplitModel, Walk

_FIRST_SPRITE = 1 << 41  # sprites that neither pretraining nor the evaluation's probes see
_BATCH_SIZE = 64
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Probe:
    """Per part: `weights` (2 d, P) and `bias` (P,) on pooled features of (image, moved image - image), and `centre`
    (d,), their mean.

    r2: per part, the coefficient of determination of each parameter on sprites that were not fitted on. num_fitted: how
        many were.
    """

    weights: dict[str, torch.Tensor]
    bias: dict[str, torch.Tensor]
    centre: dict[str, torch.Tensor]
    r2: dict[str, list[float]]
    num_fitted: int

    def predict(self, part: str, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled features (T, d) of an image, first, and its moved versions -> parameters (T, P) of the motion from the
        first."""
        x = torch.cat([pooled[:1].expand_as(pooled), pooled - pooled[:1]], dim=-1)
        return x @ self.weights[part] + self.bias[part]


@dataclass(frozen=True)
class Reading:
    """One slider's true value at the end of the path, in its own units, what a part's read-out says along the path, and
    its R2."""

    control: Control
    true: float
    read: dict[str, list[float]]
    r2: dict[str, float]


def readings(choice: Choice, walk: Walk, probe: Probe) -> list[Reading]:
    """One reading for each slider of a transformation that the model was trained on."""
    predicted = {part: probe.predict(part, walk.pooled[part]) for part in PARTS}
    return [
        Reading(
            control=control,
            true=control.from_parameters(tuple(walk.parameters[span].tolist())),
            read={
                part: [control.from_parameters(tuple(row.tolist())) for row in predicted[part][:, span]]
                for part in PARTS
            },
            r2={part: sum(probe.r2[part][span]) / (span.stop - span.start) for part in PARTS},
        )
        for control, span in zip(choice.controls, choice.spans().values(), strict=True)
    ]


def num_pairs(side: int) -> int:
    """How many sprites a probe takes: fewer for large images, so that the first start of the page stays a matter of a
    minute."""
    return 2048 if side <= 128 else 512


def fit_probe(model: SplitModel, path: TransformationPath, count: int) -> Probe:
    """Half of `count` sprites fit the weights, a quarter chooses the ridge penalty, a quarter gives the R2."""
    generator = torch.Generator().manual_seed(0)
    parameters = path.sample(torch.rand(count, path.num_parameters, generator=generator)).parameters
    pooled: dict[str, list[torch.Tensor]] = {part: [] for part in PARTS}
    for rows in torch.arange(count).split(_BATCH_SIZE):
        sprites = render_sprites(_FIRST_SPRITE + rows.numpy().astype(np.int64), model.side).images
        images = torch.from_numpy(sprites).float() / 255
        features = model.encode(torch.cat([images, model.move(images, path, parameters[rows], 1.0)]))
        for part, tokens in features.items():
            pooled[part].append(model.pool(tokens).unflatten(0, (2, -1)))
    parts = {part: _fit_part(torch.cat(values, dim=1), parameters) for part, values in pooled.items()}
    columns = {
        name: {part: values[name] for part, values in parts.items()} for name in ("weights", "bias", "centre", "r2")
    }
    return Probe(**columns, num_fitted=count // 2)


def _fit_part(pooled: torch.Tensor, parameters: torch.Tensor) -> dict:
    """Pooled features (2, n, d) of images and moved images, parameters (n, P)."""
    first, moved = pooled.double()
    x, y = torch.cat([first, moved - first], dim=-1), parameters.double()
    fit, choose, test = x.split([len(x) // 2, len(x) // 4, len(x) - len(x) // 2 - len(x) // 4])
    fit_y, choose_y, test_y = y.split([len(fit), len(choose), len(test)])
    scaled, scaled_choose = standardize(fit, choose)
    std, mean_y = fit.std(dim=0).clamp_min(1e-6), fit_y.mean(dim=0)
    gram, target = scaled.T @ scaled / len(scaled), scaled.T @ (fit_y - mean_y) / len(scaled)

    def solve(penalty: float) -> torch.Tensor:
        return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), target)

    solutions = [solve(penalty) for penalty in _PENALTIES]
    best = max(solutions, key=lambda w: r2_per_parameter(scaled_choose @ w + mean_y, choose_y).mean())
    weights = best / std[:, None]
    bias = mean_y - fit.mean(dim=0) @ weights
    r2 = r2_per_parameter(test @ weights + bias, test_y).tolist()
    return {"weights": weights.float(), "bias": bias.float(), "centre": pooled[0].mean(dim=0), "r2": r2}


def cache_dir() -> Path:
    """Where probes and the stand-in model are kept: EQCOHVIT_CACHE, or a folder of the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqcohvit"
    return Path(os.environ.get("EQCOHVIT_CACHE") or default)


def load_probe(model: SplitModel, progress=print) -> Probe:
    """The probe of a model and the path that it was trained on; fitted where the cache has none for exactly these
    weights."""
    path, count = make_path(model.config.path), num_pairs(model.side)
    digest = hashlib.sha256(f"{path.name} {model.border} {count} {model.mean.tolist()} {model.std.tolist()} 1".encode())
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    file = cache_dir() / f"probe-{digest.hexdigest()[:16]}.safetensors"
    try:
        return _read(file)
    except (OSError, ValueError, KeyError, SafetensorError):  # none there, or a broken one
        pass
    progress(f"fitting the read-outs on {count} sprites, once for this model ...")
    started = time.perf_counter()
    probe = fit_probe(model, path, count)
    progress(f"read-outs fitted in {time.perf_counter() - started:.0f} s")
    try:
        _write(file, probe)
    except OSError as error:
        progress(f"the read-outs are not kept for the next start: {error}")
    return probe


def _write(file: Path, probe: Probe) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{part}": getattr(probe, name)[part].contiguous()
        for name in ("weights", "bias", "centre")
        for part in PARTS
    }
    temporary = file.with_name(f".{os.getpid()}.{file.name}")
    save_file(tensors, temporary, metadata={"r2": json.dumps(probe.r2), "num_fitted": str(probe.num_fitted)})
    temporary.replace(file)


def _read(file: Path) -> Probe:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    columns = {name: {part: tensors[f"{name}.{part}"] for part in PARTS} for name in ("weights", "bias", "centre")}
    return Probe(**columns, r2=json.loads(metadata["r2"]), num_fitted=int(metadata["num_fitted"]))
