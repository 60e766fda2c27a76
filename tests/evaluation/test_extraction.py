import os
import time

import pytest
import torch

from eqcohvit.data import FolderSource, SpritesSource
from eqcohvit.evaluation import extraction
from eqcohvit.evaluation.extraction import (
    BLOCK_SIZE,
    BLOCKS_PER_CHUNK,
    CentralView,
    FeatureCache,
    PairView,
    Samples,
    extract,
    prune_cache,
)
from eqcohvit.evaluation.features import PixelEncoder
from eqcohvit.transforms import make_path

CHUNK = BLOCK_SIZE * BLOCKS_PER_CHUNK


def keys(samples, part):
    return torch.cat([batch.keys for batch, _ in samples.blocks(part, 8)]).tolist()


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


class Counting(PixelEncoder):
    """Counts the blocks it has seen, and stops as by Ctrl-C where it is told to."""

    blocks, stop_at = 0, None

    def __call__(self, images):
        if self.blocks == self.stop_at:
            raise KeyboardInterrupt
        self.blocks += 1
        return super().__call__(images)


def run(tmp_path, encoder, num_workers=0, num=2 * CHUNK + 40, source=None, view=None):
    source = source or SpritesSource()
    samples = Samples(source, SpritesSource(offset=1 << 40), num, 8, num_workers)
    return extract([encoder], samples, "train", view or PairView(make_path("rotation"), "strict"), tmp_path)[encoder.name]


def equal(a, b):
    same = all(torch.equal(a.vectors[key], b.vectors[key]) for key in a.vectors)
    return same and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("parameters", "labels", "keys"))


def test_an_interrupted_extraction_goes_on_and_gives_the_same_features(tmp_path):
    whole = run(tmp_path / "a", Counting(16))
    interrupted = Counting(16)
    interrupted.stop_at = BLOCKS_PER_CHUNK + 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", interrupted)
    resumed = Counting(16)
    assert equal(run(tmp_path / "b", resumed), whole)
    assert resumed.blocks == BLOCKS_PER_CHUNK + 2  # the first chunk is not computed again
    cached = Counting(16)
    assert equal(run(tmp_path / "b", cached), whole) and cached.blocks == 0


def test_features_do_not_depend_on_the_workers(tmp_path):
    assert equal(run(tmp_path / "a", PixelEncoder(16), num=80), run(tmp_path / "b", PixelEncoder(16), num_workers=2, num=80))


def test_a_damaged_chunk_is_computed_again(tmp_path):
    whole = run(tmp_path, PixelEncoder(16), num=80)
    (chunk,) = tmp_path.rglob("chunk-*.safetensors")
    chunk.write_bytes(chunk.read_bytes()[:100])
    assert equal(run(tmp_path, PixelEncoder(16), num=80), whole)


def test_other_images_views_or_encoders_do_not_find_old_features(tmp_path):
    run(tmp_path, PixelEncoder(16), num=40)
    others = (
        {"encoder": Counting(24)},
        {"num": 41},
        {"source": SpritesSource(seed=1)},
        {"view": PairView(make_path("rotation", 0.5), "strict")},
        {"view": PairView(make_path("rotation"), "paper")},
        {"view": CentralView()},
    )
    for other in others:
        encoder = other.pop("encoder", None) or Counting(16)
        run(tmp_path, encoder, **{"num": 40, **other})
        assert encoder.blocks == 2 if other.get("num") else encoder.blocks >= 1


def test_an_encoder_that_comes_later_fills_its_own_chunks_only(tmp_path):
    samples = Samples(SpritesSource(), SpritesSource(offset=1 << 40), CHUNK + 8, 8)
    first, second = Counting(16, "first"), Counting(24, "second")
    view = CentralView()
    extract([first], samples, "train", view, tmp_path)
    blocks = first.blocks
    found = extract([first, second], samples, "train", view, tmp_path)
    assert first.blocks == blocks and second.blocks == blocks
    assert torch.equal(found["first"].keys, found["second"].keys) and found["second"].parameters.shape == (CHUNK + 8, 0)


def test_central_view_of_a_square_image_is_the_image(photos):
    samples = Samples(FolderSource(str(photos)), SpritesSource(), 8, 8)
    batch, _ = next(samples.blocks("test", 16))
    images, _ = CentralView()(batch, 16)
    assert torch.equal(images[0], batch.canvases.float() / 255)


def test_a_source_without_images_left_is_an_error(photos, tmp_path):
    source = FolderSource(str(photos))
    with pytest.raises(ValueError, match="no images left to fit on: 24 are taken for testing"):
        extract([PixelEncoder(16)], Samples(source, source, 8, 24), "train", CentralView(), tmp_path)


def test_features_used_longest_ago_go_first_and_those_in_use_stay(tmp_path):
    sizes, now = {"a": 300, "b": 200, "c": 100, "d": 400}, time.time()
    for hours, (name, size) in zip((9, 7, 5, 0.5), sizes.items(), strict=True):
        folder = tmp_path / (name * 32)
        folder.mkdir()
        (folder / "chunk-00000.safetensors").write_bytes(bytes(size))
        os.utime(folder, (now - 3600 * hours,) * 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.pdf").write_bytes(bytes(999))

    def left():
        return {path.name[0] for path in tmp_path.glob("*")}

    assert prune_cache(tmp_path, 1000) == 0 and left() == {"a", "b", "c", "d", "m"}
    assert prune_cache(tmp_path, 550) == 500 and left() == {"c", "d", "m"}
    assert prune_cache(tmp_path, 0) == 100 and left() == {"d", "m"}
    assert prune_cache(tmp_path / "nothing", 0) == 0


def test_files_that_vanish_while_the_cache_is_pruned_are_no_error(tmp_path):
    """A link to nothing is what a file looks like that another command removes between the listing and the look at its size."""
    for name in "ab":
        (tmp_path / (name * 32)).mkdir()
        (tmp_path / (name * 32) / "chunk-00000.safetensors").write_bytes(bytes(10))
    (tmp_path / ("a" * 32) / "chunk-00001.safetensors").symlink_to(tmp_path / "gone")
    for folder in tmp_path.iterdir():
        os.utime(folder, (0, 0))
    assert prune_cache(tmp_path, 0) == 10 and [path.name[0] for path in tmp_path.iterdir()] == ["a"]


def test_two_commands_that_write_the_same_chunk_leave_it_whole(tmp_path, monkeypatch):
    """The second one begins and ends while the first one is between writing its file and putting it in place."""
    caches, state = [FeatureCache(tmp_path, "same") for _ in range(2)], {"seen": 8, "position": None, "last": True}
    real, tensors = extraction.save_file, {"keys": torch.arange(8), "labels": torch.arange(8), "parameters": torch.zeros(8, 0)}

    def save(values, path, **options):
        real(values, path, **options)
        if caches:
            monkeypatch.setattr(extraction.os, "getpid", lambda: -1)  # as in the process of the other command
            caches.pop().write(0, tensors, state)

    monkeypatch.setattr(extraction, "save_file", save)
    cache = caches.pop()
    cache.write(0, tensors, state)
    assert torch.equal(cache.read().keys, torch.arange(8))


def test_reading_features_counts_as_using_them(tmp_path):
    run(tmp_path, PixelEncoder(16), num=8)
    folder = next(tmp_path.iterdir())
    os.utime(folder, (0, 0))
    run(tmp_path, PixelEncoder(16), num=8)
    assert time.time() - folder.stat().st_mtime < 60
