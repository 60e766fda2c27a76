import importlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import load_script

from eqcohvit import EqCohViTConfig
from eqcohvit.data.decode import decode_image
from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_module, build_renderer
from eqcohvit.training.schedules import step_values
from eqcohvit.transforms import ViewRenderer, make_path


@pytest.fixture(scope="module")
def reference():
    load_script("benchmark")
    return importlib.import_module("benchmarks.reference")


def photo(seed, width=150, height=110):
    """A smooth picture as the content of a JPEG file."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.mark.parametrize("augmentation", ["path_only", "simclr", "vicreg"])
def test_plain_views_are_the_fused_ones_up_to_interpolation_and_rounding(reference, augmentation):
    renderer = ViewRenderer(make_path("rotation"), 64, 2, augmentation, border="zeros")
    errors = []
    for key in range(12):
        data = photo(key)
        decoded = decode_image(data, 152)
        canvas = torch.from_numpy(decoded.canvas)[None]
        sample = {"sizes": torch.tensor([decoded.size]), "keys": torch.tensor([key]), "epochs": torch.tensor([3])}
        ours = renderer(canvas, **sample)
        drawn = renderer.sample(**sample)
        first, end, intermediates = reference.plain_views(data, renderer, *drawn)
        pairs = [(ours.first[0], first), (ours.end[0], end), *zip(ours.intermediates[0], intermediates, strict=True)]
        errors += [(a - b).abs().mean() * 0.225 for a, b in pairs]  # back in [0, 1]
    assert torch.stack(errors).median() < 3 / 255
    assert max(errors) < 12 / 255


@pytest.mark.parametrize(("patch_size", "num_intermediates"), [(8, 2), (6, 3)])
def test_plain_decoders_equal_the_grouped_ones(reference, patch_size, num_intermediates):
    torch.manual_seed(0)
    backbone = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = EqCohViTConfig.from_preset(
        "micro", 24, patch_size, backbone_kwargs=backbone, feature_dim=12, equivariant_dim=6, decoder_dim=16,
        num_intermediates=num_intermediates,
    )  # fmt: skip
    grouped = EqCohViTForPreTraining(config).decoders
    plain = reference.PlainDecoders(grouped)
    side = 24 // patch_size
    features = torch.randn(2, 3, side**2 + 1, 6)
    ours, theirs = grouped(*features, (side, side)), plain(*features, (side, side))
    assert ours.shape == theirs.shape == (3, num_intermediates, 3, 24, 24)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in grouped.parameters())


def test_plain_step_has_the_loss_and_the_gradients_of_ours(reference):
    """Two encoder passes and decoders in a loop against one pass and grouped decoders."""
    args = PretrainArguments(
        image_size=16, patch_size=4, augmentation="vicreg", decoder_context="none", decoder_patch_dropout=0.0
    )
    backbone = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 4,
    }
    torch.manual_seed(0)
    module = build_module(args, EqCohViTForPreTraining(args.model_config(backbone))).train()
    decoders, keys = reference.PlainDecoders(module.model.decoders), torch.arange(6)
    canvases = torch.randint(0, 256, (6, 3, 20, 20)).to(torch.uint8)
    views = build_renderer(args)(canvases, sizes=torch.full((6, 2), 20), keys=keys, epochs=torch.zeros_like(keys))
    ours = module(views, step_values(0, args))["loss"]
    ours.backward()
    gradient = module.model.eqcohvit.feature_head.weight.grad.clone()
    module.zero_grad()
    plain = reference.plain_loss(module, decoders, views.first, views.end, views.intermediates)
    plain.backward()
    assert torch.allclose(ours, plain, rtol=1e-5)
    difference = module.model.eqcohvit.feature_head.weight.grad - gradient
    assert difference.abs().max() < 1e-4 * gradient.abs().max()


def test_plain_decoders_refuse_a_context(reference):
    config = EqCohViTConfig.from_preset("micro", decoder_context="mean")
    with pytest.raises(ValueError, match="got decoder_context='mean'"):
        reference.PlainDecoders(EqCohViTForPreTraining(config).decoders)
