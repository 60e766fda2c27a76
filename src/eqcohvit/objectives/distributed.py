"""The collective operations that losses need; in one process they are the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over the processes as a new tensor: autograd may hand one and the same gradient to several functions."""
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> torch.Tensor:
        return _summed(gradients[0]).chunk(world_size())[dist.get_rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> torch.Tensor:
        return _summed(gradients[0])


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) of each process -> (world * B, ...) in the order of the ranks.

    The gradient is the sum over all processes' losses; DDP then averages it, so that a loss that every process computes
    on the gathered batch has the same gradient as one process on the whole batch.
    """
    return _Gather.apply(tensor) if world_size() > 1 else tensor


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, with its exact gradient."""
    return _Sum.apply(tensor) if world_size() > 1 else tensor


@torch.no_grad()
def all_max(tensor: torch.Tensor) -> torch.Tensor:
    """Elementwise maximum over the processes, without gradient."""
    if world_size() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor
