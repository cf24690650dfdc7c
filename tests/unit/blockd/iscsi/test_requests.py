"""NOP, Text, task management, logout, drain: what is asked beside SCSI commands."""

import struct

import pytest

from blockd.iscsi import pdu, text
from blockd.iscsi.limits import Limits
from tests.iscsi_initiator import NAME, PORTAL, TARGET, Initiator, Pdu, World

BLOCK = 512
READ = struct.pack(">BBIBHB", 0x28, 0, 0, 0, 1, 0)
WRITE = struct.pack(">BBIBHB", 0x2A, 0, 0, 0, 2, 0)
TEST_UNIT_READY = bytes(6)


def asked(host: Initiator, *arguments: object, **options: object) -> Pdu:
    host.feed(host.other(*arguments, **options))  # type: ignore[arg-type]
    return host.one()


def test_a_ping_comes_back() -> None:
    host = World().logged_in()
    echo = asked(host, pdu.NOP_OUT, data=b"hello", itt=77)
    assert (echo.opcode, echo.itt, echo.ttt) == (pdu.NOP_IN, 77, pdu.RESERVED_TAG)
    assert echo.data == b"hello"


def test_an_answer_to_nothing_gets_none() -> None:
    host = World().logged_in()
    host.feed(host.other(pdu.NOP_OUT, itt=pdu.RESERVED_TAG, immediate=True))
    assert host.take() == []


def test_a_silent_initiator_is_asked_and_then_closed() -> None:
    host = World(limits=Limits(keepalive_s=10.0)).logged_in()
    host.connection.tick(0.0)
    host.connection.tick(9.0)
    host.run()
    assert host.take() == []
    host.connection.tick(10.0)
    host.connection.tick(12.0)
    host.run()
    ping = host.one()
    assert (ping.opcode, ping.itt) == (pdu.NOP_IN, pdu.RESERVED_TAG)
    assert ping.stat_sn == host.stat_sn
    host.connection.tick(20.0)
    host.run()
    assert host.closed is not None


def test_an_initiator_that_answers_stays() -> None:
    host = World(limits=Limits(keepalive_s=10.0)).logged_in()
    host.connection.tick(0.0)
    host.connection.tick(10.0)
    host.run()
    ping = host.one()
    host.feed(host.other(pdu.NOP_OUT, tag=ping.ttt, itt=pdu.RESERVED_TAG, immediate=True))
    host.connection.tick(11.0)
    host.connection.tick(20.0)
    host.connection.tick(20.5)
    host.run()
    assert host.closed is None
    assert host.take() == []


@pytest.mark.parametrize("wanted", ["", TARGET])
def test_a_normal_session_may_ask_for_its_target(wanted: str) -> None:
    host = World().logged_in()
    answer = asked(host, pdu.TEXT, data=text.encode([("SendTargets", wanted)]))
    assert (answer.opcode, answer.flags) == (pdu.TEXT_RESPONSE, pdu.FINAL)
    assert answer.keys == {"TargetName": TARGET, "TargetAddress": str(PORTAL)}


@pytest.mark.parametrize("wanted", ["All", "iqn.2026-11.io.blockd:other"])
def test_a_normal_session_learns_of_no_other_target(wanted: str) -> None:
    host = World().logged_in()
    answer = asked(host, pdu.TEXT, data=text.encode([("SendTargets", wanted)]))
    assert answer.keys == {"SendTargets": "Reject"}


def test_discovery_lists_targets_and_takes_no_commands() -> None:
    host = World().initiator()
    host.log_in(discovery=True)
    answer = asked(host, pdu.TEXT, data=text.encode([("SendTargets", "All")]))
    assert answer.keys["TargetName"] == TARGET
    (rejected,) = host.ask(TEST_UNIT_READY)
    assert (rejected.opcode, rejected.bhs[2]) == (pdu.REJECT, pdu.REJECT_NOT_SUPPORTED)
    assert asked(host, pdu.NOP_OUT).opcode == pdu.NOP_IN


@pytest.mark.parametrize("discovery", [True, False])
def test_who_leaves_without_a_logout_is_complained_of_unless_it_was_discovery(
    discovery: bool,
) -> None:
    host = World().initiator()
    host.log_in(discovery=discovery)
    host.connection.eof()
    host.run()
    assert host.closed is not None
    assert host.closed.clean is discovery


def test_discovery_shows_only_what_may_be_logged_in_to() -> None:
    from blockd.iscsi.targets import Access

    host = World(access=Access(initiators=("iqn.2026-11.test:other",))).initiator()
    host.log_in(discovery=True)
    assert asked(host, pdu.TEXT, data=text.encode([("SendTargets", "All")])).data == b""


def test_a_long_answer_is_fetched_in_pieces() -> None:
    host = World().initiator()
    host.log_in({"MaxRecvDataSegmentLength": "512"}, discovery=True)
    target = host.world.target
    host.world.targets._targets.update({f"{TARGET}{n}": target for n in range(30)})
    answer = asked(host, pdu.TEXT, data=text.encode([("SendTargets", "All")]), itt=5)
    got = answer.data
    while answer.flags & pdu.CONTINUE:
        assert len(answer.data) <= 512
        answer = asked(host, pdu.TEXT, tag=answer.ttt, itt=5)
        got += answer.data
    assert got.count(b"TargetName=") == 31


def test_a_request_may_come_in_pieces() -> None:
    host = World().logged_in()
    data = text.encode([("SendTargets", "")])
    first = asked(host, pdu.TEXT, pdu.CONTINUE, data=data[:5], itt=5)
    assert (first.flags & pdu.FINAL, first.data) == (0, b"")
    answer = asked(host, pdu.TEXT, tag=first.ttt, data=data[5:], itt=5)
    assert answer.keys["TargetName"] == TARGET


def test_a_segment_length_declared_anew_holds_from_then_on() -> None:
    host = World().logged_in()
    data = text.encode([("MaxRecvDataSegmentLength", "512"), ("X-odd", "1")])
    assert asked(host, pdu.TEXT, data=data).keys == {"X-odd": "NotUnderstood"}
    answers = host.ask(struct.pack(">BBIBHB", 0x28, 0, 0, 0, 2, 0), read=1024)
    assert [len(each.data) for each in answers] == [512, 512]


@pytest.mark.parametrize("data", [b"nonsense", b"A=1\0A=2\0"])
def test_text_that_is_none_is_rejected(data: bytes) -> None:
    host = World().logged_in()
    assert asked(host, pdu.TEXT, data=data).opcode == pdu.REJECT
    assert host.closed is None


def test_snack_is_rejected() -> None:
    host = World().logged_in()
    rejected = asked(host, pdu.SNACK)
    assert (rejected.opcode, rejected.bhs[2]) == (pdu.REJECT, pdu.REJECT_SNACK)


# -- logout


@pytest.mark.parametrize(
    ("reason", "cid", "response"), [(0, 0, 0), (1, 0, 0), (1, 9, 1), (2, 0, 2)]
)
def test_logout(reason: int, cid: int, response: int) -> None:
    host = World().logged_in()
    answer = asked(host, pdu.LOGOUT, pdu.FINAL | reason, tag=cid << 16)
    assert (answer.opcode, answer.bhs[2]) == (pdu.LOGOUT_RESPONSE, response)
    assert (host.closed is not None) == (response == 0)
    if host.closed is not None:
        assert host.closed.clean
        assert host.world.node.sessions() == []


def test_a_logout_is_answered_when_nothing_is_in_a_device_any_more() -> None:
    host = World(deferred=True).logged_in()
    host.feed(host.command(READ, read=BLOCK))
    host.feed(host.other(pdu.LOGOUT, pdu.FINAL))
    assert host.take() == []
    assert host.closed is None
    assert not host.connection.wants_input
    host.world.rig.device.finish()
    assert host.one().opcode == pdu.LOGOUT_RESPONSE
    assert host.closed is not None
    assert host.closed.clean


def test_a_connection_may_go_in_the_middle_of_its_logout() -> None:
    host = World(deferred=True).logged_in()
    host.feed(host.command(READ, read=BLOCK))
    host.feed(host.other(pdu.LOGOUT, pdu.FINAL))
    host.connection.eof()
    host.run()
    assert host.closed is not None
    host.world.rig.device.finish()
    assert host.connection.idle


def test_text_with_damaged_data_is_rejected_and_the_next_is_not() -> None:
    host = World().logged_in(DataDigest="CRC32C")
    sent = bytearray(host.other(pdu.TEXT, data=text.encode([("SendTargets", "")])))
    sent[50] ^= 1
    host.feed(bytes(sent))
    rejected = host.one()
    assert (rejected.opcode, rejected.bhs[2]) == (pdu.REJECT, pdu.REJECT_DATA_DIGEST)
    answer = asked(host, pdu.TEXT, data=text.encode([("SendTargets", "")]))
    assert answer.keys["TargetName"] == TARGET


# -- task management


def manage(
    host: Initiator,
    function: int,
    *,
    referenced: int = pdu.RESERVED_TAG,
    lun: int = 0,
    ref: int = 0,
) -> list[Pdu]:
    more = struct.pack(">I", ref)
    host.feed(
        host.other(
            pdu.TASK_MANAGEMENT,
            pdu.FINAL | function,
            tag=referenced,
            lun=lun,
            immediate=True,
            more=more,
        )
    )
    return host.take()


def response(answers: list[Pdu]) -> int:
    (answer,) = answers
    assert answer.opcode == pdu.TASK_MANAGEMENT_RESPONSE
    return answer.bhs[2]


def test_a_write_that_waits_for_data_is_aborted_at_once_and_for_good() -> None:
    host = World().logged_in(ImmediateData="No")
    (r2t,) = host.ask(WRITE, write=1024)
    assert response(manage(host, pdu.ABORT_TASK, referenced=r2t.itt)) == 0
    host.feed(host.data_out(r2t.itt, r2t.ttt, 0, bytes(1024)))
    assert host.take() == []
    assert host.world.rig.device.seen == []


def test_an_aborted_command_is_answered_by_nothing_and_waited_for() -> None:
    host = World(deferred=True).logged_in()
    host.feed(host.command(READ, read=BLOCK))
    assert manage(host, pdu.ABORT_TASK, referenced=host.itt) == []
    host.world.rig.device.finish()
    assert response(host.take()) == 0


def test_a_task_that_is_not_there_does_not_exist() -> None:
    host = World().logged_in()
    assert response(manage(host, pdu.ABORT_TASK, referenced=99, ref=host.cmd_sn - 1)) == 1


def test_a_command_that_has_not_come_is_aborted_by_its_number() -> None:
    host = World().logged_in()
    host.cmd_sn += 1
    assert response(manage(host, pdu.ABORT_TASK, referenced=99, ref=host.cmd_sn - 1)) == 0
    assert host.ask(TEST_UNIT_READY, cmd_sn=host.cmd_sn - 1) == []  # it comes late, and is ignored
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == 0


def test_the_number_of_a_command_to_come_is_not_used_up_by_an_abort() -> None:
    """11.6.1: only numbers before that of the request are taken as having come."""
    host = World().logged_in()
    assert response(manage(host, pdu.ABORT_TASK, referenced=99, ref=host.cmd_sn)) == 1
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == 0


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (pdu.ABORT_TASK_SET, 2),
        (pdu.CLEAR_TASK_SET, 2),
        (pdu.LOGICAL_UNIT_RESET, 2),
        (pdu.TASK_REASSIGN, 4),
        (pdu.CLEAR_ACA, 5),
        (99, 5),
    ],
)
def test_functions_that_cannot_be(function: int, code: int) -> None:
    host = World().logged_in()
    assert response(manage(host, function, lun=7)) == code


def two(world: World) -> tuple[Initiator, Initiator]:
    first, second = world.initiator(), world.initiator(isid=b"\x80\0\0\0\0\2")
    first.log_in()
    second.log_in()
    return first, second


def test_abort_task_set_is_about_ones_own_tasks() -> None:
    world = World(deferred=True)
    first, second = two(world)
    for host in (first, second):
        host.feed(host.command(READ, read=BLOCK))
    assert manage(first, pdu.ABORT_TASK_SET) == []
    world.rig.device.finish()
    assert response(first.take()) == 0
    assert second.one().opcode == pdu.DATA_IN


def test_clear_task_set_is_about_everybodys_and_they_are_told() -> None:
    world = World(deferred=True)
    first, second = two(world)
    second.feed(second.command(READ, read=BLOCK))
    assert manage(first, pdu.CLEAR_TASK_SET) == []
    world.rig.device.finish()
    assert response(first.take()) == 0
    assert second.take() == []
    assert second.ask(TEST_UNIT_READY)[0].sense == (6, 0x2F, 0)
    assert first.ask(TEST_UNIT_READY)[0].bhs[3] == 0


def test_preempt_and_abort_waits_for_what_the_preempted_wrote() -> None:
    """Whoever fences a node by it must not see one more of its writes afterwards."""
    world = World(deferred=True)
    first, second = two(world)

    def out(host: Initiator, action: int, key: int, new_key: int) -> list[Pdu]:
        parameters = struct.pack(">QQ8x", key, new_key)
        cdb = struct.pack(">BBBxxxxHx", 0x5F, action, 5, 24)
        return host.ask(cdb, write=24, data=parameters)

    assert out(first, 0, 0, 1)[0].bhs[3] == 0
    assert out(second, 0, 0, 2)[0].bhs[3] == 0
    second.feed(second.command(WRITE, write=1024, data=bytes(1024)))
    assert out(first, 5, 1, 2) == []
    world.rig.device.finish()
    assert first.one().bhs[3] == 0
    assert second.take() == []
    assert second.ask(TEST_UNIT_READY)[0].sense == (6, 0x2A, 5)


def test_a_unit_reset_is_told_to_all() -> None:
    world = World()
    first, second = two(world)
    assert response(manage(first, pdu.LOGICAL_UNIT_RESET)) == 0
    for host in (first, second):
        assert host.ask(TEST_UNIT_READY)[0].sense == (6, 0x29, 3)
        assert host.ask(TEST_UNIT_READY)[0].bhs[3] == 0


def test_a_cold_reset_ends_all_sessions_of_the_target() -> None:
    world = World()
    first, second = two(world)
    assert response(manage(first, pdu.TARGET_COLD_RESET)) == 0
    assert first.closed is not None
    assert second.closed is not None
    assert world.node.sessions() == []


def test_a_warm_reset_ends_none() -> None:
    world = World()
    first, second = two(world)
    assert response(manage(first, pdu.TARGET_WARM_RESET)) == 0
    assert second.ask(TEST_UNIT_READY)[0].sense == (6, 0x29, 2)
    assert first.closed is None


# -- the server stops


def test_a_drain_asks_for_a_logout_and_waits_for_what_runs() -> None:
    host = World(deferred=True).logged_in()
    host.feed(host.command(READ, read=BLOCK))
    host.connection.drain()
    host.run()
    message = host.one()
    assert (message.opcode, message.bhs[36]) == (pdu.ASYNC, pdu.ASYNC_LOGOUT_REQUEST)
    assert struct.unpack(">H", message.bhs[42:44]) == (3,)
    assert host.closed is None
    host.world.rig.device.finish()
    assert host.one().opcode == pdu.DATA_IN
    assert host.closed is not None
    assert host.closed.clean


def test_sessions_are_shown() -> None:
    host = World().logged_in()
    (info,) = host.world.node.sessions()
    assert (info.initiator, info.target, info.peer) == (NAME, TARGET, "192.0.2.7")
