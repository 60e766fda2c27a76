import pytest
import torch

from eqcohvit.evaluation.metrics.r2.coefficients import r2_per_parameter
from eqcohvit.transforms import make_path
from probe import TEST_MOVES, Probe, _fit, _inputs, fit_probe, load_probe
from scenes import draw_scene


def fitted(first, moved, parameters, limits):
    own = _fit(_inputs(first, moved), parameters, limits, steps=300)
    tensors = {f"strict.equivariant.{name}": value for name, value in own.items()}
    return Probe(tensors, limits, {}, {}, 0)


def test_read_out_finds_parameters_that_move_the_features():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(600, 6, generator=generator)
    parameters = torch.rand(600, 2, generator=generator) * torch.tensor([1.0, 4.0]) - torch.tensor([0.5, 2.0])
    moved = first + parameters @ torch.randn(2, 6, generator=generator)
    limits = torch.tensor([[-0.5, 0.5], [-2.0, 2.0]])
    probe = fitted(first[:500], moved[:500], parameters[:500], limits)
    read = torch.cat([probe.read("equivariant", torch.stack([first[i], moved[i]]))[1:] for i in range(500, 600)])
    error = (read - parameters[500:]).abs().mean(dim=0)
    assert error[0] < 0.05 and error[1] < 0.2  # guessing the middle is off by 0.25 and 1


def test_read_out_stays_within_the_range_of_the_path():
    generator = torch.Generator().manual_seed(0)
    first, moved = torch.randn(2, 100, 6, generator=generator)
    limits = torch.tensor([[-0.5, 0.5]])
    probe = fitted(first, moved, torch.rand(100, 1, generator=generator) - 0.5, limits)
    assert probe.read("equivariant", 1000 * torch.randn(50, 6, generator=generator)).abs().max() <= 0.5


def test_read_out_of_features_that_know_nothing_guesses():
    generator = torch.Generator().manual_seed(0)
    first, moved = torch.randn(2, 2000, 3, generator=generator)
    parameters = torch.rand(2000, 1, generator=generator) * 2 - 1
    probe = fitted(first[:1500], moved[:1500], parameters[:1500], torch.tensor([[-1.0, 1.0]]))
    read = torch.cat([probe.read("equivariant", torch.stack([first[i], moved[i]]))[1:] for i in range(1500, 2000)])
    assert r2_per_parameter(read, parameters[1500:])[0] < 0.1


def test_probe_has_figures_for_each_part_and_border(probe):
    names = {f"{border}.{part}" for border in ("strict", "black") for part in ("equivariant", "invariant")}
    assert set(probe.r2) == set(probe.error) == names
    assert all(len(values) == 7 for values in probe.r2.values()) and probe.num_tested == 3 * TEST_MOVES


def test_probe_is_fitted_once_for_the_same_weights(model, tmp_path, monkeypatch):
    monkeypatch.setenv("EQCOHVIT_CACHE", str(tmp_path))
    monkeypatch.setattr("probe.num_scenes", lambda side: 12)
    fit = fit_probe
    monkeypatch.setattr(
        "probe.fit_probe", lambda model, path, count, pictures: fit(model, path, count, pictures[:1], steps=5)
    )
    said = []
    first = load_probe(model, said.append)
    assert len(said) == 2 and "12 drawn scenes" in said[0]
    again = load_probe(model, said.append)
    assert len(said) == 2
    name = "strict.equivariant.0.weight"
    assert torch.allclose(first.tensors[name], again.tensors[name], rtol=1e-3, atol=1e-6) and first.r2 == again.r2
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])  # a broken file is replaced
    load_probe(model, said.append)
    assert len(said) == 4


def test_probe_of_the_same_scenes_is_the_same(model, make_picture):
    path = make_path(model.config.path)
    one, two = (fit_probe(model, path, 12, [make_picture(0)], steps=5) for _ in range(2))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("side", [24, 96])
def test_scenes_are_colored_pictures_another_for_each_seed(side):
    scenes = [draw_scene(seed, side) for seed in range(4)]
    assert all(scene.size == (side, side) and scene.mode == "RGB" for scene in scenes)
    assert len({scene.tobytes() for scene in scenes}) == 4
    assert draw_scene(2, side).tobytes() == scenes[2].tobytes()
    assert min(max(high - low for low, high in scene.getextrema()) for scene in scenes) > 60
