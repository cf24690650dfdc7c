"""Shards on devices of other nodes: written, verified, read, and asked for by who means no good."""

import errno
from dataclasses import replace

import pytest

from tests.shard_nodes import ShardNodes, device_id
from tests.sim.crash import Budget, CrashPlanner
from tests.sim.faults import Fail, Fault
from tests.stripe_rig import Bytes, StripeRig, make_pack
from transport import stripes
from transport.packrow import PackRow
from transport.peer import messages as m
from transport.remoteshards import AGAIN_S, DevicesThere
from transport.shardfile import CorruptShard, ShardFile, Stripe
from transport.shardserver import MAX_FILE_BYTES, MAX_UNFINISHED, ShardServer
from transport.stripereads import MAX_OPEN, RETRY_S, StripeReads
from volume.disk import Disk
from volume.stripedpack import StripedPack, StripeUnavailable

PACK = make_pack([4096, 70_144, 512, 16384, 299_520, 2048])
WIDTH = 3
DEVICE = bytes(16)


def encoded(*, record: bool = False) -> tuple[StripeRig, ShardNodes, Stripe]:
    """The pack as 2+1, written from somewhere else."""
    rig = StripeRig(WIDTH, record=record)
    nodes = ShardNodes(rig.devices)
    size = len(PACK.content)
    cuts = stripes.cuts_of(PACK.boundaries, size, 2)
    disks = nodes.disks()
    return rig, nodes, stripes.encode(Bytes(PACK.content), PACK.pack_id, size, cuts, disks, 1)


def stub(stripe: Stripe) -> StripedPack:
    return StripedPack(1, stripe.pack_id, stripe.digest, 2, 1, 0, bytes(16), 0, 0, 0)


def row_of(stripe: Stripe) -> PackRow:
    held = tuple(device_id(number) for number in range(WIDTH))
    return PackRow(
        *(stripe.pack_id, stripe.pack_size, (), held, 2, stripe.shard_length, stripe.digest)
    )


class Reading:
    """A node that reads the stripe, with a clock and a row that tests change."""

    def __init__(self) -> None:
        _, self.nodes, self.stripe = encoded()
        self.row: PackRow | None = row_of(self.stripe)
        self.now = 0.0
        self.fresh = 0
        self.reads = StripeReads(self.find, self.disk, monotonic=lambda: self.now)
        self.nodes.asked.clear()

    def find(self, pack_id: bytes, fresh: bool) -> PackRow | None:
        self.fresh += fresh
        return self.row

    def disk(self, device: str) -> Disk:
        return self.nodes.disk(device)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        size = self.stripe.pack_size - offset if length is None else length
        return self.reads.read(stub(self.stripe), size, offset)


# -- writing and verifying


def test_what_is_written_there_verifies_and_is_the_same_file() -> None:
    rig, nodes, stripe = encoded()
    stripes.verify(stripe, nodes.disks())
    local = StripeRig(WIDTH)
    local.encode(PACK, 2, 1)
    for number in range(WIDTH):
        path = rig.path(stripe, number)
        assert rig.disk.open(path).pread(1 << 30, 0) == local.disk.open(path).pread(1 << 30, 0)
        assert nodes.servers[number].unfinished() == []


def test_a_lost_shard_is_computed_onto_another_node() -> None:
    _, nodes, stripe = encoded()
    path = stripe.name(1).path
    nodes.servers[1].remove(path)
    disks = nodes.disks()
    reader = stripes.StripeReader(stripe.pack_id, 2, stripe.digest, [disks[0], None, disks[2]])
    stripes.rebuild(reader, {1: disks[1]})
    stripes.verify(stripe, disks)


def test_a_shard_that_is_not_what_its_header_says_gets_no_name() -> None:
    rig, nodes, stripe = encoded()
    name = stripe.name(0)
    good = rig.disk.open(rig.path(stripe, 0)).pread(1 << 30, 0)
    nodes.servers[0].remove(name.path)
    ask = nodes.servers[0].answer
    bad = bytearray(good)
    bad[-1] ^= 1
    for content in (bytes(bad), good[:-4096], good + bytes(4096), b"x" * 8192, b"\0"):
        assert isinstance(ask(m.PutShard(DEVICE, *name, 0, (content,))), m.ShardAck)
        refused = ask(m.FinishShard(DEVICE, *name))
        assert isinstance(refused, m.Error)
        assert nodes.servers[0].names() == []
        assert isinstance(ask(m.DropShard(DEVICE, *name)), m.ShardAck)
    assert isinstance(ask(m.PutShard(DEVICE, *name, 0, (good,))), m.ShardAck)
    for _ in range(2):  # the answer may have been lost
        assert isinstance(ask(m.FinishShard(DEVICE, *name)), m.ShardAck)
    assert nodes.servers[0].names() == [name]
    assert isinstance(ask(m.DropShard(DEVICE, *name)), m.ShardAck)  # not what is finished
    stripes.verify(stripe, nodes.disks())


def test_a_shard_is_not_replaced_by_one_of_another_stripe() -> None:
    _, nodes, stripe = encoded()
    size = len(PACK.content)
    with pytest.raises(OSError, match="of another stripe of the same pack"):
        stripes.encode(Bytes(PACK.content), PACK.pack_id, size, (0, 0, size), nodes.disks(), 1)
    stripes.verify(stripe, nodes.disks())
    again = stripes.encode(Bytes(PACK.content), PACK.pack_id, size, stripe.cuts, nodes.disks(), 1)
    assert again == stripe


def test_who_asks_for_what_cannot_be_is_refused() -> None:
    rig, nodes, stripe = encoded()
    name, ask = stripe.name(0), nodes.servers[0].answer
    wrong: list[m.PutShard | m.FinishShard | m.DropShard | m.GetShard] = [
        m.GetShard(b"\1" * 16, *name, 0, 10, 0),
        m.GetShard(DEVICE, *name._replace(number=3), 0, 10, 0),
        m.GetShard(DEVICE, *name._replace(data=19, parity=2), 0, 10, 0),
        m.GetShard(DEVICE, *name._replace(pack_id=bytes(32)), 0, 10, 1),
        m.FinishShard(DEVICE, *name._replace(pack_id=bytes(32))),
        m.PutShard(DEVICE, *name, MAX_FILE_BYTES, (b"x",)),
    ]
    for request in wrong:
        assert isinstance(ask(request), m.Error), request
    got = ask(m.GetShard(DEVICE, *name, 1 << 32, 10, 0))
    assert isinstance(got, m.ShardPart)
    assert got.payload == ()
    assert rig.devices[0].list("shards") == [name.file_name]


def test_unfinished_shards_and_room_have_bounds() -> None:
    rig = StripeRig(1)
    server = ShardServer(rig.devices[0], DEVICE, 0)
    name = Stripe(PACK.pack_id, 10, 1, 1, (0, 10), (bytes(32),) * 2).name(0)
    for number in range(MAX_UNFINISHED):
        pack = number.to_bytes(32, "big")
        put = m.PutShard(DEVICE, *name._replace(pack_id=pack), 0, (b"x",))
        assert isinstance(server.answer(put), m.ShardAck)
    refused = server.answer(m.PutShard(DEVICE, *name, 0, (b"x",)))
    assert isinstance(refused, m.Error)
    assert "are being written" in refused.text
    assert isinstance(server.answer(put), m.ShardAck)  # one of them
    full = ShardServer(rig.devices[0], DEVICE, rig.devices[0].free_bytes())
    refused = full.answer(put)
    assert isinstance(refused, m.Error)
    assert "would be left" in refused.text
    assert full.failed is None


def test_a_device_that_cannot_sync_takes_nothing_more_and_is_still_read() -> None:
    rig, nodes, stripe = encoded()
    server, name = nodes.servers[0], stripe.name(0)
    good = rig.disk.open(rig.path(stripe, 0)).pread(1 << 30, 0)
    other = stripe.name(0)._replace(number=0)
    server.remove(other.path)
    server.answer(m.PutShard(DEVICE, *name, 0, (good,)))
    rig.disk.faults.add(Fault("sync", Fail(errno.EIO)))
    assert isinstance(server.answer(m.FinishShard(DEVICE, *name)), m.Error)
    assert server.failed is not None
    sealed = server.answer(m.PutShard(DEVICE, *name, 0, (good,)))
    assert isinstance(sealed, m.Error)
    assert sealed.code == m.Code.SEALED
    assert nodes.servers[1].failed is None
    got = nodes.servers[1].answer(m.GetShard(b"\0" * 15 + b"\1", *stripe.name(1), 0, 10, 0))
    assert isinstance(got, m.ShardPart)


def test_a_power_cut_at_any_operation_leaves_a_whole_shard_or_none() -> None:
    rig, _, stripe = encoded(record=True)
    budget = Budget(exhaustive=4, singles=2, prefixes=2, tears=1, random_ops=1, random_sectors=1)
    ops = len(rig.disk.trace.ops)
    images = 0
    for image in CrashPlanner(rig.disk.trace, budget=budget).images(range(ops + 1)):
        images += 1
        after = StripeRig(WIDTH, image)
        for number in range(WIDTH):
            try:
                shard = ShardFile(after.devices[number], stripe.name(number))
            except FileNotFoundError:
                continue
            shard.verify()
            shard.close()
    assert images > ops


# -- reading


def test_a_chunk_takes_one_request_once_its_shard_is_open() -> None:
    reading = Reading()
    first, second = PACK.boundaries[1:3]
    assert reading.read(first, 100) == PACK.content[first : first + 100]
    opened = len(reading.nodes.asked)
    assert opened <= 2
    length = second - first
    assert reading.read(first, length) == PACK.content[first:second]
    assert len(reading.nodes.asked) <= opened + 1
    assert reading.read() == PACK.content
    assert reading.reads.counters.degraded == 0


@pytest.mark.parametrize("away", range(WIDTH))
def test_with_a_node_away_its_part_is_decoded(away: int) -> None:
    reading = Reading()
    reading.nodes.away.add(away)
    assert reading.read() == PACK.content
    assert (reading.reads.counters.degraded > 0) == (away < 2)


def test_a_node_that_has_stopped_answering_is_waited_for_once() -> None:
    """What it has is decoded from then on, until it is looked at anew."""
    reading = Reading()
    assert reading.read() == PACK.content
    reading.nodes.away.add(0)
    reading.nodes.refused = 0
    for _ in range(5):
        assert reading.read() == PACK.content
    assert reading.nodes.refused == 1
    reading.now = RETRY_S + 0.1
    reading.nodes.away.clear()
    before = reading.reads.counters.degraded
    assert reading.read() == PACK.content
    assert reading.reads.counters.degraded == before


def test_a_node_that_comes_back_is_used_again() -> None:
    reading = Reading()
    reading.nodes.away.add(0)
    assert reading.read() == PACK.content
    reading.nodes.away.clear()
    reading.now = RETRY_S + 0.1
    before = reading.reads.counters.degraded
    assert reading.read() == PACK.content
    assert reading.reads.counters.degraded == before


def test_too_few_shards_are_an_error_that_names_them() -> None:
    reading = Reading()
    assert reading.read() == PACK.content
    reading.nodes.away.update((0, 2))
    with pytest.raises(StripeUnavailable, match=r"takes 2 .*node 0 is not connected"):
        reading.read()
    assert reading.fresh == 1  # its row was looked at again
    assert reading.reads.counters.failed == 1
    reading.nodes.away.clear()
    assert reading.read() == PACK.content


def test_a_shard_that_has_moved_is_found_by_the_row() -> None:
    reading = Reading()
    assert reading.read() == PACK.content
    stripe, nodes = reading.stripe, reading.nodes
    devices = StripeRig(5).devices
    more = ShardNodes(devices)
    nodes.servers += more.servers[3:]
    held = [None if number == 0 else nodes.disks()[number] for number in range(WIDTH)]
    stripes.rebuild(
        stripes.StripeReader(stripe.pack_id, 2, stripe.digest, held), {0: nodes.disks()[3]}
    )
    nodes.servers[0].remove(stripe.name(0).path)
    nodes.away.add(1)
    assert reading.row is not None
    stale, reading.row = reading.row, reading.row.moved(0, device_id(3))
    rows = iter([stale])
    reading.reads.forget(stripe.pack_id)
    moved = reading.row
    reading.find = lambda pack_id, fresh: moved if fresh else next(rows, moved)  # type: ignore[method-assign]
    reading.reads = StripeReads(reading.find, reading.disk)
    assert reading.read() == PACK.content


def test_without_a_row_the_error_says_which_is_missing() -> None:
    reading = Reading()
    reading.row = None
    with pytest.raises(StripeUnavailable, match=f"pack/{PACK.pack_id.hex()}"):
        reading.read()


def test_open_stripes_have_a_bound() -> None:
    reading = Reading()
    row = reading.row
    assert row is not None
    reading.reads = StripeReads(
        lambda pack_id, fresh: replace(row, pack_id=pack_id), lambda device: None
    )
    for number in range(MAX_OPEN + 5):
        other = replace(stub(reading.stripe), pack_id=number.to_bytes(32, "big"))
        with pytest.raises(StripeUnavailable):
            reading.reads.read(other, 10, 0)
    assert len(reading.reads._open) <= MAX_OPEN


def test_what_a_shard_has_wrong_is_decoded_from_the_others() -> None:
    reading = Reading()
    server = reading.nodes.servers[0]
    name = reading.stripe.name(0)
    file = server.disk.open(name.path)
    file.pwrite(b"\xff" * 64, file.size() - reading.stripe.shard_length)
    assert reading.read() == PACK.content
    assert reading.reads.counters.degraded > 0
    with pytest.raises(CorruptShard):
        ShardFile(server.disk, name).verify()


# -- which device a node has


def test_a_node_is_asked_once_for_each_device_until_its_session_ends() -> None:
    nodes = ShardNodes(StripeRig(2).devices)
    there = DevicesThere(nodes.ask, 1.0)
    node, device = bytes.fromhex(device_id(1)), bytes.fromhex(device_id(1))
    assert [there.has(node, device) for _ in range(3)] == [True] * 3
    assert len(nodes.asked) == 1
    there.forget(node)
    nodes.servers[1].device = bytes.fromhex(device_id(7))  # it came back with another disk
    assert not there.has(node, device)
    assert there.has(node, bytes.fromhex(device_id(7)))


def test_that_a_device_is_not_there_is_asked_again_and_no_answer_proves_nothing() -> None:
    nodes = ShardNodes(StripeRig(2).devices)
    now = 0.0
    there = DevicesThere(nodes.ask, 1.0, lambda: now)
    node, device = bytes.fromhex(device_id(1)), bytes.fromhex(device_id(1))
    nodes.away.add(1)
    assert not there.has(node, device)
    nodes.away.clear()
    assert there.has(node, device)
    other = bytes.fromhex(device_id(0))
    assert [there.has(node, other) for _ in range(3)] == [False] * 3
    asked = len(nodes.asked)
    now += AGAIN_S
    nodes.servers[1].device = other
    assert there.has(node, other)
    assert len(nodes.asked) == asked + 1
