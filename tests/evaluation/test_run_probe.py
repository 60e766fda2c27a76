import numpy as np
import pytest
import torch
from PIL import Image

from eqcohvit.data import FolderSource, SpritesSource, sequential
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.extraction import PairView
from eqcohvit.evaluation.features import load_encoder
from eqcohvit.evaluation.images import TEST_SPRITES, ProbeImages
from eqcohvit.evaluation.run_probe import RunProbe, open_probe
from eqcohvit.evaluation.settings import EvaluationSettings
from eqcohvit.evaluation.tasks import knn, r2
from eqcohvit.transforms import make_path

PARTS = ("equivariant", "invariant", "backbone")
MEAN_STD = ((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def probe():
    return RunProbe(SpritesSource(96, offset=TEST_SPRITES), 96, 32, make_path("rotation"))


def test_probe_agrees_with_the_evaluation_of_the_same_model_and_images(encoder_folder, tmp_path):
    source = SpritesSource(144, offset=TEST_SPRITES)
    encoder = load_encoder(encoder_folder)
    preprocessing = encoder.preprocessing
    found = RunProbe(source, 144, 32, make_path("rotation")).measure(
        encoder.model, preprocessing.mean, preprocessing.std
    )
    settings = {"transform": ["rotation"], "protocol": ["strict", "paper"], "pooling": ["cls_mean"], "head": ["kernel"]}
    settings |= {"model": encoder_folder, "seeds": 1, "cache_dir": tmp_path, "alone": "none"}
    evaluation = Evaluation(EvaluationSettings(**settings), lambda: ProbeImages(source, source, 96, 48))
    evaluation.num_draws = lambda part: 1
    rows = [row for row in r2(evaluation) if row.encoder == "tiny" and row.metric.startswith("R2")]
    own = {(row.part, row.settings["protocol"]): row.mean for row in rows}
    for part in PARTS:  # up to the rounding of the rendered pixels to 8 bits
        for name, protocol in (("probe/r2", "strict"), ("probe/r2_paper", "paper")):
            assert found[f"{name}/{part}"] == pytest.approx(own[part, protocol], abs=0.01), (part, protocol)
    accuracies = {row.part: row.mean for row in knn(evaluation) if row.encoder == "tiny"}
    assert {part: accuracies[part] for part in PARTS} == pytest.approx(
        {p: found[f"probe/knn/{p}"] for p in PARTS}, abs=0.02
    )


def test_measuring_draws_no_random_number_and_leaves_the_model_as_it_was(encoder_folder, probe):
    model = load_encoder(encoder_folder).model.train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first, second = (probe.measure(model, *MEAN_STD) for _ in range(2))
    assert first == second and set(first) == {
        f"probe/{kind}/{part}" for kind in ("r2", "r2_paper", "knn") for part in PARTS
    }
    assert torch.equal(torch.get_rng_state(), state) and all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_processes_find_what_one_finds(encoder_folder, probe):
    """The second process is played by what it would hand over."""
    model = load_encoder(encoder_folder).model
    settings = (SpritesSource(96, offset=TEST_SPRITES), 96, 32, make_path("rotation"), 0.01, 0)
    shares = [RunProbe(*settings, rank, 2) for rank in (0, 1)]
    handed: list[torch.Tensor] = []
    assert (
        shares[1].measure(
            model, *MEAN_STD, gather=lambda share: handed.append(share) or share.repeat(2, 1, 1), is_main=False
        )
        == {}
    )
    others = iter(handed)
    found = shares[0].measure(model, *MEAN_STD, gather=lambda share: torch.cat([share, next(others)]))
    assert found == pytest.approx(probe.measure(model, *MEAN_STD), abs=1e-4)


def test_paths_that_move_nothing_have_one_protocol(encoder_folder):
    probe = RunProbe(SpritesSource(96, offset=TEST_SPRITES), 96, 32, make_path("color_jitter"))
    found = probe.measure(load_encoder(encoder_folder).model, *MEAN_STD)
    kinds = ["r2", "knn", *(f"r2_of/{name}" for name in probe.path.parameter_names)]
    assert set(found) == {f"probe/{kind}/{part}" for kind in kinds for part in PARTS}


def write_shades(folder, count):
    for i in range(count):
        Image.fromarray(np.full((4, 4, 3), i % 256, dtype=np.uint8)).save(folder / f"{i}.bmp")
    return FolderSource(folder)


def trained_on(rest):
    return [int(key) for batch in sequential(rest, 8, 64) for key in batch.keys]


def test_each_of_several_parameters_has_its_own_r2(encoder_folder):
    encoder = load_encoder(encoder_folder)
    found = RunProbe(SpritesSource(96, offset=TEST_SPRITES), 96, 32, make_path("se2")).measure(encoder.model, *MEAN_STD)
    for part in PARTS:
        own = [found.pop(f"probe/r2_of/{name}/{part}") for name in ("angle", "shift_x", "shift_y")]
        assert found[f"probe/r2/{part}"] == pytest.approx(sum(own) / 3) and len(set(own)) == 3
    assert not any("r2_of" in name for name in found)


def test_probe_images_are_not_trained_on(tmp_path):
    said: list[str] = []
    rest, probe = open_probe(write_shades(tmp_path, 800), 576, 8, make_path("rotation"), report=said.append)
    assert probe is not None and probe.sizes == "fitted on 67 images, tested on 33"  # an eighth of 800
    assert len(set(trained_on(rest))) == 700 and probe.num_draws == 1
    assert (probe.labels == -1).all()
    assert said == ["100 of 800 images are held out of training to measure R2 while it trains"]


@pytest.mark.parametrize(("count", "held_out", "num_draws"), [(31, 10, 20), (60, 20, 10), (300, 96, 3), (767, 96, 3)])
def test_of_few_images_a_third_is_held_out_under_several_draws(tmp_path, count, held_out, num_draws):
    """Of 200 pairs: 20 for each of 10 images, and 3 for each of 96, which more images do not raise."""
    said: list[str] = []
    rest, probe = open_probe(write_shades(tmp_path, count), 200, 8, make_path("rotation"), report=said.append)
    assert probe is not None and (len(probe.labels), probe.num_draws) == (held_out, num_draws)
    assert probe.images["strict"].shape == (held_out, 1 + num_draws, 3, 8, 8)
    tested = torch.zeros(held_out)
    for fit, test in probe.splits():
        assert not (fit & test).any() and test.sum() >= held_out // 5
        tested += test
    assert (tested == 1).all()
    trained = trained_on(rest)
    assert len(trained) == len(set(trained)) == count - held_out
    line = f"{held_out} of {count} images are held out of training to measure R2 while it trains"
    assert said == [f"{line}, each under {num_draws} draws of the transformation"]


def test_too_few_images_are_all_trained_on(photos):
    said: list[str] = []
    source = FolderSource(str(photos))
    assert open_probe(source, 576, 8, make_path("rotation"), report=said.append) == (source, None)
    assert len(said) == 1 and said[0].startswith("no probe while it trains: expected at least 30 images, found 24 in ")


def test_several_draws_begin_with_that_of_one_and_two_processes_find_what_one_finds(encoder_folder):
    model = load_encoder(encoder_folder).model
    path = make_path("color_jitter")  # of one protocol
    settings = (SpritesSource(32, offset=TEST_SPRITES), 32, 32, path, 0.01, 0)
    several = RunProbe(*settings, num_draws=4)
    view = PairView(path, "strict")
    batch, _ = next(ProbeImages(settings[0], settings[0], 32, 0).blocks("train", view.canvas_size(32)))
    images, parameters = view(batch, 32)
    assert torch.equal(several.images["strict"][:, :2], (images.transpose(0, 1) * 255).round().to(torch.uint8))
    assert torch.equal(several.parameters[:, : parameters.shape[1]], parameters)
    found = several.measure(model, *MEAN_STD)
    handed: list[torch.Tensor] = []
    shares = [RunProbe(*settings, rank, 2, num_draws=4) for rank in (0, 1)]
    shares[1].measure(model, *MEAN_STD, lambda share: handed.append(share) or share.repeat(2, 1, 1), False)
    others = iter(handed)
    own = shares[0].measure(model, *MEAN_STD, lambda share: torch.cat([share, next(others)]))
    assert own == pytest.approx(found, abs=1e-4)


def test_sprites_are_all_trained_on_and_probed_with_test_sprites():
    source = SpritesSource()
    rest, probe = open_probe(source, 96, 8, make_path("rotation"))
    assert rest is source and probe is not None and len(probe.labels) == 96
