import importlib
import os
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from tests.data.data_tools import png

from eqcohvit.data import DatasetSource, FolderSource, SpritesSource, decode
from eqcohvit.evaluation import extraction, features, pairs
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.extraction import CentralView, PairView, code_hash, extract
from eqcohvit.evaluation.feature_cache import FeatureCache, prune_cache
from eqcohvit.evaluation.features import PixelEncoder
from eqcohvit.evaluation.images import BLOCK_SIZE, ProbeImages, check_test_data, missing_classes
from eqcohvit.transforms import make_path, ops

BLOCKS_PER_CHUNK = 2
CHUNK = BLOCK_SIZE * BLOCKS_PER_CHUNK


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So that a few images fill several."""
    monkeypatch.setattr(extraction, "BLOCKS_PER_CHUNK", BLOCKS_PER_CHUNK)


def keys(samples, part):
    return torch.cat([batch.keys for batch, _ in samples.blocks(part, 8)]).tolist()


def test_one_source_is_split_into_disjoint_training_and_test_images():
    source = SpritesSource(num_samples=100)
    samples = ProbeImages(source, source, num_train=50, num_test=40)
    train, test = keys(samples, "train"), keys(samples, "test")
    assert len(train) == 50 and len(test) == 40 and not set(train) & set(test)
    assert keys(samples, "test") == test


def test_a_small_source_gives_each_image_once(photos):
    source = FolderSource(str(photos))
    train = keys(ProbeImages(source, source, num_train=1000, num_test=4), "train")
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
    samples = ProbeImages(source, SpritesSource(offset=1 << 40), num, 8, num_workers)
    return extract([encoder], samples, "train", view or PairView(make_path("rotation"), "paper"), tmp_path)[
        encoder.name
    ]


def equal(a, b):
    same = all(torch.equal(a.vectors[key], b.vectors[key]) for key in a.vectors)
    return same and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("parameters", "labels", "keys"))


def test_an_interrupted_extraction_goes_on_and_gives_the_same_features(tmp_path):
    whole = run(tmp_path / "a", Counting(16))
    interrupted = Counting(16)
    interrupted.stop_at = BLOCKS_PER_CHUNK + 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", interrupted)
    resumed = Counting(16)
    assert equal(run(tmp_path / "b", resumed), whole)
    assert resumed.blocks == BLOCKS_PER_CHUNK + 2  # the first chunk is not computed again
    cached = Counting(16)
    assert equal(run(tmp_path / "b", cached), whole) and cached.blocks == 0


def test_features_do_not_depend_on_the_workers(tmp_path):
    assert equal(
        run(tmp_path / "a", PixelEncoder(16), num=80), run(tmp_path / "b", PixelEncoder(16), num_workers=2, num=80)
    )


def test_a_damaged_chunk_is_computed_again(tmp_path):
    whole = run(tmp_path, PixelEncoder(16), num=CHUNK)
    (chunk,) = tmp_path.rglob("chunk-*.safetensors")
    chunk.write_bytes(chunk.read_bytes()[:100])
    assert equal(run(tmp_path, PixelEncoder(16), num=CHUNK), whole)


def test_other_images_views_or_encoders_do_not_find_old_features(tmp_path):
    run(tmp_path, PixelEncoder(16), num=40)
    others = (
        {"encoder": Counting(24)},
        {"num": 41},
        {"source": SpritesSource(seed=1)},
        {"view": PairView(make_path("rotation", 0.5), "paper")},
        {"view": PairView(make_path("rotation"), "strict")},
        {"view": CentralView()},
    )
    for other in others:
        encoder = other.pop("encoder", None) or Counting(16)
        run(tmp_path, encoder, **{"num": 40, **other})
        assert encoder.blocks == 2 if other.get("num") else encoder.blocks >= 1


def test_an_encoder_that_comes_later_fills_its_own_chunks_only(tmp_path):
    samples = ProbeImages(SpritesSource(), SpritesSource(offset=1 << 40), CHUNK + 8, 8)
    first, second = Counting(16, "first"), Counting(24, "second")
    view = CentralView()
    extract([first], samples, "train", view, tmp_path)
    blocks = first.blocks
    found = extract([first, second], samples, "train", view, tmp_path)
    assert first.blocks == blocks and second.blocks == blocks
    assert torch.equal(found["first"].keys, found["second"].keys) and found["second"].parameters.shape == (CHUNK + 8, 0)


def test_central_view_of_a_square_image_is_the_image(photos):
    samples = ProbeImages(FolderSource(str(photos)), SpritesSource(), 8, 8)
    batch, _ = next(samples.blocks("test", 16))
    images, _ = CentralView()(batch, 16)
    assert torch.equal(images[0], batch.canvases.float() / 255)


def test_a_source_without_images_left_is_an_error(photos, tmp_path):
    source = FolderSource(str(photos))
    with pytest.raises(ValueError, match="no images left to fit on: 24 are taken for testing"):
        extract([PixelEncoder(16)], ProbeImages(source, source, 8, 24), "train", CentralView(), tmp_path)


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


def test_the_same_file_for_fitting_and_testing_is_refused(tmp_path):
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link.parquet").symlink_to(tmp_path / "a.parquet")
    (tmp_path / "hard.parquet").hardlink_to(tmp_path / "b.parquet")
    a, b, c = (str(tmp_path / f"{name}.parquet") for name in "abc")

    def check(data_files, test_data_files, dataset_name=None, train_dir=None):
        check_test_data(dataset_name, "train", None, data_files, test_data_files, train_dir)

    check(f"{a},{b}", c)
    check("hf://one.parquet", "hf://two.parquet")
    twice = [
        (a, a),
        (a, str(tmp_path / "link.parquet")),
        (f"{a},{b}", str(tmp_path / "*.parquet")),
        (b, str(tmp_path / "hard.parquet")),
    ]
    twice += [(a, str(tmp_path / "x" / ".." / "a.parquet")), ("hf://one.parquet", "hf://one.parquet")]
    (tmp_path / "x").mkdir()
    for data_files, test_data_files in twice:
        with pytest.raises(
            ValueError, match="test_data_files must share no file with data_files, but .* is in both"
        ) as error:
            check(data_files, test_data_files)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="share no file with data_files, but .*a.parquet is in both"):
        check("a.parquet", "?.parquet", dataset_name=str(tmp_path))
    with pytest.raises(ValueError, match="share no file with train_dir"):
        check(None, a, train_dir=str(tmp_path))


def sorted_files(folder, num_files, num_rows, num_classes=10, row_group_size=None):
    """Parquet files of tiny pictures whose gray value is the class; the rows of all files together are sorted by
    class."""
    total = num_files * num_rows
    labels = [index * num_classes // total for index in range(total)]
    for file in range(num_files):
        own = labels[file * num_rows : (file + 1) * num_rows]
        rows = {"image": [png(value) for value in own], "label": own}
        columns = Features({"image": Image(), "label": ClassLabel(num_classes=num_classes)})
        Dataset.from_dict(rows, features=columns).to_parquet(folder / f"{file}.parquet", batch_size=row_group_size)
    return DatasetSource("parquet", data_files=str(folder / "*.parquet"))


@pytest.mark.parametrize(("num_files", "num_rows"), [(1, 5000), (20, 250)])
def test_images_of_sorted_data_are_of_all_classes(tmp_path, num_files, num_rows):
    source = sorted_files(tmp_path, num_files, num_rows, row_group_size=num_rows)
    samples = ProbeImages(source, source, num_train=200, num_test=100)
    for part in ("train", "test"):
        labels = torch.cat([batch.labels for batch, _ in samples.blocks(part, 4)])
        counts = labels.bincount(minlength=10)
        assert (counts > 0).all() and counts.max() < len(labels) / 4
        assert missing_classes(labels, 10) == ""


def test_missing_classes_are_told_in_one_line(tmp_path):
    assert missing_classes(torch.arange(1000) % 4, 10) == (
        "labels of 4 of 10 classes in 1000 images: the data seem to be sorted by class, shuffle them"
    )
    assert (
        missing_classes(torch.randint(100, (100,), generator=torch.Generator().manual_seed(0)), 100) == ""
    )  # 63 of them expected
    assert missing_classes(torch.full((50,), -1), 10) == ""


def test_an_evaluation_warns_once_of_a_part_without_some_classes(tmp_path):
    """Test files of four classes, sorted into files; the images to fit on are of all ten."""
    (tmp_path / "some").mkdir()
    train = sorted_files(tmp_path, 2, 100)
    sorted_files(tmp_path / "some", 5, 20)
    test = DatasetSource("parquet", data_files=[str(tmp_path / "some" / f"{file}.parquet") for file in range(2)])
    evaluation = Evaluation([], lambda: ProbeImages(train, test, 100, 40), cache_dir=tmp_path / "cache")
    view, encoders = CentralView(), [PixelEncoder(8)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in ("train", "test", "test"):
            evaluation.features(part, view, encoders)
    lines = [str(one.message) for one in caught if "classes" in str(one.message)]
    assert len(lines) == 1
    assert "to test on: labels of 4 of 10 classes in 40 images" in lines[0] and "\n" not in lines[0]


def test_a_change_of_the_code_changes_the_key(tmp_path, monkeypatch):
    """Features of one encoder, samples and view go to another folder where a file of the code has changed."""
    run(tmp_path / "cache", PixelEncoder(16), num=8)
    for module in (pairs, features, ops, decode):
        changed = tmp_path / "changed.py"
        changed.write_text(Path(module.__file__).read_text().replace("return", "return 0 or", 1))
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(changed))
            before = set((tmp_path / "cache").iterdir())
            run(tmp_path / "cache", PixelEncoder(16), num=8)
            assert len(set((tmp_path / "cache").iterdir()) - before) == 1, module.__name__


def test_a_change_of_the_class_of_a_model_changes_the_key(tmp_path, monkeypatch):
    file = tmp_path / "remote_model.py"
    code = "import torch\nclass Remote(torch.nn.Module):\n    def forward(self, x):\n        return {}\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    hashes = set()
    for result in ("x", "2 * x"):
        file.write_text(code.format(result))
        importlib.invalidate_caches()
        sys.modules.pop("remote_model", None)
        encoder = PixelEncoder(16)
        encoder.model = torch.nn.Sequential(importlib.import_module("remote_model").Remote())
        hashes.add(code_hash(encoder))
    assert len(hashes) == 2


def test_files_that_vanish_while_the_cache_is_pruned_are_no_error(tmp_path):
    """A link to nothing is what a file looks like that another command removes between the listing and the look at its
    size."""
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
    real, tensors = (
        extraction.save_file,
        {"keys": torch.arange(8), "labels": torch.arange(8), "parameters": torch.zeros(8, 0)},
    )

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
