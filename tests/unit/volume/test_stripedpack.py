"""Packs whose bytes are elsewhere: stubs, who reads them, what gc does with them, power cuts."""

import pytest
from blake3 import blake3

from tests.sim.crash import CrashPlanner
from tests.sim.image import Image
from tests.sim.simclock import SimClock
from tests.unit.volume.rig import PACK_BYTES, STORE_UUID, Rig, chunk
from volume import packfile, stripedpack
from volume.errors import CorruptChunk, CorruptPack
from volume.gc import GcReport, Root, collect
from volume.layout import KIND_DATA, ZERO_ID
from volume.packfile import HEADER_LENGTH
from volume.stripedpack import (
    HEADER_LENGTH as STUB_HEADER,
)
from volume.stripedpack import (
    SEGMENT_BYTES,
    Adopted,
    SharedWindow,
    StripedPack,
    StripeUnavailable,
)

COUNT = 8


class Elsewhere:
    """The packs of another store, as shards would give them."""

    def __init__(self, rig: Rig) -> None:
        number = rig.packs.sealed()[0]
        file = rig.disk.open(f"packs/{number:08x}.pack")
        self.content = file.pread(file.size(), 0)
        self.reads = 0
        self.away = False
        self.like = StripedPack(
            *(0, blake3(self.content).digest(), b"d" * 16, 2, 1, number, STORE_UUID, 0, 0, 0)
        )
        self.entries = [
            Adopted(chunk_id, place)
            for chunk_id, place in rig.packs.footer(number)
            if place.kind == KIND_DATA
        ]

    def read(self, pack: StripedPack, length: int, offset: int) -> bytes:
        assert pack.pack_id == self.like.pack_id
        if self.away:
            raise StripeUnavailable("two nodes are down")
        self.reads += 1
        return self.content[offset : offset + length]


def elsewhere(count: int = COUNT) -> Elsewhere:
    """A store that has packed the same chunks in another order, behind one of its own."""
    other = Rig(pack_bytes=1 << 20)
    other.put_synced(1000, *reversed(range(count)))
    other.packs.seal()
    return Elsewhere(other)


def tree(rig: Rig, count: int = COUNT) -> Root:
    changes = {number: rig.store.put(chunk(number)) for number in range(count)}
    root = rig.manifests.update(ZERO_ID, 2, changes)
    rig.store.sync()
    return Root(root, 2)


def adopted() -> tuple[Rig, Root, Elsewhere]:
    """A store that finds its chunks in a stripe, and has not collected yet."""
    rig, there = Rig(), elsewhere()
    root = tree(rig)
    rig.packs.seal()
    rig.packs.striped.source = there
    assert rig.store.adopt(there.like, there.entries) == COUNT
    return rig, root, there


def again(rig: Rig, there: Elsewhere, *, index: bool) -> Rig:
    opened = rig.killed() if index else rig.without_index()
    opened.packs.striped.source = there
    return opened


def gc(rig: Rig, *roots: Root) -> GcReport:
    return collect(rig.store, rig.manifests, roots, monotonic=SimClock().monotonic)


def assert_reads(rig: Rig, root: Root, count: int = COUNT) -> None:
    found = {
        at: rig.store.get(new, verify=True)
        for at, _, new in rig.manifests.diff(ZERO_ID, root.height, root.root, root.height)
    }
    assert found == {number: chunk(number) for number in range(count)}


def test_chunks_are_found_in_the_stripe_and_their_copies_go() -> None:
    rig, root, there = adopted()
    before = rig.packs.total_bytes
    gc(rig, root)
    assert rig.packs.total_bytes < before / 4  # nodes stay
    assert_reads(rig, root)
    assert there.reads == COUNT
    for index in (True, False):
        opened = again(rig, there, index=index)
        assert opened.packs.striped.numbers() == rig.packs.striped.numbers()
        assert_reads(opened, root)
        gc(opened, root)
        assert_reads(opened, root)


def test_what_the_store_does_not_have_is_not_adopted() -> None:
    rig, _, there = adopted()
    (number,) = rig.packs.striped.numbers()
    assert len(there.entries) == COUNT + 1
    assert rig.packs.entries(number)[0] == COUNT
    assert rig.store.place(there.entries[0].chunk_id) is None
    assert rig.store.adopt(there.like, there.entries) == 0  # has them in a stripe already


def test_a_duplicate_is_found_in_the_stripe() -> None:
    rig, root, _ = adopted()
    gc(rig, root)
    before = rig.packs.total_bytes
    rig.store.put(chunk(3))
    rig.store.sync()
    assert rig.packs.total_bytes == before
    assert rig.store.counters.duplicate_count == 1


def test_nodes_are_read_without_the_stripe() -> None:
    rig, root, there = adopted()
    gc(rig, root)
    there.away = True
    opened = again(rig, there, index=False)
    ids = [new for _, _, new in opened.manifests.diff(ZERO_ID, 2, root.root, 2)]
    assert len(ids) == COUNT
    gc(opened, root)
    with pytest.raises(StripeUnavailable, match="two nodes are down"):
        opened.store.get(ids[0])
    with pytest.raises(StripeUnavailable):
        opened.store.salvage(ids[0], 4096)
    there.away = False
    assert_reads(opened, root)


def test_without_a_cluster_the_error_names_the_stripe() -> None:
    rig, root, there = adopted()
    rig.packs.striped.source = None
    ids = [new for _, _, new in rig.manifests.diff(ZERO_ID, 2, root.root, 2)]
    with pytest.raises(StripeUnavailable, match=there.like.pack_id.hex()):
        rig.store.get(ids[0])


def test_bytes_of_a_stripe_that_are_wrong_are_no_data() -> None:
    rig, root, there = adopted()
    ids = [new for _, _, new in rig.manifests.diff(ZERO_ID, 2, root.root, 2)]
    place = rig.store.place(ids[0])
    assert place is not None
    at = place.offset + 100
    there.content = there.content[:at] + b"\xff\x00" + there.content[at + 2 :]
    with pytest.raises(CorruptChunk, match="fail their checksums"):
        rig.store.get(ids[0])
    # The same data, written again, is stored here.
    rig.store.put(chunk(0))
    rig.store.sync()
    assert rig.store.get(ids[0], verify=True) == chunk(0)


def test_a_stripe_that_nothing_reaches_is_let_go() -> None:
    rig, root, _ = adopted()
    gc(rig, root)
    gc(rig)
    assert rig.packs.striped.numbers() == []
    assert rig.index.count() == 2  # nodes, in the pack that is appended to
    assert [name for name in rig.disk.list("packs") if name.endswith(".stripe")] == []
    assert rig.without_index().packs.striped.numbers() == []


def test_what_is_left_of_a_stripe_is_stored_here_again_before_it_is_let_go() -> None:
    rig, root, there = adopted()
    gc(rig, root)
    smaller = Root(rig.manifests.update(root.root, 2, {}, [(0, 5)]), 2)
    rig.store.sync()
    gc(rig, smaller)
    assert rig.packs.striped.numbers() == []
    there.away = True
    found = [rig.store.get(new) for _, _, new in rig.manifests.diff(ZERO_ID, 2, smaller.root, 2)]
    assert found == [chunk(number) for number in range(5, COUNT)]


def test_a_stripe_that_cannot_be_read_stays_whatever_little_is_left_of_it() -> None:
    rig, root, there = adopted()
    gc(rig, root)
    smaller = Root(rig.manifests.update(root.root, 2, {}, [(0, 5)]), 2)
    rig.store.sync()
    there.away = True
    assert gc(rig, smaller).packs_damaged == 1
    assert len(rig.packs.striped.numbers()) == 1
    there.away = False
    gc(rig, smaller)
    assert rig.packs.striped.numbers() == []


def test_a_number_is_not_given_twice() -> None:
    rig, _, there = adopted()
    (number,) = rig.packs.striped.numbers()
    opened = again(rig, there, index=True)
    opened.put_synced(2000)
    opened.packs.seal()
    assert number not in opened.packs.sealed()
    assert max(opened.packs.sealed()) > number


def test_a_damaged_stub_is_an_error_and_no_other_chunk_is_read() -> None:
    rig, root, there = adopted()
    gc(rig, root)
    (number,) = rig.packs.striped.numbers()
    file = rig.disk.open(f"packs/{number:08x}.stripe")
    header = file.pread(STUB_HEADER, 0)
    for at in (0, 9, 20, 40, 100):
        file.pwrite(bytes([header[at] ^ 1]), at)
        opened = again(rig, there, index=True)
        assert opened.packs.striped.unreadable == 1
        ids = [new for _, _, new in opened.manifests.diff(ZERO_ID, 2, root.root, 2)]
        with pytest.raises(StripeUnavailable, match="is damaged"):
            opened.store.get(ids[0])
        file.pwrite(header, 0)
    file.pwrite(b"x", STUB_HEADER)
    opened = again(rig, there, index=False)
    assert opened.packs.striped.unreadable == 1
    with pytest.raises(CorruptPack, match="fail their checksum"):
        list(opened.packs.footer(number))


def test_a_power_cut_at_any_step_of_adopting_and_collecting_loses_nothing() -> None:
    rig, there = Rig(), elsewhere()
    root = tree(rig)
    rig.packs.seal()
    rig.packs.striped.source = there
    rig.disk.restart_trace()
    rig.store.adopt(there.like, there.entries)
    gc(rig, root)
    rig.packs.sync_folder()
    smaller = Root(rig.manifests.update(root.root, 2, {}, [(0, 5)]), 2)
    rig.store.sync()
    gc(rig, smaller)
    rig.packs.sync_folder()
    assert rig.packs.striped.numbers() == []
    ops = len(rig.disk.trace.ops)
    count = 0
    for image in CrashPlanner(rig.disk.trace).images(range(ops + 1)):
        count += 1
        assert_left(image, there, smaller, root)
    assert count > ops


def assert_left(image: Image, there: Elsewhere, smaller: Root, root: Root) -> None:
    """All of the chunks that the last tree needs are there, in the stripe or here."""
    rig = Rig(image)
    rig.packs.striped.source = there
    for number in range(5, COUNT):
        chunk_id = blake3(chunk(number)).digest()
        assert rig.store.get(chunk_id, verify=True) == chunk(number), image.why
    with_stub = rig.packs.striped.numbers() != []
    gc(rig, root if rig.store.place(blake3(chunk(0)).digest()) and with_stub else Root(ZERO_ID, 2))
    assert not [name for name in rig.disk.list("packs") if name.endswith(".new")]


# -- the window


def test_the_window_shows_what_was_put_and_drops_the_oldest() -> None:
    window = SharedWindow()
    gone: list[int] = []
    window.dropped = gone.append
    piece = bytes(SEGMENT_BYTES // 2)
    first = window.put((1, 0), b"table", b"abc" + piece[3:])
    assert window.find((1, 0)) is first
    assert first.pack.file.pread(3, first.data_offset) == b"abc"
    for at in range(1, 2 * stripedpack.MAX_SEGMENTS):
        window.put((1, at), b"", piece)
    assert gone == []
    assert window.size == stripedpack.MAX_SEGMENTS * SEGMENT_BYTES
    window.put((2, 0), b"", piece)
    assert gone == [stripedpack.FIRST_SEGMENT]
    assert window.find((1, 0)) is None
    assert first.pack.file.pread(3, first.data_offset) == b"abc"  # who holds it can go on reading
    window.forget([2])
    assert window.find((2, 0)) is None


def test_what_is_located_twice_is_fetched_once() -> None:
    rig, root, there = adopted()
    ids = [new for _, _, new in rig.manifests.diff(ZERO_ID, 2, root.root, 2)]
    located = rig.store.locate(ids[0])
    assert rig.store.locate(ids[0]) == located
    assert there.reads == 1
    data = located.pack.file.pread(located.stored_length, located.data_offset)
    assert data == chunk(0)
    assert HEADER_LENGTH <= PACK_BYTES
    assert packfile.table_length(4096) == len(located.table)


def test_what_is_stored_again_is_above_the_stub_also_where_the_open_pack_is_empty() -> None:
    """After a power cut the higher number counts, and the stripe may be away for good."""
    rig, there = Rig(), elsewhere()
    root = tree(rig)
    rig.packs.begin()
    rig.packs.striped.source = there
    assert rig.store.adopt(there.like, there.entries) == COUNT
    gc(rig, root)
    there.away = True
    rig.packs.striped.trusted = frozenset()
    for number in range(COUNT):
        rig.store.put(chunk(number))
    rig.store.sync()
    for index in (True, False):
        opened = again(rig, there, index=index)
        assert_reads(opened, root)
        gc(opened, root)
        assert_reads(opened, root)
