"""SIE and the cross-attention baseline against references written from their papers' equations."""

import math

import torch
from tests.objectives.test_objectives import make_inputs, make_objective

from eqcohvit.objectives import OBJECTIVES, ObjectiveInputs, ObjectiveSizes
from eqcohvit.objectives.cross_attention import CrossAttentionDecoder
from eqcohvit.objectives.sie import HyperPredictor


def test_hyper_predictor_is_linear_in_embeddings_and_parameters_and_starts_at_the_identity():
    torch.manual_seed(0)
    predictor = HyperPredictor(3, ((-2.0, 2.0), (0.0, 10.0)))
    z = torch.randn(2, 3)
    center = torch.tensor([[0.0, 5.0]] * 2)
    assert torch.allclose(predictor(z, center), z)
    maps = predictor.hypernetwork.weight.view(3, 3, 2)
    expected = z[0] + (0.5 * maps[..., 0] + 1.0 * maps[..., 1]) @ z[0]  # (1, 10) is (0.5, 1) in units of the range
    assert torch.allclose(predictor(z, torch.tensor([[1.0, 10.0]] * 2))[0], expected, atol=1e-6)


def standard_deviations(z):
    mean = z.mean(dim=0)
    return [torch.sqrt(sum((row[j] - mean[j]) ** 2 for row in z) / (len(z) - 1) + 1e-4) for j in range(z.shape[1])]


def test_sie_terms_equal_a_reference():
    objective, inputs = make_objective("sie"), make_inputs()
    terms = objective(inputs)
    sum(terms.values()).backward()
    gradient = objective.predictor.hypernetwork.weight.grad.clone()
    objective.zero_grad()

    embeddings = {}
    for part, expander in (
        ("invariant", objective.invariant_expander),
        ("equivariant", objective.equivariant_expander),
    ):
        embeddings[part] = expander(getattr(inputs, part).cls.flatten(0, 1)).chunk(2)
    batch, dim = embeddings["invariant"][0].shape
    rows = [slice(i, i + 1) for i in range(batch)]
    first = embeddings["equivariant"][0]
    predicted = torch.stack([objective.predictor(first[row], inputs.parameters[row])[0] for row in rows])
    invariance = sum(((a - b) ** 2).sum() for a, b in zip(*embeddings["invariant"], strict=True)) / (batch * dim)
    equivariance = (
        sum(((a - b) ** 2).sum() for a, b in zip(predicted, embeddings["equivariant"][1], strict=True))
        / predicted.numel()
    )
    variance = covariance = 0.0
    for view in range(2):
        z = torch.cat([embeddings["invariant"][view], embeddings["equivariant"][view]], dim=1)
        variance = variance + sum(torch.relu(1 - s) for s in standard_deviations(z)) / z.shape[1]
        matrix = torch.cov(z.T)
        covariance = covariance + (matrix**2).sum().sub((matrix.diagonal() ** 2).sum()) / z.shape[1]
    variance = variance + sum(torch.relu(1 - s) for s in standard_deviations(predicted)) / predicted.shape[1]
    reference = {
        "invariance": 10 * invariance,
        "equivariance": 4.5 * equivariance,
        "variance": 5 * variance,
        "covariance": covariance,
    }
    for name, value in reference.items():
        assert math.isclose(terms[f"ssl/{name}"].item(), value.item(), rel_tol=1e-4), name
    sum(reference.values()).backward()
    assert torch.allclose(gradient, objective.predictor.hypernetwork.weight.grad, rtol=1e-3, atol=1e-6)


def test_sie_expanders_share_the_width_in_proportion_to_the_parts():
    sizes = ObjectiveSizes(
        invariant_dim=6, equivariant_dim=2, projector_dim=20, patch_size=4, parameter_limits=((-1.0, 1.0),)
    )
    objective = OBJECTIVES["sie"](sizes, OBJECTIVES["sie"].Options())
    assert [layer.weight.shape for layer in objective.invariant_expander[::3]] == [(15, 6), (15, 15), (15, 15)]
    assert [layer.weight.shape for layer in objective.equivariant_expander[::3]] == [(5, 2), (5, 5), (5, 5)]
    assert objective.predictor.hypernetwork.weight.shape == (25, 1)


def test_sie_learns_a_transformation_that_the_parameters_tell():
    """Embeddings turned by the drawn angle can be predicted; with the parameters of other samples they cannot."""
    torch.manual_seed(0)
    angles = 2 * torch.rand(64, 1) - 1
    z = torch.randn(64, 2)
    rows = torch.stack([torch.cat([angles.cos(), -angles.sin()], 1), torch.cat([angles.sin(), angles.cos()], 1)], dim=1)
    target = torch.einsum("bij,bj->bi", rows, z)
    losses = []
    for parameters in (angles, angles.flip(0)):
        predictor = HyperPredictor(2, ((-1.0, 1.0),))
        optimizer = torch.optim.Adam(predictor.parameters(), lr=0.05)
        for _ in range(150):
            loss = (predictor(z, parameters) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.03 and losses[1] > 3 * losses[0]


def test_cross_attention_decoder_blends_the_first_view_by_looking_up_the_end_view():
    torch.manual_seed(0)
    decoder = CrossAttentionDecoder(equivariant_dim=4, width=6, num_heads=1, patch_size=2)
    first, end = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    scores = decoder.query(end) @ decoder.key(first).transpose(1, 2) / math.sqrt(6)
    expected = decoder.to_pixels(scores.softmax(dim=-1) @ decoder.value(first))
    assert torch.allclose(decoder(first, end), expected, atol=1e-5)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(decoder(first[:, order], end), expected, atol=1e-5)  # the first view is a set
    assert torch.allclose(decoder(first, end[:, order]), expected[:, order], atol=1e-5)


def test_cross_attention_target_is_the_end_view_patch_by_patch():
    objective, inputs = make_objective("cross_attention"), make_inputs()
    pixels = torch.zeros(6, 16, 48)
    for row in range(4):
        for column in range(4):
            patch = inputs.images[1][:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            pixels[:, 4 * row + column] = patch.flatten(1)
    objective.decoder.forward = lambda first, end: pixels
    assert objective(inputs)["ssl/reconstruction"] == 0
    other = ObjectiveInputs(**{**vars(inputs), "images": inputs.images + 1})
    assert math.isclose(objective(other)["ssl/reconstruction"].item(), 25.0, rel_tol=1e-5)
