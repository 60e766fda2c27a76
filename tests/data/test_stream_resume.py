"""A stream that goes on at the position of a batch, alone or in a group of another size."""

import json

import numpy as np
import pytest
from tests.data.data_tools import Numbers, assert_same, flat, make_stream, take


@pytest.mark.parametrize("bad", [(), (0, 4, 5, 6, 17, 18, 30, 31, 32, 33, 34, 44)])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (1, 4)])
def test_resuming_after_any_batch_equals_the_uninterrupted_run(tmp_path, bad, rank, world_size):
    source = Numbers([10, 17, 3, 15], bad)
    options = {"rank": rank, "world_size": world_size}
    whole = take(make_stream(source, batch_size=4, **options), 30)
    assert whole[-1].epochs[-1] >= 2
    for index in range(-1, 25):
        position = (
            make_stream(source, **options).position if index < 0 else json.loads(json.dumps(whole[index].position))
        )
        stream = make_stream(source, batch_size=4, position=position, **options)
        assert stream.position == position and stream.num_seen == position["num_seen"]
        assert_same(whole[index + 1 : index + 6], take(stream, 5))


def test_resuming_may_change_the_batch_size():
    source = Numbers([40, 30], bad={7, 8})
    whole = flat(take(make_stream(source, batch_size=4), 30))
    position = take(make_stream(source, batch_size=4), 5)[-1].position
    assert flat(take(make_stream(source, batch_size=10, position=position), 10)) == whole[20:120]


def test_a_second_iterator_goes_on_where_the_stream_stopped():
    whole, stream = take(make_stream(Numbers([40])), 12), make_stream(Numbers([40]))
    assert_same(whole, take(stream, 5) + take(stream, 7))
    assert stream.position == whole[-1].position


@pytest.mark.parametrize("cheap_rows", [True, False])
@pytest.mark.parametrize("bad", [(), (0, 4, 5, 6, 17, 40)])
@pytest.mark.parametrize("world_sizes", [(2, 3, 1), (1, 4, 4, 2), (3, 2), (2, 2, 5, 3, 1, 2)])
def test_groups_of_other_sizes_go_on_with_the_epoch_and_lose_or_double_nothing(world_sizes, bad, cheap_rows):
    """Also where the size changes, or the same group resumes, while the rest of an epoch is still handed over."""
    source, generator, seen = (
        Numbers([10, 17, 3, 15, 8, 8], bad, cheap_rows=cheap_rows),
        np.random.default_rng(len(world_sizes)),
        [],
    )
    positions = None
    for former, world_size in zip((None, *world_sizes), world_sizes, strict=False):
        num_batches, after = int(generator.integers(1, 5)), []
        for rank in range(world_size):
            position = positions[rank] if positions and former == world_size else positions
            batches = take(
                make_stream(source, batch_size=3, rank=rank, world_size=world_size, position=position), num_batches
            )
            seen += flat(batches)
            after.append(json.loads(json.dumps(batches[-1].position)))
        positions = after
    last_epoch = max(position["epoch"] for position in positions) + 2
    for rank in range(world_size):
        for batch in make_stream(source, batch_size=1, rank=rank, world_size=world_size, position=positions[rank]):
            if int(batch.epochs[0]) > last_epoch:
                break
            seen += flat([batch])
    numbers = [number for number in range(61) if number not in bad]
    assert sorted(seen) == [(epoch, number) for epoch in range(last_epoch + 1) for number in numbers]


def test_resuming_a_handover_equals_the_uninterrupted_one():
    source = Numbers([10, 17, 3, 15])
    positions = [take(make_stream(source, batch_size=4, rank=rank, world_size=2), 2)[-1].position for rank in range(2)]
    whole = take(make_stream(source, batch_size=4, rank=1, world_size=3, position=positions), 12)
    assert whole[0].position["group"] == -1 and whole[-1].position["group"] >= 0
    for index in range(11):
        position = json.loads(json.dumps(whole[index].position))
        after = take(make_stream(source, batch_size=4, rank=1, world_size=3, position=position), 3)
        assert_same(whole[index + 1 : index + 4], after[: 11 - index])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_size": 2}, "saved with world_size=1, this stream has world_size=2"),
        ({"seed": 9}, "saved with seed=1, this stream has seed=9"),
        ({"shuffle_window": 8}, "saved with shuffle_window=16, this stream has shuffle_window=8"),
        ({"source": Numbers([10, 10])}, "saved with num_shards=1, this stream has num_shards=2"),
        ({"position": {"epoch": 3}}, "position lacks seed, .*; expected the `position` of a batch"),
    ],
)
def test_resuming_into_another_stream_is_an_error(change, message):
    position = take(make_stream(Numbers([20])), 1)[0].position
    with pytest.raises(ValueError, match=message):
        make_stream(**{"source": Numbers([20]), "position": position} | change)
