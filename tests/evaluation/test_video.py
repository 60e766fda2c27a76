import resource
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tests.downstream.dense_tools import make_rows
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from eqcohvit import EqCohViTConfig, EqCohViTModel
from eqcohvit.evaluation.features import ModelEncoder, load_encoder
from eqcohvit.evaluation.video import (
    VIDEO_TASKS,
    ObjectScore,
    PartScore,
    PatchEncoder,
    PixelPatches,
    Video,
    propagate_videos,
    read_videos,
    resize_frame,
)
from eqcohvit.preprocessing import Preprocessing


def video_rows(num_frames=4, step=8, name="band", size=(40, 128)):
    """A band of noise, as high as the frame and 24 pixels wide, that moves over a plain ground by `step` pixels a
    frame."""
    generator = np.random.default_rng(0)
    background = np.full((*size, 3), (200, 40, 90), dtype=np.uint8)
    band = generator.integers(0, 255, (size[0], 24, 3), dtype=np.uint8)
    images, labels = [], []
    for t in range(num_frames):
        left = 16 + t * step
        image, label = background.copy(), np.zeros(size, dtype=np.uint8)
        image[:, left : left + 24], label[:, left : left + 24] = band, 1
        images.append(image)
        labels.append(label)
    order = list(reversed(range(num_frames)))  # rows need not be in order
    return {
        "image": [images[i] for i in order],
        "annotation": [labels[i] for i in order],
        "sequence": [name] * num_frames,
        "frame": order,
    }


@pytest.mark.parametrize("step", [0, 8])
@pytest.mark.parametrize("task", list(VIDEO_TASKS))
def test_labels_follow_the_band_exactly(task, step):
    lines = []
    results = propagate_videos(
        VIDEO_TASKS[task],
        [PixelPatches(8)],
        read_videos(make_rows(**video_rows(step=step))),
        shorter_side=40,
        report=lines.append,
    )
    values = results.values["raw pixels", "pixels"]
    assert all(value == 1 for value in values.values()), values
    assert lines == ["video 1/1 band: 4 frames, raw pixels"]
    assert len(results.pictures) == 1 and len(results.pictures[0]) == 4 and results.pictures[0][0].size == (128, 40)


def test_parts_of_a_split_model_and_of_a_plain_vit(encoder_folder, tmp_path):
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**layers, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    encoders = [PatchEncoder(load_encoder(str(path))) for path in (encoder_folder, tmp_path)]
    results = propagate_videos(
        VIDEO_TASKS["video_segmentation"], encoders, read_videos(make_rows(**video_rows())), shorter_side=40
    )
    parts = [(encoder_folder, part) for part in ("equivariant", "invariant", "backbone")] + [
        (str(tmp_path), "backbone")
    ]
    assert list(results.values) == parts
    assert set(results.values[parts[0]]) == {"J&F", "J", "F", "J recall", "F recall"}


def test_each_layer_that_is_asked_for_carries_labels(encoder_folder):
    encoder = PatchEncoder(load_encoder(str(encoder_folder), ["1", "last"]))
    results = propagate_videos(
        VIDEO_TASKS["video_segmentation"], [encoder], read_videos(make_rows(**video_rows())), shorter_side=40
    )
    assert {part for _, part in results.values} == {"equivariant", "invariant", "backbone", "backbone, layer 1"}


def test_encoder_keeps_the_grid_of_a_frame(encoder_folder):
    encoder = PatchEncoder(load_encoder(encoder_folder))
    image = torch.rand(3, 40, 96)
    maps = encoder(image)
    shapes = {part: tuple(grid.shape) for part, grid in maps.items()}
    assert (
        shapes == {"equivariant": (5, 12, 6), "invariant": (5, 12, 6), "backbone": (5, 12, 16)}
        and encoder.patch_size == 8
    )
    model = encoder.encoder.model
    tokens = model(encoder.encoder.preprocessing.normalize(image[None])).last_hidden_state
    torch.testing.assert_close(maps["backbone"][2, 7], tokens[0, 1 + 2 * 12 + 7])


def test_object_score_is_the_mean_over_objects_without_first_and_last_frames():
    video = Video("v", lambda: iter(()), num_frames=4)
    true = np.zeros((20, 20), dtype=np.int64)
    true[2:10, 2:10] = 1
    true[12:18, 12:18] = 2
    half = np.where(true == 1, 1, 0)  # finds the first object, misses the second
    score = ObjectScore()
    score.add(video, 1, true, true, [1, 2])
    score.add(video, 2, half, true, [1, 2])
    score.add(video, 3, np.zeros_like(true), true, [1, 2])  # the last frame
    values = score.result()
    assert (
        values["J"] == pytest.approx((1 + 0.5) / 2)
        and values["F"] == pytest.approx(0.75)
        and values["J&F"] == pytest.approx(0.75)
    )
    assert values["J recall"] == pytest.approx(0.75)


def test_a_number_that_no_object_has_scores_one_as_in_the_official_code():
    """Objects 1 and 3: the first one is found, the other one missed; the second one is neither there nor predicted."""
    frames = []
    for left in (0, 8, 16):
        image, label = np.zeros((40, 128, 3), dtype=np.uint8), np.zeros((40, 128), dtype=np.uint8)
        image[:, :24], label[:, :24] = (255, 0, 0), 1
        image[:, 48 + left : 72 + left], label[:, 48:72] = (0, 255, 0), 3
        frames.append((image, label))
    frames[1] = (
        frames[1][0],
        np.where(frames[1][1] == 3, 0, frames[1][1]),
    )  # it has gone, so that its region has nothing in common
    columns = dict(zip(("image", "annotation"), map(list, zip(*frames, strict=True)), strict=True))
    videos = read_videos(make_rows(**columns, sequence=["v"] * 3, frame=[0, 1, 2]))
    results = propagate_videos(VIDEO_TASKS["video_segmentation"], [PixelPatches(8)], videos, shorter_side=40)
    assert results.values["raw pixels", "pixels"]["J"] == pytest.approx((1 + 1 + 0) / 3)


def test_void_pixels_are_background_for_objects_and_do_not_count_for_parts():
    true = np.zeros((10, 10), dtype=np.int64)
    true[:, :4], true[:, 4:] = 1, 255
    predicted = np.ones_like(true)
    values = []
    for score in (ObjectScore(), PartScore()):
        score.add(Video("v", lambda: iter(()), 2), 1, predicted, true, [1])
        values.append(score.result())
    assert values[0]["J"] == pytest.approx(40 / 100)
    assert values[1]["mIoU"] == 1


@pytest.mark.parametrize(
    ("size", "shorter_side", "patch_size", "expected"),
    [
        ((854, 480), 480, 16, (480, 832)),  # as DINO's evaluation of DAVIS
        ((910, 480), 480, 8, (480, 896)),
        ((480, 854), 240, 8, (384, 240)),  # in proportion 427
        ((854, 480), 480, 14, (476, 826)),
        ((500, 480), 480, 16, (480, 480)),
        ((96, 40), 40, 8, (40, 64)),
    ],
)
def test_frames_have_the_size_of_dinos_protocol(size, shorter_side, patch_size, expected):
    assert resize_frame(Image.new("RGB", size), shorter_side, patch_size).shape == (3, *expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.pop("sequence"),
            "no column sequence or video for the name of the video; its columns: image, annotation, frame",
        ),
        (lambda c: c.update({k: v[-1:] for k, v in c.items()}), "video band has one frame"),
        (
            lambda c: c.update(annotation=[np.zeros_like(a) for a in c["annotation"]]),
            "video band: the annotation of the first frame is empty",
        ),
        (
            lambda c: c.update(annotation=[255 * a for a in c["annotation"]]),
            "numbered from 1 .255 is void., got 0, 255",
        ),
        (lambda c: c.update(frame=[3, 2, None, 0]), "video row 2: column frame must hold whole numbers, got None"),
        (
            lambda c: c.update(
                {k: [a[:24] if i == 1 else a for i, a in enumerate(c[k])] for k in ("image", "annotation")}
            ),
            "video band: frame 2 is of 128 x 24 pixels, the first one of 128 x 40",
        ),
        (
            lambda c: c.update(annotation=[a[:20] for a in c["annotation"]]),
            "the annotation is of 128 x 20 pixels, its frame of 128 x 40",
        ),
        (lambda c: c.update(annotation=c["image"]), "single-channel images of class indices, got one of mode RGB"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change, message):
    columns = video_rows()
    change(columns)
    with pytest.raises(ValueError, match=message) as error:
        propagate_videos(
            VIDEO_TASKS["video_segmentation"], [PixelPatches(8)], read_videos(make_rows(**columns)), shorter_side=40
        )
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_fifty_frames_of_480p_by_a_vit_s16_in_two_minutes_and_four_gigabytes():
    """A disc over a textured ground, both moving; all three parts of a ViT-S/16 with random weights, on two threads."""
    generator, (y, x) = np.random.default_rng(0), np.mgrid[0:480, 0:854]
    texture = generator.integers(0, 255, (640, 1100, 3), dtype=np.uint8)

    def frames():
        for t in range(50):
            disc = (y - 240) ** 2 + (x - 150 - 10 * t) ** 2 < 100**2
            pixels = np.where(disc[..., None], texture[:480, 200:1054], texture[t : t + 480, 2 * t : 2 * t + 854])
            yield Image.fromarray(pixels), disc.astype(np.int64)

    model = EqCohViTModel(EqCohViTConfig.from_preset("small", 224, 16))
    encoder = PatchEncoder(ModelEncoder("ViT-S/16", model, Preprocessing(224, (0.5,) * 3, (0.5,) * 3)))
    torch.set_num_threads(2)
    start = time.process_time()  # which other work on the machine does not change
    results = propagate_videos(
        VIDEO_TASKS["video_segmentation"], [encoder], [Video("disc", frames, 50)], shorter_side=480
    )
    seconds, peak = (time.process_time() - start) / 2, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{seconds:.0f} s, {peak:.2f} GiB at most in this process")
    assert len(results.values) == 3 and seconds < 120 and peak < 4
