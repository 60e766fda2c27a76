"""Sharded training: FSDP2 through Accelerate, with the numbers of unsharded training.

Weights, gradients, optimizer states and the teacher are sharded over the processes; a layer's weights are whole while
it computes. This file has what differs for the rest of a run. Unless stated otherwise, its functions also take modules
and tensors that are not sharded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate

if TYPE_CHECKING:  # a Space trains its stand-in without accelerate
    from accelerate import Accelerator

    from .pretrain_module import PretrainModule

_Result = TypeVar("_Result")


def set_defaults() -> None:
    """Set defaults of Accelerate that a user should not have to know; called before its `Accelerator` reads them."""
    from accelerate.utils import disable_fsdp_ram_efficient_loading

    # Accelerate's default makes one group of all weights, which would be whole on every process during the step.
    os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    # It would hand out all that the first process has read as shards, but centers and batch-norm statistics are whole.
    disable_fsdp_ram_efficient_loading()


def check_plugin(accelerator: Accelerator, peft: str | None = None) -> None:
    """Refuse options that would change the training, and leave precision to autocast, as without shards: losses and
    gradients are float32.

    Raises:
        ValueError: FSDP1, weights in the memory of the CPU, Accelerate's activation checkpointing, or adapters.
    """
    from accelerate.utils import DistributedType

    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError("expected FSDP2, got FSDP1: give accelerate launch --fsdp_version 2")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):  # losses and norms would lie on two devices
        raise ValueError("expected fsdp_offload_params false, got true")
    if plugin.activation_checkpointing:  # draws other random numbers when it computes a layer again
        raise ValueError(
            "expected fsdp_activation_checkpointing false, got true: give --gradient_checkpointing instead"
        )
    if peft is not None:  # a teacher shares the weights beside them, and two groups must not
        raise ValueError(f"peft={peft} leaves little to shard: expected a launch without --use_fsdp")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights of the module are sharded over the processes."""
    return isinstance(module, FSDPModule)


def connect(module: PretrainModule) -> None:
    """Let `with_weights` gather the weights of a module that was just sharded."""
    register_fsdp_forward_method(module, "call")


def with_weights(module: PretrainModule, function: Callable[[], _Result]) -> _Result:
    """`function()`, which may call the parts of the module; to be called by all processes, and all of them call the
    same parts."""
    result = module.call(function)
    if isinstance(module, FSDPModule):
        module.reshard()  # its own weights stay whole after a forward pass, for a backward pass that does not come
    return result


def fill_states(optimizer: Any) -> None:
    """Give weights that AdamW has not trained yet the state that it begins with; a sharded checkpoint must hold one of
    each weight."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if not optimizer.state[weight]:
                step = torch.zeros((), device=weight.device if group["fused"] else "cpu")
                moments = {name: torch.zeros_like(weight.detach()) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {"step": step, **moments}


def save_whole(module: nn.Module, path: Path) -> None:
    """Write all weights and buffers of a sharded module to one file, as in a checkpoint without shards; all processes
    call it."""
    state: dict[str, Any] = get_model_state_dict(
        module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if state:  # on the main process only
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_over_shards(values: torch.Tensor, like: DTensor) -> torch.Tensor:
    """Values of this process's part of `like`, summed up in place, over the processes that hold the other parts."""
    for dim, placement in enumerate(like.placements):
        if placement.is_shard():
            dist.all_reduce(values, group=like.device_mesh.get_group(dim))
    return values


def of_all_processes(names: list[str]) -> list[str]:
    """The names that any process has found, in the order of the first that has them; to be called by all."""
    found: list[list[str] | None] = [names]
    if dist.is_available() and dist.is_initialized():
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, names)
    return list(dict.fromkeys(name for part in found for name in part or ()))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the parts of all processes; to be called by all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def set_whole(target: torch.Tensor, values: torch.Tensor) -> None:
    """Set a tensor, in place, to values that all processes have whole: each takes its part."""
    if isinstance(target, DTensor):
        copies = [Replicate()] * target.device_mesh.ndim
        values = DTensor.from_local(values, target.device_mesh, copies, run_check=False).redistribute(
            placements=target.placements
        )
    target.copy_(values)
