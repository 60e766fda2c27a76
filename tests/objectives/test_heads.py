import pytest
import torch

from eqcohvit.objectives.heads import Prototypes, SyncedBatchNorm, TokenHeads, projector


def test_projector_has_linear_layers_of_the_given_widths():
    head = projector(6, 10, 4, num_layers=3)
    widths = [(m.in_features, m.out_features) for m in head if isinstance(m, torch.nn.Linear)]
    assert widths == [(6, 10), (10, 10), (10, 4)]
    assert head(torch.randn(5, 6)).shape == (5, 4)


def test_batch_norm_of_one_process_is_plain_batch_norm():
    ours, plain = SyncedBatchNorm(4), torch.nn.BatchNorm1d(4)
    x = torch.randn(9, 4) * 3 + 1
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)


@pytest.mark.parametrize("norm_last_layer", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_chosen_patches_and_the_mean_are_those_of_all_logits(shared, norm_last_layer):
    torch.manual_seed(0)
    heads = TokenHeads(shared, 6, 8, 4, 10, norm_last_layer)
    if not norm_last_layer:
        for name, parameter in heads.named_parameters():
            if name.endswith("gain"):
                torch.nn.init.uniform_(parameter, 0.5, 2.0)
    cls = torch.randn(2, 3, 6)
    patches = torch.randn(2, 3, 5, 6)
    chosen = torch.tensor([4, 29, 11])
    every = heads(cls, None, patches)
    some = heads(cls, None, patches, chosen)
    assert torch.allclose(some.cls, every.cls, atol=1e-6)
    assert torch.allclose(some.patches, every.patches.flatten(0, -2)[chosen], atol=1e-6)
    assert torch.allclose(some.patch_mean, every.patches.mean(dim=(0, 1, 2)), atol=1e-6)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_prototypes_are_unit_vectors_times_gains(norm_last_layer):
    torch.manual_seed(0)
    prototypes = Prototypes(3, 4, norm_last_layer)
    if prototypes.gain is not None:
        torch.nn.init.uniform_(prototypes.gain, 0.5, 2.0)
    features = torch.randn(2, 3)
    for row, feature in zip(prototypes(features), features, strict=True):
        for k, found in enumerate(row):
            cosine = torch.dot(feature, prototypes.weight[k]) / (feature.norm() * prototypes.weight[k].norm())
            gain = 1 if norm_last_layer else prototypes.gain[k].item()
            assert found.item() == pytest.approx(gain * cosine.item(), abs=1e-6)
