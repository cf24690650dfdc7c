"""Damage done by hand to the packs of a real store, on real files: what cannot be right is EIO.

Every case changes one thing in one pack file, in a store that is open or that is opened afterwards,
and then reads everything. What comes back is what was written, or an error whose log line names
volume, offset and chunk; never zeros, never what the volume held before. Scrub finds the same, gc
takes nothing that is needed, and writing the data again heals it.
"""

import contextlib
import errno
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from native import OP_READ, OP_WRITE, Request
from volume.chunks import chunk_id_of
from volume.errors import CorruptData, DirectoryLocked
from volume.index import Place
from volume.layout import ChunkId
from volume.locate import locate
from volume.options import StoreOptions
from volume.repair import named_roots, rebuild_index
from volume.scrub import Scrubber
from volume.store import Store

KIB = 1024
CHUNK = 8 * KIB
COUNT = 24
SIZE = 1024 * CHUNK
VICTIM = 7
"""Index of the chunk that is damaged."""

OPTIONS = StoreOptions(
    journal_limit=64 * KIB * KIB,
    segment_bytes=1024 * KIB,
    pack_bytes=64 * KIB,
    reserve_bytes=0,
    destage_age_s=3600.0,
    destage_idle_s=3600.0,
    gc_interval_s=3600.0,
    compression="none",
    damage_patience_s=0.0,
)


def new(index: int) -> bytes:
    """What chunk `index` holds; no two are equal, none compresses to less, none is zeros."""
    seed = index.to_bytes(4, "little")
    return b"".join(chunk_id_of(seed + n.to_bytes(4, "little")) for n in range(CHUNK // 32))


def old(index: int) -> bytes:
    """What it held before."""
    return new(index + 1000)


class Damaged:
    """A store with a volume "v" of COUNT chunks, each written twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store.open(path, OPTIONS)
        self.store.create_volume("v", SIZE, chunk_size=CHUNK)
        for make in (old, new):
            for index in range(COUNT):
                self.write(index, make(index))
            self.destage()
        self.seal_packs()

    def destage(self) -> None:
        self.store.upkeep.submit(self.store.destage)

    def seal_packs(self) -> None:
        self.store.upkeep.submit(self.store._chunks.packs.seal)

    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.path, OPTIONS)

    def run(self, request: Request) -> Request:
        done = threading.Event()
        volume = self.store.get("v")
        assert volume is not None
        volume.submit([request], lambda _: done.set())
        assert done.wait(30.0)
        return request

    def write(self, index: int, data: bytes) -> None:
        assert self.run(Request(OP_WRITE, index * CHUNK, CHUNK, data)).error == 0

    def read(self, offset: int, length: int) -> tuple[int, bytes]:
        request = self.run(Request(OP_READ, offset, length))
        data = bytes(request.data) if request.error == 0 else b""  # type: ignore[call-overload]
        return request.error, data

    def place(self, chunk_id: ChunkId) -> Place:
        found = self.store._chunks.place(chunk_id)
        assert found is not None
        return found

    def pack(self, number: int) -> Path:
        return self.path / "packs" / f"{number:08x}.pack"

    def flip(self, number: int, offset: int) -> None:
        with self.pack(number).open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x10]))

    def node(self, level: int) -> ChunkId:
        """The first node of that level of the head."""
        volume = self.store.get("v")
        assert volume is not None
        head = volume.record.head
        node = head.root
        for at in range(head.height - 1, level, -1):
            node = self.store._manifests.children(node, at)[0]
        return node

    def commit(self) -> ChunkId:
        volume = self.store.get("v")
        assert volume is not None
        return volume.record.head.commit


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Damaged]:
    rig = Damaged(tmp_path / "data")
    yield rig
    rig.store.close()


class NoState:
    def load(self) -> bytes | None:
        return None

    def save(self, state: bytes) -> None:
        pass


def target(rig: Damaged, name: str) -> ChunkId:
    if name == "data":
        return chunk_id_of(new(VICTIM))
    return {"leaf": rig.node(0), "root": rig.node(1), "commit": rig.commit()}[name]


def flip_at(offset: int) -> Callable[[Damaged, Place], None]:
    return lambda rig, place: rig.flip(place.pack, place.offset + offset)


def truncate(rig: Damaged, place: Place) -> None:
    with rig.pack(place.pack).open("r+b") as file:
        file.truncate(place.offset + 64 + 4 + 50)


def delete(rig: Damaged, place: Place) -> None:
    rig.pack(place.pack).unlink()


HARM: dict[str, Callable[[Damaged, Place], None]] = {
    "header": flip_at(20),
    "table": flip_at(65),
    "bytes": flip_at(80),
    "truncated": truncate,
    "deleted": delete,
}


def harm(rig: Damaged, how: str, what: str, when: str) -> ChunkId:
    """Do the damage; the id of the chunk that was hit."""
    chunk_id = target(rig, what)
    place = rig.place(chunk_id)
    if when == "cached":
        for index in range(COUNT):
            assert rig.read(index * CHUNK, CHUNK) == (0, new(index))
    elif when == "open":
        rig.reopen()
    else:
        rig.store.close()
    HARM[how](rig, place)
    if when == "rebuilt":
        report = rebuild_index(rig.path)
        if how != "truncated":  # what is behind the cut may be needed or not
            assert (report.missing_count > 0) == (how == "deleted" or what in ("leaf", "root"))
    if when in ("closed", "rebuilt"):
        rig.store = Store.open(rig.path, OPTIONS)
    return chunk_id


@pytest.mark.parametrize("when", ["cached", "open", "closed", "rebuilt"])
@pytest.mark.parametrize(
    ("what", "how"),
    [
        *(("data", how) for how in HARM),
        *(("leaf", how) for how in ("header", "bytes", "truncated", "deleted")),
        ("root", "table"),
        ("commit", "bytes"),
        ("commit", "truncated"),
    ],
)
def test_damage_is_an_error_or_goes_unnoticed_but_never_other_bytes(
    damaged: Damaged, how: str, what: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    in_pack = {
        chunk_id
        for number in damaged.store._chunks.packs.numbers()
        for chunk_id, _ in damaged.store._chunks.packs.places(number)
    }
    hit = harm(damaged, how, what, when)
    failed = []
    for index in range(COUNT):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            error, data = damaged.read(index * CHUNK, CHUNK)
        if error == 0:
            assert data == new(index), f"chunk {index} reads as something else"
            continue
        assert error == errno.EIO
        failed.append(index)
        lines = [record.message for record in caplog.records if "volume=v" in record.message]
        assert len(lines) == 1
        assert f"volume=v offset={index * CHUNK} " in lines[0]
        assert any(chunk_id.hex() in lines[0] for chunk_id in in_pack), lines[0]
    hole = damaged.read(COUNT * CHUNK, CHUNK)  # below the same leaf
    assert hole == ((errno.EIO, b"") if len(failed) == COUNT else (0, bytes(CHUNK)))
    if what == "data" and (how == "bytes" or when in ("closed", "rebuilt")):
        assert VICTIM in failed
    if what in ("leaf", "root") and when in ("closed", "rebuilt"):
        assert failed == list(range(COUNT))
    if what == "commit" and how in ("header", "table", "bytes"):
        assert failed == []
    check_scrub(damaged, hit)
    check_gc(damaged, failed)


def check_scrub(rig: Damaged, hit: ChunkId) -> None:
    """Scrub tells of it, and who is hit."""
    lost = rig.store._chunks.place(hit) is None  # a rebuilt index does not know it
    scrubber = Scrubber(rig.store._chunks, NoState(), rig.store._clock)
    scrubber.run_now()
    while scrubber.step(1.0):
        pass
    damages = scrubber.status().damages
    parts = rig.store.upkeep._parts
    records = [volume.record for volume in parts.catalog.all()]
    found = list(
        locate(
            *(rig.store._chunks, rig.store._manifests),
            *(damages, named_roots(records, parts.history)),
            absent=lost,
        )
    )
    if not lost:
        assert any(damage.chunk_id == hit or damage.gone for damage in damages)
    assert any(location.name == "v" for location in found)
    if hit == chunk_id_of(new(VICTIM)):
        assert VICTIM * CHUNK in [each.offset for each in found if each.name == "v"]


def check_gc(rig: Damaged, failed: list[int]) -> None:
    """gc may refuse to work, but what could be read before can be read after it."""
    collector = rig.store.upkeep.collector
    for _ in range(2):
        with contextlib.suppress(CorruptData):
            rig.store.upkeep.submit(lambda: collector.collect(thorough=True))
    for index in range(COUNT):
        error, data = rig.read(index * CHUNK, CHUNK)
        assert data == new(index) if error == 0 else index in failed


@pytest.mark.parametrize("how", ["header", "bytes", "truncated"])
def test_writing_the_same_data_again_heals_a_chunk(damaged: Damaged, how: str) -> None:
    harm(damaged, how, "data", "closed")
    assert damaged.read(VICTIM * CHUNK, CHUNK)[0] == errno.EIO
    damaged.write(VICTIM, new(VICTIM))
    damaged.destage()
    assert damaged.read(VICTIM * CHUNK, CHUNK) == (0, new(VICTIM))
    damaged.reopen()
    assert damaged.read(VICTIM * CHUNK, CHUNK) == (0, new(VICTIM))


def test_a_part_of_a_damaged_chunk_is_read_where_it_is_sound(damaged: Damaged) -> None:
    place = damaged.place(chunk_id_of(new(VICTIM)))
    damaged.flip(place.pack, place.offset + 64 + 8 + 5000)  # in the second page
    assert damaged.read(VICTIM * CHUNK, 4096) == (0, new(VICTIM)[:4096])
    assert damaged.read(VICTIM * CHUNK + 4096, 512)[0] == errno.EIO
    assert damaged.read(VICTIM * CHUNK, CHUNK)[0] == errno.EIO
    assert damaged.read((VICTIM - 1) * CHUNK, 3 * CHUNK)[0] == errno.EIO


def test_damage_does_not_seal_the_store_or_stop_other_writes(damaged: Damaged) -> None:
    harm(damaged, "bytes", "data", "closed")
    damaged.write(VICTIM + 1, new(500))
    damaged.destage()
    assert damaged.store.status().state == "ok"
    assert damaged.read((VICTIM + 1) * CHUNK, CHUNK) == (0, new(500))


def test_the_number_of_a_pack_that_somebody_removed_is_not_used_again(damaged: Damaged) -> None:
    """Or two chunks would be in one place, and gc would take one for the other."""
    newest = damaged.store._chunks.packs.newest()
    damaged.store.close()
    damaged.pack(newest).unlink()
    damaged.store = Store.open(damaged.path, OPTIONS)
    damaged.store.create_volume("w", SIZE, chunk_size=CHUNK)
    volume = damaged.store.get("w")
    assert volume is not None
    done = threading.Event()
    volume.submit([Request(OP_WRITE, 0, CHUNK, new(77))], lambda _: done.set())
    assert done.wait(30.0)
    damaged.destage()
    assert damaged.place(chunk_id_of(new(77))).pack == newest + 1


# -- the index


def test_a_deleted_index_is_rebuilt_from_the_packs(damaged: Damaged) -> None:
    damaged.store.close()
    shutil.rmtree(damaged.path / "index")
    told: list[tuple[str, int, int]] = []
    report = rebuild_index(damaged.path, lambda *args: told.append(args))
    assert (report.missing_count, report.unreadable) == (0, ())
    assert report.packs == len(list((damaged.path / "packs").iterdir()))
    assert report.chunks >= 2 * COUNT
    assert {what for what, _, _ in told} == {"packs", "versions"}
    assert told[-1] == ("versions", report.versions, report.versions)
    damaged.store = Store.open(damaged.path, OPTIONS)
    for index in range(COUNT):
        assert damaged.read(index * CHUNK, CHUNK) == (0, new(index))


@pytest.mark.parametrize("where", [0, 4096, 8192, 20_000])
def test_a_corrupted_index_is_rebuilt_from_the_packs(damaged: Damaged, where: int) -> None:
    damaged.store.close()
    with (damaged.path / "index" / "data.mdb").open("r+b") as file:
        file.seek(where)
        file.write(b"\xff" * 4096)
    assert rebuild_index(damaged.path).missing_count == 0
    damaged.store = Store.open(damaged.path, OPTIONS)
    for index in range(COUNT):
        assert damaged.read(index * CHUNK, CHUNK) == (0, new(index))


def test_a_rebuild_tells_what_no_pack_has(damaged: Damaged) -> None:
    place = damaged.place(chunk_id_of(new(VICTIM)))
    there = {chunk_id for chunk_id, _ in damaged.store._chunks.packs.places(place.pack)}
    damaged.store.close()
    damaged.pack(place.pack).unlink()
    report = rebuild_index(damaged.path)
    heads = {each.offset: each.chunk_id for each in report.missing if each.name == "v"}
    expected = {
        index * CHUNK: chunk_id_of(new(index))
        for index in range(COUNT)
        if chunk_id_of(new(index)) in there
    }
    assert heads == expected
    assert report.missing_count == len(report.missing) >= len(expected) > 1
    damaged.store = Store.open(damaged.path, OPTIONS)


def test_a_pack_that_is_no_pack_is_passed_over_and_told(damaged: Damaged) -> None:
    place = damaged.place(chunk_id_of(new(VICTIM)))
    damaged.store.close()
    data = bytearray(damaged.pack(place.pack).read_bytes())
    other = damaged.pack(place.pack + 1).read_bytes()
    damaged.pack(place.pack).write_bytes(other)  # whole, and of another number
    report = rebuild_index(damaged.path)
    assert len(report.unreadable) == 1
    assert report.missing_count > 0
    damaged.pack(place.pack).write_bytes(data)
    assert rebuild_index(damaged.path).missing_count == 0
    damaged.store = Store.open(damaged.path, OPTIONS)


def test_a_rebuild_needs_the_directory_for_itself(damaged: Damaged, tmp_path: Path) -> None:
    with pytest.raises(DirectoryLocked):
        rebuild_index(damaged.path)
    with pytest.raises(FileNotFoundError):
        rebuild_index(tmp_path)
    assert list(tmp_path.iterdir()) == [damaged.path]


def test_a_rebuild_that_is_killed_leaves_an_index_that_is_not_believed(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged.store.close()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild_index(damaged.path, killed)
    damaged.store = Store.open(damaged.path, OPTIONS)
    for index in range(COUNT):
        assert damaged.read(index * CHUNK, CHUNK) == (0, new(index))


def test_rot_in_a_pack_that_a_kill_left_unsealed_hits_one_chunk(damaged: Damaged) -> None:
    for index in range(COUNT):
        damaged.write(index, new(index + 2000))
    damaged.destage()
    packs = damaged.store._chunks.packs
    number = packs.unsealed()
    assert number is not None
    hit, place = next(packs.places(number))
    killed = damaged.path.with_name("killed")
    shutil.copytree(damaged.path, killed)  # all that was written, as kill -9 leaves it
    damaged.store.close()
    damaged.path = killed
    damaged.flip(number, place.offset + 80)
    damaged.store = Store.open(killed, OPTIONS)
    errors = [damaged.read(index * CHUNK, CHUNK)[0] for index in range(COUNT)]
    failed = [index for index in range(COUNT) if errors[index]]
    assert [chunk_id_of(new(index + 2000)) for index in failed] == [hit]
    scrubber = Scrubber(damaged.store._chunks, NoState(), damaged.store._clock)
    scrubber.run_now()
    while scrubber.step(1.0):
        pass
    assert [damage.chunk_id for damage in scrubber.status().damages] == [hit]
    collector = damaged.store.upkeep.collector
    report = damaged.store.upkeep.submit(lambda: collector.collect(thorough=True))
    assert (report.error, report.packs_damaged) == (None, 0)
