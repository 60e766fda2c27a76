import pytest
import torch

from controls import list_choices
from eqcohvit.transforms import make_path
from probe import Probe, _fit_part, fit_probe, load_probe, readings


def test_fit_part_finds_a_linear_read_out():
    generator = torch.Generator().manual_seed(0)
    first, parameters = torch.randn(400, 6, generator=generator), torch.randn(400, 2, generator=generator)
    moved = first + parameters @ torch.randn(2, 6, generator=generator)
    fitted = _fit_part(torch.stack([first, moved]), parameters)
    probe = Probe({"p": fitted["weights"]}, {"p": fitted["bias"]}, {"p": fitted["centre"]}, {"p": fitted["r2"]}, 200)
    assert min(fitted["r2"]) > 0.999
    assert torch.allclose(probe.predict("p", torch.stack([first[0], moved[0]]))[1], parameters[0], atol=0.05)


def test_fit_part_of_unrelated_features_knows_nothing():
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(2, 400, 6, generator=generator)
    assert max(_fit_part(pooled, torch.randn(400, 2, generator=generator))["r2"]) < 0.1


def test_readings_are_in_the_units_of_the_sliders(model, probe, make_picture):
    choice = list_choices(model.config.path)["rotation"]
    walk = model.walk(make_picture(0), choice, {"angle": -25})
    (reading,) = readings(choice, walk, probe)
    assert reading.true == pytest.approx(-25)
    radians = probe.predict("equivariant", walk.pooled["equivariant"])[-1, 0]
    assert reading.read["equivariant"][-1] == pytest.approx(torch.rad2deg(radians).item(), rel=1e-4)
    assert reading.r2["invariant"] == probe.r2["invariant"][0]


def test_probe_is_fitted_once_for_the_same_weights(model, tmp_path, monkeypatch):
    monkeypatch.setenv("EQCOHVIT_CACHE", str(tmp_path))
    monkeypatch.setattr("probe.num_pairs", lambda side: 64)
    said = []
    first = load_probe(model, said.append)
    assert len(said) == 2 and "64 sprites" in said[0]
    again = load_probe(model, said.append)
    assert len(said) == 2
    assert torch.equal(first.weights["equivariant"], again.weights["equivariant"]) and first.r2 == again.r2
    (file,) = tmp_path.glob("probe-*.safetensors")
    file.write_bytes(file.read_bytes()[:100])  # a broken cache is fitted anew
    load_probe(model, said.append)
    assert len(said) == 4


def test_probe_of_the_same_pairs_is_the_same(model):
    path = make_path(model.config.path)
    assert torch.equal(fit_probe(model, path, 64).weights["invariant"], fit_probe(model, path, 64).weights["invariant"])
