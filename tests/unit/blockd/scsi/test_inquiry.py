"""Standard INQUIRY data."""

import pytest

from blockd.scsi import sense
from tests.scsi_rig import Rig, codes


def inquiry(page: int = 0, *, evpd: bool = False, allocation: int = 0xFFFF) -> bytes:
    return bytes((0x12, evpd, page)) + allocation.to_bytes(2, "big") + b"\0"


def test_a_unit_is_a_disk_of_spc_4() -> None:
    data = Rig().good(inquiry())
    assert data[:8] == bytes.fromhex("00 00 06 12 5b 18 10 02")
    assert len(data) == data[4] + 5 == 96


def test_vendor_and_product_never_change() -> None:
    """Initiators know disks by them: another text is another disk to some."""
    assert Rig().good(inquiry())[8:32] == b"BLOCKD  volume          "


def test_revision_is_that_of_the_release() -> None:
    assert Rig().good(inquiry())[32:36] == b"0.1 "


def test_standards_are_named() -> None:
    data = Rig().good(inquiry())
    assert data[58:74] == bytes.fromhex("00a0 0460 04c0 0960") + bytes(8)


@pytest.mark.parametrize("allocation", [0, 1, 5, 36, 95, 96, 97, 255, 256])
def test_data_is_cut_to_the_allocation_length(allocation: int) -> None:
    rig = Rig()
    assert rig.good(inquiry(allocation=allocation)) == rig.good(inquiry())[:allocation]


def test_a_page_is_not_asked_for_without_evpd() -> None:
    what = Rig().fault(inquiry(0x83))
    assert (codes(what), what.field) == ((sense.ILLEGAL_REQUEST, 0x24, 0), 2)


def test_a_page_that_is_not_there_is_refused() -> None:
    what = Rig().fault(inquiry(0x85, evpd=True))
    assert (codes(what), what.field) == ((sense.ILLEGAL_REQUEST, 0x24, 0), 2)


def test_inquiry_leaves_a_unit_attention_pending() -> None:
    rig = Rig()
    rig.unit.attention(sense.MODE_CHANGED)
    rig.good(inquiry())
    assert rig.fault(bytes(6)) == sense.MODE_CHANGED
