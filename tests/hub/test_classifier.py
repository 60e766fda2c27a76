"""The classifier on one of the parts: what it reads, and that it trains, is saved and is loaded."""

import pytest
import torch
from tests.hub.hub_tools import seeded, tiny_config
from transformers import AutoModelForImageClassification

from eqcohvit import EqCohViTForImageClassification


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize("part", ["invariant", "equivariant", "both", "backbone"])
@pytest.mark.parametrize("hidden_dim", [0, 6])
def test_classifier_reads_the_named_part(part, hidden_dim, x):
    config = tiny_config(classifier_part=part, classifier_hidden_dim=hidden_dim, num_labels=5)
    model = seeded(EqCohViTForImageClassification, config)
    width = {"invariant": 14, "equivariant": 10, "both": 24, "backbone": 32}[part]
    assert model.classifier[0].in_features == 2 * width
    assert len(model.classifier) == (3 if hidden_dim else 1)
    outputs = model(x, labels=torch.tensor([0, 4, 2]))
    assert outputs.logits.shape == (3, 5)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 4, 2])))
    outputs.loss.backward()
    rows = model.eqcohvit.feature_head.weight.grad
    used = {"invariant": slice(0, 14), "equivariant": slice(14, 24), "both": slice(0, 24)}
    if part == "backbone":
        assert rows is None and not model.eqcohvit.feature_head.weight.requires_grad
    else:
        assert rows[used[part]].any(dim=1).all()
        assert part == "both" or not rows[[i for i in range(24) if i not in range(24)[used[part]]]].any()


def test_classifier_on_a_pretrained_folder_trains_saves_and_loads(folder, tmp_path, x):
    model = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, classifier_part="backbone")
    assert (
        not model.eqcohvit.feature_head.weight.requires_grad
    )  # loading makes all trainable; the model freezes it again
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels, losses = torch.tensor([0, 1, 2]), []
    for _ in range(8):
        loss = model(x, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(x).logits, loaded(x).logits)
    assert loaded.config.num_labels == 3
