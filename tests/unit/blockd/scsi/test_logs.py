"""LOG SENSE."""

import pytest

from blockd.scsi import sense
from blockd.scsi.unit import SpaceFacts
from tests.scsi_rig import FakeSurroundings, Rig, codes


def log_sense(
    page: int, *, subpage: int = 0, control: int = 1, pointer: int = 0, allocation: int = 0xFFFF
) -> bytes:
    fields = bytes((0x4D, 0, control << 6 | page, subpage, 0))
    return fields + pointer.to_bytes(2, "big") + allocation.to_bytes(2, "big") + b"\0"


def with_space(used: int, available: int) -> Rig:
    return Rig(surroundings=FakeSurroundings(SpaceFacts(used, available, short=False)))


def test_supported_pages_are_listed() -> None:
    assert Rig().good(log_sense(0)) == bytes.fromhex("00000002 000c")


def test_supported_pages_and_subpages_are_listed() -> None:
    assert Rig().good(log_sense(0, subpage=0xFF)) == bytes.fromhex("40ff0006 0000 00ff 0c00")


def test_every_page_that_is_listed_is_there() -> None:
    rig = Rig()
    listed = rig.good(log_sense(0, subpage=0xFF))[4:]
    for page, subpage in zip(listed[::2], listed[1::2], strict=True):
        data = rig.good(log_sense(page, subpage=subpage))
        assert (data[0] & 0x3F, data[1]) == (page, subpage)
        assert len(data) == 4 + int.from_bytes(data[2:4], "big")


def test_space_is_told_in_mebibytes() -> None:
    data = with_space(used=(3 << 20) + 1, available=(5 << 20) + 1).good(log_sense(0x0C))
    assert data == bytes.fromhex(
        "0c000018  0001 03 08 00000005 02000000  0002 03 08 00000004 02000000"
    )


def test_space_beyond_what_can_be_told_is_the_most_that_can() -> None:
    data = with_space(used=0, available=1 << 60).good(log_sense(0x0C))
    assert data[8:12] == b"\xff\xff\xff\xff"


def test_a_pointer_leaves_out_what_is_before_it() -> None:
    rig = Rig()
    whole = rig.good(log_sense(0x0C))
    assert rig.good(log_sense(0x0C, pointer=2))[4:] == whole[16:]
    assert rig.good(log_sense(0x0C, pointer=1)) == whole


@pytest.mark.parametrize(
    ("cdb", "field"),
    [
        (log_sense(0x0C, pointer=3), 5),
        (log_sense(0x00, pointer=1), 5),
        (log_sense(0x0D), 2),
        (log_sense(0x3F), 2),
        (log_sense(0x0C, subpage=1), 3),
        (log_sense(0x0C, subpage=0xFF), 3),
        (log_sense(0x0C, control=0), 2),
        (log_sense(0x0C, control=3), 2),
        (bytes.fromhex("4d014c0000000000ff00"), 1),  # SP: nothing is saved
    ],
)
def test_what_is_not_there_is_refused(cdb: bytes, field: int) -> None:
    what = Rig().fault(cdb)
    assert (codes(what), what.field) == ((sense.ILLEGAL_REQUEST, 0x24, 0), field)


def test_the_list_of_pages_is_the_same_for_every_control() -> None:
    rig = Rig()
    assert rig.good(log_sense(0, control=0)) == rig.good(log_sense(0, control=3))


def test_the_answer_is_cut_to_the_allocation_length() -> None:
    rig = Rig()
    assert rig.good(log_sense(0x0C, allocation=5)) == rig.good(log_sense(0x0C))[:5]
