"""What a node finds out about the shards on its own device."""

import logging
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from tests.stripe_nodes import StripeNode, striped
from transport.packrow import PackRow
from transport.shardfile import ShardName
from transport.shardserver import ShardServer
from transport.stripereads import StripeReads
from transport.striperows import KnownRows
from transport.stripestate import RoundNotes, Surroundings
from transport.stripeupkeep import OwnShards, Upkeep

DEVICE = bytes(15) + b"\1"


class Counted(PackRow):
    """A row that counts how often somebody asks how long its shards are."""

    asked = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "shard_bytes":
            Counted.asked += 1
        return super().__getattribute__(name)


class EmptyDevice:
    device = DEVICE

    def names(self) -> list[ShardName]:
        return []

    def marked(self) -> set[ShardName]:
        return set()

    def check_room(self, length: int) -> None:
        raise OSError("no room")


@dataclass
class Rows:
    rows: dict[bytes, PackRow]

    def of(self, pack_id: bytes, fresh: bool) -> PackRow:
        return self.rows[pack_id]


def asked_for(count: int) -> int:
    """How often lengths are asked for by a round of a device that lacks so many shards."""
    ids = [number.to_bytes(32) for number in range(1, count + 1)]
    shards = (DEVICE.hex(), "2" * 32, "3" * 32)
    rows: dict[bytes, PackRow] = {
        each: Counted(each, 1000, shards=shards, data=2, shard_bytes=500, digest=b"d" * 16)
        for each in ids
    }
    upkeep = Upkeep(
        cast(ShardServer, EmptyDevice()),
        cast(KnownRows, Rows(rows)),
        cast(StripeReads, None),
        cast(Surroundings, NoNodes()),
        RoundNotes(logging.getLogger("test")),
        0.0,
        monotonic=lambda: 0.0,
        should_stop=lambda: False,
    )
    Counted.asked = 0
    own = upkeep.look(rows)
    assert own is not None
    upkeep.repair(own)
    assert upkeep.lacking is not None
    assert len(upkeep.lacking) == count
    assert upkeep.work.left == 500 * count
    return Counted.asked


class NoNodes:
    def disk_of(self, device: str, writing: bool) -> None:
        return None


def test_what_a_round_of_repair_costs_grows_with_what_is_lacking_and_not_with_its_square() -> None:
    assert asked_for(40) == 4 * asked_for(10)


@pytest.mark.parametrize(
    ("count", "minutes", "read"), [(10, 1, 4), (80_000, 1, 4), (200_000, 1, 10), (200_000, 60, 64)]
)
def test_all_shards_are_read_within_two_weeks(count: int, minutes: float, read: int) -> None:
    """Of rows that are none: whether a shard is sound is asked, and that is counted."""
    now = 0.0
    ids = [number.to_bytes(32) for number in range(1, count + 1)]
    row = PackRow(ids[0], 1000, shards=(DEVICE.hex(), "2" * 32, "3" * 32), data=2)
    names = [ShardName(each, 2, 1, 0) for each in ids]
    upkeep = Upkeep(
        cast(ShardServer, EmptyDevice()),
        cast(KnownRows, Rows(dict.fromkeys(ids, row))),
        cast(StripeReads, None),
        cast(Surroundings, NoNodes()),
        RoundNotes(logging.getLogger("test")),
        0.0,
        monotonic=lambda: now,
        should_stop=lambda: False,
    )
    asked: list[ShardName] = []
    upkeep._is_sound = lambda name, row: asked.append(name) is None  # type: ignore[method-assign, func-returns-value]
    own = OwnShards(dict.fromkeys(names, row), set(names), set())
    now = 60.0 * minutes
    upkeep.repair(own)
    assert len(asked) == read
    upkeep.repair(own)
    assert asked[:read] == names[:read]
    assert asked[read:] == names[read : read + 4]  # others, and no time has gone by


def test_what_was_found_damaged_is_not_forgotten_when_the_device_cannot_be_listed_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = striped()
    node = cluster.nodes[1]
    upkeep = node.striper.upkeep
    rows = {row.pack_id: row for row in cluster.all_rows()}
    name = next(iter(sorted(node.server.names())))
    upkeep._lacking.add(name, 1)
    with monkeypatch.context() as patched:
        patched.setattr(node.server, "names", fails)
        assert upkeep.look(rows) is None
        assert upkeep.lacking is None
    assert upkeep.look(rows) is not None
    assert lacking(node) == {name}
    # What its row does not have here any more is of nobody's business.
    moved = replace(rows[name.pack_id], shards=("f" * 32,) * 3)
    assert upkeep.look({**rows, name.pack_id: moved}) is not None
    assert lacking(node) == set()


def test_damage_that_cannot_be_mended_is_known_after_a_start_before_anything_is_read() -> None:
    """Thousands of shards are read one after the other: that takes weeks."""
    cluster = striped()
    node, *others = cluster.nodes
    name = min(node.server.names())
    file = node.disk.open(name.path)
    offset = file.size() - 4096
    good = file.pread(1, offset)
    file.pwrite(bytes([good[0] ^ 1]), offset)
    cluster.away.update(each.id for each in others)
    for _ in range(2):
        node.striper.round()
    assert lacking(node) == {name}
    node.crash()
    rows = {row.pack_id: row for row in cluster.all_rows()}
    assert node.striper.upkeep.look(rows) is not None
    assert lacking(node) == {name}
    cluster.away.clear()
    node.striper.round()
    assert node.striper.counters.repaired == 1
    node.crash()
    assert node.striper.upkeep.look(rows) is not None
    assert lacking(node) == set()
    # A mark of what is there no more goes.
    node.server.mark(name)
    node.server.remove(name.path)
    node.striper.upkeep.look({})
    assert node.server.marked() == set()


def lacking(node: StripeNode) -> set[ShardName] | None:
    found = node.striper.upkeep.lacking
    return None if found is None else set(found)


def fails() -> list[ShardName]:
    raise OSError("the disk is dead")
