import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqcohvit.objectives.functional import covariance_penalty, koleo_loss, multi_crop_loss, nt_xent, vicreg_terms
from eqcohvit.objectives.heads import Prototypes

torch.manual_seed(0)
prototypes = Prototypes(5, 7, norm_last_layer=False)


def embeddings(batch=7, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, generator=generator, dtype=torch.float32), torch.randn(
        batch, dim, generator=generator
    )


def reference_vicreg(x, y):
    """Written element by element from equations 1 to 6 of arXiv:2105.04906, with half of each view's hinge."""
    n, d = x.shape
    invariance = sum(((x[i] - y[i]) ** 2).sum() for i in range(n)) / (n * d)
    variance = covariance = 0.0
    for z in (x, y):
        mean = z.mean(dim=0)
        cov = sum(torch.outer(z[i] - mean, z[i] - mean) for i in range(n)) / (n - 1)
        variance += sum(max(0.0, 1 - math.sqrt(float(cov[j, j]) + 1e-4)) for j in range(d)) / d / 2
        covariance += sum(float(cov[j, k]) ** 2 for j in range(d) for k in range(d) if j != k) / d
    return float(invariance), variance, covariance


def test_vicreg_terms_equal_an_elementwise_reference():
    x, y = embeddings()
    x, y = 0.5 * x, 0.8 * y  # below and above the hinge
    terms = vicreg_terms(x, y, 25.0, 10.0, 2.0)
    invariance, variance, covariance = reference_vicreg(x, y)
    assert math.isclose(terms["ssl/invariance"].item(), 25 * invariance, rel_tol=1e-5)
    assert math.isclose(terms["ssl/variance"].item(), 10 * variance, rel_tol=1e-4)
    assert math.isclose(terms["ssl/covariance"].item(), 2 * covariance, rel_tol=1e-4)


@pytest.mark.parametrize("shape", [(6, 17), (17, 6), (9, 9), (2, 5)])
def test_covariance_penalty_and_its_gradient_are_those_of_the_whole_covariance_matrix(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    values, gradients = [], []
    for penalty in (
        covariance_penalty,
        lambda z: (z.T.cov().square().sum() - z.T.cov().diagonal().square().sum()) / z.shape[1],
    ):
        leaf = x.clone().requires_grad_()
        value = penalty(leaf)
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-9) and torch.allclose(*gradients, rtol=1e-6, atol=1e-9)


def test_covariance_penalty_multiplies_along_the_smaller_side():
    with FlopCounterMode(display=False) as counted:
        covariance_penalty(torch.randn(8, 256))
    assert counted.get_total_flops() <= 2 * 8 * 8 * 256


def test_vicreg_of_collapsed_embeddings_pays_the_whole_hinge():
    collapsed = torch.ones(8, 4)
    terms = vicreg_terms(collapsed, collapsed, 1.0, 1.0, 1.0)
    assert terms["ssl/invariance"] == 0 and terms["ssl/covariance"] == 0
    assert math.isclose(terms["ssl/variance"].item(), 1 - 0.01, rel_tol=1e-6)


def reference_nt_xent(x, y, temperature):
    """Equation 1 of arXiv:2002.05709, one embedding at a time."""
    z = [v / v.norm() for v in (*x, *y)]
    n = len(x)
    total = 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[partner]) / temperature) / others)
    return total / (2 * n)


def test_nt_xent_equals_an_elementwise_reference():
    x, y = embeddings(batch=6)
    assert math.isclose(nt_xent(first=x, end=y, temperature=0.3).item(), reference_nt_xent(x, y, 0.3), rel_tol=1e-5)


def test_nt_xent_of_equal_embeddings_is_the_logarithm_of_the_others():
    same = torch.ones(5, 3)
    assert math.isclose(nt_xent(same, same, 0.1).item(), math.log(9), rel_tol=1e-5)


LOSSES = {
    "vicreg": lambda x, y: sum(vicreg_terms(x, y, 25.0, 25.0, 1.0).values()),
    "covariance": lambda x, y: covariance_penalty(x),
    "nt_xent": lambda x, y: nt_xent(x, y, 0.2),
    "koleo": lambda x, y: koleo_loss(x),
    "multi_crop": lambda x, y: multi_crop_loss(torch.stack([y, x]).softmax(dim=-1), torch.stack([x, y]), None, 0.1),
    "prototypes": lambda x, y: prototypes(x).square().sum(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_are_the_same_under_autocast(loss):
    x, y = embeddings(batch=32, dim=5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(x, y)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, loss(x, y))


def test_losses_are_computed_in_float32_for_bfloat16_embeddings():
    x, y = (z.bfloat16() for z in embeddings())
    assert nt_xent(x, y, 0.2).dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in vicreg_terms(x, y, 25.0, 25.0, 1.0).values())
