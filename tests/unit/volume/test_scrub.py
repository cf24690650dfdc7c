"""Scrub: what it finds, what it does not mistake for damage, its pace and its memory."""

import os
from pathlib import Path

import pytest

from tests.sim.faults import Fail, Fault
from tests.sim.simclock import SimClock
from tests.unit.volume.rig import Rig, chunk
from volume import scrub
from volume.chunks import chunk_id_of
from volume.codecs import CODEC_LZ4
from volume.damage import Damage
from volume.disk import PosixDisk
from volume.layout import KIND_COMMIT, ZERO_ID
from volume.locate import NamedRoot, locate
from volume.scrub import Scrubber, ScrubPace

DAY_S = 24 * 3600.0
CHUNK = 4096


class State:
    def __init__(self, value: bytes | None = None) -> None:
        self.value = value
        self.saves = 0

    def load(self) -> bytes | None:
        return self.value

    def save(self, state: bytes) -> None:
        self.value = state
        self.saves += 1


class Yard:
    def __init__(self, rig: Rig | None = None, state: State | None = None) -> None:
        self.rig = rig or Rig()
        self.clock = SimClock()
        self.state = state or State()
        self.is_busy = False
        self.scrubber = Scrubber(
            self.rig.store, self.state, self.clock, busy=lambda: self.is_busy, pace=ScrubPace()
        )

    def run(self) -> tuple[Damage, ...]:
        """A whole pass; the damage that is known then."""
        self.scrubber.run_now()
        while self.scrubber.step(1.0):
            pass
        status = self.scrubber.status()
        assert not status.running
        return status.damages

    def tree(self, count: int = 27) -> NamedRoot:
        store = self.rig.store
        changes = {number: store.put(chunk(number)) for number in range(count)}
        root = self.rig.manifests.update(ZERO_ID, 2, changes)
        commit = store.put(b"commit of a tree", KIND_COMMIT)
        store.sync()
        self.rig.packs.seal()
        return NamedRoot("v", root, 2, 1 << 20, CHUNK, (commit,))

    def place(self, number: int) -> tuple[int, int]:
        found = self.rig.index.get(chunk_id_of(chunk(number)))
        assert found is not None
        return found.pack, found.offset

    def flip(self, pack: int, offset: int) -> None:
        self.rig.disk.flip_bit(f"packs/{pack:08x}.pack", offset)

    def locations(self, *roots: NamedRoot) -> list[tuple[str, int | None, int]]:
        damages = self.scrubber.status().damages
        return [
            (found.name, found.offset, found.length)
            for found in locate(self.rig.store, self.rig.manifests, damages, roots)
        ]


def test_sound_packs_have_no_damage() -> None:
    yard = Yard()
    yard.tree()
    assert yard.run() == ()
    status = yard.scrubber.status()
    assert (status.progress, status.finished_ns) == (1.0, yard.clock.now_ns())
    assert status.scanned_bytes > 27 * CHUNK


@pytest.mark.parametrize(
    ("at", "what"),
    [(5, "no valid entry header"), (65, "page table"), (68 + 100, "pages [0]")],
    ids=["header", "table", "data"],
)
def test_a_flipped_bit_is_found_and_located(at: int, what: str) -> None:
    yard = Yard()
    root = yard.tree()
    pack, offset = yard.place(8)
    yard.flip(pack, offset + at)
    (damage,) = yard.run()
    assert (damage.pack, damage.offset) == (pack, offset)
    assert damage.chunk_id == chunk_id_of(chunk(8))
    assert what in damage.what
    assert yard.locations(root) == [("v", 8 * CHUNK, CHUNK)]


def test_bytes_that_check_but_are_another_chunk_are_found() -> None:
    """All checksums hold, as after a bug that wrote the wrong bytes: only the hash tells."""
    yard = Yard()
    chunk_id = chunk_id_of(chunk(1))
    place = yard.rig.packs.append(1, chunk_id, chunk(2), CHUNK, 0)
    yard.rig.packs.seal()
    yard.rig.index.put({chunk_id: place})
    (damage,) = yard.run()
    assert "hash" in damage.what


def test_compressed_chunks_are_unpacked() -> None:
    yard = Yard(Rig(codec=CODEC_LZ4))
    store = yard.rig.store
    store.put(b"ab" * 2048)
    store.sync()
    yard.rig.packs.seal()
    assert yard.run() == ()
    chunk_id = chunk_id_of(b"cd" * 2048)
    place = yard.rig.packs.append(1, chunk_id, b"no lz4 at all", CHUNK, CODEC_LZ4)
    yard.rig.packs.seal()
    yard.rig.index.put({chunk_id: place})
    assert [damage.chunk_id for damage in yard.run()] == [chunk_id]


def test_a_damaged_node_and_commit_show_as_what_they_hold() -> None:
    yard = Yard()
    root = yard.tree()
    yard.rig.manifests.cache._nodes.clear()
    leaf = yard.rig.manifests.children(root.root, 1)[0]
    for chunk_id in (leaf, root.commits[0]):
        place = yard.rig.index.get(chunk_id)
        assert place is not None
        yard.flip(place.pack, place.offset + 70)
    assert len(yard.run()) == 2
    yard.rig.manifests.cache._nodes.clear()
    assert yard.locations(root) == [("v", None, 0), ("v", 0, 256 * CHUNK)]


def test_a_damaged_header_or_footer_of_a_pack_is_found_and_hits_nobody() -> None:
    yard = Yard()
    root = yard.tree()
    size = len(yard.rig.disk.image().read("packs/00000000.pack"))
    yard.flip(0, 3)
    yard.flip(1, len(yard.rig.disk.image().read("packs/00000001.pack")) - 70)
    yard.flip(0, size - 70)
    whats = [(damage.pack, damage.chunk_id, damage.what[:6]) for damage in yard.run()]
    assert whats == [(0, None, "header"), (0, None, "footer"), (1, None, "footer")]
    assert yard.locations(root) == []


def test_a_pack_without_a_footer_is_read_by_its_entries() -> None:
    yard = Yard()
    yard.tree()
    size = len(yard.rig.disk.image().read("packs/00000000.pack"))
    yard.flip(0, size - 10)
    pack, offset = yard.place(2)
    assert pack == 0
    yard.flip(pack, offset + 100)
    assert [damage.chunk_id for damage in yard.run()] == [None, chunk_id_of(chunk(2))]


def test_a_truncated_pack_is_found() -> None:
    yard = Yard()
    yard.tree()
    file = yard.rig.disk.open("packs/00000000.pack")
    file.truncate(yard.place(5)[1] + 200)
    file.close()
    found = yard.run()
    assert [damage.chunk_id for damage in found[:1]] == [None]
    assert chunk_id_of(chunk(5)) in [damage.chunk_id for damage in found]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_pack_that_is_gone_is_found_and_located(restarted: bool) -> None:
    yard = Yard()
    root = yard.tree()
    lost = [number for number in range(27) if yard.place(number)[0] == 1]
    yard.rig.disk.unlink("packs/00000001.pack")
    if restarted:
        yard = Yard(yard.rig.killed())
    (damage,) = yard.run()
    assert (damage.pack, damage.gone) == (1, True)
    offsets = [offset for _, offset, _ in yard.locations(root) if offset is not None]
    assert offsets == [number * CHUNK for number in lost]


def test_an_unreadable_sector_is_damage_of_that_chunk_only() -> None:
    yard = Yard()
    yard.tree()
    pack, offset = yard.place(3)
    yard.rig.disk.break_sector(f"packs/{pack:08x}.pack", offset + 2048)
    found = yard.run()
    assert [damage.chunk_id for damage in found] == [chunk_id_of(chunk(3))]
    assert "cannot be read" in found[0].what


def test_an_index_that_disagrees_with_a_footer_is_found() -> None:
    yard = Yard()
    yard.tree()
    chunk_id = chunk_id_of(chunk(3))
    place = yard.rig.index.get(chunk_id)
    assert place is not None
    yard.rig.index.put({chunk_id: place._replace(raw_length=512)})
    (damage,) = yard.run()
    assert damage.chunk_id == chunk_id
    assert "the index has it" in damage.what


def test_garbage_is_nobodys_damage() -> None:
    yard = Yard()
    yard.tree()
    pack, offset = yard.place(3)
    yard.flip(pack, offset + 200)
    yard.rig.index.remove([chunk_id_of(chunk(3))])
    assert yard.run() == ()


def test_a_damaged_chunk_is_repaired_by_the_same_data() -> None:
    yard = Yard()
    yard.tree()
    pack, offset = yard.place(3)
    yard.flip(pack, offset + 200)
    assert len(yard.run()) == 1
    yard.rig.put_synced(3)
    yard.rig.packs.seal()
    assert yard.run() == ()
    assert yard.rig.store.get(chunk_id_of(chunk(3))) == chunk(3)


def test_damage_in_a_shared_subtree_is_told_for_every_root_and_clean_ones_are_read_once() -> None:
    yard = Yard()
    root = yard.tree()
    pack, offset = yard.place(3)
    yard.flip(pack, offset + 200)
    yard.run()
    roots = [root._replace(name=f"v@{number}", commits=()) for number in range(3)]
    assert yard.locations(*roots) == [(f"v@{n}", 3 * CHUNK, CHUNK) for n in range(3)]
    shrunk = root._replace(size=2 * CHUNK, commits=())
    assert yard.locations(shrunk) == []


def test_damage_survives_a_restart_in_the_middle_of_a_pass() -> None:
    yard = Yard()
    yard.tree()
    pack, offset = yard.place(1)
    yard.flip(pack, offset + 200)
    yard.scrubber.run_now()
    while yard.scrubber.status().damage_count == 0:
        yard.scrubber.step(0.0)
    yard.scrubber.save()
    before = yard.scrubber.status()
    again = Yard(yard.rig.killed(), State(yard.state.value))
    after = again.scrubber.status()
    assert after.damages == before.damages
    assert (after.running, after.requested) == (True, True)
    assert after.scanned_bytes == before.scanned_bytes
    while again.scrubber.step(1.0):
        pass
    assert again.scrubber.status().damages == before.damages


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_a_state_that_cannot_be_read_begins_anew(cut: int) -> None:
    yard = Yard()
    yard.tree()
    pack, offset = yard.place(1)
    yard.flip(pack, offset + 200)
    yard.run()
    assert yard.state.value is not None
    again = Yard(yard.rig.killed(), State(yard.state.value[:cut]))
    assert again.scrubber.status().finished_ns is None
    assert len(again.run()) == 1


def test_only_so_much_damage_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "MAX_DAMAGE", 3)
    yard = Yard()
    yard.tree()
    for number in range(8):
        pack, offset = yard.place(number)
        yard.flip(pack, offset + 200)
    assert len(yard.run()) == 3
    assert yard.scrubber.status().damage_count == 8


def test_a_pack_that_gc_removes_meanwhile_is_no_damage() -> None:
    yard = Yard()
    yard.tree()
    yard.scrubber.run_now()
    yard.scrubber.step(0.0)
    for number in yard.rig.packs.sealed():
        yard.rig.index.remove([chunk_id for chunk_id, _ in yard.rig.packs.places(number)])
        yard.rig.packs.unlink(number)
    while yard.scrubber.step(1.0):
        pass
    assert yard.scrubber.status().damages == ()


# -- pace


def test_the_first_pass_begins_at_once_and_the_next_after_the_interval() -> None:
    yard = Yard()
    yard.tree()
    yard.clock.advance(60.0)
    while yard.scrubber.step(1.0):
        pass
    first = yard.scrubber.status()
    assert not first.running
    yard.clock.advance(13.9 * DAY_S)
    assert not yard.scrubber.step(1.0)
    assert not yard.scrubber.status().running
    yard.clock.advance(0.1 * DAY_S)
    yard.scrubber.step(0.0)
    assert yard.scrubber.status().running


def test_a_pass_is_spread_over_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "BURST_BYTES", 8192)
    yard = Yard()
    yard.tree()
    pace = ScrubPace(interval_s=100.0, floor_rate=1)
    scrubber = Scrubber(yard.rig.store, yard.state, yard.clock, pace=pace)
    seconds = 0
    while not scrubber.status().finished_ns:
        while scrubber.step(1.0):
            pass
        yard.clock.advance(1.0)
        seconds += 1
        assert seconds < 200
    assert 60 <= seconds <= 100


def test_a_requested_pass_starts_over_and_stop_makes_it_an_ordinary_one() -> None:
    yard = Yard()
    yard.tree()
    yard.scrubber.step(0.0)
    yard.scrubber.run_now()
    status = yard.scrubber.status()
    assert (status.requested, status.scanned_bytes) == (True, 0)
    yard.scrubber.step(0.0)
    yard.scrubber.stop()
    status = yard.scrubber.status()
    assert (status.running, status.requested) == (True, False)


def test_scrub_rests_while_clients_are_busy() -> None:
    yard = Yard()
    yard.tree()
    yard.is_busy = True
    yard.scrubber.run_now()
    ticks = iter(range(10**6))

    class Ticking(SimClock):
        def monotonic(self) -> float:
            return next(ticks) * 0.001

    clock = Ticking()
    scrubber = Scrubber(yard.rig.store, State(), clock, busy=lambda: True)
    scrubber.run_now()
    assert not scrubber.step(1.0)
    began = scrubber.status().scanned_bytes
    assert not scrubber.step(1.0)
    assert scrubber.status().scanned_bytes == began


def test_a_full_disk_does_not_stop_scrub() -> None:
    yard = Yard()
    yard.tree()
    yard.rig.disk.faults.add(Fault("pwrite", Fail(28), "packs/*", count=None))
    assert yard.run() == ()


# -- reading past the page cache


def test_uncached_reads_give_the_bytes_of_the_file(tmp_path: Path) -> None:
    data = os.urandom(3 * 4096 + 1234)
    (tmp_path / "file").write_bytes(data)
    file = PosixDisk(tmp_path).open_uncached("file")
    for offset, length in [
        (0, 64),
        (0, 1 << 20),
        (4095, 2),
        (5000, 9000),
        (13_000, 9999),
        (99_999, 5),
    ]:
        assert file.pread(length, offset) == data[offset : offset + length]
    assert file.size() == len(data)
    file.close()


def test_file_systems_without_direct_reads_are_read_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 9000)

    def refused(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "preadv", refused)
    file = PosixDisk(tmp_path).open_uncached("file")
    assert file.pread(10_000, 4000) == b"x" * 5000
    file.close()
