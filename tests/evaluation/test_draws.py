"""Few images, each under several draws: what is held out, left out or resampled goes by image."""

import numpy as np
import pytest
import torch
from tests.evaluation.task_tools import Encoder, make

from eqcohvit.data import FolderSource, SpritesSource
from eqcohvit.evaluation import r2_tasks
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.draws import DrawsView, draws_for, pairs_of
from eqcohvit.evaluation.features import LAST, Feature
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.intervals import r2_resampled
from eqcohvit.evaluation.kernel_regression import kernel_regression
from eqcohvit.evaluation.pair_regression import Head, PairData, regress_pair
from eqcohvit.evaluation.probes import linear_regression, split_rows
from eqcohvit.evaluation.settings import EvaluationSettings
from eqcohvit.transforms import make_path


def test_draws_make_up_for_missing_images():
    assert [draws_for(count, 500) for count in (1, 20, 40, 499, 500, 10**6)] == [1, 25, 13, 2, 1, 1]


def test_pairs_of_one_image_are_adjacent_and_a_seed_keeps_its_first_draw():
    """Two images, seeds and draws: view 1 + 2 k + s of image i is the number 10 i + 1 + 2 k + s, and so is its g."""
    vectors = torch.tensor([[0.0, 1, 2, 3, 4], [10, 11, 12, 13, 14]])[:, :, None]
    original, moved, parameters = pairs_of(vectors, vectors[:, 1:, 0], num_seeds=2)
    assert original[:, 0].tolist() == [0, 0, 10, 10]
    assert moved[..., 0].tolist() == parameters[..., 0].tolist() == [[1, 3, 11, 13], [2, 4, 12, 14]]


def test_a_split_by_image_takes_the_images_of_the_split_without_draws():
    fit, val = split_rows(40, seed=3)
    own_fit, own_val = split_rows(120, seed=3, num_draws=3)
    assert own_fit.unflatten(0, (30, 3)).tolist() == [[3 * i, 3 * i + 1, 3 * i + 2] for i in fit.tolist()]
    assert own_val.unflatten(0, (10, 3)).tolist() == [[3 * i, 3 * i + 1, 3 * i + 2] for i in val.tolist()]
    with pytest.raises(ValueError, match="at least 10 images to be fitted on, got 9"):
        split_rows(117, seed=0, num_draws=13)


def of_images(num_draws, count=40):
    """Pairs whose target is a random number of the image, which only its own features tell."""
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(count, 20, generator=generator), torch.randn(count, 1, generator=generator)
    features, targets = (values.repeat_interleave(num_draws, 0) for values in (features, targets))
    moved = features + 0.1 * torch.randn(features.shape, generator=generator)
    new = torch.randn(8, 20, generator=generator)
    return PairData(features, moved, targets, new, new, num_draws)


def test_no_probe_learns_what_only_the_other_pairs_of_an_image_tell():
    """Held out by image, nothing helps, and the mean is predicted. Held out pair by pair, the probe would believe in
    it."""
    data = of_images(6)
    mean, spread = data.targets.mean(), data.targets.std()
    inputs, new = data.inputs("[o, g]")
    head = Head("[o, g]", (16,))
    honest = {
        "ridge": linear_regression(inputs, data.targets, new, num_draws=6)[0],
        "kernel": kernel_regression(data),
        "mlp": regress_pair(data, heads=[head])["mlp"][0],
    }
    mixed = PairData(data.original, data.moved, data.targets, data.test_original, data.test_moved)
    leaking = {
        "ridge": linear_regression(inputs, data.targets, new)[0],
        "kernel": kernel_regression(mixed),
        "mlp": regress_pair(mixed, heads=[head])["mlp"][0],
    }
    for name, predicted in honest.items():
        assert (predicted - mean).square().mean().sqrt() < 0.35 * spread, name
        assert (leaking[name] - mean).square().mean().sqrt() > 0.4 * spread, name


def test_the_kernel_leaves_out_images_as_if_they_had_never_been_fitted(monkeypatch):
    """With one width and two penalties, the choice is that of refitting without each image in turn."""
    from eqcohvit.evaluation import kernel_regression as module

    monkeypatch.setattr(module, "_WIDTHS", (0.3,))
    generator = torch.Generator().manual_seed(1)
    o = torch.randn(12, 3, generator=generator).repeat_interleave(4, 0)
    change = torch.randn(48, 3, generator=generator)
    targets = (o * change).sum(dim=1, keepdim=True) + torch.randn(12, 1, generator=generator).repeat_interleave(4, 0)
    data = PairData(o, o + change, targets, o[:5] + 0.5, o[:5] + change[:5], num_draws=4)
    x, new = (values.double() for values in data.inputs("[o, g - o]"))
    y = (targets.double() - targets.double().mean()) / targets.double().std()
    errors, predictions = {}, {}
    for penalty in (1e-5, 1e-2):

        def fit(rows, points, penalty=penalty):
            kernel = torch.exp(-0.3 * torch.cdist(x[rows], x[rows]).square() / 6)
            weight = torch.linalg.solve(kernel + penalty * 48 * torch.eye(len(rows)), y[rows])
            return torch.exp(-0.3 * torch.cdist(points, x[rows]).square() / 6) @ weight

        everything = torch.arange(48)
        left_out = [fit(everything[everything // 4 != i], x[4 * i : 4 * i + 4]) for i in range(12)]
        errors[penalty] = (torch.cat(left_out) - y).square().mean().item()
        predictions[penalty] = fit(everything, new) * targets.double().std() + targets.double().mean()
        monkeypatch.setattr(module, "_PENALTIES", (penalty,))
        alone = kernel_regression(data).double()
        is_better = (
            errors[penalty]
            < (y.unflatten(0, (12, 4)).sum(1, keepdim=True) / 44 + y.unflatten(0, (12, 4))).square().mean()
        )
        expected = predictions[penalty] if is_better else targets.double().mean().expand(5, 1)
        assert torch.allclose(alone, expected, atol=1e-4), penalty
    monkeypatch.setattr(module, "_PENALTIES", (1e-5, 1e-2))
    best = min(errors, key=errors.get)
    assert torch.allclose(kernel_regression(data).double(), predictions[best], atol=1e-4)


def test_resamples_take_all_pairs_of_an_image():
    """Each pair three times is the same as each once, by image. As single pairs the interval would be too small."""
    generator = np.random.default_rng(0)
    true = generator.normal(size=(2, 30, 1))
    predicted = true + generator.normal(size=true.shape)
    once = r2_resampled(predicted, true)
    thrice = [np.repeat(values, 3, axis=1) for values in (predicted, true)]
    assert r2_resampled(*thrice, num_draws=3) == pytest.approx(once)
    assert r2_resampled(*thrice).std() < 0.7 * once.std()


def test_from_500_images_on_each_is_shown_once(tmp_path):
    path = make_path("rotation")
    samples = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 500, 499)
    evaluation = Evaluation(EvaluationSettings(cache_dir=tmp_path), lambda: samples)
    assert [evaluation.num_draws(part) for part in ("train", "test")] == [1, 2]
    assert (
        DrawsView(path, "strict", 1).name == DrawsView(path, "strict", 2).pair.name != DrawsView(path, "strict", 2).name
    )
    few = SpritesSource(25)
    evaluation = Evaluation(EvaluationSettings(cache_dir=tmp_path), lambda: ProbeImages(few, few, 1024, 512))
    assert evaluation.num_draws("train") == 20  # no more images than the source has


def test_r2_of_few_images_by_several_draws(tmp_path, photos, monkeypatch):
    """Images that show the angle as a color: R2 is 1, and results say how it was measured."""

    class Colors(DrawsView):
        def __call__(self, batch, image_size):
            images, parameters = super().__call__(batch, image_size)
            images[:, :, 0] = 0
            images[1:, :, 0] = parameters.T[:, :, None, None]
            return images, parameters

    monkeypatch.setattr(r2_tasks, "DrawsView", Colors)
    encoder = Encoder("colors", lambda images: images.mean(dim=(2, 3)))
    source = FolderSource(str(photos))
    evaluation = make(tmp_path, [encoder], ProbeImages(source, source, 14, 10), seeds=2, head=["linear"], alone="none")
    del evaluation.num_draws  # what `make` has set
    found = []
    monkeypatch.setattr(r2_tasks, "r2_resampled", lambda *data: found.append(data) or r2_resampled(*data))
    row, error = r2_tasks.r2(evaluation)
    assert row.mean == pytest.approx(1, abs=1e-3) and row.half < 1e-2
    assert error.metric == "median error of angle, rotation, strict (degrees)" and error.mean < 1
    assert [(predicted.shape, num_draws) for predicted, _, num_draws in found] == [((2, 500, 1), 50)]
    features = evaluation.features("train", Colors(make_path("rotation"), "strict", 2 * 36))
    assert features["colors"].vectors[Feature("colors", LAST, "mean")].shape == (14, 73, 3)
    assert evaluation.facts()["protocol"]["train_draws"] == 36 and evaluation.facts()["protocol"]["test_draws"] == 50
