"""Started by test_two_processes.py through torchrun: gradients of two processes at half the batch, written by rank 0."""

import sys

import torch
import torch.distributed as dist

from eqcohvit import EqCohViTConfig
from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.training.pretrain_module import PretrainModule


def make_module(objective: str) -> PretrainModule:
    torch.manual_seed(0)
    backbone = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    config = EqCohViTConfig.from_preset("micro", 8, 4, backbone_kwargs=backbone, feature_dim=12, equivariant_dim=6, decoder_dim=16)
    return PretrainModule(EqCohViTForPreTraining(config), OBJECTIVES[objective](config.invariant_dim, 16), recon_weight=2.0)


def make_batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((8, 3, 8, 8), (8, 3, 8, 8), (8, 2, 3, 8, 8)))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    results = {}
    for objective in OBJECTIVES:
        module = torch.nn.parallel.DistributedDataParallel(make_module(objective), broadcast_buffers=False)
        terms = module(*(t.chunk(2)[rank] for t in make_batch()))
        terms["loss"].backward()
        loss = terms["loss"].detach().clone()
        dist.all_reduce(loss)
        results[objective] = {
            "loss": loss / 2,
            "gradients": {name: p.grad for name, p in module.module.named_parameters()},
            "buffers": dict(module.module.named_buffers()),
        }
    if rank == 0:
        torch.save(results, sys.argv[1])
    dist.destroy_process_group()
