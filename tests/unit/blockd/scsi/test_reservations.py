"""Persistent reservations and RESERVE / RELEASE, as initiators see them."""

import pytest

from blockd.scsi import sense
from blockd.scsi.nexus import Nexus
from blockd.scsi.pr_codec import MAX_LIST_BYTES
from blockd.scsi.reservations import (
    OPCODES,
    PREEMPT_AND_ABORT,
    REGISTER,
    RELEASE,
    RESERVE,
)
from blockd.scsi.task import GOOD, RESERVATION_CONFLICT, Countdown, Prepared, Result
from tests.pr_client import (
    ALL_PORTS,
    BLOCK_OF_DATA,
    READ,
    TEST_UNIT_READY,
    UNREGISTER,
    WRITE,
    Host,
    fault,
    hosts,
    in_cdb,
    move_list,
    out_cdb,
    out_list,
    registered,
    transport_id,
)
from tests.scsi_rig import Rig, nexus

WE, EA, WERO, EARO, WEAR, EAAR = 1, 3, 5, 6, 7, 8
TYPES = (WE, EA, WERO, EARO, WEAR, EAAR)
PREEMPTED = (0x2A, 0x03)
RELEASED = (0x2A, 0x04)
REGISTRATION_PREEMPTED = (0x2A, 0x05)

INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))
REQUEST_SENSE = bytes((0x03, 0, 0, 0, 18, 0))
MODE_SENSE_6 = bytes((0x1A, 0, 0x3F, 0, 255, 0))
READ_CAPACITY_10 = bytes((0x25, *bytes(9)))
READ_CAPACITY_16 = bytes((0x9E, 0x10, *bytes(8), 0, 0, 0, 32, 0, 0))
SYNCHRONIZE_CACHE = bytes((0x35, *bytes(9)))


# -- telling


def test_a_new_unit_has_no_keys_and_no_reservation() -> None:
    [a] = hosts(1)
    assert a.told(0) == bytes(8)
    assert a.told(1) == bytes(8)
    assert a.told(3) == bytes(8)


def test_capabilities_are_all_types_and_all_options() -> None:
    [a] = hosts(1)
    assert a.told(2) == bytes((0, 8, 0x1D, 0x90, 0xEA, 0x01, 0, 0))


def test_capabilities_tell_that_registrations_are_kept() -> None:
    [a] = hosts(1)
    a.register(1)
    assert a.told(2)[3] == 0x91


def test_lengths_told_are_of_all_there_is() -> None:
    a, *_ = registered()
    assert a.told(0, 8) == bytes((0, 0, 0, 3, 0, 0, 0, 24))
    assert a.told(0, 20)[8:] == bytes((0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0))
    assert a.told(3, 0) == b""


@pytest.mark.parametrize("action", range(4, 32))
def test_unknown_service_actions_are_refused(action: int) -> None:
    [a] = hosts(1)
    assert fault(a.run(in_cdb(action))) == (0x24, 0)
    if action > 7:
        assert fault(a.run(out_cdb(action, 24), bytes(24))) == (0x24, 0)


def test_full_status_shows_who_is_registered_through_which_port() -> None:
    rig = Rig()
    a, b = Host(rig, rig.nexus, 0xA), Host(rig, rig.join(2, group=7), 0xB)
    a.register(ALL_PORTS)
    b.register()
    b.reserve(WERO)
    first, second = a.full_status()
    assert (first.key, first.all_ports, first.holds, first.kind) == (0xA, True, False, 0)
    assert first.transport_id == transport_id(a.nexus.initiator, a.nexus.isid)
    assert (second.key, second.all_ports, second.holds, second.kind) == (0xB, False, True, WERO)
    assert second.target_port == 7


@pytest.mark.parametrize("kind", [WEAR, EAAR])
def test_all_registrants_are_shown_as_holders_and_no_key(kind: int) -> None:
    a, b, _ = registered()
    a.reserve(kind)
    assert b.reservation() == (0, kind)
    assert [status.holds for status in b.full_status()] == [True] * 3


# -- what a reservation allows: (holder, other registrant, neither) x (read, write)

ACCESS = {
    WE: ("rw", "r", "r"),
    EA: ("rw", "", ""),
    WERO: ("rw", "rw", "r"),
    EARO: ("rw", "rw", ""),
    WEAR: ("rw", "rw", "r"),
    EAAR: ("rw", "rw", ""),
}


@pytest.mark.parametrize("kind", TYPES)
def test_who_may_read_and_write(kind: int) -> None:
    a, b, c = hosts(3)
    a.register()
    b.register()
    assert a.reserve(kind).status == GOOD
    found = tuple("r" * host.may_read() + "w" * host.may_write() for host in (a, b, c))
    assert found == ACCESS[kind]
    assert a.release(kind).status == GOOD
    assert c.may_write()


@pytest.mark.parametrize(
    ("cdb", "under_we", "under_ea"),
    [
        (INQUIRY, True, True),
        (REQUEST_SENSE, True, True),
        (TEST_UNIT_READY, True, True),
        (READ_CAPACITY_10, True, True),
        (READ_CAPACITY_16, True, True),
        (in_cdb(3), True, True),
        (
            bytes((0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)),
            True,
            True,
        ),  # REPORT TARGET PORT GROUPS
        (bytes((0x4D, 0, 0x40, 0, 0, 0, 0, 1, 0, 0)), True, True),  # LOG SENSE
        (READ, True, False),
        (MODE_SENSE_6, True, False),
        (
            bytes((0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)),
            True,
            False,
        ),  # REPORT SUPPORTED OPCODES
        (bytes((0x2F, *bytes(9))), True, False),  # VERIFY
        (bytes((0x34, *bytes(9))), True, False),  # PRE-FETCH
        (bytes((0x9E, 0x12, *bytes(8), 0, 0, 0, 24, 0, 0)), True, False),  # GET LBA STATUS
        (SYNCHRONIZE_CACHE, False, False),
        (bytes((0x42, *bytes(9))), False, False),  # UNMAP
        (bytes((0x55, 0x10, *bytes(8))), False, False),  # MODE SELECT
        (bytes((0x93, *bytes(15))), False, False),  # WRITE SAME
        (bytes((0x48, 0x01, *bytes(8))), False, False),  # SANITIZE
        (bytes((0x83, *bytes(15))), False, False),  # EXTENDED COPY
    ],
)
def test_which_commands_pass_a_reservation(cdb: bytes, under_we: bool, under_ea: bool) -> None:
    a, b = hosts(2)
    a.register()
    found = []
    for kind in (WE, EA):
        a.reserve(kind)
        begun = b.rig.unit.prepare(b.nexus, cdb)
        found.append(not (isinstance(begun, Result) and begun.status == RESERVATION_CONFLICT))
        a.release(kind)
    assert found == [under_we, under_ea]


def test_a_conflict_comes_before_faults_of_the_cdb() -> None:
    a, b = registered(2)
    a.reserve(EA)
    assert b.run(bytes((0x28, 0xE0, *bytes(8)))).status == RESERVATION_CONFLICT


def test_a_unit_attention_comes_before_a_conflict() -> None:
    a, b, c = registered()
    a.reserve(WE)
    c.preempt(b.key, WE)
    assert fault(b.run(WRITE, BLOCK_OF_DATA)) == REGISTRATION_PREEMPTED
    assert b.run(WRITE, BLOCK_OF_DATA).status == RESERVATION_CONFLICT


# -- reserving and releasing


def test_only_registrants_reserve_and_only_with_their_key() -> None:
    a, b = hosts(2)
    assert a.reserve(WE).status == RESERVATION_CONFLICT
    a.register()
    assert a.out(RESERVE, out_list(7), WE).status == RESERVATION_CONFLICT
    assert a.reserve(WE).status == GOOD
    assert b.reserve(WE).status == RESERVATION_CONFLICT
    assert a.reservation() == (1, WE)


@pytest.mark.parametrize("kind", TYPES)
def test_reserving_again_is_good_for_holders_and_of_the_same_type(kind: int) -> None:
    a, b = registered(2)
    assert a.reserve(kind).status == GOOD
    assert a.reserve(kind).status == GOOD
    other = WE if kind != WE else EA
    assert a.reserve(other).status == RESERVATION_CONFLICT
    expected = GOOD if kind in (WEAR, EAAR) else RESERVATION_CONFLICT
    assert b.reserve(kind).status == expected


@pytest.mark.parametrize(("kind", "scope"), [(0, 0), (2, 0), (4, 0), (9, 0), (15, 0), (WE, 1)])
def test_unknown_types_and_scopes_are_refused(kind: int, scope: int) -> None:
    [a] = registered(1)
    result = a.out(RESERVE, out_list(1), kind, scope)
    assert fault(result) == (0x24, 0)
    assert result.sense is not None
    assert result.sense.field == 2
    assert a.reservation() is None


@pytest.mark.parametrize("kind", TYPES)
def test_a_release_is_told_to_registrants_of_shared_types(kind: int) -> None:
    a, b, c = hosts(3)
    a.register()
    b.register()
    a.reserve(kind)
    assert a.release(kind).status == GOOD
    assert a.reservation() is None
    assert b.attentions() == ([] if kind in (WE, EA) else [RELEASED])
    assert a.attentions() == c.attentions() == []


def test_a_release_names_the_type_that_is_reserved() -> None:
    [a] = registered(1)
    a.reserve(WE)
    assert fault(a.release(EA)) == (0x26, 0x04)
    assert fault(a.out(RELEASE, out_list(1), WE, 1)) == (0x26, 0x04)
    assert a.reservation() == (1, WE)


def test_a_release_of_what_another_holds_does_nothing() -> None:
    a, b = registered(2)
    a.reserve(WE)
    assert b.release(WE).status == GOOD
    assert b.release(EA).status == GOOD
    assert a.reservation() == (1, WE)
    assert b.out(RELEASE, out_list(9), WE).status == RESERVATION_CONFLICT


def test_any_registrant_releases_for_all_registrants() -> None:
    a, b, c = registered()
    a.reserve(EAAR)
    assert b.release(EAAR).status == GOOD
    assert a.reservation() is None
    assert a.attentions() == c.attentions() == [RELEASED]


# -- leaving


@pytest.mark.parametrize("kind", TYPES)
def test_a_reservation_leaves_with_its_holder(kind: int) -> None:
    a, b = registered(2)
    a.reserve(kind)
    a.unregister()
    left = kind in (WEAR, EAAR)
    assert (a.reservation() is not None) == left
    assert b.attentions() == ([RELEASED] if kind in (WERO, EARO) else [])
    b.unregister()
    assert a.reservation() is None
    assert a.may_write()


def test_a_reservation_stays_when_another_leaves() -> None:
    a, b = registered(2)
    a.reserve(WERO)
    b.unregister()
    assert a.reservation() == (1, WERO)
    assert a.attentions() == []


def test_a_reservation_survives_logout_and_reset() -> None:
    a, b = registered(2)
    a.reserve(EA)
    a.rig.unit.detach(a.nexus)
    a.rig.unit.reset()
    b.attentions()
    assert not b.may_read()


def test_clear_removes_all_and_tells_the_others() -> None:
    a, b, c = hosts(3)
    a.register()
    b.register()
    b.reserve(EA)
    assert c.clear().status == RESERVATION_CONFLICT
    assert a.clear().status == GOOD
    assert (a.keys(), a.reservation()) == ([], None)
    assert b.attentions() == [PREEMPTED]
    assert a.attentions() == c.attentions() == []


# -- preempting


def test_preempting_the_holder_takes_its_place() -> None:
    a, b, c = registered()
    a.reserve(WE)
    assert b.preempt(a.key, EA).status == GOOD
    assert b.reservation() == (2, EA)
    assert b.keys() == [2, 3]
    assert a.attentions() == [REGISTRATION_PREEMPTED]
    assert c.attentions() == [RELEASED]
    assert b.attentions() == []


def test_the_rest_is_not_told_when_the_type_stays() -> None:
    a, b, c = registered()
    a.reserve(WERO)
    b.preempt(a.key, WERO)
    assert c.attentions() == []
    assert b.reservation() == (2, WERO)


def test_preempting_another_only_removes_it_whatever_type_is_named() -> None:
    a, b, c = registered()
    a.reserve(WE)
    assert b.preempt(c.key, 0).status == GOOD
    assert a.reservation() == (1, WE)
    assert a.keys() == [1, 2]
    assert c.attentions() == [REGISTRATION_PREEMPTED]
    assert a.attentions() == []


def test_preempting_without_a_reservation_makes_none() -> None:
    a, b = registered(2)
    assert b.preempt(a.key, EA).status == GOOD
    assert (b.keys(), b.reservation()) == ([2], None)


def test_preempting_removes_all_paths_with_that_key() -> None:
    rig = Rig()
    a1, a2 = Host(rig, rig.nexus, 1), Host(rig, rig.join(1, group=2), 1)
    b = Host(rig, rig.join(2), 2)
    for host in (a1, a2, b):
        host.register()
    a1.reserve(WERO)
    b.preempt(1, WERO)
    assert b.keys() == [2]
    assert a1.attentions() == a2.attentions() == [REGISTRATION_PREEMPTED]
    assert not a2.may_write()


def test_preempting_ones_own_key_keeps_oneself_when_it_holds() -> None:
    rig = Rig()
    a1, a2 = Host(rig, rig.nexus, 1), Host(rig, rig.join(1, group=2), 1)
    a1.register()
    a2.register()
    a1.reserve(WE)
    assert a2.preempt(1, EA).status == GOOD
    assert (a2.keys(), a2.reservation()) == ([1], (1, EA))
    assert a2.may_write()
    assert a1.attentions() == [REGISTRATION_PREEMPTED]
    assert not a1.may_read()


def test_preempting_ones_own_key_removes_oneself_when_another_holds() -> None:
    a, b = registered(2)
    a.reserve(WE)
    assert b.preempt(2, WE).status == GOOD
    assert a.keys() == [1]
    assert b.attentions() == []


def test_preempting_nobody_is_refused() -> None:
    a, b, c = hosts(3)
    a.register()
    assert a.preempt(99, WE).status == RESERVATION_CONFLICT
    assert fault(a.preempt(0, WE)) == (0x26, 0)
    a.reserve(WE)
    assert fault(a.preempt(0, WE)) == (0x26, 0)
    assert b.preempt(1, WE).status == RESERVATION_CONFLICT
    c.register()
    assert fault(c.preempt(1, 2)) == (0x24, 0)
    assert (a.keys(), a.reservation()) == ([1, 3], (1, WE))


def test_key_zero_preempts_all_registrants_at_once() -> None:
    a, b, c = registered()
    a.reserve(WEAR)
    assert b.preempt(0, EA).status == GOOD
    assert (b.keys(), b.reservation()) == ([2], (2, EA))
    assert a.attentions() == c.attentions() == [REGISTRATION_PREEMPTED]


def test_a_reservation_of_all_registrants_outlasts_the_preemption_of_one() -> None:
    a, b, c = registered()
    a.reserve(WEAR)
    assert b.preempt(a.key, EA).status == GOOD
    assert (b.keys(), b.reservation()) == ([2, 3], (0, WEAR))
    assert c.attentions() == []


def test_the_last_registrant_that_preempts_itself_takes_the_reservation_along() -> None:
    [a] = registered(1)
    a.reserve(WEAR)
    assert a.preempt(1, WE).status == GOOD
    assert (a.keys(), a.reservation()) == ([], None)


def test_preempt_and_abort_aborts_what_the_preempted_run() -> None:
    a, b, c = registered()
    a.reserve(WE)
    aborted: list[Nexus] = []

    def abort(nexus: Nexus, _: Countdown) -> bool:
        aborted.append(nexus)
        return True

    a.rig.unit.aborting.append(abort)
    assert b.preempt(a.key, EA, PREEMPT_AND_ABORT).status == GOOD
    assert aborted == [a.nexus]
    assert b.reservation() == (2, EA)
    b.preempt(c.key, EA)
    assert aborted == [a.nexus]


# -- moving


def test_register_and_move_makes_another_the_holder() -> None:
    a, b, _ = registered()
    a.reserve(WE)
    heir = nexus(9, group=4)
    assert a.move(heir, 0x99).status == GOOD
    assert a.reservation() == (0x99, WE)
    assert a.keys() == [1, 2, 3, 0x99]
    assert not a.may_write()
    assert b.generation() == 4


def test_register_and_move_may_unregister_and_may_name_a_registrant() -> None:
    a, b = registered(2)
    a.reserve(WERO)
    assert a.move(b.nexus, 0x22, UNREGISTER).status == GOOD
    assert a.keys() == [0x22]
    assert b.reservation() == (0x22, WERO)
    assert b.may_write()
    assert not a.may_write()


def test_register_and_move_is_for_the_holder_of_its_own_reservation() -> None:
    a, b, c = hosts(3)
    a.register()
    b.register()
    heir = nexus(9)
    assert a.move(heir, 5).status == RESERVATION_CONFLICT  # nothing is reserved
    a.reserve(WE)
    assert b.move(heir, 5).status == RESERVATION_CONFLICT
    assert c.move(heir, 5).status == RESERVATION_CONFLICT
    a.release(WE)
    a.reserve(WEAR)
    assert a.move(heir, 5).status == RESERVATION_CONFLICT


def test_register_and_move_refuses_no_key_and_oneself() -> None:
    a, b = registered(2)
    a.reserve(WE)
    assert fault(a.move(b.nexus, 0)) == (0x26, 0)
    assert fault(a.move(a.nexus, 5)) == (0x26, 0)
    assert a.reservation() == (1, WE)


# -- parameter lists


@pytest.mark.parametrize("length", [0, 23, MAX_LIST_BYTES + 1, 1 << 31])
def test_a_parameter_list_of_no_use_is_refused_before_it_is_sent(length: int) -> None:
    [a] = hosts(1)
    begun = a.rig.unit.prepare(a.nexus, out_cdb(REGISTER, length))
    assert isinstance(begun, Result)
    assert fault(begun) == (0x1A, 0)


def test_a_parameter_list_that_is_cut_off_is_refused() -> None:
    [a] = hosts(1)
    assert fault(a.run(out_cdb(REGISTER, 24), out_list(0, 1)[:23])) == (0x1A, 0)
    data = move_list(1, 2, transport_id("iqn.x"), 3)
    assert fault(a.run(out_cdb(7, len(data)), data[:-4])) == (0x1A, 0)
    assert a.keys() == []


def test_what_is_registered_counts_when_the_data_is_there() -> None:
    a, b = registered(2)
    begun = a.rig.unit.prepare(a.nexus, out_cdb(RESERVE, 24, WE))
    assert isinstance(begun, Prepared)
    b.preempt(a.key, WE)
    with pytest.raises(sense.ReservationConflict):
        begun.run(memoryview(out_list(1)))


# -- others


def test_nexuses_that_come_and_go_are_not_remembered_for_ever() -> None:
    a, _ = registered(2)
    a.reserve(WE)
    unit = a.rig.unit
    for number in range(3000):
        passing = Nexus(f"iqn.{number}", bytes(6), 1)
        assert a.rig.run(WRITE, BLOCK_OF_DATA, nexus=passing).status == RESERVATION_CONFLICT
    assert len(unit.reservations._access) <= 1024


def test_every_command_is_listed_once_with_its_length() -> None:
    assert len({(opcode.code, opcode.action) for opcode in OPCODES}) == len(OPCODES) == 16
    lengths = {0x16: 6, 0x17: 6, 0x56: 10, 0x57: 10, 0x5E: 10, 0x5F: 10}
    for opcode in OPCODES:
        assert opcode.usage[0] == opcode.code
        assert len(opcode.usage) == lengths[opcode.code]
