import os
import signal
import threading
from itertools import islice

import pytest
import torch
from tests.data.test_stream import Numbers, assert_same, make_stream, take

from eqcohvit.data import BadImage, ReadError, ResidentCanvases, retry, sources, workers


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses that were made, without their waiting."""
    made: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", made.append)
    return made


class Unplugged(Numbers):
    """Fails `times` times at the 20th record of each shard."""

    def __init__(self, *arguments, times, **options):
        super().__init__(*arguments, **options)
        self.left = dict.fromkeys(range(self.num_shards), times)

    def read_shard(self, shard, epoch):
        yield from islice(super().read_shard(shard, epoch), 20)
        if self.left[shard] > 0:
            self.left[shard] -= 1
            raise TimeoutError("read timed out")
        yield from islice(super().read_shard(shard, epoch), 20, None)


def test_a_reading_error_is_retried_with_growing_pauses_and_nothing_is_lost_or_doubled(pauses, capfd):
    whole = take(make_stream(Numbers([100, 90]), batch_size=19), 30)
    assert_same(whole, take(make_stream(Unplugged([100, 90], times=3), batch_size=19), 30))
    assert pauses == [1.0, 4.0, 16.0] * 2
    said = capfd.readouterr().err
    assert (
        "reading shard 0 of 2 of numbers from row 20 on failed (TimeoutError: read timed out); trying again in 4 s"
        in said
    )


def test_a_lasting_reading_error_is_named(pauses):
    message = "reading shard 0 of 1 of numbers from row 20 on failed 5 times in a row, at last with TimeoutError: read"
    with pytest.raises(ReadError, match=message):
        take(make_stream(Unplugged([100], times=99)), 50)
    assert pauses == list(retry.RETRY_SECONDS)


class Deadly(Numbers):
    """Decoding the number 37 kills the process `times` times."""

    def __init__(self, *arguments, folder, times, **options):
        super().__init__(*arguments, **options)
        self.folder, self.times = folder, times

    def decode_batch(self, payloads, canvas_size, fit="native"):
        deaths = len(os.listdir(self.folder))
        if 37 in payloads and deaths < self.times:
            (self.folder / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode_batch(payloads, canvas_size, fit)


@pytest.mark.parametrize("keep", [False, True], ids=["decoded", "resident"])
def test_a_dead_worker_is_replaced_and_nothing_is_lost_or_doubled(tmp_path, capfd, keep):
    handler = signal.getsignal(signal.SIGCHLD)
    whole = take(make_stream(Numbers([60]), shuffle_window=1), 20)
    source = Deadly([60], folder=tmp_path, times=2)
    kept = ResidentCanvases(source, 2, torch.device("cpu")) if keep else None
    assert_same(whole, take(make_stream(source, num_workers=2, resident=kept, shuffle_window=1), 20))
    assert len(os.listdir(tmp_path)) == 2
    assert (
        signal.getsignal(signal.SIGCHLD) is handler
    )  # the death of a worker shows where data are awaited, nowhere else
    assert (
        "decoding 5 images from number 35 to number 39 failed" in capfd.readouterr().err
    )  # the second time, when one did it


def test_a_worker_that_always_dies_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "RETRY_SECONDS", (0.0,))
    message = (
        r"decoding 5 images from number 35 to number 39 failed 2 times in a row, "
        r"at last with RuntimeError: DataLoader worker"
    )
    with pytest.raises(ReadError, match=message):
        take(make_stream(Deadly([60], folder=tmp_path, times=99), num_workers=2, shuffle_window=1), 20)


class Stuck(Deadly):
    """Decoding the number 37 never ends, `times` times."""

    def decode_batch(self, payloads, canvas_size, fit="native"):
        deaths = len(os.listdir(self.folder))
        if 37 in payloads and deaths < self.times:
            (self.folder / str(deaths)).touch()
            threading.Event().wait(600)
        return Numbers.decode_batch(self, payloads, canvas_size, fit)


def test_a_worker_that_never_ends_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "WAIT_SECONDS", 5.0)  # far more than the others take on a busy machine
    whole = take(make_stream(Numbers([60]), shuffle_window=1), 20)
    assert_same(whole, take(make_stream(Stuck([60], folder=tmp_path, times=1), num_workers=2, shuffle_window=1), 20))
    assert len(os.listdir(tmp_path)) == 1


def test_a_remote_file_that_fails_for_a_while_is_not_a_bad_image(monkeypatch, tmp_path, pauses):
    import datasets.utils.file_utils

    (tmp_path / "file").write_bytes(b"content")
    errors = [ConnectionError("reset"), TimeoutError("slow")]

    def unreliable(path, mode):
        if errors:
            raise errors.pop()
        return (tmp_path / path.removeprefix("hf://")).open(mode)

    monkeypatch.setattr(datasets.utils.file_utils, "xopen", unreliable)
    assert sources._read_file("hf://file") == b"content" and pauses == [1.0, 4.0]
    with pytest.raises(BadImage, match="No such file"):
        sources._read_file("hf://nowhere")
    errors.extend([ConnectionError("reset")] * 9)
    with pytest.raises(
        ReadError, match="reading hf://file failed 5 times in a row, at last with ConnectionError: reset"
    ):
        sources._read_file("hf://file")
