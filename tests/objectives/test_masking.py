import torch

from eqcohvit.objectives.masking import MaskedPatches


def test_masked_patches_are_listed_and_weighted_by_hand():
    """Two images of two views of three patches: the first hides 2 + 1 patches, the second 0 + 1."""
    masks = torch.tensor([[[0, 1, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, 1]]]).bool()  # view, image, patch
    masked = MaskedPatches.of(masks, max_masked=4)
    assert masked.indices[0, :3].tolist() == [1, 2, 3] and masked.indices[1, 0] == 5
    assert torch.equal(masked.weights, torch.tensor([[0.5, 0.5, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    assert torch.equal(masked.valid, masked.weights > 0)
    patches = torch.arange(12.0).reshape(2, 2, 3, 1)
    taken = masked.take(patches)
    assert taken.shape == (2, 4, 1)
    assert taken[0, :3, 0].tolist() == [1.0, 2.0, 6.0] and taken[1, 0, 0] == 11
