"""REPORT TARGET PORT GROUPS."""

import pytest

from blockd.scsi import sense
from tests.scsi_rig import Rig, codes


def groups(layout: int = 0, allocation: int = 0xFFFF) -> bytes:
    return bytes((0xA3, layout << 5 | 0x0A, 0, 0, 0, 0)) + allocation.to_bytes(4, "big") + bytes(2)


def test_one_portal_group_is_one_active_group_with_one_port() -> None:
    assert Rig().good(groups()) == bytes.fromhex("0000000c  00 01 0001 00 00 00 01  0000 0001")


def test_every_portal_group_is_a_good_way() -> None:
    rig = Rig()
    rig.target.port_groups = (1, 0x203)
    assert rig.good(groups()) == bytes.fromhex(
        "00000018 0001000100000001 00000001 0001020300000001 00000203"
    )


def test_the_same_is_told_through_each_of_them() -> None:
    rig = Rig()
    rig.target.port_groups = (1, 2)
    assert rig.good(groups(), nexus=rig.join(2, group=2)) == rig.good(groups())


def test_the_extended_header_is_there_when_asked_for() -> None:
    assert Rig().good(groups(1)) == bytes.fromhex("00000010 10000000 0001000100000001 00000001")


@pytest.mark.parametrize("layout", [2, 7])
def test_other_layouts_are_refused(layout: int) -> None:
    what = Rig().fault(groups(layout))
    assert (codes(what), what.field, what.bit) == ((sense.ILLEGAL_REQUEST, 0x24, 0), 1, 7)


def test_the_answer_is_cut_to_the_allocation_length() -> None:
    rig = Rig()
    assert rig.good(groups(allocation=6)) == rig.good(groups())[:6]


def test_inquiry_says_that_states_change_implicitly_only() -> None:
    assert Rig().good(bytes.fromhex("120000006000"))[5] & 0x30 == 0x10


def test_states_cannot_be_set() -> None:
    set_groups = bytes.fromhex("a40a00000000000000080000")
    assert codes(Rig().fault(set_groups, bytes(8))) == codes(sense.INVALID_OPCODE)
