"""A damaged manifest node stops the destaging of its volume, and of no other.

"a" has a damaged root, over which something was written; "b" is what everybody else is.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from native import OP_WRITE, Request
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig
from tests.unit.volume.rig import chunk
from volume.builder import BuildInput, Built
from volume.destager import RETRY_MAX_S, RETRY_S
from volume.errors import CorruptData
from volume.options import StoreOptions

CHUNK = 4 * KIB
SEGMENTS = 8
LENT = 5
ROOMY = replace(SMALL, journal_limit=32 * SEGMENT_BYTES)
LENDING = replace(SMALL, journal_limit=SEGMENTS * SEGMENT_BYTES, window_bytes=LENT * SEGMENT_BYTES)


class Stuck:
    def __init__(self, options: StoreOptions = ROOMY) -> None:
        rig = StoreRig(options=options)
        for name in "ab":
            rig.store.create_volume(name, 64 * KIB, block_size=512, chunk_size=CHUNK)
        rig.tend()
        rig.fill("a", 0, chunk(1, 2 * CHUNK))
        rig.settle()
        self.root = rig.volume("a").record.head.root
        located = rig.store._chunks.locate(self.root)
        self._bit = (f"packs/{located.pack.number:08x}.pack", located.data_offset + 20)
        rig.disk.flip_bit(*self._bit)
        self.rig = rig.killed()  # nothing is in memory
        self.rig.tend()
        assert self.rig.write("a", 0, chunk(2)) == 0

    def repair(self) -> None:
        self.rig.disk.flip_bit(*self._bit)

    @property
    def held_up(self) -> str | None:
        return self.rig.store.status().destage_held_up

    def hot_bytes(self, name: str) -> int:
        return self.rig.volume(name).core.state()[3]


def test_the_others_are_destaged(caplog: pytest.LogCaptureFixture) -> None:
    life = Stuck()
    rig = life.rig
    assert rig.write("b", 0, chunk(3)) == 0
    with caplog.at_level(logging.ERROR):
        assert rig.store.destage()
        rig.clock.advance(RETRY_MAX_S)
        rig.store.destage()
    assert (life.hot_bytes("a"), life.hot_bytes("b")) == (CHUNK, 0)
    assert life.held_up is not None
    assert life.held_up.startswith("volume a is not destaged: ")
    assert life.root.hex() in life.held_up
    assert len([each for each in caplog.messages if "destaging is held up volume=a" in each]) == 1


def test_nothing_is_lost_by_a_crash_meanwhile() -> None:
    life = Stuck()
    rig = life.rig
    for number in range(3, 6):
        assert rig.write("b", number * CHUNK, chunk(number)) == 0
        assert rig.write("a", number * CHUNK, chunk(10 + number)) == 0
        assert rig.store.destage()
        rig.tend()
    looks: list[Callable[[], StoreRig]] = [lambda: rig, rig.killed, rig.rebooted, rig.closed]
    for look in looks:
        again = look()
        assert again.read("a", 0, CHUNK) == chunk(2)
        assert again.read_error("a", CHUNK, CHUNK) == errno.EIO
        for number in range(3, 6):
            assert again.read("b", number * CHUNK, CHUNK) == chunk(number)
            assert again.read("a", number * CHUNK, CHUNK) == chunk(10 + number)


def test_what_is_in_chunks_is_not_replayed() -> None:
    life = Stuck()
    assert life.rig.write("b", 0, chunk(3)) == 0
    assert life.rig.store.destage()
    life.rig = life.rig.killed()
    assert (life.hot_bytes("a"), life.hot_bytes("b")) == (CHUNK, 0)


def test_the_checkpoint_waits_for_it_and_then_follows() -> None:
    life = Stuck()
    rig = life.rig
    before = rig.store.status().checkpoint_lsn
    for number in range(3):
        assert rig.write("b", number * CHUNK, chunk(number)) == 0
        assert rig.store.destage()
    assert rig.store.status().checkpoint_lsn == before
    assert rig.write("a", CHUNK, chunk(7)) == 0
    life.repair()
    rig.clock.advance(RETRY_MAX_S)
    assert rig.store.destage()
    assert life.held_up is None
    status = rig.store.status()
    assert (status.hot_bytes, status.checkpoint_lsn) == (0, status.lsn - 3)  # behind it: HEADs
    for again in (rig, rig.rebooted()):
        assert again.read("a", 0, 2 * CHUNK) == chunk(2) + chunk(7)
        assert again.read("b", 2 * CHUNK, CHUNK) == chunk(2)


def test_it_is_tried_again_at_intervals_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Stuck()
    rig = life.rig
    tries = 0
    build = rig.store._destager._builder.build

    def counted(given: BuildInput) -> Built:
        nonlocal tries
        tries += 1
        return build(given)

    monkeypatch.setattr(rig.store._destager._builder, "build", counted)
    rig.store.destage()
    rig.store.destage()
    assert tries == 1
    for wait_s in (RETRY_S, 2 * RETRY_S, 4 * RETRY_S):
        before = tries
        rig.clock.advance(0.9 * wait_s)
        rig.store.destage()
        assert tries == before
        rig.clock.advance(0.2 * wait_s)
        rig.store.destage()
        assert tries == before + 1


def test_versions_of_others_get_into_chunks_and_its_own_fail() -> None:
    life = Stuck()
    rig = life.rig
    assert rig.write("b", 0, chunk(3)) == 0
    rig.store.snapshots.create("s", ["b"])
    rig.store.versions.clone("b@s", "c")
    assert rig.read("c", 0, CHUNK) == chunk(3)
    rig.store.snapshots.create("s", ["a"])
    with pytest.raises(CorruptData, match="volume a is not destaged"):
        rig.store.versions.clone("a@s", "d")
    assert rig.write("b", 0, chunk(4)) == 0
    assert rig.store.destage()  # the point of "a" is in nobody's way
    assert life.hot_bytes("b") == 0


def write_until_one_waits(rig: StoreRig) -> tuple[int, list[Request]]:
    """Write to "b", with rounds beside it: segments that were used up, and the write that waits."""
    begun = rig.store._journal.cut()[1]
    for count in range(1000):
        finished: list[Request] = []
        request = Request(OP_WRITE, count % 16 * CHUNK, CHUNK, chunk(100 + count))
        rig.volume("b").submit([request], finished.extend)
        if not finished:
            return rig.store._journal.cut()[1] - begun, finished
        assert not request.error
        rig.store.destage()
        rig.tend()
    raise AssertionError("nothing bounds what the journal keeps")


@pytest.mark.parametrize("way", ["repair", "restore", "delete"])
def test_what_it_keeps_is_lent_to_the_journal_and_then_all_writers_wait(way: str) -> None:
    lent = Stuck(LENDING)
    alone = Stuck(replace(LENDING, window_bytes=0))
    rig = lent.rig
    seq = rig.store.info("a").seq - 1
    used, finished = write_until_one_waits(rig)
    assert used - write_until_one_waits(alone.rig)[0] == LENT
    status = rig.store.status()
    assert status.journal_limit == (SEGMENTS + LENT) * SEGMENT_BYTES
    assert status.journal_bytes <= status.journal_limit
    waiting: list[Request] = []
    rig.volume("a").submit([Request(OP_WRITE, 0, CHUNK, chunk(9))], waiting.extend)
    assert not waiting
    if way == "repair":
        lent.repair()
        rig.clock.advance(RETRY_MAX_S)
    elif way == "restore":
        rig.store.versions.restore("a", f"seq:{seq}", force=True)
    else:
        rig.store.delete_volume("a", force=True)
    assert rig.store.destage()
    rig.tend()
    assert [request.error for request in finished] == [0]
    assert [request.error for request in waiting] == [0 if way == "repair" else errno.ESHUTDOWN]
    status = rig.store.status()
    assert status.journal_limit == SEGMENTS * SEGMENT_BYTES
    assert status.destage_held_up is None


def test_writers_are_not_slowed_down_by_what_is_lent() -> None:
    life = Stuck(LENDING)
    rig = life.rig
    begun = rig.store._journal.cut()[1]
    while rig.store._journal.cut()[1] - begun <= LENT:
        assert rig.write("b", 0, chunk(3)) == 0
        rig.store.destage()
        rig.tend()
    assert rig.store.upkeep.journal_bytes() > 0.6 * SEGMENTS * SEGMENT_BYTES
    assert rig.store._backlog.delay_s == 0.0
