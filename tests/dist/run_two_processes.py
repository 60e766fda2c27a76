"""Started by test_two_processes.py through torchrun: a step of two processes at half the batch, written by rank 0."""

import sys
import warnings
from dataclasses import fields

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer

from eqcohvit import EqCohViTConfig
from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.objectives.distributed import gather
from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_module
from eqcohvit.training.pretrain_module import PretrainModule
from eqcohvit.training.schedules import StepValues
from eqcohvit.transforms import Views

# An objective, with further options after a colon, and with the separation of the parts.
RUNS = [
    *OBJECTIVES,
    "dinov2:targets=sinkhorn,heads=separate,norm_last_layer=true",
    "vicreg separated",
    "ibot separated",
]
# The gradients are up to 13, with the rounding of float32. A larger learning rate would carry that rounding into the
# feature head, and the separation scales it up.
VALUES = StepValues(1e-3, 1e-3, 0.0, teacher_momentum=0.5, teacher_temperature=0.05)


def make_module(run: str) -> PretrainModule:
    """A tiny module with the objective and the reconstruction; the same in every process."""
    torch.manual_seed(0)
    objective, _, more = run.removesuffix(" separated").partition(":")
    options = ""
    if OBJECTIVES[objective].uses_teacher:  # up to all patches may be hidden
        options = f"num_prototypes=10,bottleneck_dim=6,mask_probability=1,mask_ratio=0.6,mask_ratio_variance=0.3,{more}"
    args = PretrainArguments(objective=objective, objective_options=options, recon_weight=2.0, projector_dim=16)
    args.invariant_rank = 3 if run.endswith(" separated") else 0
    backbone = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "use_mask_token": bool(options),
    }
    config = EqCohViTConfig.from_preset(
        "micro", 8, 4, backbone_kwargs=backbone, feature_dim=12, equivariant_dim=6, decoder_dim=16
    )
    return build_module(args, EqCohViTForPreTraining(config))


def make_views(run: str) -> Views:
    """Views of 8 images, with what the objective needs.

    The separation inverts the covariance of 16-dimensional tokens, which 8 images leave nearly singular. It gets 32.
    """
    count = 32 if run.endswith(" separated") else 8
    objective = run.removesuffix(" separated").partition(":")[0]
    generator = torch.Generator().manual_seed(1)
    first, end, targets, local = (
        torch.randn(count, *shape, generator=generator) for shape in ((3, 8, 8), (3, 8, 8), (2, 3, 8, 8), (2, 3, 4, 4))
    )
    hidden = torch.tensor([0, 1, 2, 0, 2, 2, 1, 2]).repeat(count // 8)
    masks = torch.arange(4).expand(count, 2, 4) < hidden.view(-1, 1, 1)
    return Views(
        first,
        end,
        targets,
        torch.rand(count, 1, generator=generator) - 0.5,
        local if OBJECTIVES[objective].uses_local_crops else None,
        masks if OBJECTIVES[objective].uses_teacher else None,
    )


def part_of(views: Views, rank: int) -> Views:
    """The half of the batch that belongs to a rank."""
    values = (getattr(views, field.name) for field in fields(Views))
    return Views(*(value if value is None else value.chunk(2)[rank] for value in values))


def train_step(module: torch.nn.Module, views: Views) -> dict:
    """One step of plain gradient descent and of the teacher: loss, gradients, and state before and after."""
    own = getattr(module, "module", module)
    loss = module(views, VALUES)["loss"]
    loss.backward()
    trained = {name: p for name, p in own.named_parameters() if p.requires_grad}
    gradients = {name: whole(p.grad).clone() for name, p in trained.items()}
    torch.optim.SGD(trained.values(), lr=VALUES.learning_rate).step()
    own.after_step(0, VALUES.teacher_momentum)
    state = {name: whole(value) for name, value in own.state_dict().items() if name not in trained}
    state["head"] = whole(own.model.eqcohvit.feature_head.weight.detach())  # the separation has restricted it
    return {"loss": loss.detach(), "gradients": gradients, "state": state}


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded(module: PretrainModule) -> PretrainModule:
    """FSDP2: the blocks of student and teacher one by one, then the rest, as Accelerate does it on GPUs."""
    mesh = init_device_mesh("cpu", (2,))
    encoders = [module.model.eqcohvit, *([module.teacher.encoder] if module.teacher else [])]
    for block in [layer for encoder in encoders for layer in encoder.modules() if isinstance(layer, Dinov2Layer)]:
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def check_gradients_of_a_sum() -> None:
    """`a + b` hands one and the same gradient back to both: adding it up over the processes in place would do so
    twice."""
    a, b = (torch.zeros(1, 2, requires_grad=True) for _ in range(2))
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    ((gather(a) + gather(b)) * weights).sum().backward()
    expected = 2 * weights[dist.get_rank()][None]  # of two processes with one loss each
    assert torch.equal(a.grad, expected) and torch.equal(b.grad, expected), (a.grad, b.grad, expected)


if __name__ == "__main__":
    # as in eqcohvit.training.launcher; any other warning fails the test
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    check_gradients_of_a_sum()
    results = {}
    for run in RUNS:
        module = torch.nn.parallel.DistributedDataParallel(make_module(run), broadcast_buffers=False)
        results[run] = result = train_step(module, part_of(make_views(run), rank))
        dist.all_reduce(result["loss"])
        result["loss"] /= 2
        for name, value in result["state"].items():  # teacher and centers are the same on both ranks
            theirs = [torch.empty_like(value) for _ in range(2)]
            dist.all_gather(theirs, value.contiguous())
            assert torch.equal(*theirs), (run, name)
        results[f"{run} sharded"] = result = train_step(sharded(make_module(run)), part_of(make_views(run), rank))
        dist.all_reduce(result["loss"])
        result["loss"] /= 2
    if rank == 0:
        torch.save(results, sys.argv[1])
    dist.barrier()  # a process that leaves while another one still works takes it down
    dist.destroy_process_group()
