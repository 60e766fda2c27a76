import pytest
import torch
from transformers import ViTConfig, ViTModel

import eqcohvit
from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining
from eqcohvit.data import SpritesSource
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.evaluation.intervals import accuracy_resampled, half_width
from eqcohvit.evaluation.pairs import render_states
from eqcohvit.evaluation.reconstruction import _psnr, reconstruction
from eqcohvit.evaluation.settings import EvaluationSettings
from eqcohvit.preprocessing import Preprocessing
from eqcohvit.transforms import make_path


@pytest.fixture
def model(tmp_path):
    """The folder of a tiny model with one decoder of the state in the middle of a rotation."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    backbone = ViTConfig(image_size=16, patch_size=8, **sizes)
    heads = {"feature_dim": 16, "equivariant_dim": 8, "decoder_dim": 8, "num_intermediates": 1, "path": "rotation"}
    made = EqCohViTForPreTraining(EqCohViTConfig(backbone_config=backbone, **heads))
    made.save_pretrained(tmp_path / "made")
    Preprocessing(16).processor().save_pretrained(tmp_path / "made")
    return tmp_path / "made"


def rows_of(model, samples, seeds=1):
    settings = EvaluationSettings(model=[str(model)], protocol=["strict"], seeds=seeds)
    return {row.encoder: row for row in reconstruction(Evaluation(settings, lambda: samples))}


def test_psnr_of_a_known_error():
    targets = torch.full((1, 2, 3, 4, 4), 0.5)
    images = targets.clone()
    images[:, 0] += 0.1  # MSE 0.01: 20 dB
    images[:, 1] += 0.01  # MSE 0.0001: 40 dB
    assert _psnr(images, targets).tolist() == pytest.approx([30.0], abs=1e-3)
    assert _psnr(targets, targets).tolist() == pytest.approx([100.0])


def test_psnr_is_that_of_the_states_in_color(model):
    samples = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), 1, 40)
    rows = rows_of(model, samples, seeds=2)
    assert list(rows) == ["made", "the nearer view", "blend of both views"]
    assert {row.metric for row in rows.values()} == {"PSNR rotation, strict (dB)"}
    loaded = EqCohViTForPreTraining.from_pretrained(model).eval()
    expected = {name: [[], []] for name in rows}
    for batch, _ in samples.blocks("test", 46):  # 2 canvas pixels for each of 16 * sqrt(2)
        for seed, drawn in enumerate(render_states(batch, make_path("rotation"), "strict", 16, [0, 1], [0.5, 1.0])):
            first, end = drawn.original, drawn.on_path[:, 1]
            mean, std = (
                torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
                torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
            )
            with torch.no_grad():
                rebuilt = loaded((first - mean) / std, (end - mean) / std).reconstructions[:, 0] * std + mean
            pictures = {"made": rebuilt.clamp(0, 1), "the nearer view": end, "blend of both views": (first + end) / 2}
            for name, picture in pictures.items():
                error = (picture - drawn.on_path[:, 0]).square().mean(dim=(1, 2, 3))
                expected[name][seed] += (-10 * error.log10()).tolist()
    for name, row in rows.items():
        assert row.values == pytest.approx([sum(values) / 40 for values in expected[name]], abs=1e-3)
        assert row.half == pytest.approx(half_width(row.values, accuracy_resampled(expected[name])), rel=1e-3)


def test_a_model_without_decoders_is_an_error_of_one_line(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="reconstruction needs a model with decoders, got .*plain: give one"):
        eqcohvit.evaluate(model=str(tmp_path / "plain"), task="reconstruction", max_test_samples=8)


def test_a_model_without_decoders_beside_one_with_them_has_no_row(model, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "plain")
    models = [str(tmp_path / "plain"), str(model)]
    rows = eqcohvit.evaluate(model=models, task="reconstruction", max_test_samples=8)
    assert [row.encoder for row in rows] == ["made", "the nearer view", "blend of both views"]
