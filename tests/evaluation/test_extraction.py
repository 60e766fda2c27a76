import importlib
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from eqcohvit.data import FolderSource, SpritesSource, decode
from eqcohvit.evaluation import extraction, features, pairs
from eqcohvit.evaluation.extraction import CentralView, PairView, code_hash, extract
from eqcohvit.evaluation.feature_cache import prune_cache
from eqcohvit.evaluation.features import PixelEncoder
from eqcohvit.evaluation.images import BLOCK_SIZE, ProbeImages
from eqcohvit.transforms import make_path, ops

BLOCKS_PER_CHUNK = 2
CHUNK = BLOCK_SIZE * BLOCKS_PER_CHUNK


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So that a few images fill several."""
    monkeypatch.setattr(extraction, "BLOCKS_PER_CHUNK", BLOCKS_PER_CHUNK)


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
        {"view": PairView(make_path("rotation:0.5"), "paper")},
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


def test_reading_features_counts_as_using_them(tmp_path):
    run(tmp_path, PixelEncoder(16), num=8)
    folder = next(tmp_path.iterdir())
    os.utime(folder, (0, 0))
    before = time.time()
    run(tmp_path, PixelEncoder(16), num=8)
    assert folder.stat().st_mtime > before - 1  # a file system may keep whole seconds
