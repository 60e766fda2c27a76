import pytest
import torch

from eqcohvit import EqCohViTConfig
from eqcohvit.hub.modeling_eqcohvit import EqCohViTForPreTraining
from eqcohvit.objectives import OBJECTIVES
from eqcohvit.training.pretrain_module import PretrainModule


def make_module(objective="vicreg", recon_weight=3.0, **kwargs):
    torch.manual_seed(0)
    backbone = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = EqCohViTConfig.from_preset(
        "micro", 16, 4, backbone_kwargs=backbone, feature_dim=14, equivariant_dim=6, decoder_dim=16, **kwargs
    )
    return PretrainModule(EqCohViTForPreTraining(config), OBJECTIVES[objective](config.invariant_dim, 16), recon_weight)


def make_views(batch=6, num_intermediates=2):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, 3, 16, 16), (batch, 3, 16, 16), (batch, num_intermediates, 3, 16, 16))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_is_the_ssl_terms_plus_the_weighted_mean_reconstruction(objective):
    terms = make_module(objective, num_intermediates=3)(*make_views(num_intermediates=3))
    ssl = sum(value for name, value in terms.items() if name.startswith("ssl/"))
    recon = [terms[f"recon/u_{k}"] for k in (1, 2, 3)]
    assert torch.allclose(terms["loss"], ssl + 3.0 * sum(recon) / 3)


@pytest.mark.parametrize("decoder_context", ["none", "cls", "mean"])
def test_reconstruction_gradient_reaches_only_the_equivariant_rows_of_the_head(decoder_context):
    module = make_module(decoder_context=decoder_context)
    terms = module(*make_views())
    (terms["recon/u_1"] + terms["recon/u_2"]).backward()
    gradient = module.model.eqcohvit.feature_head.weight.grad
    assert torch.equal(gradient[:8], torch.zeros(8, 16))
    assert (gradient[8:].abs().sum(dim=1) > 0).all()


def test_ssl_gradient_reaches_only_the_invariant_rows_of_the_head():
    module = make_module()
    terms = module(*make_views())
    sum(value for name, value in terms.items() if name.startswith("ssl/")).backward()
    gradient = module.model.eqcohvit.feature_head.weight.grad
    assert torch.equal(gradient[8:], torch.zeros(6, 16))
    assert gradient[:8].abs().sum() > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("decoder_context", ["none", "cls", "mean"])
def test_every_parameter_gets_a_gradient(objective, decoder_context):
    module = make_module(objective, decoder_context=decoder_context)
    module(*make_views())["loss"].backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_without_weight_the_decoders_are_left_out():
    module = make_module(recon_weight=0.0)
    first, end, _ = make_views()
    terms = module(first, end, None)
    assert not any(name.startswith("recon/") for name in terms)
    terms["loss"].backward()
    assert all(not p.requires_grad and p.grad is None for p in module.model.decoders.parameters())


def test_module_loss_equals_the_models_own_reconstruction_loss():
    module, views = make_module(), make_views()
    terms = module(*views)
    own = module.model(*views)
    assert torch.allclose(own.loss, (terms["recon/u_1"] + terms["recon/u_2"]) / 2, atol=1e-6)


def test_training_on_one_batch_lowers_both_losses():
    module, views = make_module(), make_views()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        terms = module(*views)
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: value.item() for name, value in terms.items()})
    ssl = [sum(value for name, value in terms.items() if name.startswith("ssl/")) for terms in history]
    assert history[-1]["recon/u_1"] < 0.9 * history[0]["recon/u_1"]
    assert ssl[-1] < 0.9 * ssl[0]


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match="recon_weight must not be negative, got -1"):
        make_module(recon_weight=-1)
