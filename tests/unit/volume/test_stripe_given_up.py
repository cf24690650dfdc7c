"""A volume whose chunks are in a stripe that is lost: it waits, until the stripe is given up."""

import errno

from blake3 import blake3

from tests.sim.store_rig import KIB, SMALL, StoreRig
from tests.unit.volume.rig import chunk
from volume.destager import RETRY_MAX_S
from volume.layout import KIND_DATA
from volume.stripedpack import Adopted, Look, StripedPack, StripeGivenUp, StripeUnavailable

CHUNK = 4 * KIB
COUNT = 8


class Lost:
    """A stripe that cannot be read, for a while or for good."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.error: Exception | None = None

    def read(self, pack: StripedPack, length: int, offset: int) -> bytes:
        if self.error is not None:
            raise self.error
        return self.content[offset : offset + length]


def in_a_stripe() -> tuple[StoreRig, Lost]:
    """A volume with all of its data in a stripe, and nothing in memory."""
    rig = StoreRig(options=SMALL)
    rig.store.create_volume("a", COUNT * CHUNK, block_size=512, chunk_size=CHUNK)
    rig.tend()
    rig.fill("a", 0, b"".join(map(chunk, range(COUNT))))
    rig.settle()
    chunks = rig.store._chunks
    packs = chunks.packs
    packs.seal()
    (number,) = packs.sealed()
    file = rig.disk.open(f"packs/{number:08x}.pack")
    lost = Lost(file.pread(file.size(), 0))
    entries = [Adopted(*each) for each in packs.footer(number) if each[1].kind == KIND_DATA]
    pack_id = blake3(lost.content).digest()
    uuid = rig.store.stripe_home.uuid
    like = StripedPack(0, pack_id, b"d" * 16, 2, 1, number, uuid, 0, 0, 0)
    assert chunks.adopt(like, entries) == COUNT
    rig.store.collect()
    opened = rig.killed()
    opened.tend()
    opened.store._chunks.packs.striped.source = lost
    assert opened.read("a", 0, CHUNK) == chunk(0)
    lost.error = StripeUnavailable("two nodes are down")
    return opened, lost


def test_the_log_goes_on_and_what_is_lost_is_an_error_never_zeros() -> None:
    rig, lost = in_a_stripe()
    assert rig.write("a", CHUNK, b"x" * 512) == 0  # a part of a page
    assert rig.write("a", 2 * CHUNK, chunk(70)) == 0  # a whole one
    rig.store.destage()
    held_up = rig.store.status().destage_held_up
    assert held_up is not None
    assert "two nodes are down" in held_up
    assert rig.read("a", CHUNK, 512) == b"x" * 512  # in the journal still

    lost.error = StripeGivenUp("pack: it was given up")
    rig.clock.advance(RETRY_MAX_S)
    assert rig.store.destage()
    status = rig.store.status()
    assert (status.destage_held_up, status.hot_bytes) == (None, 0)
    assert rig.read_error("a", CHUNK, CHUNK) == errno.EIO
    assert rig.read_error("a", 3 * CHUNK, CHUNK) == errno.EIO
    assert rig.read("a", 2 * CHUNK, CHUNK) == chunk(70)
    # Durably, whatever comes back of the shards; and seen by scrub.
    assert rig.store.scrub_status().damage_count == 1
    rig = rig.killed()
    rig.tend()
    lost.error = None
    rig.store._chunks.packs.striped.source = lost
    assert rig.read_error("a", CHUNK, CHUNK) == errno.EIO
    assert rig.read("a", 3 * CHUNK, CHUNK) == chunk(3)
    assert rig.read("a", 2 * CHUNK, CHUNK) == chunk(70)
    # It ends where it is written as a whole.
    assert rig.write("a", CHUNK, chunk(71)) == 0
    rig.settle()
    assert rig.read("a", CHUNK, CHUNK) == chunk(71)


def test_what_was_lost_can_be_written_again_as_it_was() -> None:
    """The index finds the same chunk in the stripe: it is not taken for stored, although nobody has
    read it since."""
    rig, lost = in_a_stripe()
    lost.error = StripeGivenUp("pack: it was given up")
    rig.store.stripe_home.striped.trusted = frozenset()
    assert rig.write("a", 5 * CHUNK, chunk(5)) == 0
    rig.settle()
    assert rig.read("a", 5 * CHUNK, CHUNK) == chunk(5)


def test_writes_find_their_chunks_in_a_stripe_that_can_be_read_and_in_no_other() -> None:
    rig, lost = in_a_stripe()
    lost.error = None
    chunks = rig.store._chunks
    striped = chunks.packs.striped
    (number,) = striped.numbers()

    def is_found(at: int) -> bool:
        before = chunks.counters.duplicate_count
        chunks.put(chunk(at))
        return chunks.counters.duplicate_count > before

    assert is_found(1)  # nobody looks
    striped.trusted = frozenset({number})
    assert is_found(2)
    striped.trusted = frozenset()
    assert not is_found(3)
    striped.trusted, striped.source = None, None  # in no cluster any more
    assert not is_found(4)
    assert not striped.doubts(number + 100)


def test_each_destage_round_looks_once_at_the_stripe_that_it_finds_chunks_in() -> None:
    """After it has frozen what it stores: all of that was acknowledged before."""
    rig, lost = in_a_stripe()
    lost.error = None
    striped = rig.store.stripe_home.striped
    (number,) = striped.numbers()
    striped.trusted = frozenset({number})
    looked: list[int] = []  # bytes in the journal then
    readable = True

    def looks() -> Look:
        looked.append(rig.store.status().journal_bytes)
        return lambda stub: readable

    striped.looks = looks
    for at in (1, 2):
        rig.write("a", at * CHUNK, chunk(at + 1))
        rig.write("a", (at + 3) * CHUNK, chunk(at))
        rig.store.destage()
        assert len(looked) == at
    readable = False
    rig.write("a", 0, chunk(7))
    rig.store.destage()
    place = rig.store._chunks.place(blake3(chunk(7)).digest())
    assert place is not None
    assert (len(looked), place.pack > number) == (3, True)  # stored anew
    rig.write("a", 0, b"n" * CHUNK)  # nothing of it is in a stripe
    rig.store.destage()
    assert len(looked) == 3


def test_a_member_has_chunks_sent_that_it_has_in_a_stripe_that_cannot_be_read() -> None:
    rig, _ = in_a_stripe()
    striped = rig.store.stripe_home.striped
    ids = [blake3(chunk(number)).digest() for number in range(COUNT)]
    assert rig.store._transfers.lacking(ids, CHUNK) == []
    striped.trusted = frozenset()
    assert rig.store._transfers.lacking(ids, CHUNK) == ids


def test_what_clients_read_is_not_cold() -> None:
    rig = StoreRig(options=SMALL)
    rig.store.create_volume("a", COUNT * CHUNK, block_size=512, chunk_size=CHUNK)
    rig.tend()
    rig.fill("a", 0, b"".join(map(chunk, range(COUNT))))
    rig.settle()
    rig.store._chunks.packs.seal()
    home = rig.store.stripe_home
    (number,) = rig.store._chunks.packs.sealed()
    home.cold(0.0, 60.0)
    assert not home.is_read(number, 60.0)
    assert rig.read("a", CHUNK, 512) == chunk(1)[:512]
    home.cold(0.0, 60.0)
    assert home.is_read(number, 60.0)
    assert not home.is_read(number, 0.0)
    rig.clock.advance(59.0)
    home.cold(0.0, 60.0)
    assert home.is_read(number, 60.0)
    rig.clock.advance(1.0)
    assert not home.is_read(number, 60.0)


def test_what_volumes_need_of_it_is_told_by_the_store() -> None:
    rig, lost = in_a_stripe()
    home = rig.store.stripe_home
    (stub,) = home.stubs()
    assert home.lost_of(stub) == [chunk_id for chunk_id, _ in home.striped.lost_of(stub.number)]
    assert len(home.lost_of(stub)) == COUNT
    lost.error = None
    assert home.lost_of(stub) == []
