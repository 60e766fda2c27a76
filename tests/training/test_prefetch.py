import pytest
import torch

from eqcohvit.data import CanvasStream, open_source
from eqcohvit.training.prefetch import DevicePrefetcher

DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_prefetcher_yields_the_batches_of_the_stream_in_order_on_the_device(device):
    stream = CanvasStream(open_source(), 16, 8, seed=1)
    ours = DevicePrefetcher(iter(stream), device)
    for expected in [batch for batch, _ in zip(CanvasStream(open_source(), 16, 8, seed=1), range(3), strict=False)]:
        batch = next(ours)
        assert batch.position == expected.position == stream.position  # nothing is taken ahead of what the loop has
        for name in ("canvases", "sizes", "keys", "epochs", "labels"):
            assert getattr(batch, name).device.type == device.type
            assert torch.equal(getattr(batch, name).cpu(), getattr(expected, name))


def test_prefetcher_passes_on_the_end_and_errors():
    def broken():
        yield from ()
        raise ConnectionError("the source is gone")

    with pytest.raises(StopIteration):
        next(DevicePrefetcher(iter([]), torch.device("cpu")))
    with pytest.raises(ConnectionError, match="the source is gone"):
        next(DevicePrefetcher(broken(), torch.device("cpu")))
