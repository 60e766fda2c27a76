import os

import torch

from eqcohvit.evaluation import feature_cache
from eqcohvit.evaluation.feature_cache import FeatureCache, prune_cache


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
        feature_cache.save_file,
        {"keys": torch.arange(8), "labels": torch.arange(8), "parameters": torch.zeros(8, 0)},
    )

    def save(values, path, **options):
        real(values, path, **options)
        if caches:
            monkeypatch.setattr(feature_cache.os, "getpid", lambda: -1)  # as in the process of the other command
            caches.pop().write(0, tensors, state)

    monkeypatch.setattr(feature_cache, "save_file", save)
    cache = caches.pop()
    cache.write(0, tensors, state)
    assert torch.equal(cache.read().keys, torch.arange(8))
