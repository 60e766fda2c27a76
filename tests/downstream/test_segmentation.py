import json

import numpy as np
import pytest
import torch
from tests.downstream.dense_tools import fit, make_rows
from transformers import ViTConfig, ViTModel

from eqcohvit.downstream.backbones import EncoderFolder, find_backbone, spread_stages
from eqcohvit.downstream.base import evaluate_task
from eqcohvit.downstream.options import TaskOptions
from eqcohvit.downstream.saved import load_finetuned, save_finetuned
from eqcohvit.downstream.segmentation import Segmentation


def stripes(height=40, width=56):
    """An image whose red channel is 50 times the class of the pixel."""
    labels = np.broadcast_to(np.arange(width) // 14, (height, width)).astype(np.uint8)
    return np.stack([labels * 50, np.zeros_like(labels), np.zeros_like(labels)], axis=-1), labels


def make_task(encoder_folder, rows, **options):
    return Segmentation.from_options(
        TaskOptions(**{"num_labels": 4, **options}), EncoderFolder.open(encoder_folder), rows
    )


@pytest.fixture
def rows():
    image, labels = stripes()
    return make_rows(image=[image] * 3, annotation=[labels] * 3)


def test_crop_and_flip_keep_image_and_labels_together(encoder_folder, rows):
    task = make_task(encoder_folder, rows)
    directions = set()
    for seed in range(8):
        sample = task.train_sample(rows[0], np.random.default_rng(seed))
        assert sample["pixel_values"].shape == (3, 32, 32) and sample["labels"].shape == (32, 32)
        red = np.asarray(task.to_image(sample["pixel_values"]))[:, :, 0].astype(float) / 50
        assert np.abs(red - sample["labels"].numpy()).mean() < 0.12  # bicubic edges against nearest ones
        directions.add(int(np.sign(sample["labels"][0, -1] - sample["labels"][0, 0])))
    assert directions == {-1, 1}


def test_a_crop_holds_a_labeled_pixel(encoder_folder):
    image, labels = stripes()
    labels = np.full_like(labels, 255)
    labels[3, 50] = 2
    rows = make_rows(image=[image], annotation=[labels])
    task = make_task(encoder_folder, rows)
    samples = [task.train_sample(rows[0], np.random.default_rng(seed)) for seed in range(6)]
    assert (
        sum((sample["labels"] == 2).any().item() for sample in samples) >= 4
    )  # nearest-neighbor sampling may step over one pixel


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({}, [0, 3, 255, 255], [0, 3, 255, 255]),
        ({"ignore_label": 11}, [0, 3, 11, 255], [0, 3, 255, 255]),
        ({"reduce_labels": True}, [0, 1, 4, 255], [255, 0, 3, 255]),
    ],
)
def test_labels_are_mapped_to_classes(encoder_folder, options, values, expected):
    rows = make_rows(image=[np.zeros((1, 4, 3), np.uint8)], annotation=[np.array([values], np.uint8)])
    assert make_task(encoder_folder, rows, **options).read_target(rows[0]).tolist() == [expected]


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        ({}, [0, 4], r"test row 0: the annotation has the value 4, expected 0 .. 3, or 255"),
        ({"reduce_labels": True}, [5, 1], "the annotation has the value 5, expected 1 .. 4"),
        ({"ignore_label": 7}, [255, 7], "test row 0: the annotation is empty: no pixel has a class"),
    ],
)
def test_wrong_values_are_named_with_their_row(encoder_folder, options, values, message):
    rows = make_rows(image=[np.zeros((1, 2, 3), np.uint8)], annotation=[np.array([values], np.uint8)])
    with pytest.raises(ValueError, match=message):
        make_task(encoder_folder, rows, **options).check_rows(rows, "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": None}, "segmentation needs --num_labels"),
        ({"head": "mask"}, "head of segmentation must be one of upernet, linear, got mask"),
        ({"image_size": 36}, "image_size of segmentation must be a multiple of 8"),
        ({"target_column": "classes"}, "no column classes for the annotations; its columns: image, annotation"),
    ],
)
def test_options_that_do_not_fit(encoder_folder, rows, options, message):
    with pytest.raises(ValueError, match=message):
        make_task(encoder_folder, rows, **options)


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_head_learns_and_comes_back_equal(encoder_folder, rows, head, tmp_path):
    task = make_task(encoder_folder, rows, head=head)
    torch.manual_seed(0)
    encoder = EncoderFolder.open(encoder_folder)
    model = task.build(encoder, random_weights=False)
    for key, value in encoder.backbone().state_dict().items():
        assert torch.equal(find_backbone(model).state_dict()[key], value)
    batch = task.collate([task.train_sample(rows[0], np.random.default_rng(seed)) for seed in range(4)])
    losses = fit(task, model, batch, torch.optim.Adam(model.parameters(), lr=3e-3), 25)
    assert losses[-1] < 0.7 * losses[0]
    values, pictures = evaluate_task(task, model, rows)
    assert set(values) == {"mIoU", "pixel accuracy"} and 0 <= values["mIoU"] <= 1
    assert len(pictures) == 3 and pictures[0][2].size == (56, 40)  # predictions are of the annotation's size
    save_finetuned(tmp_path / "model", task, model)
    loaded_task, loaded = load_finetuned(tmp_path / "model")
    assert loaded_task == task and evaluate_task(loaded_task, loaded, rows)[0] == values


def test_random_weights_are_not_the_trained_ones(encoder_folder):
    encoder = EncoderFolder.open(encoder_folder)
    trained, random = encoder.backbone(), encoder.backbone(random_weights=True)
    name = "backbone.embeddings.patch_embeddings.projection.weight"
    assert not torch.equal(trained.state_dict()[name], random.state_dict()[name])


@pytest.mark.parametrize(
    ("fields", "mean", "std"),
    [
        ({"image_processor_type": "DINOv3ViTImageProcessor"}, (0.5,) * 3, (0.2,) * 3),  # exists with torchvision only
        ({"image_processor_type": "ViTImageProcessor", "do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        # x / 127.5 of pixels in [0, 255] is 2 x of images in [0, 1]; (2 x - 0.5) / 0.2 = (x - 0.25) / 0.1
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5}, (0.25,) * 3, (0.1,) * 3),
    ],
)
def test_normalization_is_what_any_image_processor_says(tmp_path, fields, mean, std):
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**layers, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.2] * 3, **fields}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = EncoderFolder.open(str(tmp_path))
    found = encoder.preprocessing
    assert found.mean == pytest.approx(mean) and found.std == pytest.approx(std) and found.image_size == 32


def test_positions_are_interpolated_to_another_size(encoder_folder):
    encoder = EncoderFolder.open(encoder_folder)
    same, larger = encoder.backbone(image_size=32), encoder.backbone(image_size=64)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(same.eval()(x).feature_maps[0], encoder.backbone().eval()(x).feature_maps[0])
    positions = [b.state_dict()["backbone.embeddings.position_embeddings"] for b in (same, larger)]
    assert [p.shape[1] for p in positions] == [17, 65] and torch.equal(positions[0][:, 0], positions[1][:, 0])
    assert larger.config.image_size == [64, 64]
    means = [
        p[:, 1:].unflatten(1, (2, p.shape[1] // 2)).mean(dim=2) for p in positions
    ]  # of the upper and the lower half
    torch.testing.assert_close(*means, atol=0.02, rtol=0.1)


def test_stages_are_spread_evenly():
    assert spread_stages(12) == [3, 6, 9, 12] and spread_stages(4) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="reads 4 stages, and the backbone has only 2 layers"):
        spread_stages(2)
