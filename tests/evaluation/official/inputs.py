"""Seeded inputs of the standing checks: what the official code was run on once, and what is scored here."""

import numpy as np
import torch


def video_masks():
    """Annotated and predicted label maps (T, H, W), int64: object 2 has no pixel anywhere in the truth, and 255 is
    void."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64]
    true, predicted = np.zeros((2, 7, 48, 64), dtype=np.int64)
    for frame in range(7):
        for label, (row, column, radius) in {1: (16, 14 + 3 * frame, 9), 3: (30, 48 - 2 * frame, 11)}.items():
            true[frame][(y - row) ** 2 + (x - column) ** 2 < radius**2] = label
            shift = rng.integers(-4, 5, size=2)
            predicted[frame][
                (y - row - shift[0]) ** 2 + (x - column - shift[1]) ** 2 < (radius + rng.integers(-3, 4)) ** 2
            ] = label
        true[frame, 40:, :20] = 255
    predicted[3][predicted[3] == 1] = 0  # lost in one frame
    predicted[4, 5:9, 5:9] = 2
    predicted[5, 40:44, :20] = 1  # on void pixels
    return true, predicted


def mask_pairs():
    """Pairs of binary masks (H, W), among them empty, full and single-pixel ones."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:40, :56]
    masks = [np.zeros((40, 56), dtype=bool), np.ones((40, 56), dtype=bool), (y == 7) & (x == 9)]
    for _ in range(12):
        row, column, radius = rng.integers(5, 35), rng.integers(5, 50), rng.integers(3, 16)
        masks.append((y - row) ** 2 + (x - column) ** 2 < radius**2)
    return [(masks[first], masks[second]) for first, second in rng.integers(0, len(masks), size=(60, 2))]


def labeled_features():
    """Unit features and labels of 400 training and 200 test samples of 10 classes that overlap."""
    rng = np.random.default_rng(2)
    centers = rng.standard_normal((10, 16))
    labels = rng.integers(0, 10, size=600)
    features = (centers[labels] + 2.0 * rng.standard_normal((600, 16))).astype(np.float32)
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    return unit[:400], torch.from_numpy(labels[:400]), unit[400:], torch.from_numpy(labels[400:])


def frame_features():
    """Features (T, h, w, d) of 6 frames of 7 x 9 patches, and labels (h, w) of the first one, 3 classes."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((7, 9, 12))
    frames = [first]
    for _ in range(5):
        frames.append(np.roll(frames[-1], 1, axis=1) + 0.5 * rng.standard_normal((7, 9, 12)))
    labels = np.zeros((7, 9), dtype=np.int64)
    labels[1:4, 2:5], labels[4:6, 5:8] = 1, 2
    return torch.from_numpy(np.array(frames).astype(np.float32)), torch.from_numpy(labels)


def detections():
    """Images, annotations and predictions of boxes in COCO's form: 20 images, 3 classes, missed, doubled and invented
    boxes."""
    rng = np.random.default_rng(4)
    images = [{"id": number, "width": 100, "height": 80} for number in range(20)]
    annotations, predictions = [], []
    for image in images:
        for _ in range(int(rng.integers(1, 5))):
            x, y, width, height = (float(value) for value in rng.integers([0, 0, 10, 10], [60, 40, 40, 40]))
            label = int(rng.integers(3))
            whole = {"image_id": image["id"], "category_id": label, "area": width * height}
            annotations.append({**whole, "bbox": [x, y, width, height]})
            for _ in range(int(rng.integers(0, 3))):
                moved = [float(value) for value in np.array([x, y, width, height]) + rng.integers(-4, 5, size=4)]
                predicted = label if rng.random() < 0.8 else int(rng.integers(3))
                predictions.append(
                    {"image_id": image["id"], "category_id": predicted, "bbox": moved, "score": float(rng.random())}
                )
        if rng.random() < 0.5:
            box = [float(value) for value in rng.integers([0, 0, 5, 5], [60, 40, 40, 40])]
            predictions.append(
                {
                    "image_id": image["id"],
                    "category_id": int(rng.integers(3)),
                    "bbox": box,
                    "score": float(rng.random()),
                }
            )
    return images, annotations, predictions
