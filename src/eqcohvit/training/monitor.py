"""The visible parts of a run: metrics.jsonl, progress lines with a bar, and pictures of reconstructions."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from ..evaluation.pictures import save_sheet
from ..files import write_text_whole
from .output import fitted
from .pretrain_module import PretrainModule

_CELL = 112  # least side of a picture in pixels: the titles need the width


class MetricsLog:
    """Appends one JSON object per logged step to a file; entries after `resume_step` are dropped first."""

    def __init__(self, path: Path, resume_step: int = 0):
        self.path = path
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text_whole(path, "".join(line + "\n" for line in lines if _is_until(line, resume_step)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole lines of a metrics file, in their order; none if the file is missing."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if _is_until(line, sys.maxsize)]


def _is_until(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError):  # cut short when the run was killed
        return False


class Progress:
    """Means of the loss terms between two progress lines, speed, and the share of time that the loop waits for data.

    With `state` from a checkpoint between two lines, the next line has the same means as in an uninterrupted run.
    """

    def __init__(
        self,
        max_steps: int,
        samples_per_step: int,
        state: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.max_steps = max_steps
        self.samples_per_step = samples_per_step
        self._restart()
        if state is not None:
            self.counts = state["counts"]
            self.sums = {name: torch.tensor(value, device=device) for name, value in state["sums"].items()}

    def _restart(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.waited = 0.0
        self.since = time.perf_counter()

    def add_wait(self, seconds: float) -> None:
        """Count time that was spent waiting for data."""
        self.waited += seconds

    def add_terms(self, terms: dict[str, torch.Tensor]) -> None:
        """Add one batch's terms, without waiting for the device; a term counts in the batches that have it."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def state(self) -> dict[str, Any]:
        """The sums since the last line, JSON-able and exact."""
        return {"counts": dict(self.counts), "sums": {name: value.item() for name, value in self.sums.items()}}

    def means(self) -> dict[str, torch.Tensor]:
        """Mean of each term since the last line, over the batches that have it."""
        return {name: value / self.counts[name] for name, value in self.sums.items()}

    def line(self, step: int, means: dict[str, float], num_steps: int, shown: str = "") -> tuple[str, dict[str, float]]:
        """The progress line after `step`, `num_steps` after the last one, and its figures; starts the next interval.

        The line has the loss, `shown`, speed and remaining time, in at most 100 columns; the figures have all means.
        """
        seconds = time.perf_counter() - self.since
        samples_per_second = num_steps * self.samples_per_step / seconds
        wait_share = self.waited / seconds
        remaining = duration(seconds / num_steps * (self.max_steps - step))
        place = f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}"
        speed = f"{samples_per_second:.0f} samples/s"
        parts = [place, f"loss {means['loss']:.4g}", shown, speed, f"wait {wait_share:.0%}", f"ETA {remaining}"]
        self._restart()
        return "  ".join(filter(None, parts)), {
            **means,
            "samples_per_second": samples_per_second,
            "data_wait_share": wait_share,
        }


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds (4:05), or as hours and minutes (12 h 03)."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


class StepBar:
    """A bar of the finished steps on a terminal; lines that are printed through `say` stay above it. A log
    has only the lines."""

    def __init__(self, max_steps: int, step: int, is_main: bool):
        shows = is_main and sys.stderr.isatty()
        self.is_main = is_main
        self.bar = tqdm(total=max_steps, initial=step, unit="step", leave=False, dynamic_ncols=True, disable=not shows)

    def advance(self) -> None:
        """One more step is done."""
        self.bar.update()

    def say(self, text: str) -> None:
        """Print a text, on the main process only."""
        if self.is_main:
            self.bar.write(fitted(text))
            sys.stdout.flush()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


def describe_size(module: PretrainModule) -> str:
    """The size of the encoder, how much of the whole module is trained, and the memory that this takes without
    activations."""
    encoder = sum(p.numel() for name, p in module.model.eqcohvit.named_parameters() if ".lora_" not in name)
    trained = [p for p in module.parameters() if p.requires_grad]
    weights = sum(p.nbytes for p in module.parameters())
    mebibytes = (weights + 3 * sum(p.nbytes for p in trained)) / 2**20  # a gradient and AdamW's two moments for each
    return (
        f"encoder of {encoder / 1e6:.2f} M parameters, "
        f"{sum(p.numel() for p in trained) / 1e6:.2f} M trained with heads and decoders "
        f"({mebibytes:.0f} MiB with optimizer)"
    )


def save_samples(
    path: Path,
    first: torch.Tensor,
    end: torch.Tensor,
    intermediates: torch.Tensor,
    reconstructions: torch.Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fractions: list[float],
) -> None:
    """Write a PNG with a row per sample: v1, v2, then each target u_k beside its reconstruction.

    first, end (B, 3, H, H); intermediates, reconstructions (B, K, 3, H, H); all in normalized pixels.
    """
    columns = [first, end]
    titles = ["view 1", "view 2"]
    for k, t in enumerate(fractions):
        columns += [intermediates[:, k], reconstructions[:, k]]
        titles += [f"target t={t:.2f}", "reconstruction"]
    images = torch.stack(columns, dim=1).float().cpu()
    images = (images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]).clamp(0, 1)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    side = pixels.shape[2]
    cell = side * -(-_CELL // side)
    save_sheet(
        path,
        titles,
        [[Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST) for image in row] for row in pixels],
    )
