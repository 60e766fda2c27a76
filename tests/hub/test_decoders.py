import pytest
import torch
import torch.nn.functional as F
from tests.hub.hub_tools import tiny_config

from eqcohvit.hub.decoders_eqcohvit import IntermediateDecoders, cosine_basis, reconstruction_losses


def make(patch_size=8, grid=4, **kwargs):
    torch.manual_seed(0)
    backbone = {"patch_size": patch_size}
    return IntermediateDecoders(
        tiny_config(image_size=grid * patch_size, backbone_kwargs=backbone, num_intermediates=3, **kwargs)
    ).eval()


def features(batch_size=2, tokens=17):
    return torch.randn(2, batch_size, tokens, 10).unbind()


@pytest.mark.parametrize("patch_size", [1, 5, 6, 8, 14, 16, 32])
def test_every_patch_size_is_upsampled_to_whole_pixels(patch_size):
    images = make(patch_size)(*features(), (2, 8))
    assert images.shape == (2, 3, 3, 2 * patch_size, 8 * patch_size)


def test_grouped_run_equals_one_decoder_after_the_other():
    """Of patch 8: three layers that double the size, one that keeps it, each after a GELU; all slices by hand."""
    model, (first, end) = make(), features()
    patches = torch.cat([first, end], dim=-1)[:, 1:]
    together = model(first, end, (4, 4))
    for k in range(3):
        weight, bias = (parameter.chunk(3)[k] for parameter in (model.from_patches.weight, model.from_patches.bias))
        x = F.linear(patches, weight, bias).transpose(1, 2).unflatten(2, (4, 4))
        for layer, conv in enumerate(model.convs):
            x = F.conv2d(F.gelu(x), conv.weight.chunk(3)[k], conv.bias.chunk(3)[k], padding=1)
            x = F.pixel_shuffle(x, 2) if layer < 3 else x
        torch.testing.assert_close(together[:, k], x)


def test_without_context_the_prefix_tokens_are_not_read_and_patches_act_locally():
    model, (first, end) = make(), features()
    changed = first.clone()
    changed[:, 0] += 1.0  # CLS
    assert torch.equal(model(changed, end, (4, 4)), model(first, end, (4, 4)))
    changed[:, 1] += 1.0  # the patch of the first row and column
    change = (model(changed, end, (4, 4)) - model(first, end, (4, 4))).abs().amax(dim=(0, 1, 2))
    assert change[:8, :8].max() > 1e-4 and not change[24:, 24:].any()


def test_patch_dropout_leaves_the_context_alone_to_some_samples():
    """With a dropout of 0.5 a sample's image either reads its patches or does not; in eval mode it always does."""
    model, (first, end) = make(decoder_context="mean", decoder_patch_dropout=0.5), features(64)
    swapped = first.clone()
    swapped[:, [1, 16]] = first[:, [16, 1]]  # the same mean
    model.train()
    torch.manual_seed(1)
    one = model(first, end, (4, 4))
    torch.manual_seed(1)
    other = model(swapped, end, (4, 4))
    reads = (one - other).abs().amax(dim=(1, 2, 3, 4)) > 1e-4
    assert 16 <= reads.sum() <= 48
    model.eval()
    assert ((model(first, end, (4, 4)) - model(swapped, end, (4, 4))).abs().amax(dim=(1, 2, 3, 4)) > 1e-4).all()


def test_cosine_basis_holds_orthogonal_waves_of_power_one_together():
    basis = cosine_basis(8, 12, 4, torch.zeros(1))
    assert basis.shape == (16, 8, 12)
    torch.testing.assert_close(basis[0], torch.full((8, 12), 0.4))  # 2 / (4 + 1), the constant
    gram = basis.flatten(1) @ basis.flatten(1).T / 96
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-6)
    assert gram.trace().item() == pytest.approx(1.0, abs=1e-5)
    assert basis[1, 0, 0] > 0 > basis[1, 0, -1] and basis[4, 0, 0] > 0 > basis[4, -1, 0]  # columns run fastest


def test_reconstruction_losses_are_hand_computed_means():
    reconstructions, states = (
        torch.zeros(1, 2, 1, 2, 2),
        torch.tensor([[[[[0.0, 2.0], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]]]),
    )
    assert reconstruction_losses(reconstructions, states).tolist() == [[1.0, 1.0]]
    assert reconstruction_losses(reconstructions, 2 * states).tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reconstruction_losses_and_their_gradients_are_those_of_torch(dtype):
    states = torch.rand(3, 2, 3, 8, 8)
    weights = torch.rand(3, 2)
    found, expected = (torch.rand(3, 2, 3, 8, 8, generator=torch.manual_seed(0)).to(dtype) for _ in range(2))
    losses = reconstruction_losses(found.requires_grad_(), states)
    of_torch = F.mse_loss(expected.requires_grad_().float(), states, reduction="none").mean(dim=(2, 3, 4))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, of_torch, rtol=1e-6, atol=1e-6)
    (losses * weights).sum().backward()
    (of_torch * weights).sum().backward()
    assert found.grad.dtype == dtype
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-9)
