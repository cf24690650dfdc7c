"""All of a volume to a member that has most of it: what crosses, and what is left of it when it is
cut short."""

import random
from contextlib import suppress
from dataclasses import replace

import pytest

from native import OP_WRITE, Request
from tests.member_copies import Copying
from tests.sim.crash import CrashState
from tests.sim.simdisk import PowerCut
from tests.sim.store_rig import SMALL, StoreRig, read_device
from volume.errors import OtherRecords, StoreSealed, VolumeError
from volume.layout import ZERO_ID
from volume.replica import Replica
from volume.replicacopy import FAILURES, Told
from volume.stream import Compare
from volume.stream_errors import InvalidStream

VOLUME = b"v" * 16
CHUNK = 4096
LEAF = 256 * CHUNK
SIZE = 300 * LEAF  # a tree of three levels
OPTIONS = replace(SMALL, window_bytes=24 * 16384, window_s=3600, journal_limit=12 * 16384)
INTO = f"vm1.copy-{VOLUME.hex()[:8]}"


def content(fill: bytes, index: int) -> bytes:
    return random.Random(f"{fill!r} {index}").randbytes(CHUNK)


class Site:
    """A node, and what clients have written to its volume."""

    def __init__(self, seed: int, rig: StoreRig | None = None) -> None:
        self.rig = rig or StoreRig(options=OPTIONS, seed=seed)
        if rig is None:
            self.rig.store.replicas.create(VOLUME, "vm1", SIZE, 512, CHUNK, 1)
        self.rig.tend()

    @property
    def replica(self) -> Replica:
        found = self.rig.store.replicas.get(VOLUME)
        assert found is not None
        return found

    def killed(self) -> "Site":
        return Site(0, self.rig.killed())

    def serve(self, epoch: int) -> None:
        self.replica.promise(epoch)
        self.replica.begin(epoch, self.replica.held[0])
        self.replica.serve(epoch)

    def write(self, at: int, fill: bytes, count: int = 1) -> None:
        """Whole chunks from chunk `at` on, each of its own."""
        for index in range(at, at + count):
            self.rig.tend()
            request = Request(OP_WRITE, index * CHUNK, CHUNK, content(fill, index))
            self.replica.volume.core.submit([request], self.rig.clock.now_ns())
            if index % 16 == 15:
                self.rig.settle()
        self.rig.settle()

    @property
    def seq(self) -> int:
        return self.replica.held[0]


def apart() -> tuple[Site, Site]:
    """A primary of epoch 2 and a member that has had the first records only, by the log."""
    source, member = Site(9), Site(1)
    source.serve(1)
    source.write(0, b"base", 40)
    source.write(600, b"base", 20)
    source.write(70_000, b"base", 4)
    member.serve(1)
    member.write(0, b"base", 40)  # the same records: it makes the same chunks of them
    member.write(600, b"base", 20)
    member.write(70_000, b"base", 4)
    member.replica.shut()
    for site in (source, member):
        site.replica.promise(2)
    source.replica.begin(2, source.seq)
    source.replica.serve(2)
    return source, member


def adopt(source: Site, member: Site, seq: int) -> None:
    member.replica.adopt(2, 64, 0, ((1, 64), (2, seq)))
    devices = [each.rig.store.open_version(f"vm1@seq:{seq}") for each in (source, member)]
    for at in (0, 256, 512, 600, 70_000):
        expected, found = (read_device(each, at * CHUNK, 64 * CHUNK) for each in devices)
        assert found == expected, at


def test_only_what_is_lacking_is_sent() -> None:
    source, member = apart()
    source.write(2, b"new", 2)
    copying = Copying(source.replica, member.replica, 2)
    assert copying.base != ZERO_ID
    copying.run()
    # Two chunks of 4 KiB, their leaf and the two nodes above it, and what is asked about them.
    assert copying.wanted == 3
    assert copying.sent < 2 * CHUNK + 3 * 8300 + 256 * 41 + 1000
    adopt(source, member, source.seq)


def test_what_is_elsewhere_in_the_store_is_not_sent() -> None:
    source, member = apart()
    member.rig.store.create_volume("other", LEAF, chunk_size=CHUNK)
    for index in range(8):
        member.rig.tend()
        assert member.rig.write("other", index * CHUNK, content(b"elsewhere", index)) == 0
    member.rig.settle()
    source.write(0, b"elsewhere", 8)
    copying = Copying(source.replica, member.replica, 2).run()
    assert copying.wanted == 1  # the leaf
    adopt(source, member, source.seq)


@pytest.mark.parametrize("kill", [False, True])
def test_what_came_of_a_stream_that_was_cut_is_not_sent_again(kill: bool) -> None:
    source, member = apart()
    source.write(256, b"new", 48)
    first = Copying(source.replica, member.replica, 2, limit=20_000)
    while first.pieces < 6:
        first.step()
    assert not first.last
    wanted = first.wanted
    assert wanted == 49
    if kill:
        member = member.killed()
    source.write(300, b"more", 4)  # the volume goes on: it is another stream
    again = Copying(source.replica, member.replica, 2).run()
    came = 6 * 20_000 // (CHUNK + 64)
    if kill:  # what had not come to a batch's end is gone with its process
        assert again.wanted <= 49 + 4
    else:
        assert again.wanted <= 49 + 4 - came + 2
    adopt(source, member, source.seq)
    assert member.rig.store.names() == ["vm1"]
    assert member.rig.store.receives() == []


def test_gc_keeps_what_came_until_the_copy_has_ended() -> None:
    source, member = apart()
    source.write(256, b"new", 48)
    first = Copying(source.replica, member.replica, 2, limit=20_000)
    while first.pieces < 6:
        first.step()
    Copying(source.replica, member.replica, 2)  # ends the first: what it has is stored
    before = member.rig.store._chunks.index.count()
    source.write(512, b"later", 4)
    second = Copying(source.replica, member.replica, 2)
    while second.pieces < 1:
        second.step()
    member.rig.store.collect()
    assert member.rig.store._chunks.index.count() >= before
    third = Copying(source.replica, member.replica, 2).run()
    assert third.wanted < 30
    adopt(source, member, source.seq)


def test_what_has_landed_is_the_base_of_the_next_one_until_it_is_adopted() -> None:
    source, member = apart()
    source.write(256, b"new", 40)
    Copying(source.replica, member.replica, 2).run()
    assert member.rig.store.names() == ["vm1", INTO]
    member = member.killed()
    source.write(2, b"newer")
    again = Copying(source.replica, member.replica, 2).run()
    assert again.wanted == 2
    adopt(source, member, source.seq)
    assert member.rig.store.names() == ["vm1"]


def test_what_came_goes_when_the_log_leads_to_the_member_after_all() -> None:
    source, member = apart()
    source.replica.tap(4 << 20)
    source.write(256, b"new", 4)
    taken = source.replica.take()
    Copying(source.replica, member.replica, 2).run()
    member = member.killed()
    assert member.rig.store.names() == ["vm1", INTO]
    member.replica.begin(2, 64)
    member.replica.append(2, 2, taken.first, taken.last, taken.data)
    assert member.rig.store.names() == ["vm1"]


def test_a_stream_that_cannot_be_used_twice_comes_whole_the_third_time() -> None:
    source, member = apart()
    source.write(2, b"new", 2)
    for _ in range(FAILURES):
        bad = Copying(source.replica, member.replica, 2)
        step = bad.step()
        while not isinstance(step, Compare) or len(step.nodes) < 2:
            step = bad.step()
        bad.heard = Told(frozenset())  # an answer that lies: the stream lacks what it needs
        with pytest.raises(InvalidStream):
            bad.run()
    whole = Copying(source.replica, member.replica, 2)
    assert whole.base == ZERO_ID
    whole.run()
    assert whole.wanted >= 64
    adopt(source, member, source.seq)


def test_questions_of_a_hostile_peer_are_refused() -> None:
    _, member = apart()
    replica = member.replica
    replica.begin_copy(2)
    for end, rank in ((0, 1), (5, 1), (256, 0), (256, 200), (1 << 63, 1)):
        with pytest.raises(OtherRecords, match="no tree has"):
            replica.unlike(2, [(end, rank, b"x" * 32)])
    assert replica.unlike(2, [(256, 1, b"x" * 32)])[1] == (0,)
    assert replica.lacking(2, [b"x" * 32, ZERO_ID]) == [b"x" * 32, ZERO_ID]
    for call in (lambda: replica.begin_copy(1), lambda: replica.lacking(3, [])):
        with pytest.raises(VolumeError):
            call()


def test_answers_out_of_turn_begin_nothing() -> None:
    source, member = apart()
    source.write(2, b"new", 2)
    copying = Copying(source.replica, member.replica, 2)
    base, copying.heard = copying.heard, Told(frozenset([0]))
    with pytest.raises(OtherRecords, match="no stream"):
        copying.step()
    copying.heard = base
    copying.step()
    copying.heard = None  # a piece is asked for where an answer is due
    with pytest.raises(OtherRecords, match="no stream"):
        copying.step()


def test_a_power_cut_at_any_step_of_a_copy_loses_nothing_that_is_needed() -> None:
    rng = random.Random(4)

    def begun() -> tuple[Site, Site]:
        source, member = apart()
        source.write(256, b"new", 20)
        return source, member

    source, member = begun()
    first = member.rig.disk.op_count
    Copying(source.replica, member.replica, 2).run()
    steps = range(1, member.rig.disk.op_count - first + 2)
    for count in rng.sample(steps, min(7, len(steps))):
        source, member = begun()
        member.rig.disk.crash_at(count)
        with suppress(PowerCut, OSError, StoreSealed):
            Copying(source.replica, member.replica, 2).run()
        state = CrashState(member.rig.disk.trace)
        for op in member.rig.disk.trace.ops:
            state.apply(op)
        member = Site(0, member.rig.rebooted(state.drawn("cut", rng)))
        Copying(source.replica, member.replica, 2).run()
        adopt(source, member, source.seq)


def test_a_copy_that_is_adopted_late_takes_nothing_back() -> None:
    """It was asked for before the one that the member went on from, and is carried out after it."""
    source, member = apart()
    source.write(2, b"new", 2)
    early = source.seq
    source.write(4, b"new", 2)
    copying = Copying(source.replica, member.replica, 2)
    copying.run()
    adopt(source, member, source.seq)
    copying = Copying(source.replica, member.replica, 2)  # what has landed once more
    copying.run()
    with pytest.raises(OtherRecords, match="gone on"):
        member.replica.adopt(2, 0, 0, ((1, 64), (2, early)))
    assert member.seq == source.seq
