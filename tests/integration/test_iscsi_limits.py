"""Commands of iSCSI sessions that wait for limits: what goes past them, what ends them, and that
they are paid for once wherever they wait."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd.iscsi import pdu
from blockd.scsi.task import GOOD
from native import OP_READ, Limit, Reservation
from tests.iscsi_loop_rig import BLOCK, VOLUME, Server, Wire, pattern, read_10, serving, write_10

SECOND_NS = 10**9
TEST_UNIT_READY = bytes(6)
SYNCHRONIZE_CACHE = bytes([0x35]) + bytes(9)


@pytest.fixture(params=[1, 0], ids=["loop", "engine"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "store", threads=request.param) as made:
        yield made


def limit_of(server: Server) -> Limit:
    device = server.store.get(VOLUME)
    assert device is not None
    return server.listener.rate_limits.of(device)


def set_bandwidth(server: Server, rate: int) -> None:
    """Bytes a second, without a burst; 0: as many as there are."""
    limit_of(server).set((0, 0, 0, rate, 0, 0), 0, time.monotonic_ns())


def is_full_for(server: Server, seconds: float) -> bool:
    """Whether what was asked for up to now leaks for longer than that, from now on."""
    probe = Reservation(limit_of(server))
    return probe.ask(OP_READ, 1, time.monotonic_ns() + round(seconds * SECOND_NS)) != 0


def session(server: Server, number: int = 1) -> Wire:
    """In the request loop, where there is one."""
    return server.log_in(number) if server.request_loop is None else server.in_loop(number)


def hold(server: Server, wire: Wire, count: int) -> list[int]:
    """The tags of that many writes that wait, each of its own block; the bucket is full when they
    come, and the first one of them has a place in line."""
    set_bandwidth(server, 1)
    first = wire.submit(write_10(0, BLOCK), data=pattern(BLOCK), immediate=BLOCK)
    assert wire.answer(first).status == GOOD
    held = [
        wire.submit(write_10(at * BLOCK, BLOCK), data=pattern(BLOCK, at), immediate=BLOCK)
        for at in range(1, count + 1)
    ]
    ping(wire)  # it is answered when all of them have come
    assert limit_of(server).held()[0] == 1
    return held


def ping(wire: Wire) -> None:
    wire.feed(wire.other(pdu.NOP_OUT, immediate=True))
    assert wire.next_other().opcode == pdu.NOP_IN


def goes_on(server: Server, wire: Wire, tags: list[int]) -> None:
    """The limit is taken away, and everything is answered and done."""
    set_bandwidth(server, 0)
    assert [wire.answer(tag).status for tag in tags] == [GOOD] * len(tags)


def manage(wire: Wire, function: int, tag: int = pdu.RESERVED_TAG) -> int:
    wire.feed(wire.other(pdu.TASK_MANAGEMENT, pdu.FINAL | function, tag=tag, immediate=True))
    answer = wire.next_other()
    assert answer.opcode == pdu.TASK_MANAGEMENT_RESPONSE
    return answer.bhs[2]


def test_pings_and_other_commands_do_not_wait(server: Server) -> None:
    with session(server) as wire:
        held = hold(server, wire, 4)
        ping(wire)
        assert wire.answer(wire.submit(TEST_UNIT_READY)).status == GOOD
        goes_on(server, wire, held)
        assert server.content(BLOCK, BLOCK) == pattern(BLOCK, 1)


def test_a_flush_waits_for_what_came_before_it_and_for_nobody_else(server: Server) -> None:
    with session(server) as wire, session(server, 2) as other:
        held = hold(server, wire, 2)
        assert other.answer(other.submit(SYNCHRONIZE_CACHE)).status == GOOD
        flush = wire.submit(SYNCHRONIZE_CACHE)
        goes_on(server, wire, [*held, flush])


def test_what_waits_is_paid_for_once_wherever_it_waits(server: Server) -> None:
    """A command that the loop does not know takes the session out of it."""
    with session(server) as wire:
        held = hold(server, wire, 3)
        for _ in range(3):
            assert wire.answer(wire.submit(TEST_UNIT_READY)).status == GOOD
        assert is_full_for(server, 2 * BLOCK - 60)  # one went on, and one has a place
        assert not is_full_for(server, 2 * BLOCK + 60)
        goes_on(server, wire, held)


@pytest.mark.parametrize("function", [pdu.ABORT_TASK_SET, pdu.LOGICAL_UNIT_RESET])
def test_what_is_aborted_while_it_waits_is_never_done(server: Server, function: int) -> None:
    with session(server) as wire:
        held = hold(server, wire, 5)
        assert manage(wire, function) == pdu.FUNCTION_COMPLETE
        for tag in held:
            del wire.asked[tag]
        set_bandwidth(server, 0)
        wire.submit(TEST_UNIT_READY)  # takes the unit attention of a reset
        wire.answers()
        assert wire.answer(wire.submit(read_10(0, BLOCK), read=BLOCK)).data == pattern(BLOCK)
        assert server.content(BLOCK, 5 * BLOCK) == bytes(5 * BLOCK)
        assert limit_of(server).held()[0] == 0


def test_one_task_is_aborted_and_the_others_stay(server: Server) -> None:
    with session(server) as wire:
        held = hold(server, wire, 3)
        assert manage(wire, pdu.ABORT_TASK, held[1]) == pdu.FUNCTION_COMPLETE
        del wire.asked[held[1]]
        goes_on(server, wire, [held[0], held[2]])
        assert server.content(2 * BLOCK, BLOCK) == bytes(BLOCK)
        assert server.content(3 * BLOCK, BLOCK) == pattern(BLOCK, 3)


def test_an_initiator_that_is_gone_leaves_the_line(server: Server) -> None:
    with session(server) as wire:
        hold(server, wire, 3)
    server.until(lambda: not server.listener.sessions())
    server.until(lambda: limit_of(server).held()[0] == 0)
    assert not is_full_for(server, BLOCK + 60)
    set_bandwidth(server, 0)
    assert server.content(BLOCK, 3 * BLOCK) == bytes(3 * BLOCK)


def test_a_session_that_is_replaced_leaves_the_line(server: Server) -> None:
    with session(server) as wire:
        hold(server, wire, 3)
        with server.log_in() as again:  # the same initiator port
            assert limit_of(server).held()[0] == 0
            set_bandwidth(server, 0)
            assert again.answer(again.submit(read_10(BLOCK, BLOCK), read=BLOCK)).data == bytes(
                BLOCK
            )


def test_a_server_that_stops_finishes_what_waits(tmp_path: Path) -> None:
    with serving(tmp_path / "store") as server, session(server) as wire:
        held = hold(server, wire, 3)
        stopping = server.begin(server.listener.stop(20.0))
        assert wire.next_other().opcode == pdu.ASYNC  # it is to log out
        wire.stat_sn += 1
        assert [wire.answer(tag).status for tag in held] == [GOOD] * 3
        stopping.result(60)
