import pytest
import torch

from eqcohvit.transforms import BlockMasking
from eqcohvit.transforms.masks import block_masks

GRID = 14


def sample(masking, number=4000, seed=0, epoch=0, stream=3, first=0):
    keys = torch.arange(first, first + number)
    return masking.sample(seed, keys=keys, epochs=torch.full_like(keys, epoch), stream=stream, grid_size=GRID)


def test_block_masks_by_hand():
    """Five of 4 x 4 patches: a block of 2 x 2; then one that would hide two patches more, and the next try, of one
    patch."""
    corner = [0.0, 0.5, 0.0, 0.0]  # area 4, aspect ratio 1, top 0, left 0
    beside = [0.0, 0.5, 0.0, 0.34]  # the same at left 1
    single = [0.99, 0.5, 0.8, 0.0]  # area 4 - 0.99 x 3 for the last patch, at top 3
    draws = torch.tensor([[[corner, beside], [beside, single], [corner, single]]])
    masks = block_masks(draws, torch.tensor([5]), grid_size=4, min_patches=4)
    assert masks.view(4, 4).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [1, 0, 0, 0]]
    assert block_masks(draws, torch.tensor([0]), grid_size=4, min_patches=4).sum() == 0


def test_a_mask_is_finished_where_no_try_of_a_block_fits():
    corner = [0.0, 0.5, 0.0, 0.0]
    single = [0.99, 0.5, 0.8, 0.0]
    draws = torch.tensor([[[corner, corner], [corner, corner], [single, single]]])
    assert block_masks(draws, torch.tensor([5]), grid_size=4, min_patches=4).sum() == 4
    long = [0.0, 0.0, 0.0, 0.0]  # area 12, aspect ratio 0.3: 2 x 6, wider than the grid
    assert block_masks(torch.tensor([[[long]]]), torch.tensor([12]), grid_size=4, min_patches=12).sum() == 0


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_each_view_is_masked_on_its_own(probability):
    masked = sample(BlockMasking(probability=probability)).any(dim=-1).float()
    shares = [(masked.sum(dim=1) == number).float().mean().item() for number in range(3)]
    p = probability
    assert shares == pytest.approx([(1 - p) ** 2, 2 * p * (1 - p), p**2], abs=0.025)  # 3 standard deviations
    assert masked.mean(dim=0).tolist() == pytest.approx([p, p], abs=0.025)  # of both views alike


def test_shares_of_hidden_patches_are_as_asked():
    shares = sample(BlockMasking(probability=1.0, ratio=0.3, ratio_variance=0.2)).float().mean(dim=-1).flatten()
    assert 0.29 < shares.mean() < 0.31 and shares.min() > 0.05 and shares.max() <= 0.5
    assert abs(shares.std() - 0.4 / 12**0.5) < 0.01  # uniform


def test_number_of_hidden_patches_is_bounded_and_mostly_met():
    counts = sample(BlockMasking(probability=1.0, ratio=0.4, ratio_variance=0.0)).sum(dim=-1)
    assert counts.max() == 78  # 0.4 x 196 = 78.4
    assert (counts == 78).float().mean() > 0.9


def test_blocks_are_at_least_as_large_as_asked():
    """The first block alone, by its area: about uniform between the smallest and all that is to be hidden, 39 of 196
    patches."""
    areas = {}
    for smallest in (4, 16):
        masking = BlockMasking(probability=1.0, ratio=0.2, ratio_variance=0.0, min_patches=smallest, num_blocks=1)
        areas[smallest] = sample(masking).sum(dim=-1).float()
    assert areas[4].mean().item() == pytest.approx((4 + 39) / 2, abs=1.5) and areas[4].min() < 6
    assert areas[16].mean().item() == pytest.approx((16 + 39) / 2, abs=1.5) and areas[16].min() > 10


def test_hidden_patches_come_in_blocks():
    """Two neighbors are hidden together far more often than at random."""
    masks = sample(BlockMasking(probability=1.0, ratio=0.3, ratio_variance=0.0), number=500).view(-1, GRID, GRID)
    right_neighbor = masks[:, :, 1:][masks[:, :, :-1]].float().mean()
    assert right_neighbor > 0.7
    assert masks.any(dim=0).all()  # anywhere


@pytest.mark.parametrize(("grid_size", "smallest"), [(2, 1), (4, 1), (8, 4)])
def test_blocks_fit_into_small_grids(grid_size, smallest):
    keys = torch.arange(500)
    large, fitting = (
        BlockMasking(probability=1.0, min_patches=size).sample(
            0, keys=keys, epochs=torch.zeros_like(keys), stream=3, grid_size=grid_size
        )
        for size in (16, smallest)
    )
    assert torch.equal(large, fitting)


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
        ({"min_patches": 0}, "min_masked_patches must be at least 1, got 0"),
    ],
)
def test_block_masking_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        BlockMasking(**settings)
