"""The order in which a stream reads its source. A position (epoch, group, row) is its whole state.

epoch   a seeded permutation of the shards, dealt into groups of up to `MAX_GROUP_SHARDS`
group   its shards are read in turn, one row each; the rows of this rank pass through windows, each of them permuted
row     how many rows of the group this rank has read

Ranks share the rows of each shard (row % world_size) if dropping a row is cheap or the shards do not divide well; then
no rank runs ahead of another. Otherwise each rank reads its own shards. The order never ends on any rank, so no rank
waits for another.

When a run continues with another number of ranks, the new ranks first share what the former ones left of their epoch.
Until that is done, positions also hold the former positions (`handover`).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, takewhile
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .decode import one_line
from .retry import Patience, ReadError, is_transient
from .sources import Record, Source

MAX_GROUP_SHARDS = 8
_Item = TypeVar("_Item")
_END = object()
HANDOVER = -1  # takes the place of the group while the rest of a former group's epoch is read
START = {"epoch": 0, "group": 0, "row": 0, "num_seen": 0, "num_bad": 0}


class Sample(NamedTuple):
    """A record and the position after it."""

    record: Record
    epoch: int
    group: int
    row: int


@dataclass(frozen=True)
class Order:
    """What decides the order of a rank's samples; `handover` holds the positions of a former group, whose rest comes
    first."""

    source: Source
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    shuffle_window: int = 2048
    group_shards: int = MAX_GROUP_SHARDS
    handover: tuple[dict[str, Any], ...] = ()

    @property
    def splits_rows(self) -> bool:
        """Whether ranks share the rows of each shard.

        Dividing S shards would let ranks drift apart by up to world_size / S of an epoch, in every epoch.
        """
        shards = self.source.num_shards
        ranks = self.world_size
        return self.source.cheap_rows or (shards % ranks != 0 and shards < 16 * ranks)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a position to be valid."""
        names = ("seed", "rank", "world_size", "shuffle_window")
        return {name: getattr(self, name) for name in names} | {"num_shards": self.source.num_shards}

    def resumed_at(self, position: dict[str, Any] | list[dict[str, Any]] | None) -> tuple["Order", dict[str, int]]:
        """The order that continues from a position, and where in it to start (the keys of `START`).

        Args:
            position: of this rank; or the positions of all ranks of a group of another size; or None for the beginning.

        Raises:
            ValueError: not a position, or one of another source, seed or window.
        """
        if position is None:
            return self, START
        if isinstance(position, list):
            return self._after_other_group(position)
        self._check(position)
        start = {name: int(position[name]) for name in START}
        if start["group"] == HANDOVER:
            return replace(self, handover=tuple(position["handover"])), start
        return self, start

    def _after_other_group(self, positions: list[dict[str, Any]]) -> tuple["Order", dict[str, int]]:
        """As `resumed_at`: first read this rank's share of what the former group left of its epoch."""
        for rank, position in enumerate(positions):
            replace(self, rank=rank, world_size=len(positions))._check(position)
        start = {"epoch": _last_epoch(positions), "group": HANDOVER, "row": 0}
        for name in ("num_seen", "num_bad"):
            start[name] = sum(position[name] for position in positions) // self.world_size
        return replace(self, handover=tuple(positions)), start

    def position(self, state: dict[str, int]) -> dict[str, Any]:
        """JSON-able: where to continue after a sample with the epoch, group, row and counts of `state`."""
        position = self.identity() | state
        if state["group"] == HANDOVER:
            position["handover"] = list(self.handover)
        return position

    def _check(self, position: dict[str, Any]) -> None:
        identity = self.identity()
        missing = [name for name in (*identity, *START) if name not in position]
        if missing:
            raise ValueError(f"position lacks {', '.join(missing)}; expected the `position` of a batch, got {position}")
        for name, value in identity.items():
            if position[name] != value:
                raise ValueError(
                    f"cannot resume: the position was saved with {name}={position[name]}, "
                    f"this stream has {name}={value}"
                )

    def samples(self, epoch: int, group: int, row: int) -> Iterator[Sample]:
        """This rank's samples from a position on; they never end."""
        if group == HANDOVER:
            yield from self._handed_over(row)
            epoch = _last_epoch(self.handover) + 1
            group = 0
            row = 0
        empty_epochs = 0  # in a row
        for current_epoch in count(epoch):
            empty_epochs += 1
            for current_group in range(group, len(self._groups(current_epoch))):
                for sample in self._group_samples(current_epoch, current_group, skip=row):
                    empty_epochs = 0
                    yield sample
                row = 0
            group = 0
            if empty_epochs > self.world_size + 1:  # with fewer rows than ranks, a rank may get none in some epochs
                raise ValueError(f"{self.source.name} has no rows (rank {self.rank} of {self.world_size})")

    def _handed_over(self, skip: int) -> Iterator[Sample]:
        """This rank's share of what the former group left of its epoch, the last one that any of its ranks had
        begun."""
        last_epoch = _last_epoch(self.handover)
        rests: list[Iterator[Sample]] = []
        for rank, position in enumerate(self.handover):
            order, start = replace(self, rank=rank, world_size=len(self.handover), handover=()).resumed_at(position)
            samples = order.samples(start["epoch"], start["group"], start["row"])
            rests.append(takewhile(lambda sample: sample.epoch <= last_epoch, samples))
        own = islice(_in_turn(rests), self.rank, None, self.world_size)
        for row, sample in enumerate(islice(own, skip, None), start=skip + 1):
            yield sample._replace(group=HANDOVER, row=row)

    def _groups(self, epoch: int) -> list[list[int]]:
        """The groups of shards that this rank reads in the epoch."""
        num_shards = self.source.num_shards
        shards = self._generator(epoch).permutation(num_shards).tolist()
        if not self.splits_rows:
            shards = shards[(self.rank + epoch) % self.world_size :: self.world_size]
        size = max(1, min(self.group_shards, num_shards // self.world_size))
        return [shards[start : start + size] for start in range(0, len(shards), size)]

    def _group_samples(self, epoch: int, group: int, skip: int) -> Iterator[Sample]:
        """The samples of a group after the first `skip` rows."""
        row = 0
        for index, window in enumerate(self._windows(epoch, group)):
            for place in self._generator(epoch, group, index).permutation(len(window)).tolist():
                row += 1
                if row > skip:
                    yield Sample(window[place], epoch, group, row)

    def _windows(self, epoch: int, group: int) -> Iterator[list[Record]]:
        """Lists of `shuffle_window` records. The first is cut at random unless it holds all, so that the windows differ
        by epoch."""
        rows = self._rows(epoch, group)
        window = list(islice(rows, self.shuffle_window))
        if len(window) == self.shuffle_window:
            cut = int(self._generator(epoch, group).integers(1, self.shuffle_window + 1))
            yield window[:cut]
            window = window[cut:] + list(islice(rows, cut))
        while window:
            yield window
            window = list(islice(rows, self.shuffle_window))

    def _rows(self, epoch: int, group: int) -> Iterator[Record]:
        """This rank's records of a group, before they are permuted."""
        rows = _in_turn([_read_shard(self.source, shard, epoch) for shard in self._groups(epoch)[group]])
        if self.splits_rows and self.world_size > 1:
            # Ranks take turns in getting one row more if the rows do not divide evenly.
            first = (self.rank - group - epoch) % self.world_size
            rows = islice(rows, first, None, self.world_size)
        return rows

    def _generator(self, *counters: int) -> np.random.Generator:
        # The length is part of the seed because a seed sequence ignores trailing zeros: (epoch 3) must differ from
        # (epoch 3, group 0).
        return np.random.default_rng([len(counters), self.seed, *counters])


def in_order(source: Source) -> Iterator[Sample]:
    """All records of a source once, shard by shard, as samples of the first epoch."""
    for shard in range(source.num_shards):
        for row, record in enumerate(_read_shard(source, shard, epoch=0), start=1):
            yield Sample(record, 0, shard, row)


def _last_epoch(positions: Sequence[dict[str, Any]]) -> int:
    """The last epoch that any of the positions has begun, or that they were handed."""
    last = 0
    for position in positions:
        last = max(last, position["epoch"], _last_epoch(position.get("handover", ())))
    return last


def _in_turn(iterators: list[Iterator[_Item]]) -> Iterator[_Item]:
    """One item of each iterator, then the next of each, until all have ended."""
    waiting = deque(iterators)
    while waiting:
        iterator = waiting.popleft()
        item: Any = next(iterator, _END)
        if item is not _END:
            yield item
            waiting.append(iterator)


def _read_shard(source: Source, shard: int, epoch: int) -> Iterator[Record]:
    """The records of a shard; after a transient error it is opened again and read on from the same row."""
    num_read = 0
    patience = Patience()
    while True:
        try:
            for record in islice(source.read_shard(shard, epoch), num_read, None):
                num_read += 1
                patience.succeeded()
                yield record
            return
        except ReadError:
            raise
        except Exception as error:
            what = f"reading shard {shard} of {source.num_shards} of {source.name} from row {num_read} on"
            if not is_transient(error):
                raise ReadError(f"{what} failed: {one_line(error)}") from error
            patience.failed(what, error)
