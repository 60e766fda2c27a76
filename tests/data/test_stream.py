import gc
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.data_tools import Numbers, assert_same, flat, make_stream, png, take
from tests.patience import PATIENCE

from eqcohvit.data import CanvasStream, DatasetSource, FolderSource, SpritesSource, TooManyBadImages, sequential

# Content and order


def test_batch_fields_belong_together():
    for batch in take(make_stream(Numbers([7, 9, 11]), batch_size=4), 10):
        assert batch.canvases.shape == (4, 3, 2, 2) and batch.canvases.dtype == torch.uint8
        assert torch.equal(batch.canvases[:, 0, 0, 0].long(), batch.keys)
        assert torch.equal(batch.sizes, torch.stack([batch.keys, torch.full((4,), 7)], dim=1))
        assert torch.equal(batch.labels, batch.keys % 3)
        assert {batch.sizes.dtype, batch.keys.dtype, batch.epochs.dtype, batch.labels.dtype} == {torch.int64}
        assert json.loads(json.dumps(batch.position)) == batch.position
        assert len(batch.to("cpu", non_blocking=True)) == 4


@pytest.mark.parametrize("cheap_rows", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    "shard_sizes", [[53], [20, 1, 40], [10] * 6, [0, 5, 0, 2], [3, 50, 7, 1, 9, 2, 30, 8, 1, 4, 6, 12]]
)
def test_each_epoch_has_each_sample_once_over_all_ranks(shard_sizes, world_size, cheap_rows):
    source, num_epochs = Numbers(shard_sizes, cheap_rows=cheap_rows), 3
    seen = []
    for rank in range(world_size):
        stream, own = make_stream(source, rank=rank, world_size=world_size), []
        for batch in stream:
            own += flat([batch])
            if own[-1][0] >= num_epochs:
                break
        assert own == sorted(own, key=lambda pair: pair[0])
        seen += [pair for pair in own if pair[0] < num_epochs]
    assert sorted(seen) == [(epoch, number) for epoch in range(num_epochs) for number in range(sum(shard_sizes))]


@pytest.mark.parametrize("shard_sizes", [[60], [10, 30, 20], [20, 20, 20]])
def test_ranks_that_share_rows_finish_an_epoch_together(shard_sizes):
    """Equal step counts: after one epoch's worth of samples over all ranks, nothing is left and nothing is doubled."""
    pairs = [
        pair
        for rank in range(2)
        for pair in flat(take(make_stream(Numbers(shard_sizes), rank=rank, world_size=2, batch_size=30), 1))
    ]
    assert sorted(pairs) == [(0, number) for number in range(60)]


def test_ranks_get_whole_shards_when_these_divide_well():
    source = Numbers([10] * 8)
    keys = [
        {key for epoch, key in flat(take(make_stream(source, rank=rank, world_size=2), 8)) if epoch == 0}
        for rank in range(2)
    ]
    assert all(len({number // 10 for number in own}) == 4 for own in keys) and keys[0].isdisjoint(keys[1])


def test_fewer_rows_than_ranks_still_feed_each_rank():
    source = Numbers([1])
    for rank in range(3):
        assert {key for _, key in flat(take(make_stream(source, rank=rank, world_size=3), 2))} == {0}


def test_order_depends_on_epoch_and_seed_only():
    source = Numbers([30, 30, 30])
    epochs = [[key for e, key in flat(take(make_stream(source), 40)) if e == epoch] for epoch in range(2)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1]) == list(range(90))
    assert flat(take(make_stream(source), 20)) == flat(take(make_stream(source, batch_size=10), 10))
    assert flat(take(make_stream(source), 20)) != flat(take(make_stream(source, seed=2), 20))
    assert [key for _, key in flat(sequential(source, 2, batch_size=7))] == list(range(90))


def test_shuffle_mixes_shards_and_moves_rows_far():
    source = Numbers([256] * 16)
    keys = np.array([key for _, key in flat(take(make_stream(source, batch_size=64, shuffle_window=512), 64))])
    assert sorted(keys) == list(range(4096))
    assert len(np.unique(keys[:64] // 256)) >= 7  # the eight shards of the group
    assert abs(np.corrcoef(keys, np.arange(4096))[0, 1]) < 0.5
    assert abs(np.corrcoef(keys[:2048] % 256, np.arange(2048))[0, 1]) < 0.99


def test_window_borders_differ_by_epoch():
    """Otherwise a single shard would always be cut into the same sets of rows."""
    pairs = flat(take(make_stream(Numbers([64]), batch_size=64), 2))
    first = [{key for _, key in pairs[start : start + 16]} for start in (0, 64)]
    assert first[0] != first[1]


# Workers


def test_number_of_workers_changes_nothing():
    source = Numbers([30, 41, 7], bad={3, 50, 51, 52})
    inline, workers = (take(make_stream(source, num_workers=number), 40) for number in (0, 2))
    assert_same(inline, workers)
    resumed = make_stream(source, num_workers=2, position=inline[12].position)
    assert_same(inline[13:20], take(resumed, 7))


def test_stream_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    take(make_stream(Numbers([30])), 2)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_dropping_an_iterator_ends_its_thread(num_workers):
    iterator = iter(make_stream(Numbers([1000]), num_workers=num_workers))
    next(iterator)
    assert any(thread.name == "canvas-reader" for thread in threading.enumerate())
    del iterator
    gc.collect()
    assert not any(thread.name == "canvas-reader" for thread in threading.enumerate())


LIVE_AT_EXIT = """
import os, signal, sys
from eqcohvit.data import CanvasStream, SpritesSource
signal.signal(signal.SIGTERM, lambda *_: None)
iterator = iter(CanvasStream(SpritesSource(), 8, 4, num_workers=2))
next(iterator)
os.killpg(0, signal.SIGTERM)
for _ in range(50):
    next(iterator)
sys.exit(3)
"""


def test_workers_survive_a_signal_to_the_group_and_do_not_hold_up_the_exit():
    assert (
        subprocess.run([sys.executable, "-c", LIVE_AT_EXIT], start_new_session=True, timeout=PATIENCE).returncode == 3
    )


def test_a_source_without_rows_is_an_error():
    with pytest.raises(ValueError, match="numbers has no rows"):
        take(make_stream(Numbers([0, 0])), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size\), got rank=2, world_size=2"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction must lie between 0 and 1, got 1.5"),
    ],
)
def test_bad_arguments_are_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        make_stream(Numbers([20]), **options)


# Bad images


def test_bad_images_are_left_out_counted_and_listed_once(tmp_path):
    path, bad = tmp_path / "run/bad.jsonl", {3, 11, 12}
    stream = make_stream(Numbers([20, 10], bad), batch_size=9, bad_images_path=path)
    batches = take(stream, 9)  # three epochs of 27 good samples
    assert sorted(flat(batches)) == [(epoch, number) for epoch in range(3) for number in range(30) if number not in bad]
    assert 0 <= stream.num_seen - stream.num_bad == 81 and stream.num_bad in range(6, 10)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert {entry["key"] for entry in entries} == bad and len(entries) == 3
    assert entries[0]["path"] == f"number {entries[0]['key']}" and entries[0]["reason"] == "spoiled"
    for batch in batches:
        take(make_stream(Numbers([20, 10], bad), batch_size=9, bad_images_path=path, position=batch.position), 2)
    assert len(path.read_text().splitlines()) == 3


def test_bad_images_of_two_processes_and_of_a_killed_one_are_listed_once(tmp_path):
    path, source = tmp_path / "bad.jsonl", Numbers([20], bad={3, 11})
    streams = [
        iter(make_stream(source, rank=rank, world_size=2, batch_size=3, bad_images_path=path)) for rank in range(2)
    ]
    for _ in range(20):  # each rank meets both over the epochs
        for stream in streams:
            next(stream)
    assert sorted(json.loads(line)["key"] for line in path.read_text().splitlines()) == [3, 11]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # cut short: the last entry is written again, on its own line
    take(make_stream(source, bad_images_path=path), 10)
    lines = path.read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in (lines[0], lines[2])) == [3, 11] and len(lines) == 3


def test_names_of_bad_images_cannot_write_to_the_terminal(tmp_path):
    (tmp_path / "bad\x1b[2J\nname.png").write_bytes(b"no image")
    with pytest.raises(TooManyBadImages) as caught:
        take(CanvasStream(FolderSource(tmp_path), 8, 2, bad_images_path=tmp_path / "bad.jsonl"), 1)
    assert "bad\\x1b[2J\\nname.png: not an image" in str(caught.value) and str(caught.value).isprintable()
    assert json.loads((tmp_path / "bad.jsonl").read_text())["path"].endswith("bad\x1b[2J\nname.png")


def test_too_many_bad_images_stop_the_stream(tmp_path):
    path = tmp_path / "bad.jsonl"
    stream = make_stream(Numbers([1000], bad=range(0, 1000, 50)), max_bad_fraction=0.01, bad_images_path=path)
    with pytest.raises(
        TooManyBadImages, match=r"of 20\d images .* could not be decoded, more than max_bad_fraction=0.01.*bad.jsonl"
    ):
        take(stream, 200)
    take(make_stream(Numbers([1000], bad=range(0, 1000, 50)), max_bad_fraction=0.05), 200)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_small_source_is_judged_after_its_first_pass(num_workers):
    stream = make_stream(Numbers([10], bad={4}), max_bad_fraction=0.01, num_workers=num_workers)
    with pytest.raises(TooManyBadImages, match="first: number 4: spoiled"):
        take(stream, 10)
    with pytest.raises(TooManyBadImages, match="100.0%"):
        take(make_stream(Numbers([3], bad=range(3)), max_bad_fraction=0.99, num_workers=num_workers), 1)


def test_only_bad_images_end_even_if_all_may_be_bad():
    with pytest.raises(TooManyBadImages, match="none of 5 images could be decoded"):
        take(make_stream(Numbers([3], bad=range(3)), max_bad_fraction=1.0), 1)


# Real sources


def test_folder_with_broken_files_streams_exactly_once(tmp_path):
    for index in range(40):
        (tmp_path / f"{index % 3}").mkdir(exist_ok=True)
        (tmp_path / f"{index % 3}/{index:02}.png").write_bytes(png(index))
    (tmp_path / "0/empty.png").touch()
    (tmp_path / "1/text.jpg").write_text("<html>")
    (tmp_path / "2/short.png").write_bytes(png(7)[:-30])
    bad_images = tmp_path / "bad.jsonl"
    stream = CanvasStream(
        FolderSource(tmp_path), 8, 10, num_workers=2, max_bad_fraction=0.2, bad_images_path=bad_images
    )
    batches = take(stream, 8)
    for epoch in range(2):
        values = sorted(int(canvas[0, 0, 0]) for batch in batches for canvas in batch.canvases[batch.epochs == epoch])
        assert values == list(range(40))
    assert {tuple(size) for batch in batches for size in batch.sizes.tolist()} == {(5, 9)}
    names = sorted(json.loads(line)["path"].rsplit("/", 1)[1] for line in bad_images.read_text().splitlines())
    assert names == ["empty.png", "short.png", "text.jpg"]


def test_parquet_streams_exactly_once_over_two_ranks_and_resumes(tmp_path):
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for shard in range(3):
        rows = {
            "picture": [{"bytes": png(shard * 20 + row), "path": None} for row in range(20)],
            "label": [row % 2 for row in range(20)],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{shard}.parquet"), batch_size=8)
    values = []
    for rank in range(2):
        source = DatasetSource("parquet", data_files=f"{tmp_path}/*.parquet")
        assert source.num_shards == 9
        stream = CanvasStream(source, 8, 6, rank=rank, world_size=2)
        batches = take(stream, 5)
        values += [int(value) for batch in batches for value in batch.canvases[:, 0, 0, 0][batch.epochs == 0]]
        assert all(torch.equal(batch.labels, batch.canvases[:, 0, 0, 0].long() % 2) for batch in batches)
        resumed = CanvasStream(source, 8, 6, rank=rank, world_size=2, num_workers=1, position=batches[1].position)
        assert_same(batches[2:], take(resumed, 3))
    assert len(values) == len(set(values)) and len(values) >= 58  # 9 groups of 8 or 4 rows halve to within a row or so


def test_sprites_stream_fresh_scenes_with_labels():
    batches = take(CanvasStream(SpritesSource(num_samples=64), 16, 32), 4)
    keys = [key for _, key in flat(batches)]
    assert sorted(keys) == list(range(128)) and set(keys[:64]) == set(range(64))
    assert all((batch.labels >= 0).all() for batch in batches)
    assert len(torch.unique(torch.cat([batch.labels for batch in batches]))) > 4


# One pass


def test_sequential_is_one_ordered_pass_with_a_short_last_batch():
    source = Numbers([8, 5])
    batches = list(sequential(source, 2, 5))
    assert flat(batches) == [(0, number) for number in range(13)] and [len(batch) for batch in batches] == [5, 5, 3]
    assert [len(batch) for batch in sequential(source, 2, 5, max_samples=7)] == [5, 2]


def test_sequential_leaves_bad_images_out_with_a_warning():
    with pytest.warns(UserWarning, match="left out 2 images of numbers .* first: number 3: spoiled"):
        assert [key for _, key in flat(sequential(Numbers([8], bad={3, 4}), 2, 5))] == [0, 1, 2, 5, 6, 7]
    with pytest.raises(TooManyBadImages, match="none of the 4 images"):
        list(sequential(Numbers([4], bad=range(4)), 2, 5))
    with pytest.raises(ValueError, match="max_samples must be at least 1, got 0"):
        sequential(Numbers([4]), 2, 5, max_samples=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_fit_reaches_the_decoder_in_every_way_of_reading(tmp_path, num_workers):
    """A wide image whose central square is white and whose sides are black: squeezed to 8 x 8, a third of the canvas is
    white."""
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    for index in range(4):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    source = FolderSource(tmp_path)
    for fit, size, white in (("native", [8, 24], 1 / 3), ("square", [8, 8], 1.0)):
        stream = CanvasStream(source, 8, 4, num_workers=num_workers, fit=fit)
        for batch in (take(stream, 1)[0], next(sequential(source, 8, 4, fit=fit))):
            assert batch.sizes.tolist() == [size] * 4
            assert batch.canvases.float().mean().item() / 255 == pytest.approx(white, abs=0.02)
