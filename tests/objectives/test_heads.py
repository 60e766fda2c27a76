import torch

from eqcohvit.objectives.heads import SyncedBatchNorm, projector


def test_projector_has_linear_layers_of_the_asked_widths():
    head = projector(6, 10, 4, num_layers=3)
    widths = [(m.in_features, m.out_features) for m in head if isinstance(m, torch.nn.Linear)]
    assert widths == [(6, 10), (10, 10), (10, 4)]
    assert head(torch.randn(5, 6)).shape == (5, 4)


def test_batch_norm_of_one_process_is_plain_batch_norm():
    ours, plain = SyncedBatchNorm(4), torch.nn.BatchNorm1d(4)
    x = torch.randn(9, 4) * 3 + 1
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
