import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks
from tests.downstream.dense_tools import fit, make_rows

from eqcohvit.data.sprites import render_sprites
from eqcohvit.downstream.base import evaluate_task
from eqcohvit.downstream.instances import InstanceSegmentation, sprite_grids
from eqcohvit.downstream.options import TaskOptions


def annotated(boxes, numbers=None, size=(48, 64)):
    """White rectangles (x, y, width, height, class) on black, and their annotation: red the class, green the number."""
    image, annotation = np.zeros((2, *size, 3), dtype=np.uint8)
    for number, (x, y, width, height, label) in zip(numbers or range(1, 9), boxes, strict=False):
        image[y : y + height, x : x + width] = 255
        annotation[y : y + height, x : x + width] = (label, number, 0)
    return image, annotation


def instance_rows(*scenes):
    images, annotations = zip(*scenes, strict=True)
    return make_rows(image=list(images), annotation=list(annotations))


ROWS = instance_rows(
    annotated([(10, 8, 20, 16, 0), (40, 20, 12, 20, 1)], numbers=(3, 7)), annotated([]), annotated([(4, 28, 30, 12, 0)])
)


def make_task(encoder, rows=ROWS, **options):
    return InstanceSegmentation.from_options(TaskOptions(**{"num_labels": 2, **options}), encoder, rows)


def test_instances_are_counted_from_one_with_their_classes(encoder):
    instances, classes = make_task(encoder).read_target(ROWS[0])
    assert classes.tolist() == [0, 1] and instances.shape == (48, 64)
    assert (
        (instances == 1).sum() == 20 * 16
        and (instances[20:40, 40:52] == 2).all()
        and (instances > 0).sum() == 20 * 16 + 12 * 20
    )
    reduced = instance_rows(annotated([(4, 4, 8, 8, 2)]))
    assert make_task(encoder, reduced, reduce_labels=True).read_target(reduced[0])[1].tolist() == [1]


def test_masks_follow_crop_and_flip(encoder):
    task = make_task(encoder)
    for seed in range(8):
        sample = task.train_sample(ROWS[0], np.random.default_rng(seed))
        white = torch.from_numpy(np.asarray(task.to_image(sample["pixel_values"]))[:, :, 0] > 127)
        drawn = sample["masks"].amax(dim=0) > 0
        assert (white == drawn).float().mean() > 0.96 and sample["masks"].shape == (len(sample["classes"]), 64, 64)


def test_true_masks_score_one_and_cut_ones_by_hand(encoder):
    task = make_task(encoder)
    whole, cut = task.start_score(), task.start_score()
    for index in range(len(ROWS)):
        sample = task.test_sample(ROWS[index], index)
        masks = [(sample["instances"] == number) for number in range(1, len(sample["classes"]) + 1)]
        for score, last in ((whole, 48), (cut, 36)):
            drawn = [
                coco_masks.encode(np.asfortranarray(mask & (np.arange(48)[:, None] < last), dtype=np.uint8))
                for mask in masks
            ]
            score.add(
                {
                    "masks": drawn,
                    "classes": sample["classes"],
                    "scores": np.array([0.9, 0.8])[: len(masks)] - index / 10,
                },
                sample,
            )
    assert whole.result() == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
    # Without the rows from 36 on the three are left whole (class 0), to 16 of 20 rows (class 1), and to 8 of 12 (class
    # 0). At IoU .75 one of the two of class 0 is found: precision 1 at 51 of the 101 points of recall.
    assert cut.result()["AP50"] == pytest.approx(1) and cut.result()["AP75"] == pytest.approx((51 / 101 + 1) / 2)


def test_model_learns_with_an_empty_image_in_the_batch(encoder):
    task = make_task(encoder)
    torch.manual_seed(0)
    model = task.build(encoder, random_weights=False)
    batch = task.collate([task.train_sample(ROWS[i], np.random.default_rng(0)) for i in range(3)])
    assert batch["masks"][1].shape == (0, 64, 64)
    losses = fit(task, model, batch, torch.optim.AdamW(model.parameters(), lr=3e-4), 3)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    values, pictures = evaluate_task(task, model, ROWS)
    assert set(values) == {"AP", "AP50", "AP75"} and pictures[0][2].size == (64, 48)
    samples = [task.test_sample(ROWS[i], i) for i in range(3)]
    with torch.no_grad():
        found = task.predict(model, batch["pixel_values"], samples)[0]
    assert (np.diff(found["scores"]) <= 0).all() and len(found["masks"]) == len(found["classes"]) == len(
        found["scores"]
    )
    assert coco_masks.decode(found["masks"]).shape[:2] == (48, 64)


def test_sprites_are_four_scenes_with_their_masks(encoder):
    train, test = sprite_grids()
    task = InstanceSegmentation.from_options(TaskOptions(), encoder, train)
    scenes = render_sprites(np.arange(4, 8), 64)
    sample = task.test_sample(train[1], 0)
    assert sample["classes"].tolist() == scenes.labels.tolist() and sample["image"].size == (128, 128)
    np.testing.assert_array_equal(sample["instances"][64:, :64] == 3, scenes.mask[2])
    np.testing.assert_array_equal(np.asarray(sample["image"])[:64, 64:], scenes.images[1].transpose(1, 2, 0))
    assert len(train.select(range(3))) == 3 and len(test) == 128
    task.check_rows(train, "train")


@pytest.mark.parametrize(
    ("scenes", "options", "message"),
    [
        (
            [annotated([(4, 4, 8, 8, 2)])],
            {},
            "train row 0: an instance has the class 2, expected 0 .. 1; see --num_labels",
        ),
        ([annotated([(4, 4, 8, 8, 0)])], {"reduce_labels": True}, "an instance has the class 0, expected 1 .. 2"),
        (
            [annotated([(4, 4, 8, 8, 0), (20, 4, 8, 8, 1)], numbers=(1, 1))],
            {},
            "instance 1 of column annotation has the classes 0 and 1",
        ),
        ([annotated([])], {}, "the train rows are empty: none of 1 images has an instance"),
        (
            [(annotated([])[0], np.zeros((48, 64), np.uint8))],
            {},
            "hold RGB images, red the class, green the instance, got one of mode L",
        ),
        ([annotated([])], {"num_labels": None}, "instance segmentation needs --num_labels"),
        (
            [annotated([])],
            {"target_column": "masks"},
            "no column masks for the annotations; its columns: image, annotation",
        ),
        ([annotated([])], {"image_size": 40}, "image_size of instance_segmentation must be a multiple of 32"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(encoder, scenes, options, message):
    rows = instance_rows(*scenes)
    with pytest.raises(ValueError, match=message) as error:
        make_task(encoder, rows, **options).check_rows(rows, "train")
    assert "\n" not in str(error.value)
