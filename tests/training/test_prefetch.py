import os
import signal
import threading
import time
from itertools import islice

import pytest
import torch
from tests.patience import PATIENCE

from eqcohvit.data import CanvasStream, open_source
from eqcohvit.training.prefetch import DevicePrefetcher
from eqcohvit.training.signals import StopSignals
from eqcohvit.transforms import ViewRenderer, make_path

RENDERER = ViewRenderer(make_path("se2"), 16, augmentation="vicreg")


def draw(batch):
    return RENDERER.draw(batch.sizes, batch.keys, batch.epochs)


DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_prefetcher_yields_the_batches_of_the_stream_in_order_on_the_device(device):
    ours = DevicePrefetcher(iter(CanvasStream(open_source(), 16, 8, seed=1)), device, draw)
    for index, expected in enumerate(islice(CanvasStream(open_source(), 16, 8, seed=1), 4)):
        batch, draws = next(ours)
        assert batch.position == expected.position
        assert batch.canvases.device.type == draws.sizes.device.type == device.type
        for name in ("canvases", "sizes", "keys", "epochs", "labels"):
            assert torch.equal(getattr(batch, name).cpu(), getattr(expected, name))
        first, box = draws.first.box.cpu(), draw(expected).first.box
        assert torch.equal(first, box)
        for _ in range(index):  # ahead of what is asked for, one or more
            ours.fetch(StopSignals())


def test_prefetcher_passes_on_the_end_and_errors():
    def broken():
        yield from ()
        raise ConnectionError("the source is gone")

    with pytest.raises(StopIteration):
        next(DevicePrefetcher(iter([]), torch.device("cpu"), draw))
    batches = DevicePrefetcher(broken(), torch.device("cpu"), draw)
    batches.fetch(StopSignals())  # the step at hand can be finished
    with pytest.raises(ConnectionError, match="the source is gone"):
        next(batches)


def test_prefetcher_stops_waiting_when_a_signal_comes():
    waited_in_vain = []

    def silent():
        time.sleep(PATIENCE)
        waited_in_vain.append(True)
        yield

    with StopSignals() as stop:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        DevicePrefetcher(silent(), torch.device("cpu"), draw).fetch(stop)
        assert not waited_in_vain
        assert stop.next_batches(iter([1]), 1) is None
