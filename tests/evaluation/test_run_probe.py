import numpy as np
import pytest
import torch
from PIL import Image

from eqcohvit.data import FolderSource, SpritesSource, sequential
from eqcohvit.evaluation.context import Evaluation
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
    own = {(row.part, row.settings["protocol"]): row.mean for row in r2(evaluation) if row.encoder == "tiny"}
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
    assert set(found) == {f"probe/{kind}/{part}" for kind in ("r2", "knn") for part in PARTS}


def test_probe_images_are_not_trained_on(tmp_path):
    for i in range(800):
        Image.fromarray(np.full((4, 4, 3), i % 256, dtype=np.uint8)).save(tmp_path / f"{i}.bmp")
    source = FolderSource(tmp_path)
    rest, probe = open_probe(source, 576, 8, make_path("rotation"))
    assert probe is not None and (probe.num_fit, probe.num_test) == (67, 33)  # an eighth of 800
    trained = {int(key) for batch in sequential(rest, 8, 64) for key in batch.keys}
    assert len(trained) == 700
    assert (probe.labels == -1).all()


def test_too_few_images_are_all_trained_on(photos):
    said: list[str] = []
    source = FolderSource(str(photos))
    assert open_probe(source, 576, 8, make_path("rotation"), report=said.append) == (source, None)
    assert len(said) == 1 and said[0].startswith("no probe while it trains: expected at least 768 images, found 24 in ")


def test_sprites_are_all_trained_on_and_probed_with_test_sprites():
    source = SpritesSource()
    rest, probe = open_probe(source, 96, 8, make_path("rotation"))
    assert rest is source and probe is not None and probe.num_fit + probe.num_test == 96
