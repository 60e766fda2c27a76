"""The feature head on CLS only gives local crops the features, and the weights the gradients, of the head on all
tokens."""

import pytest
import torch

from eqcohvit.hub.modeling_eqcohvit import pool_tokens
from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_model, build_module


@pytest.mark.parametrize("backbone", ["dinov2", "ijepa"])  # with CLS; without, where CLS is the mean of the patches
def test_local_features_are_those_of_the_whole_pass(backbone):
    args = PretrainArguments(
        objective="ibot" if backbone == "dinov2" else "vicreg", backbone=backbone, image_size=16, patch_size=4,
        feature_dim=24, equivariant_dim=8, decoder_dim=16, projector_dim=16, objective_options="", model_preset="micro",
    )  # fmt: skip
    torch.manual_seed(0)
    module = build_module(args, build_model(args)).eval()
    encoder = module.model.eqcohvit
    crops = torch.randn(2, 3, 3, 8, 8)  # 3 crops of 2 images
    found = module._encode_local(crops)
    whole = encoder(crops.transpose(0, 1).flatten(0, 1)).invariant_features
    expected = pool_tokens(whole, encoder.num_prefix_tokens, "cls").unflatten(0, (3, 2))
    assert found.shape == (3, 2, 16) and torch.allclose(found, expected, atol=1e-6)
    gradients = []
    for features in (found, expected):
        gradients.append(torch.autograd.grad(features.square().sum(), encoder.feature_head.weight)[0])
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)
