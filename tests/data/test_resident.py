import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.data_tools import assert_same

from eqcohvit.data import BadImage, CanvasStream, Decoded, Record, ResidentCanvases, resident


class Pictures:
    """Row i is a picture of random bytes drawn from i; only decoding tells its label. Every picture in `bad` is
    broken."""

    name = "pictures"
    has_labels, label_names, cheap_rows = True, None, False
    num_shards = 5

    def __init__(self, bad=(), number=40):
        self.bad, self.number, self.decoded = set(bad), number, []

    def __len__(self):
        return self.number

    def read_shard(self, shard, epoch):
        return (Record(number, number, -1) for number in range(shard, self.number, self.num_shards))

    def decode_batch(self, payloads, canvas_size, fit="native"):
        self.decoded += payloads
        return [BadImage("spoiled") if number in self.bad else self._draw(number, canvas_size) for number in payloads]

    def _draw(self, number, canvas_size):
        pixels = np.random.default_rng(number).integers(0, 256, (3, canvas_size, canvas_size), dtype=np.uint8)
        return Decoded(pixels, (number + 1, 7), label=number % 3)

    def where(self, record):
        return f"picture {record.payload}"


def make_stream(source, keep=True, report=print, **options):
    kept = ResidentCanvases(source, 4, torch.device("cpu"), report) if keep else None
    return CanvasStream(
        source, 4, 6, **{"seed": 3, "shuffle_window": 8, "max_bad_fraction": 0.5, "resident": kept} | options
    )


@pytest.mark.parametrize(("num_workers", "rank", "world_size"), [(0, 0, 1), (0, 2, 5), (2, 0, 1), (2, 1, 2)])
def test_resident_stream_and_its_resume_equal_the_plain_one(num_workers, rank, world_size):
    bad = (0, 7, 8, 9, 23, 39)
    options = {"rank": rank, "world_size": world_size, "num_workers": num_workers}
    plain = list(islice(make_stream(Pictures(bad), keep=False, **options), 26))
    assert plain[-1].epochs[-1] >= 3
    assert_same(plain, list(islice(make_stream(Pictures(bad), **options), 26)))
    middle = next(index for index, batch in enumerate(plain) if batch.epochs[0] == 1) + 1
    position = json.loads(json.dumps(plain[middle].position))
    assert_same(
        plain[middle + 1 :], list(islice(make_stream(Pictures(bad), position=position, **options), 25 - middle))
    )


def test_each_good_image_is_decoded_once():
    source = Pictures(bad={4, 31})
    list(islice(make_stream(source), 25))
    assert sorted(set(source.decoded)) == list(range(40))
    assert {number for number in range(40) if source.decoded.count(number) > 1} == {4, 31}


def test_batches_do_not_share_memory_with_what_is_kept():
    stream = make_stream(Pictures())
    for batch in islice(stream, 14):
        batch.canvases.zero_()
    plain = list(islice(make_stream(Pictures(), keep=False), 20))
    assert_same(plain[14:], list(islice(stream, 6)))


def test_keeping_stops_where_an_eighth_would_not_stay_free_and_says_so_once(monkeypatch):
    source, lines, answers = Pictures(), [], []
    bytes_of_13, total = 13 * 4 * 4 * 3, 4000  # batches are of 6

    def memory(_device):
        answers.append(
            total // 8 + bytes_of_13 - 48 * 6 * max(0, len(answers) - 1)
        )  # asked first at the start, then by each batch
        return answers[-1], total

    monkeypatch.setattr(resident, "free_memory", memory)
    batches = list(islice(make_stream(source, report=lines.append), 20))
    assert_same(list(islice(make_stream(Pictures(), keep=False), 20)), batches)
    kept = set(torch.cat([batch.keys for batch in batches[:2]]).tolist())
    assert {number for number in range(40) if source.decoded.count(number) == 1} == kept and len(answers) == 4
    assert lines == [
        "resident: 40 images need 0.0 GiB on cpu; at most 13 fit, the others are decoded each epoch",
        "resident: no room for more than 12 images (0.0 GiB) on cpu; the others are decoded each epoch",
    ]


def test_what_fits_is_kept_without_a_word():
    lines = []
    stream = make_stream(Pictures(), report=lines.append)
    list(islice(stream, 7))
    assert len(stream._resident) == 40 and lines == []


def test_memory_of_this_machine():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free, total = resident.free_memory(torch.device("cpu"))
    assert total == int(lines["MemTotal"].split()[0]) * 1024 and 0 < free <= total
