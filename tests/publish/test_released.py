"""The released models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eqcohvit import EqCohViTConfig

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[2] / "model_cards").glob("*/config.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_invariant_part_reads_16_directions_and_no_trace_of_others(folder):
    """In half precision a trace remains, which whitening brings back, and with it the angle."""
    rows = load_file(folder / "model.safetensors")["eqcohvit.feature_head.weight"].double()
    values = torch.linalg.svdvals(rows[: EqCohViTConfig.from_pretrained(folder).invariant_dim])
    assert values[15] > 0.02 * values[0] and values[16] < 1e-6 * values[0]
