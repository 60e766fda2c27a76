import torch

from eqcohvit.objectives.masking import MaskedPatches


def test_masked_patches_are_listed_and_weighted_by_hand():
    masks = torch.tensor([[[False, True, False, True], [False, False, False, False]]])  # one view of two images
    masked = MaskedPatches.of(masks, max_masked=3)
    assert masked.indices[0, :2].tolist() == [1, 3]
    assert torch.equal(masked.weights, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]))
    assert torch.equal(masked.valid, masked.weights > 0)
    patches = torch.arange(8.0).reshape(1, 2, 4, 1)
    assert masked.take(patches)[0, :2, 0].tolist() == [1.0, 3.0]
    assert masked.take(patches).shape == (2, 3, 1)
