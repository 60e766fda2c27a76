"""The pretraining steps that scripts/benchmark.py measures: ours, a plain one, and ours in several processes."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_model, build_module, build_renderer
from eqcohvit.training.optim import clip_gradients, make_optimizer
from eqcohvit.training.schedules import step_values
from eqcohvit.transforms import Views

from .measure import Result, Setup, milliseconds, paired_ratio, take_turns
from .reference import PlainDecoders, plain_loss


class Step:
    """One step of pretraining on a fixed batch of random canvases: render, forward, backward, clip, update."""

    def __init__(self, args: PretrainArguments, setup: Setup):
        torch.manual_seed(0)
        self.args, self.setup = args, setup
        self.module = build_module(args, build_model(args)).to(setup.device).train()
        self.renderer = build_renderer(args)
        self.forward: nn.Module = self.module  # or its wrapper
        if setup.compile:
            self.module.compile()
        self.renderer.compile_on_gpu(setup.device)
        self.optimizer = make_optimizer(self.module, args.learning_rate, args.weight_decay)
        batch = args.per_device_train_batch_size
        keys = torch.arange(batch)
        canvases = torch.randint(0, 256, (batch, 3, args.canvas_size, args.canvas_size), device=setup.device).to(
            torch.uint8
        )
        self.batch = {
            "canvases": canvases,
            "sizes": torch.full((batch, 2), 2 * args.image_size),
            "keys": keys,
            "epochs": torch.zeros_like(keys),
        }

    def render(self) -> Views:
        """The views of the batch."""
        return self.renderer(**self.batch, with_intermediates=self.args.recon_weight > 0)

    def train(self, views: Views) -> None:
        """Forward, backward and update on views."""
        values = step_values(1, self.args)
        with self.setup.autocast():
            loss = self.forward(views, values)["loss"]
        self.update(loss)
        self.module.after_step(0, values.teacher_momentum)

    def update(self, loss: torch.Tensor) -> None:
        """Backward pass, clipping, optimizer."""
        loss.backward()
        clip_gradients(self.module.parts(), self.args.clip_gradients, self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        self.train(self.render())


class PlainStep(Step):
    """The same step as most people write it: encoder passes one after the other, decoders in a loop, eager."""

    def __init__(self, args: PretrainArguments, setup: Setup):
        super().__init__(args, dataclasses.replace(setup, compile=False))
        self.decoders = PlainDecoders(self.module.model.decoders).to(setup.device)
        self.module.model.decoders.requires_grad_(False)
        self.decoder_optimizer = make_optimizer(self.decoders, args.learning_rate, args.weight_decay)

    def train(self, views: Views) -> None:
        assert views.intermediates is not None  # it is a step with the reconstruction
        with self.setup.autocast():
            loss = plain_loss(self.module, self.decoders, views.first, views.end, views.intermediates)
        self.update(loss)
        self.decoder_optimizer.step()
        self.decoder_optimizer.zero_grad()


def in_processes(setup: Setup, args: PretrainArguments, number: int, case: str) -> list[Result]:
    """A step of a process that exchanges gradients with the others, beside a step that does not."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (number, setup, args, folder), number)
        times = torch.load(Path(folder) / "times.pt", weights_only=True)
    figures = {**milliseconds(times), **paired_ratio(times["together"], times["alone"])}
    return [Result("scaling", case, figures)]


def _process(rank: int, number: int, setup: Setup, args: PretrainArguments, folder: str) -> None:
    if setup.is_cuda:
        setup = dataclasses.replace(setup, device=torch.device("cuda", rank))
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if setup.is_cuda else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=number)
    steps = {name: Step(args, setup) for name in ("alone", "together")}
    steps["together"].forward = DistributedDataParallel(steps["together"].module, broadcast_buffers=False)
    times = take_turns(steps, setup.device, seconds=0)  # a fixed number of rounds, the same in all processes
    if rank == 0:
        torch.save(times, Path(folder) / "times.pt")
    dist.destroy_process_group()
