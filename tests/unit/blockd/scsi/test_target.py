"""LUNs of a target device: which there are, and what is answered for those that are not."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi import sense
from blockd.scsi.nexus import Nexus
from blockd.scsi.opcodes import TABLE
from blockd.scsi.target import (
    MAX_LUN,
    REPORT_LUNS_UNIT,
    TargetDevice,
    decode_lun,
    encode_lun,
)
from blockd.scsi.task import CHECK_CONDITION, GOOD
from blockd.scsi.unit import Identity, LogicalUnit
from tests.fakes import MemoryDevice
from tests.scsi_rig import TARGET, FakeSurroundings, finish, joined, nexus

READY = bytes(6)
INQUIRY = bytes.fromhex("120000006000")
REQUEST_SENSE = bytes.fromhex("03000000ff00")
WELL_KNOWN = b"\xc1\x01" + bytes(6)

numbers = itertools.count()


def unit(name: str = "vm1") -> LogicalUnit:
    uuid = next(numbers).to_bytes(16, "big")
    return LogicalUnit(MemoryDevice(name), Identity(uuid, name), FakeSurroundings(), TABLE)


def report_luns(select: int = 0, allocation: int = 0xFFFF) -> bytes:
    return bytes((0xA0, 0, select, 0, 0, 0)) + allocation.to_bytes(4, "big") + bytes(2)


def logged_in(target: TargetDevice, number: int = 1) -> Nexus:
    one = nexus(number)
    target.attach(one)
    return one


def good(target: TargetDevice, one: Nexus, lun: int | None, cdb: bytes) -> bytes:
    result = finish(target.prepare(one, lun, cdb))
    assert result.status == GOOD, result
    return joined(result)


def fault(target: TargetDevice, one: Nexus, lun: int | None, cdb: bytes) -> sense.Sense:
    result = finish(target.prepare(one, lun, cdb))
    assert result.status == CHECK_CONDITION
    assert result.sense is not None
    return result.sense


def listed(data: bytes) -> list[bytes]:
    assert int.from_bytes(data[:4], "big") == len(data) - 8
    return [data[at : at + 8] for at in range(8, len(data), 8)]


# -- LUN fields


@given(st.integers(0, MAX_LUN))
def test_a_lun_is_read_as_it_is_told(lun: int) -> None:
    assert decode_lun(encode_lun(lun)) == lun


@given(st.binary(min_size=8, max_size=8))
def test_whatever_a_lun_field_holds_it_is_a_number_or_nothing(field: bytes) -> None:
    lun = decode_lun(field)
    assert lun is None or 0 <= lun <= MAX_LUN or lun == REPORT_LUNS_UNIT


@pytest.mark.parametrize(
    ("field", "lun"),
    [
        ("0000000000000000", 0),
        ("00ff000000000000", 255),
        ("4001000000000000", 1),  # flat space, though the other form would do
        ("4100000000000000", 256),
        ("7fff000000000000", 0x3FFF),
        ("c101000000000000", REPORT_LUNS_UNIT),
        ("0101000000000000", None),  # another bus
        ("8001000000000000", None),  # logical unit addressing
        ("c102000000000000", None),  # another well-known unit
        ("d200000100000000", None),  # extended flat space addressing
        ("0000000100000000", None),  # a second level
        ("0000000000000001", None),
    ],
)
def test_lun_fields_of_sam(field: str, lun: int | None) -> None:
    assert decode_lun(bytes.fromhex(field)) == lun


# -- REPORT LUNS


def test_luns_are_listed_in_order_in_the_form_of_their_number() -> None:
    target = TargetDevice({256: unit(), 7: unit(), 0: unit()})
    luns = listed(good(target, logged_in(target), 7, report_luns()))
    assert luns == [encode_lun(lun) for lun in (0, 7, 256)]
    assert luns[2] == bytes.fromhex("4100000000000000")


@pytest.mark.parametrize(
    ("select", "expected"),
    [(0, [encode_lun(0)]), (1, [WELL_KNOWN]), (2, [encode_lun(0), WELL_KNOWN])],
)
def test_the_initiator_selects_what_is_listed(select: int, expected: list[bytes]) -> None:
    target = TargetDevice({0: unit()})
    assert listed(good(target, logged_in(target), 0, report_luns(select))) == expected


@pytest.mark.parametrize("select", [3, 0x10, 0xFF])
def test_other_selections_are_refused(select: int) -> None:
    target = TargetDevice({0: unit()})
    what = fault(target, logged_in(target), 0, report_luns(select))
    assert (what.asc, what.field) == (0x24, 2)


@pytest.mark.parametrize("allocation", [0, 4, 15])
def test_the_list_is_cut_to_the_allocation_length(allocation: int) -> None:
    target = TargetDevice({0: unit(), 1: unit()})
    one = logged_in(target)
    whole = good(target, one, 0, report_luns())
    assert good(target, one, 0, report_luns(allocation=allocation)) == whole[:allocation]


@pytest.mark.parametrize("lun", [0, 5, None, REPORT_LUNS_UNIT])
def test_luns_are_reported_whatever_lun_is_asked(lun: int | None) -> None:
    target = TargetDevice({3: unit()})
    assert listed(good(target, logged_in(target), lun, report_luns())) == [encode_lun(3)]


def test_a_target_without_units_reports_none() -> None:
    target = TargetDevice()
    assert listed(good(target, logged_in(target), 0, report_luns())) == []


# -- absent LUNs


@pytest.mark.parametrize("lun", [0, 5, None])
def test_inquiry_of_an_absent_lun_says_that_there_can_be_a_unit_but_is_none(
    lun: int | None,
) -> None:
    target = TargetDevice({1: unit()})
    data = good(target, logged_in(target), lun, INQUIRY)
    assert data[0] == 0x7F
    assert len(data) == 96


def test_vital_data_of_an_absent_lun_says_so_too() -> None:
    target = TargetDevice()
    one = logged_in(target)
    assert good(target, one, 0, bytes.fromhex("12010000ff00")) == bytes.fromhex("7f00000100")
    assert fault(target, one, 0, bytes.fromhex("12018300ff00")).field == 2


def test_request_sense_to_an_absent_lun_tells_so_as_data() -> None:
    target = TargetDevice()
    data = good(target, logged_in(target), 9, REQUEST_SENSE)
    assert data == sense.UNIT_NOT_SUPPORTED.encode()


@pytest.mark.parametrize("cdb", [READY, b"\x28" + bytes(9), b"\xff" + bytes(15), b"\xa3\x0c"])
def test_everything_else_to_an_absent_lun_fails(cdb: bytes) -> None:
    target = TargetDevice({1: unit()})
    assert fault(target, logged_in(target), 0, cdb.ljust(16, b"\0")) == sense.UNIT_NOT_SUPPORTED


def test_a_bit_without_a_meaning_is_refused_for_an_absent_lun_too() -> None:
    target = TargetDevice()
    assert fault(target, logged_in(target), 0, bytes.fromhex("128000006000")).field == 1


# -- the well-known unit


def test_the_well_known_unit_is_there_without_any_other() -> None:
    target = TargetDevice(name=TARGET)
    one = logged_in(target)
    assert good(target, one, REPORT_LUNS_UNIT, INQUIRY)[0] == 0x1E
    assert good(target, one, REPORT_LUNS_UNIT, READY) == b""
    assert good(target, one, REPORT_LUNS_UNIT, REQUEST_SENSE) == sense.NOTHING.encode()


def test_the_well_known_unit_tells_of_its_port() -> None:
    target = TargetDevice(name=TARGET)
    one = logged_in(target)
    pages = good(target, one, REPORT_LUNS_UNIT, bytes.fromhex("12010000ff00"))
    assert pages == bytes.fromhex("1e000002 0083")
    designators = good(target, one, REPORT_LUNS_UNIT, bytes.fromhex("12018300ff00"))
    assert designators[:2] == b"\x1e\x83"
    assert f"{TARGET},t,0x0001".encode() in designators


def test_the_well_known_unit_is_no_disk() -> None:
    target = TargetDevice({0: unit()})
    what = fault(target, logged_in(target), REPORT_LUNS_UNIT, b"\x28" + bytes(9))
    assert what == sense.INVALID_OPCODE


# -- units and nexuses that come and go


def test_every_unit_knows_those_who_log_in() -> None:
    first, second = unit(), unit()
    target = TargetDevice({0: first, 1: second})
    one = logged_in(target)
    assert (first.nexuses, second.nexuses) == ([one], [one])
    target.detach(one)
    assert (first.nexuses, second.nexuses) == ([], [])


def test_a_detach_of_somebody_who_is_not_there_is_nothing() -> None:
    target = TargetDevice({0: unit()})
    target.detach(nexus())
    one = logged_in(target)
    target.detach(one)
    target.detach(one)
    assert target.units[0].nexuses == []


def test_initiators_are_told_of_a_new_unit_once() -> None:
    target = TargetDevice({0: unit()})
    one = logged_in(target)
    target.units[1] = unit()
    target.luns_changed()
    assert fault(target, one, 0, READY) == sense.LUNS_CHANGED
    assert good(target, one, 0, READY) == b""


def test_a_new_unit_knows_the_initiators_that_are_there() -> None:
    target = TargetDevice({0: unit()})
    one = logged_in(target)
    target.units[1] = added = unit()
    target.luns_changed()
    assert added.nexuses == [one]


def test_a_unit_that_was_taken_away_forgets_the_initiators() -> None:
    target = TargetDevice({0: unit(), 1: unit()})
    one = logged_in(target)
    gone = target.units.pop(1)
    target.luns_changed()
    assert gone.nexuses == []
    assert fault(target, one, 1, READY) == sense.UNIT_NOT_SUPPORTED
    assert fault(target, one, 0, READY) == sense.LUNS_CHANGED


def test_another_unit_at_the_same_lun_is_told_of() -> None:
    """An initiator that takes it for the old one writes over somebody else's data."""
    target = TargetDevice({0: unit("old")})
    one = logged_in(target)
    target.units[0] = unit("new")
    target.luns_changed()
    assert fault(target, one, 0, READY) == sense.LUNS_CHANGED


def test_who_asks_for_the_luns_need_not_be_told_that_they_changed() -> None:
    target = TargetDevice({0: unit(), 1: unit()})
    one, other = logged_in(target, 1), logged_in(target, 2)
    target.luns_changed()
    good(target, one, 1, report_luns())
    assert good(target, one, 0, READY) == b""
    assert fault(target, other, 0, READY) == sense.LUNS_CHANGED


def test_a_unit_of_two_targets_tells_the_initiators_of_the_one_that_changed() -> None:
    shared = unit()
    changed, same = TargetDevice({0: shared}), TargetDevice({0: shared})
    one, other = logged_in(changed, 1), logged_in(same, 2)
    changed.luns_changed()
    assert good(same, other, 0, READY) == b""
    assert fault(changed, one, 0, READY) == sense.LUNS_CHANGED


def test_a_unit_at_two_luns_is_one_unit() -> None:
    shared = unit()
    target = TargetDevice({0: shared, 1: shared})
    one = logged_in(target)
    target.luns_changed()
    assert fault(target, one, 1, READY) == sense.LUNS_CHANGED
    assert good(target, one, 0, READY) == b""
