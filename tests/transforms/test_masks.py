import pytest
import torch

from eqcohvit.transforms import BlockMasking
from eqcohvit.transforms.masks import block_masks

GRID = 14


def sample(masking, number=4000, seed=0, epoch=0, stream=3, first=0):
    keys = torch.arange(first, first + number)
    return masking.sample(seed, torch.full_like(keys, epoch), keys, stream, GRID)


def test_block_masks_by_hand():
    """A block of 2 x 2 in the upper left corner, then one of 4 patches that may only add one."""
    draws = torch.tensor([[[0.0, 0.5, 0.0, 0.0], [0.0, 0.5, 0.0, 0.34]]])  # area 4, aspect 1, top 0, left 0 and 1 of 4 columns
    masks = block_masks(draws, torch.tensor([5]), grid_size=4)
    assert masks.view(4, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert block_masks(draws, torch.tensor([0]), grid_size=4).sum() == 0


@pytest.mark.parametrize(("probability", "views"), [(0.0, {0}), (0.25, {0, 1}), (0.5, {1}), (0.8, {1, 2}), (1.0, {2})])
def test_masked_views_are_balanced_within_a_sample(probability, views):
    masking = BlockMasking(probability=probability)
    masked = sample(masking).any(dim=-1)
    assert set(masked.sum(dim=1).tolist()) == views
    assert torch.allclose(masked.float().mean(dim=0), torch.tensor(probability), atol=0.03)  # of both views alike
    assert masking.max_masked(GRID**2) == max(views) * 98


def test_shares_of_hidden_patches_are_as_asked():
    shares = sample(BlockMasking(probability=1.0, ratio=0.3, ratio_variance=0.2)).float().mean(dim=-1).flatten()
    assert 0.29 < shares.mean() < 0.31 and shares.min() > 0.09 and shares.max() <= 0.5
    assert abs(shares.std() - 0.4 / 12**0.5) < 0.01  # uniform


def test_number_of_hidden_patches_is_met_and_bounded():
    masking = BlockMasking(probability=1.0, ratio=0.4, ratio_variance=0.0)
    counts = sample(masking).sum(dim=-1)
    assert counts.max() == masking.max_masked(GRID**2) / 2 == 78
    assert (counts == 78).float().mean() > 0.95


def test_hidden_patches_come_in_blocks():
    """Two neighbours are hidden together far more often than at random."""
    masks = sample(BlockMasking(probability=1.0, ratio=0.3, ratio_variance=0.0), number=500).view(-1, GRID, GRID)
    right_neighbour = masks[:, :, 1:][masks[:, :, :-1]].float().mean()
    assert right_neighbour > 0.7
    assert masks.any(dim=0).all()  # anywhere


def test_masks_are_a_function_of_seed_epoch_sample_and_stream():
    masking = BlockMasking(probability=1.0)
    base = sample(masking, 50)
    assert torch.equal(base, sample(masking, 50)) and torch.equal(base[20:30], sample(masking, 10, first=20))
    for other in ({"seed": 1}, {"epoch": 1}, {"stream": 4}):
        assert (base != sample(masking, 50, **other)).any(dim=-1).all()
    assert (base[:, 0] != base[:, 1]).any(dim=-1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.5}, "mask_probability must lie between 0 and 1, got 1.5"),
        ({"ratio": 0.1}, r"mask_ratio \+- mask_ratio_variance must lie between 0 and 1, got 0.1 \+- 0.2"),
        ({"ratio": 0.9}, "got 0.9"),
    ],
)
def test_block_masking_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        BlockMasking(**settings)


def test_a_draw_next_to_one_masks_no_view_more():
    """Sample 3172895 draws 1 - 2^-24, and 2 / 2 + that is 2 in float32."""
    masking = BlockMasking(probability=0.5)
    assert sample(masking, number=1, first=3172895).any(dim=-1).sum() == masking.max_masked_views == 1
