"""Parameter lists and kept state, against bytes written by hand."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi.pr_codec import (
    TYPES,
    WRITE_EXCLUSIVE,
    WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    DamagedState,
    Kept,
    Registrant,
    Reservation,
    decode_basic,
    decode_kept,
    decode_move,
    decode_transport_id,
    encode_kept,
    encode_transport_id,
)
from blockd.scsi.sense import CheckCondition
from native import crc32c
from tests.pr_client import WITH_OTHERS, move_list, out_list, transport_id

ISID = bytes.fromhex("00023d000001")
NAME = "iqn.2026-11.test:host"
SMALL = Kept(
    {Registrant("iqn.a", ISID, 1): 0x1111, Registrant("iqn.b", None, None): 0x2222},
    Reservation(WRITE_EXCLUSIVE, Registrant("iqn.a", ISID, 1)),
)

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=50)
isids = st.none() | st.binary(min_size=6, max_size=6)
registrants = st.builds(Registrant, names, isids, st.none() | st.integers(1, 0xFFFF))


@st.composite
def kept_states(draw: st.DrawFn) -> Kept:
    keys = draw(st.dictionaries(registrants, st.integers(1, (1 << 64) - 1), max_size=5))
    reservation = None
    reserved: bool = draw(st.booleans())
    if keys and reserved:
        kind = draw(st.sampled_from(TYPES))
        holder = None if kind in (7, 8) else draw(st.sampled_from(list(keys)))
        reservation = Reservation(kind, holder)
    return Kept(keys, reservation)


def codes(error: CheckCondition) -> tuple[int, int, int]:
    return error.sense.key, error.sense.asc, error.sense.ascq


def test_a_basic_list_is_keys_and_flags() -> None:
    asked = decode_basic(out_list(0x0102030405060708, 0x1112131415161718, 0x05))
    assert asked.key == 0x0102030405060708
    assert asked.action_key == 0x1112131415161718
    assert asked.persist
    assert asked.all_ports
    assert asked.others is None


@pytest.mark.parametrize("length", [0, 23, 25, 28])
def test_a_basic_list_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(CheckCondition) as raised:
        decode_basic(bytes(length))
    assert codes(raised.value) == (5, 0x1A, 0)


def test_transport_ids_follow_a_basic_list() -> None:
    listed = transport_id(NAME, ISID) + transport_id("iqn.x")
    assert decode_basic(out_list(0, 1, WITH_OTHERS, listed)).others == (
        (NAME, ISID),
        ("iqn.x", None),
    )


def test_no_transport_id_at_all_may_follow() -> None:
    assert decode_basic(out_list(0, 1, WITH_OTHERS) + bytes(4)).others == ()


@pytest.mark.parametrize("wrong", [-4, -1, 1, 4])
def test_a_length_of_transport_ids_that_is_not_theirs_is_refused(wrong: int) -> None:
    listed = transport_id(NAME, ISID)
    data = out_list(0, 1, WITH_OTHERS) + struct.pack(">I", len(listed) + wrong) + listed
    with pytest.raises(CheckCondition) as raised:
        decode_basic(data)
    assert codes(raised.value) == (5, 0x1A, 0)


def test_a_transport_id_that_ends_behind_the_list_is_refused() -> None:
    listed = transport_id(NAME, ISID)[:-4]
    with pytest.raises(CheckCondition) as raised:
        decode_basic(out_list(0, 1, WITH_OTHERS, listed))
    assert codes(raised.value) == (5, 0x1A, 0)


def test_an_initiator_port_is_told_by_name_and_isid() -> None:
    expected = b"\x45\0\0\x18iqn.a,i,0x00023d000001\0\0"
    assert encode_transport_id("iqn.a", ISID) == expected


def test_a_short_name_is_padded_to_the_smallest_transport_id() -> None:
    assert encode_transport_id("iqn.a", None) == b"\x05\0\0\x14iqn.a" + bytes(15)


@pytest.mark.parametrize(
    "data",
    [
        b"\x06" + transport_id(NAME)[1:],  # SAS
        b"\x85" + transport_id(NAME)[1:],  # format 10b
        b"\x05\0\0\x10iqn.a" + bytes(11),  # too short
        b"\x05\0\0\x15iqn.a" + bytes(16),  # not padded
        b"\x05\0\0\x14" + b"n" * 20,  # no NUL
        b"\x05\0\0\x14iqn.a\0x" + bytes(13),  # something behind it
        b"\x05\0\0\x14" + bytes(20),  # no name
        b"\x05\0\0\x14\xff\xfe" + bytes(18),  # no UTF-8
        b"\x05\0\0\xe4" + b"n" * 224 + bytes(4),  # a name that nobody can have
        b"\x45\0\0\x14iqn.a" + bytes(15),  # no ISID
        b"\x45\0\0\x18iqn.a,i,0x00023d00000g\0\0",  # no hexadecimal digit
        b"\x45\0\0\x18iqn.ab,i,0x00023d00000\0\0",  # one digit less
        b"\x45\0\0\x18iqn.a,i,0x 0023d000001\0\0",  # a space, which bytes.fromhex passes over
        b"\x45\0\0\x14,i,0x00023d000001\0\0\0",  # an ISID of nobody
    ],
)
def test_a_transport_id_that_names_nobody_is_refused_with_its_place(data: bytes) -> None:
    with pytest.raises(CheckCondition) as raised:
        decode_transport_id(data, 28)
    assert codes(raised.value) == (5, 0x26, 0)
    assert raised.value.sense.field == 28
    assert not raised.value.sense.in_cdb


@given(names, isids)
def test_transport_ids_come_back(name: str, isid: bytes | None) -> None:
    encoded = encode_transport_id(name, isid)
    assert encoded == transport_id(name, isid)
    assert decode_transport_id(encoded, 0) == (name, isid)


def test_a_move_list_names_the_heir() -> None:
    asked = decode_move(move_list(1, 2, transport_id(NAME, ISID), 3, 0x03))
    assert (asked.key, asked.action_key, asked.to) == (1, 2, Registrant(NAME, ISID, 3))
    assert asked.persist
    assert asked.unregister


def test_a_move_list_without_a_target_port_is_refused() -> None:
    with pytest.raises(CheckCondition) as raised:
        decode_move(move_list(1, 2, transport_id(NAME, ISID), 0))
    assert (*codes(raised.value), raised.value.sense.field) == (5, 0x26, 0, 18)


@pytest.mark.parametrize("length", [0, 23, 24, 50, 53])
def test_a_move_list_of_another_length_is_refused(length: int) -> None:
    data = move_list(1, 2, transport_id(NAME, ISID), 3)[:length]
    with pytest.raises(CheckCondition) as raised:
        decode_move(data)
    assert raised.value.sense.asc == 0x1A


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: out_list(0, 1, 8, rest)))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    refused = []
    for decode in (decode_basic, decode_move):
        try:
            decode(data)
        except CheckCondition as error:
            refused.append(codes(error))
    assert set(refused) <= {(5, 0x1A, 0), (5, 0x26, 0)}


def test_kept_state_lies_as_the_format_says() -> None:
    body = b"BDPR" + bytes((0, 1, 1, 0, 0, 0, 0, 2))
    body += struct.pack(">QHB", 0x1111, 1, 1) + ISID + b"\5iqn.a"
    body += struct.pack(">QHB", 0x2222, 0, 0) + bytes(6) + b"\5iqn.b"
    assert encode_kept(SMALL) == body + struct.pack(">I", crc32c(body))


@given(kept_states())
def test_kept_state_comes_back(kept: Kept) -> None:
    back = decode_kept(encode_kept(kept))
    assert back == kept
    assert list(back.keys) == list(kept.keys)


def test_no_byte_of_kept_state_can_change_unnoticed() -> None:
    data = encode_kept(SMALL)
    for at in range(len(data)):
        for wrong in (data[at] ^ 1, data[at] ^ 0x80):
            with pytest.raises(DamagedState):
                decode_kept(data[:at] + bytes((wrong,)) + data[at + 1 :])


def test_kept_state_that_was_cut_off_is_damaged() -> None:
    data = encode_kept(SMALL)
    for length in range(len(data)):
        with pytest.raises(DamagedState):
            decode_kept(data[:length])


def checked(body: bytes) -> bytes:
    return body + struct.pack(">I", crc32c(body))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"BDPX\0\1\0\0\xff\xff\0\0", "BDPX"),
        (b"BDPR\0\2\0\0\xff\xff\0\0", "version 2"),
        (b"BDPR\0\1\0\0\xff\xff\0\1", "registration 0"),
        (b"BDPR\0\1\0\0\xff\xff\0\0x", "end at byte 12"),
        (b"BDPR\0\1\1\0\0\0\0\0", "registration 0 of 0"),
        (b"BDPR\0\1\1\0\xff\xff\0\0", "type 1"),
        (b"BDPR\0\1\2\0\0\0\0\0", "type 2"),
    ],
)
def test_damage_with_the_right_checksum_is_told(body: bytes, why: str) -> None:
    with pytest.raises(DamagedState, match=why):
        decode_kept(checked(body))


def test_a_reservation_of_all_registrants_has_no_holder() -> None:
    kept = Kept(SMALL.keys, Reservation(WRITE_EXCLUSIVE_ALL_REGISTRANTS, None))
    assert decode_kept(encode_kept(kept)) == kept


@given(st.binary(max_size=100))
def test_kept_garbage_is_damage_and_nothing_else(body: bytes) -> None:
    for data in (body, checked(body), checked(b"BDPR\0\1" + body)):
        with contextlib.suppress(DamagedState):
            decode_kept(data)
