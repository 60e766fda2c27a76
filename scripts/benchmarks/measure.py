"""How a benchmark measures: functions take turns, and ratios are formed round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from eqcohvit.evaluation.results import format_table

MIN_ROUNDS = 5

# Dense bf16 peak in FLOP/s by a part of the device's name; where a device is not listed, no utilisation is given.
# https://www.nvidia.com/en-us/data-center/h100/ (SXM), https://www.nvidia.com/en-us/data-center/h200/,
# https://www.nvidia.com/en-us/data-center/a100/
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class Setup:
    """Where and how to measure.

    Args:
        device: the one device.
        quick: smaller models, so that a suite ends within 60 s on two CPU cores.
        seconds: time of one suite's measurements, without building and warm-up.
        compile: whether our step runs through `torch.compile`.
        profile: whether a case also prints its most expensive operations.
        peers: folder with the official repositories, for the suite that compares with them.
    """

    device: torch.device
    quick: bool
    seconds: float
    compile: bool = False
    profile: bool = False
    peers: Path | None = None

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> torch.autocast:
        """bf16 as in pretraining on a GPU, float32 on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_cuda)


@dataclass(frozen=True)
class Result:
    """One line of a suite's table. `target` names the figure that has one, with the relation and the limit: ("ratio",
    "<=", 1.03).

    A case that could not be measured has no figures, and its `failure` says why.
    """

    suite: str
    case: str
    figures: dict[str, float]
    target: tuple[str, str, float] | None = None
    failure: str = ""

    @property
    def verdict(self) -> str:
        """`ratio <= 1.03: met`, `ratio <= 1.03: missed`, `failed: why`, or nothing."""
        if self.failure:
            return f"failed: {self.failure}"
        if self.target is None:
            return ""
        name, relation, limit = self.target
        met = self.figures[name] <= limit if relation == "<=" else self.figures[name] >= limit
        return f"{name} {relation} {limit:g}: {'met' if met else 'missed'}"


@dataclass(frozen=True)
class Case:
    """What gives one line of a suite's table, or several from one measurement; nothing is built before `measure` is
    called."""

    name: str
    measure: Callable[[], list[Result]]


def measured(suite: str, case: Case) -> list[Result]:
    """The results of a case. One that fails, for want of memory or for any other reason, gives a line that says so."""
    try:
        return case.measure()
    except Exception as error:
        failure = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    gc.collect()  # what the traceback has held
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [Result(suite, case.name, {}, failure=failure)]


def take_turns(
    functions: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Call the functions in turns, in a new order each round, until `seconds` have passed: seconds per call, one number
    per round.

    What slows the machine for a while then slows all alike. The first call of each is not counted.
    """
    names, times = list(functions), {name: [] for name in functions}
    deadline, rounds = float("inf"), -1
    while rounds < MIN_ROUNDS or time.perf_counter() < deadline:
        for name in names:
            times[name].append(timed(functions[name], device))
        if rounds == -1:
            deadline = time.perf_counter() + seconds
        names = names[1:] + names[:1]
        rounds += 1
    return {name: values[1:] for name, values in times.items()}


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with all that the device has to do for it."""
    synchronize(device)
    started = clock(device)
    function()
    synchronize(device)
    return clock(device) - started


def clock(device: torch.device) -> float:
    """The clock. On a CPU it is processor time, added up over the threads, so that other programs on the machine do not
    count."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def synchronize(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(times: dict[str, list[float]], per: int = 1) -> dict[str, float]:
    """Median of each function's times, divided by `per`, as figures `<name>_ms`."""
    return {f"{name}_ms": 1000 * statistics.median(values) / per for name, values in times.items()}


def paired_ratio(times: list[float], reference: list[float]) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios."""
    ratios = [ours / theirs for ours, theirs in zip(times, reference, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"ratio": median, "ratio_q1": low, "ratio_q3": high}


def peak_memory(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """What a call with a backward pass needs: on a GPU the peak of allocated memory, on a CPU the tensors kept for the
    backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return {"peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return {"kept_mib": sum(kept.values()) / 2**20}


def print_operations(function: Callable[[], object], device: torch.device, number: int = 15) -> None:
    """The most expensive operations of a call: total milliseconds on the device, and how often each was called."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    function()
    with profile(activities=activities) as profiler:
        timed(function, device)
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    operations = sorted(profiler.key_averages(), key=lambda event: getattr(event, kind), reverse=True)
    total = sum(getattr(event, kind) for event in operations) or 1.0
    rows = [["operation", "ms", "share", "calls"]]
    for event in operations[:number]:
        spent = getattr(event, kind)
        rows.append([event.key[:60], f"{spent / 1000:.2f}", f"{spent / total:.1%}", str(event.count)])
    print(format_table(rows), flush=True)


def peak_flops(device: torch.device) -> float | None:
    """Of the device in FLOP/s, where it is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
