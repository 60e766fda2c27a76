from itertools import islice

import pytest
import torch

from eqcohvit import EqCohViTBackbone, EqCohViTConfig
from eqcohvit.downstream.finetune import batch_indices, check_finite, choose_parameters
from eqcohvit.training.lora import merged


class HeadOnBackbone(torch.nn.Module):
    def __init__(self):
        super().__init__()
        backbone = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.backbone = EqCohViTBackbone(
            EqCohViTConfig.from_preset("micro", 16, 8, backbone_kwargs=backbone, feature_dim=4, equivariant_dim=2)
        )
        self.head = torch.nn.Conv2d(16, 3, 1)

    def forward(self, x):
        return self.head(self.backbone(x).feature_maps[-1])


def test_each_epoch_shows_each_row_once():
    batches = list(islice(batch_indices(10, 4, seed=0, first_step=0), 5))
    keys = [key for batch in batches for key in batch]
    for epoch in (0, 1):
        assert sorted(index for e, index in keys if e == epoch) == list(range(10))
    assert [index for e, index in keys if e == 0] != [index for e, index in keys if e == 1] != sorted(range(10))


def test_any_step_is_what_an_uninterrupted_run_sees():
    whole = list(islice(batch_indices(7, 4, seed=3, first_step=0), 9))
    assert list(islice(batch_indices(7, 4, seed=3, first_step=5), 4)) == whole[5:]


def test_processes_share_the_steps():
    alone = list(islice(batch_indices(12, 6, seed=1, first_step=0), 3))
    ranks = [list(islice(batch_indices(12, 3, seed=1, first_step=0, rank=rank, world_size=2), 3)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone


def test_head_alone_leaves_the_backbone_frozen():
    model = HeadOnBackbone()
    choose_parameters(model.backbone, "head", lora_rank=2)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert all(p.requires_grad for p in HeadOnBackbone().parameters())


def test_lora_trains_adapters_and_merges_them():
    torch.manual_seed(0)
    model = HeadOnBackbone().eval()
    x = torch.randn(2, 3, 16, 16)
    names, before = set(model.state_dict()), model(x)
    choose_parameters(model.backbone, "lora", lora_rank=2)
    torch.testing.assert_close(model(x), before)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == {"head.weight", "head.bias"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    after = model(x)
    assert not torch.allclose(after, before)
    plain = merged(model)
    torch.testing.assert_close(plain(x), after)
    assert set(plain.state_dict()) == names


def test_what_is_not_finite_is_named_with_its_rows():
    check_finite({"loss": torch.tensor(1.0)}, 3, [4, 5])
    with pytest.raises(FloatingPointError, match=r"loss_bbox not finite at step 3, on the train rows \[4, 5\]"):
        check_finite({"loss": torch.tensor(1.0), "loss_bbox": torch.tensor(float("nan"))}, 3, [4, 5])
