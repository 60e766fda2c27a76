import pytest
import torch

from eqcohvit.objectives import OBJECTIVES


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_gives_finite_scalar_terms_and_gradients(name):
    torch.manual_seed(0)
    objective = OBJECTIVES[name](invariant_dim=8, projector_dim=16)
    first, end = (torch.randn(6, 8, requires_grad=True) for _ in range(2))
    terms = objective(first, end)
    assert terms and all(key.startswith("ssl/") and value.ndim == 0 and value.isfinite() for key, value in terms.items())
    sum(terms.values()).backward()
    assert first.grad.abs().sum() > 0 and end.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_prefers_equal_views(name):
    torch.manual_seed(0)
    objective = OBJECTIVES[name](invariant_dim=8, projector_dim=16)
    x, other = torch.randn(16, 8), torch.randn(16, 8)
    assert sum(objective(x, x).values()) < sum(objective(x, other).values())
