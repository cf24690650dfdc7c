"""RESERVE and RELEASE, the reservations of SPC-2, beside persistent ones."""

import pytest

from blockd.scsi import sense
from blockd.scsi.reservations import (
    REGISTER,
)
from blockd.scsi.task import GOOD, RESERVATION_CONFLICT, Prepared
from tests.pr_client import (
    TEST_UNIT_READY,
    hosts,
    in_cdb,
    out_cdb,
    out_list,
)

WE, EA, WERO, EARO, WEAR, EAAR = 1, 3, 5, 6, 7, 8
TYPES = (WE, EA, WERO, EARO, WEAR, EAAR)

RESERVE_6, RELEASE_6 = bytes((0x16, 0, 0, 0, 0, 0)), bytes((0x17, 0, 0, 0, 0, 0))
RESERVE_10, RELEASE_10 = bytes((0x56, *bytes(9))), bytes((0x57, *bytes(9)))
INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))
REQUEST_SENSE = bytes((0x03, 0, 0, 0, 18, 0))
MODE_SENSE_6 = bytes((0x1A, 0, 0x3F, 0, 255, 0))
READ_CAPACITY_10 = bytes((0x25, *bytes(9)))
READ_CAPACITY_16 = bytes((0x9E, 0x10, *bytes(8), 0, 0, 0, 32, 0, 0))
SYNCHRONIZE_CACHE = bytes((0x35, *bytes(9)))


@pytest.mark.parametrize(("reserve", "release"), [(RESERVE_6, RELEASE_6), (RESERVE_10, RELEASE_10)])
def test_reserve_keeps_the_others_out(reserve: bytes, release: bytes) -> None:
    a, b = hosts(2)
    assert a.run(reserve).status == GOOD
    assert a.run(reserve).status == GOOD
    assert a.may_write()
    assert b.run(reserve).status == RESERVATION_CONFLICT
    assert not b.may_read()
    assert b.run(release).status == GOOD  # which does nothing
    assert not b.may_write()
    assert a.run(release).status == GOOD
    assert b.may_write()
    assert b.run(reserve).status == GOOD


@pytest.mark.parametrize(
    ("cdb", "allowed"),
    [
        (INQUIRY, True),
        (REQUEST_SENSE, True),
        (READ_CAPACITY_10, True),
        (READ_CAPACITY_16, True),
        (TEST_UNIT_READY, False),
        (MODE_SENSE_6, False),
        (bytes((0x9E, 0x12, *bytes(8), 0, 0, 0, 24, 0, 0)), False),  # GET LBA STATUS
        (SYNCHRONIZE_CACHE, False),
    ],
)
def test_which_commands_pass_reserve(cdb: bytes, allowed: bool) -> None:
    a, b = hosts(2)
    a.run(RESERVE_6)
    assert b.run(cdb).status == (GOOD if allowed else RESERVATION_CONFLICT)


def test_persistent_reservations_conflict_with_reserve_for_everybody() -> None:
    a, b = hosts(2)
    a.run(RESERVE_6)
    for host in (a, b):
        assert host.register().status == RESERVATION_CONFLICT
        assert host.run(in_cdb(0)).status == RESERVATION_CONFLICT
    a.run(RELEASE_6)
    assert a.register().status == GOOD


def test_reserve_that_comes_before_the_parameter_list_makes_a_conflict() -> None:
    a, b = hosts(2)
    begun = a.rig.unit.prepare(a.nexus, out_cdb(REGISTER, 24))
    assert isinstance(begun, Prepared)
    b.run(RESERVE_6)
    with pytest.raises(sense.ReservationConflict):
        begun.run(memoryview(out_list(0, 1)))


@pytest.mark.parametrize("how", ["logout", "reset"])
def test_reserve_ends_with_its_nexus_and_by_reset(how: str) -> None:
    a, b = hosts(2)
    a.run(RESERVE_6)
    if how == "logout":
        a.rig.unit.detach(a.nexus)
    else:
        a.rig.unit.reset()
    b.attentions()
    assert b.may_write()


def test_reserve_conflicts_while_anybody_is_registered() -> None:
    a, b = hosts(2)
    a.register()
    for host in (a, b):
        for cdb in (RESERVE_6, RELEASE_6, RESERVE_10, RELEASE_10):
            assert host.run(cdb).status == RESERVATION_CONFLICT


@pytest.mark.parametrize("kind", TYPES)
def test_reserve_does_nothing_for_those_whom_a_reservation_lets_in(kind: int) -> None:
    a, b, c = hosts(3)
    a.register()
    b.register()
    a.reserve(kind)
    assert a.run(RESERVE_6).status == GOOD
    assert a.run(RELEASE_10).status == GOOD
    shared = kind not in (WE, EA)
    assert b.run(RESERVE_10).status == (GOOD if shared else RESERVATION_CONFLICT)
    assert c.run(RELEASE_6).status == RESERVATION_CONFLICT
    assert a.rig.unit.reserved_by is None
    assert a.reservation() is not None
