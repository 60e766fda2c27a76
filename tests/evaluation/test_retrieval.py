import torch

from eqcohvit.evaluation.retrieval import found_itself


def test_found_itself_compares_directions_from_the_mean():
    gallery = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # their mean is 0
    queries = torch.tensor([[3.0, 0.1], [-0.1, 0.2], [0.1, 9.0], [0.3, -0.2]])
    # the second points up, the fourth to the right
    assert found_itself(gallery, queries).tolist() == [True, False, True, False]


def test_found_itself_ignores_a_common_offset():
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(20, 5, generator=generator)
    queries = gallery + 0.5 * torch.randn(20, 5, generator=generator)
    offset = torch.full((5,), 100.0)
    assert found_itself(gallery, queries).float().mean() > 0.5
    assert torch.equal(found_itself(gallery + offset, queries + offset), found_itself(gallery, queries))
