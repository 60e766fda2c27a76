"""An estimate of the kernels that a compiler makes of a sequence of operations, without compiling them.

Operations element by element, and gathers of what is in memory, are computed inside of the kernel that needs their
result. Products, reductions and interpolation write their results to memory, and what a product reads must be there. A
reduction and an interpolation compute their input themselves: Inductor of torch 2.13 makes one kernel of a conversion,
`grid_sample` and what follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_REDUCTIONS = {
    _aten.sum, _aten.mean, _aten.amin, _aten.amax, _aten.argmax, _aten.all, _aten.any, _aten.max, _aten.min,
    _aten.grid_sampler_2d,
}  # fmt: skip
_GATHERS = {_aten.index_select, _aten.index, _aten.gather}


class Fusion:
    """Follows operations on tensors; `kernels` then gives the FLOP and the bytes of each kernel."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []  # kept, so that no id is used twice
        self._root: dict[int, int] = {}  # of each tensor: the tensor whose values it shows
        self._sources: dict[int, frozenset[int]] = {}  # of each root: the roots in memory that it is computed from
        self._bytes: dict[int, int] = {}
        self._kernels: list[tuple[float, float]] = []

    def follow(
        self, packet: Any, flop: float, inputs: list[torch.Tensor], outputs: list[torch.Tensor], is_view: bool
    ) -> None:
        """Take in one operation that has run; the result of a view shares the memory of its input."""
        self._tensors += [*inputs, *outputs]
        for tensor in inputs:
            if id(tensor) not in self._root:  # an input of the whole sequence
                root = self._add(tensor, frozenset())
                self._sources[root] = frozenset([root])
        roots = [self._root[id(tensor)] for tensor in inputs]
        if is_view and roots:
            for output in outputs:
                self._root[id(output)] = roots[0]
            return
        if packet in _GATHERS:
            for root in roots:
                self._write(root)
        sources = frozenset().union(*(self._sources[root] for root in roots))
        for output in outputs:
            self._add(output, sources)
        if packet in flop_registry or packet is _aten.sort:
            for root in roots:
                self._write(root)
            self._launch(flop, frozenset(roots), outputs)
        elif packet in _REDUCTIONS:
            self._launch(flop, sources, outputs)

    def kernels(self, outputs: list[torch.Tensor]) -> list[tuple[float, float]]:
        """(FLOP, bytes) of each kernel, after writing the outputs to memory."""
        for output in outputs:
            self._write(self._root[id(output)])
        return self._kernels

    def _add(self, tensor: torch.Tensor, sources: frozenset[int]) -> int:
        root = id(tensor)
        if root in self._root:  # changed in place: from here on another tensor
            root = -len(self._tensors)
        self._root[id(tensor)] = root
        self._sources[root] = sources
        self._bytes[root] = tensor.numel() * tensor.element_size()
        return root

    def _write(self, root: int) -> None:
        sources = self._sources[root]
        if sources != frozenset([root]):
            self._kernels.append((0.0, sum(self._bytes[source] for source in sources) + self._bytes[root]))
            self._sources[root] = frozenset([root])

    def _launch(self, flop: float, sources: frozenset[int], outputs: list[torch.Tensor]) -> None:
        moved = sum(self._bytes[source] for source in sources)
        for output in outputs:
            root = self._root[id(output)]
            self._sources[root] = frozenset([root])
            moved += self._bytes[root]
        self._kernels.append((flop, moved))
