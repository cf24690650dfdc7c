"""Vital product data: identity, ports, and limits that are kept."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi import vpd
from blockd.scsi.sense import Sense
from blockd.scsi.task import GOOD, Result
from tests import scsi_cdbs
from tests.scsi_rig import TARGET, UUID, Rig

EVERY = [0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1, 0xB2, 0xB3]


def page(rig: Rig, code: int, allocation: int = 0xFFFF) -> bytes:
    return rig.good(bytes((0x12, 1, code)) + allocation.to_bytes(2, "big") + b"\0")


def designators(body: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Association, type, first byte, value."""
    while body:
        first, second, _, length = body[:4]
        yield second & 0x30, second & 0x0F, first, body[4 : 4 + length]
        body = body[4 + length :]


def identifiers(rig: Rig) -> dict[tuple[int, int], bytes]:
    body = page(rig, 0x83)[4:]
    return {(whose, kind): value for whose, kind, _, value in designators(body)}


@pytest.mark.parametrize("code", EVERY)
def test_every_page_has_its_length_and_is_cut_to_the_allocation_length(code: int) -> None:
    rig = Rig()
    data = page(rig, code)
    assert data[:2] == bytes((0, code))
    assert int.from_bytes(data[2:4], "big") == len(data) - 4
    assert page(rig, code, 7) == data[:7]


def test_the_pages_that_are_there_are_listed() -> None:
    rig = Rig()
    assert list(page(rig, 0x00)[4:]) == EVERY
    for code in set(range(256)) - set(EVERY):
        assert rig.fault(bytes((0x12, 1, code, 0, 255, 0))).field == 2


# -- identity


def test_the_serial_number_is_the_uuid() -> None:
    assert page(Rig(), 0x80)[4:] == UUID.hex().encode()


def test_the_worldwide_name_never_changes() -> None:
    """Each byte of it is kept by initiators: another one loses them their disk."""
    assert identifiers(Rig())[0x00, 3] == bytes.fromhex("602b10c31415161718191a1b1c1d1e1f")


def test_the_vendors_name_never_changes() -> None:
    assert identifiers(Rig())[0x00, 1] == b"BLOCKD  " + UUID.hex().encode()


@given(st.binary(min_size=16, max_size=16))
def test_a_worldwide_name_is_a_locally_administered_naa_6(uuid: bytes) -> None:
    name = vpd.naa(uuid)
    assert len(name) == 16
    assert name[0] >> 4 == 6
    company = int.from_bytes(name[:4], "big") >> 4 & 0xFFFFFF
    assert company >> 16 & 0x03 == 0x02  # locally administered, and no multicast


def test_identity_does_not_depend_on_the_name_of_the_volume() -> None:
    assert identifiers(Rig(name="vm1")) == identifiers(Rig(name="renamed"))


def test_units_of_other_volumes_have_other_identifiers() -> None:
    other = identifiers(Rig(uuid=bytes(16)))
    own = identifiers(Rig())
    assert all(other[of_unit] != own[of_unit] for of_unit in ((0x00, 1), (0x00, 3)))


# -- ports


def test_the_port_that_a_command_came_through_is_told() -> None:
    rig = Rig()
    rig.target.port_groups = (1, 0x102)
    other = rig.join(2, group=0x102)
    body = rig.good(bytes.fromhex("12018302ff00"), nexus=other)[4:]
    told = {(whose, kind): value for whose, kind, _, value in designators(body)}
    assert told[0x10, 4] == bytes.fromhex("00000102")  # relative port
    assert told[0x10, 5] == bytes.fromhex("00000102")  # port group
    assert told[0x10, 8].rstrip(b"\0").decode() == f"{TARGET},t,0x0102"
    assert told[0x20, 8].rstrip(b"\0").decode() == TARGET


def test_the_unit_is_the_same_through_every_port() -> None:
    rig = Rig()
    body = rig.good(bytes.fromhex("12018302ff00"), nexus=rig.join(2, group=2))[4:]
    other = {(whose, kind): value for whose, kind, _, value in designators(body)}
    own = identifiers(rig)
    assert [other[0x00, kind] for kind in (1, 3)] == [own[0x00, kind] for kind in (1, 3)]


def test_identifiers_of_ports_say_that_they_are_iscsi() -> None:
    for whose, _, first, _ in designators(page(Rig(), 0x83)[4:]):
        assert first >> 4 == (0 if whose == 0x00 else 5)


@pytest.mark.parametrize("length", range(20, 25))
def test_names_are_closed_by_a_zero_and_filled_up_to_four_bytes(length: int) -> None:
    rig = Rig()
    rig.target.name = "iqn.2026-11.".ljust(length, "x")
    for _, kind, _, value in designators(page(rig, 0x83)[4:]):
        if kind == 8:
            assert value.endswith(b"\0")
            assert len(value) % 4 == 0


def test_all_ports_of_the_target_device_are_listed() -> None:
    rig = Rig()
    rig.target.port_groups = (1, 2)
    body = page(rig, 0x88)[4:]
    ports = []
    while body:
        port, initiator_length, length = struct.unpack_from(">2xH2xH2xH", body)
        assert initiator_length == 0
        [(whose, kind, _, value)] = designators(body[12 : 12 + length])
        assert (whose, kind) == (0x10, 8)
        ports.append((port, value.rstrip(b"\0").decode()))
        body = body[12 + length :]
    assert ports == [(1, f"{TARGET},t,0x0001"), (2, f"{TARGET},t,0x0002")]


# -- what a unit does


def test_extended_data_tells_of_a_volatile_cache_and_simple_tasks() -> None:
    data = page(Rig(), 0x86)
    assert len(data) == 64
    assert (data[5], data[6], data[7]) == (0x01, 0x01, 0x01)


def test_the_longest_sense_data_is_as_long_as_told() -> None:
    longest = Sense(5, 0x24, 0, information=1, field=1, command_specific=1)
    assert len(longest.encode(descriptor=True)) == page(Rig(), 0x86)[13]


def test_mode_pages_are_shared() -> None:
    assert page(Rig(), 0x87)[4:] == bytes.fromhex("3fff0000")


def test_third_party_copies_are_told_as_the_copy_commands_tell_them() -> None:
    rig = Rig()
    body = page(rig, 0x8F)[4:]
    found = {}
    while body:
        kind, length = struct.unpack_from(">HH", body)
        assert length % 4 == 0
        found[kind] = body[4 : 4 + length]
        body = body[4 + length :]
    told = rig.good(bytes.fromhex("84030000000000000000000000ff0000"))
    assert found[0x0001][:9] == bytes.fromhex("09 83 01 00 84 04 00 01 03")
    assert found[0x0004][4:12] == told[8:16]  # CSCD and segment count, list length
    assert found[0x0008][1 : 1 + found[0x0008][0]] == told[44 : 44 + told[43]]
    assert found[0x8001][8:12] == told[16:20]  # segment length
    assert found[0x8001][12] == told[37]  # granularity
    assert len(found[0x0004]) == 28
    assert len(found[0x8001]) == 32


# -- the medium


def limits(rig: Rig) -> dict[str, int]:
    names = (
        *("wsnz", "compare", "granularity", "most", "optimal", "prefetch", "unmap", "ranges"),
        *("unmap_granularity", "alignment", "same", "atomic"),
    )
    body = page(rig, 0xB0)[4:]
    assert len(body) == 60
    values = struct.unpack_from(">BBHIIIIIIIQI", body)
    assert body[44:] == bytes(16)  # no alignment, granularity or boundary of atomic writes
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize("block_size", [512, 4096])
def test_limits_are_in_blocks(block_size: int) -> None:
    told = limits(Rig(blocks=1 << 20, block_size=block_size))
    assert told["most"] * block_size == 16 << 20
    assert told["optimal"] * block_size == 1 << 20
    assert told["granularity"] * block_size == 4096
    assert told["unmap_granularity"] * block_size == 64 << 10
    assert told["atomic"] * block_size == 1 << 20
    assert told["alignment"] == 1 << 31  # valid, and 0


def refuses(rig: Rig, cdb: bytes) -> bool:
    begun = rig.unit.prepare(rig.nexus, cdb)
    return isinstance(begun, Result) and begun.status != GOOD


@pytest.mark.parametrize("block_size", [512, 4096])
def test_what_is_promised_is_taken_and_more_is_not(block_size: int) -> None:
    rig = Rig(blocks=1 << 23, block_size=block_size)
    told = limits(rig)
    assert not refuses(rig, scsi_cdbs.read(0, told["most"], size=16))
    assert refuses(rig, scsi_cdbs.read(0, told["most"] + 1, size=16))
    assert not refuses(rig, scsi_cdbs.write(0, told["most"], size=16))
    assert refuses(rig, scsi_cdbs.write(0, told["most"] + 1, size=16))
    compare = b"\x89" + bytes(12) + bytes((told["compare"], 0, 0))
    assert not refuses(rig, compare)
    atomic = b"\x9c\x00" + bytes(8) + bytes(2)
    assert not refuses(rig, atomic + told["atomic"].to_bytes(2, "big") + bytes(2))
    assert refuses(rig, atomic + (told["atomic"] + 1).to_bytes(2, "big") + bytes(2))
    same = b"\x93\x08" + bytes(8)
    assert not refuses(rig, same + told["same"].to_bytes(4, "big") + bytes(2))
    assert refuses(rig, same + (told["same"] + 1).to_bytes(4, "big") + bytes(2))


@pytest.mark.parametrize("block_size", [512, 4096])
def test_as_much_is_unmapped_as_promised(block_size: int) -> None:
    rig = Rig(blocks=1 << 21, block_size=block_size)
    told = limits(rig)
    each = told["unmap"] // told["ranges"]
    ranges = b"".join(struct.pack(">QI4x", number * each, each) for number in range(told["ranges"]))
    parameters = struct.pack(">HH4x", len(ranges) + 6, len(ranges)) + ranges
    cdb = b"\x42" + bytes(6) + len(parameters).to_bytes(2, "big") + b"\0"
    assert rig.good(cdb, parameters) == b""


def test_zero_blocks_of_write_same_go_up_to_the_last_one() -> None:
    rig = Rig(blocks=256)
    assert limits(rig)["wsnz"] == 0
    rig.good(b"\x93\x00" + (255).to_bytes(8, "big") + bytes(6), b"\x01" * 512)
    assert rig.device.read(255 * 512, 512) == b"\x01" * 512


def test_the_medium_does_not_rotate() -> None:
    assert page(Rig(), 0xB1)[4:6] == b"\x00\x01"


@pytest.mark.parametrize(("block_size", "exponent"), [(512, 11), (4096, 8)])
def test_provisioning_is_thin_and_counted_in_mebibytes(block_size: int, exponent: int) -> None:
    data = page(Rig(blocks=256, block_size=block_size), 0xB2)
    assert data[4:] == bytes((exponent, 0xE4, 0x02, 0x00))


def test_there_are_no_referrals() -> None:
    assert page(Rig(), 0xB3)[4:] == bytes(12)
