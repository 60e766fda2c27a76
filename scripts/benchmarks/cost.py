"""What a pretraining step costs on a GPU, without a GPU: the step runs on meta tensors, and every operation is counted.

The time of an operation is max(FLOP / 600 T, bytes / 3.5 TB/s), about what an H200 reaches in bf16. It leaves out the
launches, which hide behind the work only while there is enough of it. Compare ratios, not times.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_model, build_module, build_renderer
from eqcohvit.training.optim import clip_gradients
from eqcohvit.training.pretrain_module import PretrainModule
from eqcohvit.training.schedules import step_values
from eqcohvit.transforms import Views

from .fusion import Fusion

FLOP_PER_SECOND = 600e12
BYTES_PER_SECOND = 3.5e12
PHASES = ("render", "student", "local", "teacher", "decoders", "objective", "backward", "optimizer")

_aten = torch.ops.aten
# They launch nothing: they only make a tensor object, or memory without a value.
_FREE = {
    _aten._unsafe_view.default, _aten.detach.default, _aten.lift_fresh.default, _aten.empty.memory_format,
    _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default, _aten.new_empty_strided.default,
}  # fmt: skip
# What autocast runs in bf16; everything else keeps the precision of its inputs.
_IN_BF16 = {
    F.linear, F.conv2d, torch.conv2d, torch.bmm, torch.einsum, torch.matmul, torch.Tensor.matmul,
    torch.Tensor.__matmul__,
}  # fmt: skip


@dataclass
class Cost:
    """FLOP, bytes moved, launches and seconds by the roofline."""

    flop: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    seconds: float = 0.0

    def add(self, flop: float, moved: float) -> None:
        """Count one operation."""
        self.flop += flop
        self.bytes += moved
        self.launches += 1
        self.seconds += max(flop / FLOP_PER_SECOND, moved / BYTES_PER_SECOND)


@dataclass
class StepCost:
    """The cost of a step by phase, the bytes kept for the backward pass, and the compiled rendering's cost."""

    phases: dict[str, Cost]
    kept_bytes: int
    compiled_rendering: Cost
    draw_launches: int

    @property
    def total(self) -> Cost:
        """The phases together, with compiled rendering, as training runs on a GPU."""
        costs = [cost for name, cost in self.phases.items() if name != "render"] + [self.compiled_rendering]
        return Cost(*(sum(getattr(cost, name) for cost in costs) for name in ("flop", "bytes", "launches", "seconds")))

    @property
    def rendering_share(self) -> float:
        """Seconds of the compiled rendering as a fraction of the step."""
        return self.compiled_rendering.seconds / self.total.seconds

    def figures(self) -> dict[str, float]:
        """As one line of a table."""
        total = self.total
        phases = {f"{name}_ms": 1000 * cost.seconds for name, cost in self.phases.items() if cost.launches}
        whole = {"total_ms": 1000 * total.seconds, "tflop": total.flop / 1e12, "gb": total.bytes / 1e9}
        whole |= {"launches": total.launches, "kept_gib": self.kept_bytes / 2**30}
        rendering = {"render_launches": self.phases["render"].launches, "draw_launches": self.draw_launches}
        rendering |= {"compiled_render_ms": 1000 * self.compiled_rendering.seconds}
        rendering |= {"compiled_kernels": self.compiled_rendering.launches, "render_share": self.rendering_share}
        return {**phases, **rendering, **whole}


def moved_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements that differ in memory: an expanded dimension counts once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    return math.prod(sizes) * tensor.element_size()


class Counter(TorchDispatchMode):
    """Adds each operation to the cost of the current phase."""

    def __init__(self) -> None:
        super().__init__()
        self.phases = {name: Cost() for name in PHASES}
        self.phase = "objective"
        self.fusion: Fusion | None = None  # follows the operations while the views are rendered

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Operations inside belong to `phase`."""
        before = self.phase
        self.phase = phase
        yield
        self.phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        is_free = is_view or func in _FREE
        count = flop_registry.get(func._overloadpacket)
        flop = count(*args, **(kwargs or {}), out_val=out) if count else 0
        if self.fusion is not None:
            self.fusion.follow(func._overloadpacket, flop, inputs, outputs, is_free)
        if not is_free:
            self.phases[self.phase].add(flop, sum(map(moved_bytes, inputs + outputs)))
        return out


class _Attention(torch.autograd.Function):
    """Attention in one kernel, forward and backward, as a GPU does it: q, k, v (B, heads, N, d)."""

    @staticmethod
    def forward(
        ctx: Any, counter: Counter, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        out = query.new_empty(query.shape)
        ctx.counter = counter
        ctx.save_for_backward(query, key, value, out)
        counter.phases[counter.phase].add(_attention_flop(query), 4 * moved_bytes(out))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query = ctx.saved_tensors[0]
        ctx.counter.phases[ctx.counter.phase].add(2.5 * _attention_flop(query), 8 * moved_bytes(query))
        return None, *(query.new_empty(query.shape) for _ in range(3))


def _attention_flop(query: torch.Tensor) -> float:
    batch, heads, tokens, dim = query.shape
    return 4.0 * batch * heads * tokens * tokens * dim


class Precision(TorchFunctionMode):
    """bf16 as autocast chooses it, which meta tensors do not have; weights are cast once in a forward pass."""

    def __init__(self, counter: Counter):
        super().__init__()
        self.counter = counter
        self.enabled = False
        self._cast: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = [self._half(tensor) for tensor in args[:3]]
            return _Attention.apply(self.counter, query, key, value)
        if self.enabled and func in _IN_BF16:
            args = tuple(self._half(arg) for arg in args)
            kwargs = {name: self._half(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _half(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or not self.enabled:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(torch.bfloat16)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(torch.bfloat16)
        return self._cast[id(value)]

    def autocast(
        self, device_type: str, *_: Any, enabled: bool = True, **__: Any
    ) -> contextlib.AbstractContextManager[None]:
        """Stands in for `torch.autocast`."""
        return self._set(enabled)

    @contextlib.contextmanager
    def _set(self, enabled: bool) -> Iterator[None]:
        before = self.enabled
        self.enabled = enabled
        yield
        self.enabled = before


def step_cost(args: PretrainArguments) -> StepCost:
    """Count a step of these settings on one GPU."""
    with torch.device("meta"):
        module = build_module(args, build_model(args)).train()
    counter = Counter()
    precision = Precision(counter)
    _name_phases(module, counter, args)
    views, rendering, draw_launches = _render(args, counter)
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with mock.patch.object(torch, "autocast", precision.autocast), counter:
        with hooks, precision, torch.autocast("cuda"):
            loss = module(views, step_values(1, args))["loss"]
        kept_bytes = sum(kept.values())
        with counter.within("backward"):
            loss.backward()
        with counter.within("optimizer"):
            _update(module, counter, args)
    return StepCost(counter.phases, kept_bytes, rendering, draw_launches)


def _name_phases(module: PretrainModule, counter: Counter, args: PretrainArguments) -> None:
    """Let the operations of each part of the module count as its phase."""
    local_size = args.local_crops_size if args.local_crops_number else None

    def phase_of_images(pixel_values: torch.Tensor) -> str:
        return "local" if pixel_values.shape[-1] == local_size else "student"

    _count_as(module.model.eqcohvit.backbone, counter, phase_of_images)
    _count_as(module.model.decoders, counter, lambda *_: "decoders")
    if module.teacher is not None:
        _count_as(module.teacher.encoder.backbone, counter, lambda *_: "teacher")


def _count_as(part: torch.nn.Module, counter: Counter, phase: Callable[..., str]) -> None:
    forward = part.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with counter.within(phase(*args)):
            return forward(*args, **kwargs)

    part.forward = counted


def _render(args: PretrainArguments, counter: Counter) -> tuple[Views, Cost, int]:
    """The views, an estimate of their compiled rendering, and the copies of what the host has drawn."""
    batch = args.per_device_train_batch_size
    renderer = build_renderer(args)
    keys = torch.arange(batch)
    sizes = torch.full((batch, 2), args.canvas_size)  # larger images are reduced to it, smaller ones cost less
    with torch.device("meta"):
        canvases = torch.zeros(batch, 3, args.canvas_size, args.canvas_size, dtype=torch.uint8)
    drawn = renderer.draw(sizes, keys, torch.zeros_like(keys), with_intermediates=args.recon_weight > 0)
    with counter, counter.within("render"), torch.no_grad():
        drawn = drawn.to(canvases.device)
        draw_launches = counter.phases["render"].launches
        counter.fusion = Fusion()
        views = renderer.render(canvases, drawn)
    outputs = [views.first, views.end, views.intermediates, views.local]
    compiled = Cost()
    for flop, moved in counter.fusion.kernels([tensor for tensor in outputs if tensor is not None]):
        compiled.add(flop, moved)
    counter.fusion = None
    return views, compiled, draw_launches


def _update(module: PretrainModule, counter: Counter, args: PretrainArguments) -> None:
    """Clip, update by fused AdamW, move the teacher."""
    clip_gradients(module.parts(), args.clip_gradients, args.max_grad_norm)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.grad is not None)
    # AdamW reads a weight, its gradient and both moments, and writes all but the gradient; all float32.
    counter.phases["optimizer"].add(12 * trained, 7 * 4 * trained)
    module.after_step(0, step_values(1, args).teacher_momentum)
