import numpy as np
import pytest
import torch
from PIL import Image

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.data import FolderSource, SpritesSource, hold_out, sequential
from eqcohvit.evaluation.extraction import CentralView
from eqcohvit.evaluation.guard import AccuracyFell, KnnGuard
from eqcohvit.evaluation.images import ProbeImages

MEAN_STD = ((0.5,) * 3, (0.25,) * 3)


def make_model():
    torch.manual_seed(0)
    return EqCohViTModel(EqCohViTConfig.from_preset("micro", 16, 8, feature_dim=16, equivariant_dim=8))


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Dark and bright noise in two folders: classes that any features tell apart which are not constant."""
    root = tmp_path_factory.mktemp("shades")
    generator = np.random.default_rng(0)
    for i in range(80):
        shade = "dark" if i < 40 else "bright"
        (root / shade).mkdir(exist_ok=True)
        pixels = generator.integers(0, 60, (16, 16, 3), dtype=np.uint8) + (0 if shade == "dark" else 190)
        Image.fromarray(pixels.astype(np.uint8)).save(root / shade / f"{i}.png")
    return FolderSource(root, labels=True)


def test_guard_lets_equal_weights_pass_and_stops_at_ruined_ones(shades):
    model = make_model().train()
    guard = KnnGuard(shades, 80, 16, max_drop=0.1)
    guard.check(guard.measure(model, *MEAN_STD), 0)
    guard.check(guard.measure(model, *MEAN_STD), 10)
    assert guard.start == 1.0 and model.training
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()
    with pytest.raises(
        AccuracyFell, match=r"fell from 1.000 at the start to 0\.\d+ at step 20, by more than knn_guard_drop=0.1"
    ):
        guard.check(guard.measure(model, *MEAN_STD), 20)


def test_guard_and_evaluation_see_the_same_images_of_wide_photographs(tmp_path):
    """Each is 40 x 16 pixels; both take the central square."""
    rng = np.random.default_rng(0)
    for number in range(24):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 40, 3), dtype=np.uint8)).save(
            tmp_path / str(number % 2) / f"{number}.png"
        )
    source = FolderSource(tmp_path, labels=True)
    guard = KnnGuard(source, 24, 16, max_drop=0.1)
    seen = dict(zip([batch.keys for batch in sequential(source, 16, 24)][0].tolist(), guard.images, strict=True))
    for batch, _ in ProbeImages(source, source, 8, 16).blocks("test", 16):
        images, _ = CentralView()(batch, 16)
        for key, image in zip(batch.keys.tolist(), images[0], strict=True):
            assert torch.equal(image, seen[key].float() / 255)


def test_guard_measures_in_evaluation_mode():
    config = EqCohViTConfig.from_preset(
        "micro", 16, 8, backbone_kwargs={"drop_path_rate": 0.9}, feature_dim=16, equivariant_dim=8
    )
    torch.manual_seed(0)
    model, guard = EqCohViTModel(config).train(), KnnGuard(SpritesSource(), 100, 16, max_drop=0.1)
    assert len({guard.measure(model, *MEAN_STD) for _ in range(3)}) == 1


def test_known_start_is_kept():
    guard = KnnGuard(SpritesSource(), 64, 16, max_drop=0.1)
    guard.start = 0.9
    with pytest.raises(AccuracyFell, match=r"fell from 0.900 at the start to 0.700"):
        guard.check(0.7, 5)
    guard.check(0.81, 5)


def test_guard_without_labels_or_images_is_refused(photos):
    with pytest.raises(ValueError, match="needs labeled images, but .* has no label column"):
        KnnGuard(FolderSource(str(photos)), 8, 16, max_drop=0.1)
    with pytest.raises(
        ValueError, match="expected 100 labeled images of .*, found 24 of 2 classes; lower knn_guard_samples"
    ):
        KnnGuard(FolderSource(str(photos), labels=True), 100, 16, max_drop=0.1)


def test_guard_takes_its_images_from_all_folders(shades):
    rest, held_out = hold_out(shades, 10)
    guard = KnnGuard(held_out, 10, 16, max_drop=0.1)
    assert sorted(guard.labels.tolist()) == [0] * 5 + [1] * 5
