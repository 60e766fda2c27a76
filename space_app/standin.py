"""The model that the page shows where it has no checkpoint: a small one, trained on drawn sprites at the first start
and kept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining, pool_tokens
from eqcohvit.data.sprites import render_sprites
from eqcohvit.hub.modeling_eqcohvit import start_positions
from eqcohvit.objectives.functional import vicreg_terms
from eqcohvit.publish.folder import save_hub_folder
from eqcohvit.training.optim import make_optimizer
from eqcohvit.transforms import ViewRenderer, make_path

NUM_STEPS = 200
BATCH_SIZE = 64
IMAGE_SIZE, PATCH_SIZE = 32, 8
PATH = "rotation"
LEARNING_RATE, WARMUP_STEPS = 3e-3, 30
RECON_WEIGHT = 100.0
VICREG_WEIGHTS = (25.0, 25.0, 1.0)


def train_standin(cache: Path, progress=print, num_steps: int = NUM_STEPS) -> Path:
    """The folder of the stand-in, trained where the cache has none: VICReg on the invariant part, reconstruction on the
    equivariant."""
    folder = cache / f"standin-{PATH}-{IMAGE_SIZE}-{num_steps}"
    if (folder / "config.json").is_file():
        return folder
    progress(f"no checkpoint here: training a small stand-in on drawn sprites, {num_steps} steps, once ...")
    torch.manual_seed(0)
    model = EqCohViTForPreTraining(
        EqCohViTConfig.from_preset(
            "micro",
            IMAGE_SIZE,
            PATCH_SIZE,
            feature_dim=256,
            equivariant_dim=128,
            decoder_dim=64,
            path=PATH,
            border="zeros",
            decoder_context="mean",
            decoder_patch_dropout=0.25,
        )  # fmt: skip
    )
    start_positions(model.eqcohvit)
    renderer = ViewRenderer(make_path(PATH), IMAGE_SIZE, model.config.num_intermediates, border="zeros")
    optimizer = make_optimizer(model, LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, 0.5 + 0.5 * math.cos(math.pi * step / num_steps))
    )
    model.train()
    for step in range(num_steps):
        keys = torch.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        sprites = torch.from_numpy(render_sprites(keys.numpy().astype(np.int64), IMAGE_SIZE).images)
        views = renderer(
            sprites, sizes=torch.full((BATCH_SIZE, 2), IMAGE_SIZE), keys=keys, epochs=torch.zeros_like(keys)
        )
        outputs = model(views.first, views.end, views.intermediates)
        first, end = (
            pool_tokens(features, model.eqcohvit.num_prefix_tokens, "cls")
            for features in (outputs.invariant_features, outputs.invariant_features_end)
        )
        loss = RECON_WEIGHT * outputs.loss + sum(vicreg_terms(first, end, *VICREG_WEIGHTS).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0 or step + 1 == num_steps:
            progress(f"stand-in: step {step + 1}/{num_steps}, reconstruction error {outputs.loss.item():.3f}")
    return save_hub_folder(folder, model.eval())
