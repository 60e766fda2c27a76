import pytest
import torch

from eqcohvit.data import FolderSource, SpritesSource
from eqcohvit.evaluation.features import PixelEncoder
from eqcohvit.evaluation.tasks import Samples, knn_rows, r2_rows
from eqcohvit.transforms import make_path


def keys(samples, part):
    return torch.cat([batch.keys for batch in samples.batches(part, 8)]).tolist()


def test_one_source_is_split_into_disjoint_training_and_test_images():
    source = SpritesSource(num_samples=300)
    samples = Samples(source, source, num_train=170, num_test=100)
    train, test = keys(samples, "train"), keys(samples, "test")
    assert len(train) == 170 and len(test) == 100 and not set(train) & set(test)
    assert keys(samples, "test") == test


def test_a_small_source_gives_each_image_once(photos):
    source = FolderSource(str(photos))
    train = keys(Samples(source, source, num_train=1000, num_test=4), "train")
    assert len(train) == len(set(train)) == 20


class AngleEncoder:
    """Knows the mean of the upper and of the lower half: enough to tell large rotations of sprites apart only badly."""

    name, image_size = "halves", 16

    def __call__(self, images):
        return {"halves": torch.stack([images[:, :, :8].mean(dim=(1, 2, 3)), images[:, :, 8:].mean(dim=(1, 2, 3))], dim=1)}


class ConstantEncoder:
    name, image_size = "constant", 16

    def __call__(self, images):
        return {"one": torch.ones(len(images), 3)}


def test_rows_hold_every_encoder_and_part():
    samples = Samples(SpritesSource(), SpritesSource(offset=1 << 40), 256, 128)
    rows = r2_rows([PixelEncoder(16), AngleEncoder(), ConstantEncoder()], samples, make_path("rotation"), "paper", seeds=2)
    assert [(row.encoder, row.part, len(row.values)) for row in rows] == [
        ("raw pixels", "pixels", 2), ("halves", "halves", 2), ("constant", "one", 2),
    ]  # fmt: skip
    assert max(rows[2].values) < 0.02


def test_knn_needs_labels(photos):
    source = FolderSource(str(photos))
    with pytest.raises(ValueError, match="kNN needs labels"):
        knn_rows([PixelEncoder(16)], Samples(source, source, 10, 4))


def test_knn_of_labelled_folders(photos):
    source = FolderSource(str(photos), labels=True)
    (row,) = knn_rows([PixelEncoder(16)], Samples(source, source, 16, 8), k=3)
    assert row.metric == "kNN-3" and 0 <= row.values[0] <= 1
