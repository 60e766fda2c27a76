"""What the tests of the data room share: a source of numbers, streams of it and their batches, pictures as files."""

from itertools import islice

import numpy as np
import torch
from PIL import Image
from tests import tiny

from eqcohvit.data import BadImage, CanvasStream, Decoded, Record


class Numbers:
    """Row i of the data is the number i, drawn as a canvas of that gray value. Numbers in `bad` cannot be decoded."""

    name = "numbers"
    has_labels = True
    label_names = None

    def __init__(self, shard_sizes, bad=(), cheap_rows=False):
        borders = np.cumsum([0, *shard_sizes]).tolist()
        self.shards = [range(start, end) for start, end in zip(borders, borders[1:], strict=False)]
        self.num_shards, self.bad, self.cheap_rows = len(shard_sizes), set(bad), cheap_rows

    def read_shard(self, shard, epoch):
        return (Record(number, number, number % 3) for number in self.shards[shard])

    def decode_batch(self, payloads, canvas_size, fit="native"):
        shape = (3, canvas_size, canvas_size)
        drawn = (Decoded(np.full(shape, number % 256, np.uint8), (number, 7)) for number in payloads)
        return [
            BadImage("spoiled") if number in self.bad else canvas
            for number, canvas in zip(payloads, drawn, strict=True)
        ]

    def where(self, record):
        return f"number {record.payload}"


def make_stream(source, batch_size=5, **options):
    return CanvasStream(source, 2, batch_size, **{"seed": 1, "shuffle_window": 16, "max_bad_fraction": 0.5} | options)


def flat(batches):
    """[(epoch, key), ...] in the order of the stream."""
    return [pair for batch in batches for pair in zip(batch.epochs.tolist(), batch.keys.tolist(), strict=True)]


def take(stream, num_batches):
    batches = list(islice(stream, num_batches))
    assert len(batches) == num_batches
    return batches


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for name in ("canvases", "sizes", "keys", "epochs", "labels"):
            assert torch.equal(getattr(batch, name), getattr(other, name)), name
        assert batch.position == other.position


def png(value):
    """A picture of one gray as the content of a file."""
    return tiny.png(Image.new("RGB", (9, 5), (value, value, value)))
