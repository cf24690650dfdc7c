"""What sessions have to do with each other: reinstatement, and what the old one leaves behind."""

import struct

from blockd.iscsi import pdu
from blockd.iscsi.limits import Limits
from blockd.scsi.task import GOOD
from tests.iscsi_initiator import ISID, NAME, OPERATIONAL, TARGET, Initiator, World

BLOCK = 512
TEST_UNIT_READY = bytes(6)


def write(host: Initiator, lba: int, byte: bytes) -> bytes:
    cdb = struct.pack(">BBIBHB", 0x2A, 0, lba, 0, 1, 0)
    return host.command(cdb, write=BLOCK, data=byte * BLOCK)


def test_a_login_with_the_same_name_takes_the_place_of_the_old_one() -> None:
    world = World()
    old = world.logged_in()
    (before,) = world.node.sessions()
    new = world.logged_in()
    assert old.closed is not None
    (after,) = world.node.sessions()
    assert after.tsih != before.tsih
    assert new.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD
    assert len(world.rig.unit.nexuses) == 1


def test_another_isid_is_another_session() -> None:
    world = World()
    first, second = world.initiator(), world.initiator(isid=ISID[:5] + b"\x02")
    first.log_in()
    second.log_in()
    assert first.closed is None
    assert len(world.node.sessions()) == 2


def test_commands_wait_until_the_old_session_has_nothing_in_a_device() -> None:
    world = World(deferred=True)
    old = world.logged_in()
    old.feed(write(old, 0, b"o"))
    new = world.logged_in()
    assert old.closed is not None
    assert not new.connection.wants_input
    world.rig.device.finish()
    assert old.take() == []
    assert new.connection.wants_input
    new.feed(write(new, 0, b"n"))
    world.rig.device.finish()
    assert new.one().bhs[3] == GOOD


def test_that_came_along_with_the_login_waits_as_well() -> None:
    world = World(deferred=True)
    old = world.logged_in()
    old.feed(write(old, 0, b"o"))
    new = world.initiator()
    keys = b"".join(
        f"{key}={value}\0".encode() for key, value in {**new.first(), **OPERATIONAL}.items()
    )
    rest = struct.pack(">HHII", 0, 0, new.cmd_sn, new.stat_sn)
    login = new.make(pdu.LOGIN | pdu.IMMEDIATE, 0x87, lun=ISID + bytes(2), rest=rest, data=keys)
    new.feed(login + write(new, 0, b"n"))
    assert new.one().opcode == pdu.LOGIN_RESPONSE
    assert world.rig.device.waiting == 1
    world.rig.device.finish()
    assert world.rig.device.waiting == 1
    world.rig.device.finish()
    assert new.one().bhs[3] == GOOD


def test_a_session_that_was_lost_before_is_waited_for_too() -> None:
    world = World(deferred=True)
    old = world.logged_in()
    old.feed(write(old, 0, b"o"))
    old.connection.eof()
    old.run()
    new = world.logged_in()
    assert not new.connection.wants_input
    world.rig.device.finish()
    assert new.connection.wants_input


def test_what_had_been_aborted_is_waited_for_too() -> None:
    world = World(deferred=True)
    old = world.logged_in()
    old.feed(write(old, 0, b"o"))
    old.feed(old.other(pdu.TASK_MANAGEMENT, pdu.FINAL | pdu.ABORT_TASK, tag=old.itt))
    assert old.take() == []
    old.connection.eof()
    old.run()
    new = world.logged_in()
    assert not new.connection.wants_input
    world.rig.device.finish()
    assert new.connection.wants_input


def test_only_the_newest_of_several_goes_on() -> None:
    world = World(deferred=True)
    first = world.logged_in()
    first.feed(write(first, 0, b"1"))
    second = world.logged_in()
    third = world.logged_in()
    assert second.closed is not None
    assert not third.connection.wants_input
    third.connection.eof()
    third.run()
    fourth = world.logged_in()
    world.rig.device.finish()
    assert fourth.connection.wants_input
    world.rig.device.deferred = False
    assert fourth.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD


def test_nobody_is_waited_for_who_has_nothing_in_a_device() -> None:
    world = World()
    host = world.logged_in(ImmediateData="No")
    host.ask(struct.pack(">BBIBHB", 0x2A, 0, 0, 0, 1, 0), write=BLOCK)  # its data never comes
    assert world.logged_in().connection.wants_input


def test_sessions_are_bounded_and_a_reinstatement_is_not_one_more() -> None:
    world = World(limits=Limits(max_sessions=1))
    world.logged_in()
    world.logged_in()
    other = world.initiator(isid=ISID[:5] + b"\x02")
    answer = other.login({**other.first(), **OPERATIONAL}, flags=0x87)
    assert answer is not None
    assert answer.status == (3, 2)


def test_a_target_that_is_gone_takes_its_sessions_along() -> None:
    world = World()
    host = world.logged_in()
    discovery = world.initiator(isid=ISID[:5] + b"\x02")
    discovery.log_in(discovery=True)
    assert [each.target for each in world.node.sessions()] == [TARGET, None]
    assert world.node.end_sessions(world.target, "the target was deleted") == 1
    assert host.closed is not None
    assert host.closed.reason == "the target was deleted"
    assert discovery.closed is None
    assert [each.initiator for each in world.node.sessions()] == [NAME]
