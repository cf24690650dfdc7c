"""Who is registered for persistent reservations, through which port, with which key."""

import pytest

from blockd.scsi.nexus import Nexus
from blockd.scsi.persistent import NO_REGISTRATION_RESOURCES
from blockd.scsi.pr_codec import MAX_REGISTRATIONS
from blockd.scsi.reservations import (
    CLEAR,
    REGISTER,
    REGISTER_AND_IGNORE,
    RELEASE,
    RESERVE,
)
from blockd.scsi.task import GOOD, RESERVATION_CONFLICT
from tests.pr_client import (
    ALL_PORTS,
    WITH_OTHERS,
    Host,
    fault,
    hosts,
    out_list,
    registered,
    transport_id,
)
from tests.scsi_rig import Rig, nexus

WE, EA, WERO, EARO, WEAR, EAAR = 1, 3, 5, 6, 7, 8


def test_register_needs_the_present_key() -> None:
    [a] = hosts(1)
    assert a.register(key=5).status == RESERVATION_CONFLICT
    assert a.register().status == GOOD
    assert a.register().status == RESERVATION_CONFLICT
    assert a.out(REGISTER, out_list(1, 9)).status == GOOD
    assert a.keys() == [9]


def test_register_and_ignore_needs_no_key() -> None:
    [a] = hosts(1)
    assert a.register_and_ignore().status == GOOD
    assert a.out(REGISTER_AND_IGNORE, out_list(77, 9)).status == GOOD
    assert a.keys() == [9]
    assert a.out(REGISTER_AND_IGNORE, out_list(77, 0)).status == GOOD
    assert a.keys() == []


def test_registering_no_key_changes_nothing() -> None:
    [a] = hosts(1)
    assert a.unregister().status == RESERVATION_CONFLICT
    assert a.out(REGISTER, out_list(0, 0)).status == GOOD
    assert (a.keys(), a.generation()) == ([], 0)


def test_the_same_key_may_be_registered_by_several() -> None:
    a, b = hosts(2)
    b.key = a.key
    a.register()
    b.register()
    assert a.keys() == [1, 1]


def test_the_generation_counts_what_changes_registrations() -> None:
    a, b, c = registered()
    assert a.generation() == 3
    a.reserve(WE)
    a.release(WE)
    b.reserve(EA)
    a.reserve(EA)  # a conflict
    assert a.generation() == 3
    a.preempt(b.key, EA)
    assert a.generation() == 4
    c.unregister()
    assert a.generation() == 5
    a.clear()
    assert a.generation() == 6


def test_a_registration_counts_only_for_its_target_port() -> None:
    rig = Rig()
    one, other = Host(rig, rig.nexus, 1), Host(rig, rig.join(1, group=2), 1)
    one.register()
    one.reserve(EARO)
    assert one.may_write()
    assert not other.may_read()
    assert other.register().status == GOOD
    assert other.may_write()
    assert one.keys() == [1, 1]


def test_a_registration_for_all_target_ports_counts_for_those_yet_to_come() -> None:
    rig = Rig()
    one = Host(rig, rig.nexus, 1)
    one.register(ALL_PORTS)
    one.reserve(EARO)
    other = Host(rig, rig.join(1, group=2), 1)
    assert other.may_write()
    assert other.register(key=1).status == GOOD
    assert one.keys() == [1]


def test_all_target_ports_take_in_what_one_port_had_registered() -> None:
    rig = Rig()
    one, other = Host(rig, rig.nexus, 1), Host(rig, rig.join(1, group=2), 1)
    other.register()
    other.reserve(WE)
    assert one.register(ALL_PORTS).status == RESERVATION_CONFLICT
    one.key = 2
    assert one.register_and_ignore(ALL_PORTS).status == GOOD
    assert one.keys() == [2]
    assert one.reservation() == (2, WE)


def test_a_new_session_of_the_same_initiator_port_is_registered_still() -> None:
    a, b = registered(2)
    a.reserve(EA)
    a.rig.unit.detach(a.nexus)
    again = Host(a.rig, a.rig.join(1), 1)
    assert again.may_write()
    assert not b.may_read()
    assert again.release(EA).status == GOOD


def test_another_isid_is_another_initiator_port() -> None:
    a, _ = registered(2)
    a.reserve(EA)
    renewed = Nexus(a.nexus.initiator, b"\x80\0\0\0\0\x99", 1)
    a.rig.unit.attach(renewed)
    host = Host(a.rig, renewed, 1)
    host.attentions()
    assert not host.may_read()


def test_registrations_by_name_ignore_the_isid() -> None:
    rig = Rig()
    rig.unit.reservations.ignore_isids()
    a, b = registered(2, rig)
    a.reserve(EA)
    renewed = Host(rig, Nexus(a.nexus.initiator, b"\x80\0\0\0\0\x99", 1), 1)
    rig.unit.attach(renewed.nexus)
    renewed.attentions()
    assert renewed.may_write()
    assert not b.may_read()
    assert a.full_status()[0].transport_id == transport_id(a.nexus.initiator)


def test_by_name_the_second_path_registers_what_the_first_one_did() -> None:
    rig = Rig()
    rig.unit.reservations.ignore_isids()
    [a] = registered(1, rig)
    path = Host(rig, Nexus(a.nexus.initiator, b"\x80\0\0\0\0\x99", 1), 1)
    rig.unit.attach(path.nexus)
    path.attentions()
    assert path.register().status == GOOD
    path.key = 2
    assert path.register().status == RESERVATION_CONFLICT
    assert a.keys() == [1]


def test_others_are_registered_along() -> None:
    a, b, c = hosts(3)
    listed = transport_id(b.nexus.initiator, b.nexus.isid) + transport_id("iqn.2026-11.test:gone")
    assert a.out(REGISTER, out_list(0, 1, WITH_OTHERS, listed)).status == GOOD
    assert a.keys() == [1, 1, 1]
    a.reserve(WERO)
    assert b.may_write()
    assert not c.may_write()


def test_an_initiator_without_isid_is_all_its_sessions() -> None:
    a, b = hosts(2)
    listed = transport_id(b.nexus.initiator)
    a.out(REGISTER, out_list(0, 1, WITH_OTHERS, listed))
    a.reserve(EARO)
    assert b.may_write()
    b.key = 1
    assert b.unregister().status == GOOD
    assert not b.may_write()


def test_others_who_are_registered_already_refuse_it_all() -> None:
    a, b, c = hosts(3)
    b.register()
    listed = b"".join(transport_id(host.nexus.initiator, host.nexus.isid) for host in (c, b))
    result = a.out(REGISTER, out_list(0, 1, WITH_OTHERS, listed))
    assert fault(result) == (0x26, 0)
    assert a.keys() == [2]


def test_oneself_among_the_others_is_registered_once() -> None:
    [a] = hosts(1)
    listed = transport_id(a.nexus.initiator, a.nexus.isid)
    assert a.out(REGISTER, out_list(0, 1, WITH_OTHERS, listed)).status == GOOD
    assert a.keys() == [1]


def test_the_same_other_twice_is_refused() -> None:
    [a] = hosts(1)
    listed = transport_id("iqn.x", bytes(6)) + transport_id("iqn.x")
    assert fault(a.out(REGISTER, out_list(0, 1, WITH_OTHERS, listed))) == (0x26, 0)
    assert a.keys() == []


@pytest.mark.parametrize("action", [RESERVE, RELEASE, CLEAR, 4, 5, REGISTER_AND_IGNORE])
def test_others_are_for_register_only(action: int) -> None:
    [a] = registered(1)
    listed = transport_id("iqn.x")
    assert fault(a.out(action, out_list(1, 1, WITH_OTHERS, listed), WE)) == (0x26, 0)
    assert a.keys() == [1]


def test_others_are_refused_by_who_is_registered_or_unregisters() -> None:
    a, b = hosts(2)
    a.register()
    listed = transport_id("iqn.x")
    assert fault(a.out(REGISTER, out_list(1, 5, WITH_OTHERS, listed))) == (0x26, 0)
    assert fault(a.out(REGISTER, out_list(1, 0, WITH_OTHERS, listed))) == (0x26, 0)
    assert fault(b.out(REGISTER, out_list(0, 0, WITH_OTHERS, listed))) == (0x26, 0)
    assert a.keys() == [1]


def test_registrations_are_bounded() -> None:
    a, b = hosts(2)
    per_command = 250
    for first in range(0, MAX_REGISTRATIONS - 1, per_command + 1):
        count = min(per_command, MAX_REGISTRATIONS - 2 - first)
        listed = b"".join(transport_id(f"iqn.{first + n}", bytes(6)) for n in range(count))
        path = Host(a.rig, nexus(group=2 + first), 1)
        a.rig.unit.attach(path.nexus)
        path.attentions()
        assert path.out(REGISTER, out_list(0, 1, WITH_OTHERS, listed)).status == GOOD
    assert len(a.keys()) == MAX_REGISTRATIONS - 1
    assert a.register().status == GOOD
    result = b.register()
    assert result.sense == NO_REGISTRATION_RESOURCES
    assert len(a.keys()) == MAX_REGISTRATIONS
    assert a.out(REGISTER, out_list(1, 9)).status == GOOD  # a change needs no room
    assert a.unregister().status == RESERVATION_CONFLICT
    a.key = 9
    assert a.unregister().status == GOOD
    assert b.register().status == GOOD
