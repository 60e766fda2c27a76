import datasets
import numpy as np
import pytest
import torch
from tests.downstream.dense_tools import fit, make_rows, png

from eqcohvit.downstream.base import evaluate_task
from eqcohvit.downstream.coco import average_precision
from eqcohvit.downstream.detection import Detection
from eqcohvit.downstream.options import TaskOptions

IMAGES = [{"id": i, "width": 100, "height": 100} for i in (1, 2)]


def scene(boxes, size=(48, 64)):
    image = np.zeros((*size, 3), dtype=np.uint8)
    for x, y, width, height in boxes:
        image[y : y + height, x : x + width] = 255
    return image


def object_rows(all_boxes, all_classes, names=("a", "b")):
    features = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
        "category": datasets.List(datasets.ClassLabel(names=list(names))),
    }
    cells = [png(scene([list(map(int, box)) for box in boxes])) for boxes in all_boxes]
    objects = [{"bbox": boxes, "category": classes} for boxes, classes in zip(all_boxes, all_classes, strict=True)]
    return datasets.Dataset.from_dict(
        {"image": cells, "objects": objects},
        features=datasets.Features({"image": datasets.Image(decode=False), "objects": features}),
    )


@pytest.fixture
def rows():
    return object_rows([[[10, 8, 20, 16], [40, 20, 12, 20]], [], [[4, 30, 30, 12]]], [[0, 1], [], [0]])


def box(image_id, x, y, width, height, **more):
    return {"image_id": image_id, "category_id": 0, "bbox": [x, y, width, height], "area": width * height, **more}


def test_average_precision_by_hand():
    truth = [box(1, 10, 10, 20, 20), box(2, 50, 50, 20, 20)]
    perfect = [{**annotation, "score": 0.9} for annotation in truth]
    assert average_precision(IMAGES, truth, perfect, 1) == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
    # Width 14 of 20: IoU 0.7, right at the five thresholds .50 to .70 ...
    narrow = [box(1, 10, 10, 14, 20, score=0.9), box(2, 50, 50, 14, 20, score=0.8)]
    assert (
        average_precision(IMAGES, truth, narrow, 1)["AP50"] == 1
        and average_precision(IMAGES, truth, narrow, 1)["AP75"] == 0
    )
    # One of two found: precision 1 up to recall 0.5, 51 of the 101 points. A false one with a lower score changes
    # nothing ...
    one = [perfect[0], box(2, 0, 0, 5, 5, score=0.1)]
    assert average_precision(IMAGES, truth, one, 1) == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75"), 51 / 101))
    # ... and one with a higher score halves the precision.
    one[1]["score"] = 1.0
    assert average_precision(IMAGES, truth, one, 1)["AP50"] == pytest.approx(0.5 * 51 / 101)
    assert average_precision(IMAGES, truth, [], 1)["AP"] == 0


def test_boxes_follow_crop_and_flip(encoder, rows):
    task = Detection.from_options(TaskOptions(), encoder, rows)
    for seed in range(10):
        sample = task.train_sample(rows[2], np.random.default_rng(seed))
        white = np.asarray(task.to_image(sample["pixel_values"]))[:, :, 0] > 127
        y, x = np.nonzero(white)
        center_x, center_y, width, height = (sample["boxes"][0] * 64).tolist()
        seen = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        box = [center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2]
        np.testing.assert_allclose(seen, box, atol=1.01)


def test_true_boxes_score_one_and_come_back_in_pixels(encoder, rows):
    task = Detection.from_options(TaskOptions(), encoder, rows)
    score = task.start_score()
    for index in range(len(rows)):
        sample = task.test_sample(rows[index], index)
        score.add(
            {"boxes": sample["boxes"], "classes": sample["classes"], "scores": np.ones(len(sample["boxes"]))}, sample
        )
    assert score.result() == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})


def test_detector_learns_with_an_empty_image_in_the_batch(encoder, rows):
    task = Detection.from_options(TaskOptions(), encoder, rows)
    torch.manual_seed(0)
    model = task.build(encoder, random_weights=False)
    batch = task.collate([task.train_sample(rows[i], np.random.default_rng(0)) for i in range(3)])
    assert len(batch["labels"][1]["boxes"]) == 0
    losses = fit(task, model, batch, torch.optim.AdamW(model.parameters(), lr=3e-4), 4)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    values, pictures = evaluate_task(task, model, rows)
    assert set(values) == {"AP", "AP50", "AP75"} and pictures[0][1].size == (64, 48)
    with torch.no_grad():
        prediction = task.predict(
            model, batch["pixel_values"], [task.test_sample(row, i) for i, row in enumerate(rows)]
        )[0]
    assert (np.diff(prediction["scores"]) <= 0).all() and prediction["boxes"].shape[1] == 4


@pytest.mark.parametrize(
    ("boxes", "classes", "message"),
    [
        ([[[1, 1, 0, 5]]], [[0]], r"train row 0: the box \[1.0, 1.0, 0.0, 5.0\] has no area"),
        ([[[1, 1, 4, -5]]], [[0]], "has no area"),
        ([[[1, 1, 4, 5]]], [[0, 1]], "the row has 1 boxes and 2 categories"),
        ([[], []], [[], []], "the train rows are empty: none of 2 images has an object"),
        ([[[1, 1, 5]]], [[0]], r"the bbox of each object must be the numbers x, y, width, height, got \[\[1"),
        ([[[1, 1, 5, 5]]], [[None]], r"the category of each object must be a whole number, got \[None\]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(encoder, boxes, classes, message):
    rows = blank_rows(boxes, classes)
    with pytest.raises(ValueError, match=message):
        Detection.from_options(TaskOptions(), encoder, rows).check_rows(rows, "train")


def test_a_row_without_objects_and_a_box_outside_of_its_image_are_said_in_one_line(encoder):
    rows = object_rows([[[1, 1, 2, 2]]], [[0]])
    task = Detection.from_options(TaskOptions(), encoder, rows)
    with pytest.raises(ValueError, match="column objects is empty; an image without objects has empty lists"):
        task.read_target({**rows[0], "objects": None})
    outside = {**rows[0], "objects": {"bbox": [[64.0, 1.0, 5.0, 5.0]], "category": [0]}}
    with pytest.raises(
        ValueError, match=r"the box \[64.0, 1.0, 5.0, 5.0\] lies outside of its image of 64 x 48 pixels"
    ):
        task.test_sample(outside, 0)


def blank_rows(boxes, classes):
    rows = object_rows([[[1, 1, 2, 2]]] * len(boxes), [[0]] * len(boxes))
    objects = [{"bbox": b, "category": c} for b, c in zip(boxes, classes, strict=True)]
    return rows.remove_columns("objects").add_column("objects", objects, feature=rows.features["objects"])


def test_classes_without_names_need_their_number(encoder):
    rows = make_rows(image=[scene([])], objects=[{"bbox": [[1.0, 1, 2, 2]], "category": [3]}])
    with pytest.raises(ValueError, match="give their number with --num_labels"):
        Detection.from_options(TaskOptions(), encoder, rows)
    task = Detection.from_options(TaskOptions(num_labels=3), encoder, rows)
    with pytest.raises(ValueError, match="train row 0: an object has the category 3, expected 0 .. 2"):
        task.check_rows(rows, "train")
    with pytest.raises(ValueError, match="no column objects"):
        Detection.from_options(TaskOptions(), encoder, make_rows(image=[scene([])], boxes=[[1]]))
