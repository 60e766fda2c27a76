"""One model folder gives one size, one normalization and one view of a photograph to everybody who reads it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, pipeline

from eqcohvit import EqCohViTConfig, EqCohViTForPreTraining
from eqcohvit.data import FolderSource, sequential
from eqcohvit.downstream.backbones import EncoderFolder
from eqcohvit.evaluation.extraction import CentralView
from eqcohvit.evaluation.features import load_encoder
from eqcohvit.evaluation.guard import KnnGuard
from eqcohvit.evaluation.images import ProbeImages
from eqcohvit.preprocessing import Preprocessing, read_preprocessing
from eqcohvit.publish.folder import save_hub_folder
from eqcohvit.training.start import open_start

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 48, "patch_size": 8}
MEAN = [0.5, 0.4, 0.3]
STD = [0.2, 0.25, 0.3]


def save_vit(folder, model_type="dinov2", **processor):
    """A plain ViT for images of 48 pixels, with positions far from 0 and an image processor of these fields."""
    torch.manual_seed(0)
    mlp = {"mlp_ratio": 2} if model_type.startswith("dinov2") else {"intermediate_size": 32}
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **SIZES, **mlp)).eval()
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(folder)
    fields = {"image_processor_type": "ViTImageProcessor", "image_mean": MEAN, "image_std": STD, **processor}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return str(folder)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": {"height": 48, "width": 48}, "do_normalize": False}, Preprocessing(48, (0.0,) * 3, (1.0,) * 3)),
        # The crop is not used.
        ({"size": {"height": 64, "width": 64}, "crop_size": 48}, Preprocessing(64, tuple(MEAN), tuple(STD))),
        # As in DINOv2's folders: the configuration has a larger size than the processor gives.
        (
            {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
            Preprocessing(32, tuple(MEAN), tuple(STD)),
        ),
        # 30 is not a multiple of the patch size 8, so the configuration decides.
        ({"size": {"height": 30, "width": 30}}, Preprocessing(48, tuple(MEAN), tuple(STD))),
        # x / 127.5 of pixels up to 255 is 2 x of images in [0, 1]; (2 x - 0.5) / 0.2 = (x - 0.25) / 0.1
        (
            {"size": {"height": 48, "width": 48}, "rescale_factor": 1 / 127.5},
            Preprocessing(48, (0.25, 0.2, 0.15), (0.1, 0.125, 0.15)),
        ),
    ],
)
def test_training_evaluation_and_dense_tasks_read_the_same(fields, expected, tmp_path):
    folder = save_vit(tmp_path, **fields)
    assert open_start(folder).preprocessing == expected
    assert load_encoder(folder).preprocessing == expected
    assert EncoderFolder.open(folder).preprocessing == expected


def test_exported_processor_normalizes_as_evaluation_does(tmp_path):
    preprocessing = Preprocessing(8, tuple(MEAN), tuple(STD))
    preprocessing.processor().save_pretrained(tmp_path)
    assert read_preprocessing(str(tmp_path), EqCohViTConfig.from_preset("micro", 8, 8)) == preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    expected = preprocessing.processor()(Image.fromarray(pixels), return_tensors="pt").pixel_values
    torch.testing.assert_close(preprocessing.normalize(images), expected)


def test_processor_that_cannot_be_found_is_replaced_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="has no image processor"):
        found = read_preprocessing(str(tmp_path), EqCohViTConfig.from_preset("micro", 24, 8))
    assert found == Preprocessing(24, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("size", [(61, 40), (40, 75)])
def test_guard_evaluation_and_pipeline_see_the_same_pixels_of_a_photograph(size, tmp_path):
    for number in range(4):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        (tmp_path / "photos" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        photo.save(tmp_path / "photos" / f"class{number % 2}" / f"{number}.png")
    torch.manual_seed(0)
    model = EqCohViTForPreTraining(EqCohViTConfig.from_preset("micro", 16, 8, feature_dim=16, equivariant_dim=8))
    folder = save_hub_folder(tmp_path / "model", model, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    extract = pipeline("equivariant-feature-extraction", model=str(folder))

    source = FolderSource(tmp_path / "photos", labels=True)
    guard = KnnGuard(source, 4, 16, max_drop=0.1)
    keys = next(iter(sequential(source, 16, 4))).keys.tolist()
    seen_by_guard = dict(zip(keys, guard.images, strict=True))
    files = sorted((tmp_path / "photos").rglob("*.png"))
    compared = 0
    for batch, _ in ProbeImages(source, source, 0, 4).blocks("test", 16):
        images, _ = CentralView()(batch, 16)
        for key, image in zip(batch.keys.tolist(), images[0], strict=True):
            expected = seen_by_guard[key].float() / 255
            torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
            views = [extract.preprocess(str(path))["pixel_values"][0] for path in files]
            # Pillow and torch round differently, by one of 256 levels.
            assert min(float((view - expected).abs().max()) for view in views) < 1.01 / 255
            compared += 1
    assert compared == 4


@pytest.mark.parametrize("model_type", ["vit", "dinov2", "dinov2_with_registers"])
def test_positions_of_dense_tasks_are_those_of_the_backbone_itself(model_type, tmp_path):
    encoder = EncoderFolder.open(save_vit(tmp_path, model_type, size={"height": 48, "width": 48}))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = encoder.backbone(image_size=64).eval()(x).feature_maps[0]
        expected = encoder.backbone().eval()(x).feature_maps[0]
    torch.testing.assert_close(found, expected)
