import numpy as np
import torch

from eqcohvit.evaluation.probe_cache import cached

calls = []


def probe(x, y, factor):
    calls.append(factor)
    return {"sum": (x.sum() * factor + y).numpy(), "rates": np.array([0.1, 0.2])}


def test_cached_computes_the_same_question_once(tmp_path):
    calls.clear()
    x, y = torch.arange(6.0).reshape(2, 3), torch.tensor(1.0)
    first = cached(tmp_path, probe, x, y, factor=2)
    assert first["sum"] == 31.0
    again = cached(tmp_path, probe, x.clone(), y, factor=2)
    assert calls == [2] and again["sum"] == 31.0 and again["rates"].tolist() == [0.1, 0.2]


def test_cached_tells_values_shapes_and_settings_apart(tmp_path):
    calls.clear()
    x, y = torch.arange(6.0).reshape(2, 3), torch.tensor(1.0)
    for tensors, factor in (
        ((x, y), 2),
        ((x, y), 3),
        ((x + 1e-7, y), 2),
        ((x.reshape(3, 2), y), 2),
        ((x.double(), y), 2),
    ):
        cached(tmp_path, probe, *tensors, factor=factor)
    assert calls == [2, 3, 2, 2, 2]


def test_cached_computes_again_where_the_file_is_damaged(tmp_path):
    calls.clear()
    x, y = torch.ones(2), torch.tensor(0.5)
    cached(tmp_path, probe, x, y, factor=1)
    (file,) = (tmp_path / "probes").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert cached(tmp_path, probe, x, y, factor=1)["sum"] == 2.5
    assert calls == [1, 1] and [path.name for path in (tmp_path / "probes").iterdir()] == [file.name]
    assert cached(tmp_path, probe, x, y, factor=1)["sum"] == 2.5 and calls == [1, 1]
