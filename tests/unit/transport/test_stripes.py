"""Packs as stripes: what is read with shards lost or damaged, what is rebuilt, what is refused."""

import errno
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.faults import Fail, Fault
from tests.stripe_rig import UUID, Bytes, MadePack, StripeRig, make_pack
from transport import stripes
from transport.shardfile import (
    HEADER_LENGTH,
    CorruptShard,
    ShardFile,
    ShardName,
    ShardWriter,
    Stripe,
    copy_shard,
    decode_header,
    prepare,
    remove_shard,
)
from transport.stripes import StripeLost, StripeReader
from volume import packfile
from volume.disk import PosixDisk
from volume.errors import CorruptPack

SIZES = [5120, 65536, 4096, 30208, 65536, 512, 20480, 65536, 9216, 12288, 40448]
PACK = make_pack(SIZES)


def payload(stripe: Stripe, page: int = 0) -> int:
    """Offset in a shard file of a page of its payload."""
    table = -(-stripe.shard_length // 4096 * 4 // 4096) * 4096
    return HEADER_LENGTH + table + page * 4096


def striped(data: int, parity: int, pack: MadePack = PACK) -> tuple[StripeRig, Stripe]:
    rig = StripeRig(data + parity + 3)
    return rig, rig.encode(pack, data, parity)


def lose(rig: StripeRig, stripe: Stripe, numbers: Sequence[int]) -> None:
    for number in numbers:
        rig.disk.unlink(rig.path(stripe, number))


# -- how a pack is cut


@pytest.mark.parametrize("data", [1, 2, 4, 8, 16])
def test_no_entry_is_in_two_shards_and_shards_are_about_equal(data: int) -> None:
    pack = make_pack([512 * random.Random(n).randrange(1, 17) for n in range(300)])
    cuts = stripes.cuts_of(pack.boundaries, len(pack.content), data)
    assert set(cuts[1:-1]) <= set(pack.boundaries)
    longest = max(end - start for start, end in pairwise(cuts))
    assert longest <= len(pack.content) / data + 10_000


@given(st.lists(st.integers(1, 1000), max_size=20), st.integers(1, 16), st.integers(1, 1200))
def test_cuts_are_in_order_whatever_there_is_to_cut_at(
    boundaries: list[int], data: int, size: int
) -> None:
    cuts = stripes.cuts_of(boundaries, size, data)
    assert len(cuts) == data + 1
    assert (cuts[0], cuts[-1]) == (0, size)
    assert list(cuts) == sorted(cuts)


def test_a_pack_of_one_entry_is_a_stripe_as_well() -> None:
    pack = make_pack([65536])
    rig, stripe = striped(4, 2, pack)
    assert rig.reader(stripe, lost=[0, 3]).pread(len(pack.content), 0) == pack.content


def test_a_pack_without_a_footer_stays_as_it_is() -> None:
    rig = StripeRig(1)
    file = rig.devices[0].open("torn", create=True)
    file.pwrite(PACK.content[:-64], 0)
    with pytest.raises(CorruptPack, match="no sound footer"):
        stripes.boundaries_of(file, 0, UUID)


# -- reading


def test_reading_a_chunk_touches_one_shard() -> None:
    rig, stripe = striped(4, 2)
    for place in (place for _, place, _ in packfile.scan(Bytes(PACK.content), 0, verify=False)[0]):
        reader = rig.reader(stripe)
        length = packfile.entry_length(place.stored_length)
        assert reader.pread(length, place.offset) == PACK.content[place.offset :][:length]
        touched = {*reader._open} - {0}  # 0 was asked what the stripe is
        assert len(touched) <= 1


@pytest.mark.parametrize(("data", "parity"), [(2, 1), (4, 2), (8, 3)])
def test_every_pattern_of_loss_that_there_can_be_is_read(data: int, parity: int) -> None:
    rig, stripe = striped(data, parity)
    for lost in combinations(range(data + parity), parity):
        reader = rig.reader(stripe, lost)
        assert reader.pread(len(PACK.content), 0) == PACK.content
        assert set(reader.lost) == set(lost)


def test_the_widest_stripe_is_read_with_four_shards_lost() -> None:
    rig, stripe = striped(16, 4)
    assert rig.reader(stripe, [0, 7, 15, 18]).pread(len(PACK.content), 0) == PACK.content


@given(st.data())
@settings(max_examples=60)
def test_any_part_is_read_with_any_shards_lost(draw: st.DataObject) -> None:
    size = len(PACK.content)
    lost = draw.draw(st.sets(st.integers(0, 5), max_size=2))
    offset = draw.draw(st.integers(0, size + 10))
    length = draw.draw(st.integers(0, 50_000))
    assert RIG.reader(STRIPE, sorted(lost)).pread(length, offset) == PACK.content[offset:][:length]


RIG, STRIPE = striped(4, 2)


def test_entries_are_found_in_a_stripe_as_in_a_pack() -> None:
    entries, gaps = packfile.scan(RIG.reader(STRIPE, [1, 4]), 0, verify=True)
    assert (entries, gaps) == packfile.scan(Bytes(PACK.content), 0, verify=True)
    assert {entry.chunk_id for entry in entries if entry.whole} == set(PACK.chunks)


@pytest.mark.parametrize(("data", "parity"), [(2, 1), (4, 2)])
def test_fewer_than_k_shards_are_an_error_and_never_zeros(data: int, parity: int) -> None:
    rig, stripe = striped(data, parity)
    for lost in combinations(range(data + parity), parity + 1):
        reader = rig.reader(stripe, lost)
        there = {n for n in range(data) if n not in lost}
        for number in range(data):
            start, end = stripe.cuts[number], stripe.cuts[number + 1]
            if number in there:
                assert reader.pread(end - start, start) == PACK.content[start:end]
            else:
                with pytest.raises(
                    StripeLost, match=f"{data - 1} good shards, and it takes {data}"
                ):
                    reader.pread(end - start, start)


def test_a_stripe_without_any_shard_is_an_error() -> None:
    with pytest.raises(StripeLost, match="shard 5: no device has it"):
        RIG.reader(STRIPE, range(6)).pread(10, 0)


# -- damage


PLACES = {
    "header": 20,
    "hashes": 400,
    "page table": HEADER_LENGTH + 8,
    "payload": payload(STRIPE, 2) + 100,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_anywhere_in_a_shard_is_a_lost_shard(place: str) -> None:
    rig, stripe = striped(4, 2)
    for number in (1, 5):
        rig.disk.flip_bit(rig.path(stripe, number), PLACES[place], 3)
    reader = rig.reader(stripe)
    assert reader.pread(len(PACK.content), 0) == PACK.content
    assert 1 in reader.lost or 1 in reader.damaged
    assert set(reader.check_all()) == {1, 5}
    with pytest.raises(CorruptShard):
        stripes.verify(stripe, rig.devices[:6])


def test_a_sector_that_cannot_be_read_is_decoded() -> None:
    rig, stripe = striped(4, 2)
    rig.disk.break_sector(rig.path(stripe, 0), payload(stripe, 1))
    reader = rig.reader(stripe)
    assert reader.pread(len(PACK.content), 0) == PACK.content
    assert "Input/output error" in reader.damaged[0]


def test_damage_in_different_places_of_all_shards_is_no_loss() -> None:
    rig, stripe = striped(4, 2)
    for number in range(6):
        rig.disk.flip_bit(rig.path(stripe, number), payload(stripe, number) + 7)
    reader = rig.reader(stripe)
    assert reader.pread(len(PACK.content), 0) == PACK.content
    stripes.rebuild(reader, dict(enumerate(rig.devices[:6])))
    stripes.verify(stripe, rig.devices[:6])


def test_damage_in_one_place_of_too_many_shards_costs_that_place_only() -> None:
    rig, stripe = striped(4, 2)
    for number in range(3):
        rig.disk.flip_bit(rig.path(stripe, number), payload(stripe, 3) + 7)
    reader = rig.reader(stripe)
    page = stripe.cuts[1] + 3 * 4096
    before = PACK.content[stripe.cuts[1] : page]
    assert reader.pread(3 * 4096, stripe.cuts[1]) == before
    with pytest.raises(StripeLost, match=r"shard 2: .* page 3"):
        reader.pread(1, page)
    with pytest.raises(StripeLost):
        stripes.rebuild(reader, {0: rig.devices[8]})
    assert rig.devices[8].list("shards") == []


def test_a_shard_of_another_pack_or_stripe_under_its_name_is_a_lost_shard() -> None:
    rig, stripe = striped(4, 2)
    other = make_pack(SIZES, seed=5)
    foreign = rig.encode(other, 4, 2)
    rig.disk.rename(rig.path(foreign, 2), rig.path(stripe, 2))
    rig.disk.open(rig.path(stripe, 3)).pwrite(
        rig.disk.open(rig.path(stripe, 4)).pread(1 << 20, 0), 0
    )
    reader = rig.reader(stripe)
    assert reader.pread(len(PACK.content), 0) == PACK.content
    assert set(reader.check_all()) == {2, 3}


def test_shards_of_a_stripe_of_the_same_pack_that_was_cut_elsewhere_are_not_mixed() -> None:
    rig, stripe = striped(4, 2)
    aside = rig.disk.open(rig.path(stripe, 0)).pread(1 << 20, 0)
    evenly = [len(PACK.content) * part // 4 for part in range(5)]
    other = stripes.encode(
        Bytes(PACK.content), PACK.pack_id, len(PACK.content), evenly, rig.devices[:6], 2
    )
    assert other.digest != stripe.digest
    rig.disk.unlink(rig.path(stripe, 0))
    rig.disk.open(rig.path(stripe, 0), create=True).pwrite(aside, 0)
    reader = rig.reader(other)
    assert reader.pread(len(PACK.content), 0) == PACK.content
    assert "of another stripe" in reader.lost[0]


# -- rebuilding and moving


@pytest.mark.parametrize("lost", [*combinations(range(6), 2), *((n,) for n in range(6))], ids=str)
def test_lost_shards_are_rebuilt_on_other_devices(lost: tuple[int, ...]) -> None:
    rig, stripe = striped(4, 2)
    originals = {n: rig.disk.open(rig.path(stripe, n)).pread(1 << 20, 0) for n in lost}
    lose(rig, stripe, lost)
    stripes.rebuild(rig.reader(stripe), {n: rig.devices[6 + at] for at, n in enumerate(lost)})
    for at, number in enumerate(lost):
        path = rig.path(stripe, number, device=6 + at)
        assert rig.disk.open(path).pread(1 << 20, 0) == originals[number]


def test_a_device_that_fails_while_a_shard_is_rebuilt_gets_none() -> None:
    rig, stripe = striped(4, 2)
    lose(rig, stripe, [1])
    rig.disk.faults.add(Fault("sync", Fail(errno.EIO), "d6/*"))
    with pytest.raises(OSError, match="Input/output"):
        stripes.rebuild(rig.reader(stripe), {1: rig.devices[6]})
    assert rig.devices[6].list("shards") == []
    stripes.rebuild(rig.reader(stripe), {1: rig.devices[7]})
    ShardFile(rig.devices[7], stripe.name(1)).verify()


def test_a_shard_is_copied_whole_or_not_at_all() -> None:
    rig, stripe = striped(4, 2)
    copy_shard(ShardFile(rig.devices[2], stripe.name(2)), rig.devices[7])
    ShardFile(rig.devices[7], stripe.name(2)).verify()
    rig.disk.flip_bit(rig.path(stripe, 3), payload(stripe, 1))
    with pytest.raises(CorruptShard, match="page 1 fails"):
        copy_shard(ShardFile(rig.devices[3], stripe.name(3)), rig.devices[7])
    assert rig.devices[7].list("shards") == [stripe.name(2).file_name]
    remove_shard(rig.devices[7], stripe.name(2))
    remove_shard(rig.devices[7], stripe.name(2))
    assert rig.devices[7].list("shards") == []


def test_what_is_written_over_a_leftover_is_whole() -> None:
    rig, stripe = striped(4, 2)
    lose(rig, stripe, [0])
    rig.devices[0].open(stripe.name(0).path + ".new", create=True).pwrite(b"x" * 99_999, 0)
    again = rig.encode(PACK, 4, 2)
    assert again == stripe
    stripes.verify(stripe, rig.devices[:6])


# -- verifying


def test_parity_that_is_not_what_the_data_make_is_not_accepted() -> None:
    rig, stripe = striped(4, 2)
    other = make_pack(SIZES, seed=9)
    wrong = rig.encode(other, 4, 2)
    forged = Stripe(
        stripe.pack_id, stripe.pack_size, 4, 2, stripe.cuts, (*stripe.hashes[:4], *wrong.hashes[4:])
    )
    for number in range(6):
        source = ShardFile(rig.devices[number], (stripe if number < 4 else wrong).name(number))
        data = b"".join(source.read_all())
        rig.disk.unlink(rig.path(stripe, number))
        writer = ShardWriter(rig.devices[number], forged.name(number), len(data))
        writer.append(data)
        writer.finish(forged)
    with pytest.raises(CorruptShard, match="is not the parity of the data shards"):
        stripes.verify(forged, rig.devices[:6])


@pytest.mark.parametrize("number", [0, 5])
def test_a_hash_that_no_rebuild_could_meet_is_not_accepted(number: int) -> None:
    rig, stripe = striped(4, 2)
    hashes = [bytes(32) if n == number else each for n, each in enumerate(stripe.hashes)]
    forged = replace(stripe, hashes=tuple(hashes))
    for n in range(6):
        file = rig.disk.open(rig.path(stripe, n))
        table_crc = decode_header(file.pread(HEADER_LENGTH, 0), "").table_crc
        file.pwrite(forged.header(n, table_crc), 0)
    with pytest.raises(CorruptShard, match=rf"2\.{number}: is not the bytes that its hash names"):
        stripes.verify(forged, rig.devices[:6])


def test_data_that_are_not_the_pack_are_not_accepted() -> None:
    rig = StripeRig(6)
    cuts = stripes.cuts_of(PACK.boundaries, len(PACK.content), 4)
    changed = bytearray(PACK.content)
    changed[5000] ^= 1
    made = stripes.encode(Bytes(bytes(changed)), PACK.pack_id, len(changed), cuts, rig.devices, 2)
    with pytest.raises(CorruptShard, match="its data shards are another pack"):
        stripes.verify(made, rig.devices)


def test_a_pack_that_ends_early_is_not_encoded() -> None:
    rig = StripeRig(6)
    with pytest.raises(CorruptPack, match="ends after 1000 bytes"):
        stripes.encode(
            Bytes(PACK.content[:1000]), PACK.pack_id, 5000, [0, 5000], rig.devices[:2], 1
        )
    assert rig.devices[0].list("shards") == []


def test_real_folders_are_devices(tmp_path_factory: pytest.TempPathFactory) -> None:
    disks = [PosixDisk(tmp_path_factory.mktemp(f"device{n}")) for n in range(6)]
    for disk in disks:
        prepare(disk)
    pack = make_pack([65536] * 40)
    cuts = stripes.cuts_of(pack.boundaries, len(pack.content), 4)
    stripe = stripes.encode(Bytes(pack.content), pack.pack_id, len(pack.content), cuts, disks, 2)
    stripes.verify(stripe, disks)
    (disks[1].root / stripe.name(1).path).unlink()
    reader = StripeReader(stripe.pack_id, 4, stripe.digest, disks)
    assert reader.pread(len(pack.content), 0) == pack.content
    stripes.rebuild(reader, {1: disks[1]})
    reader.close()
    stripes.verify(stripe, disks)
    assert ShardName.parse(disks[1].list("shards")[0]) == stripe.name(1)
