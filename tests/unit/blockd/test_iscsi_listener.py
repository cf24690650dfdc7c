"""iSCSI over real sockets: sessions, portals, calls on threads, ends of connections, stops."""

import logging
import struct
import threading
from socket import SO_LINGER, SOL_SOCKET

import pytest

from blockd import iscsi_listener
from blockd.client_protocol import WRITE_HIGH_BYTES
from blockd.iscsi import pdu
from blockd.iscsi.connection import BASE_BUFFER
from blockd.iscsi.limits import Limits
from blockd.iscsi.targets import Access, Target
from blockd.scsi.reservations import REGISTER
from tests import pr_client
from tests import scsi_cdbs as cdbs
from tests.fakes import MemoryDevice
from tests.iscsi_initiator import NAME, TARGET, World, pairs
from tests.scsi_rig import Rig
from tests.served import LOOPS, TIMEOUT_S
from tests.served_iscsi import Wire, serving_iscsi
from volume.errors import NoSuchVersion, OutOfSpace

BLOCK = 512
OTHER_ISID = bytes.fromhex("00023d000002")
PAST = TARGET + "@monday"

every_loop = pytest.mark.parametrize("loop", list(LOOPS))


def past_world() -> World:
    """A world whose target has a past version."""
    world, rig = World(), Rig()
    rig.target.detach(rig.nexus)
    world.targets.past[PAST] = Target(PAST, Access(), rig.target)
    return world


def past_device(world: World) -> MemoryDevice:
    device = world.targets.past[PAST].device.units[0].device
    assert isinstance(device, MemoryDevice)
    return device


def log_in_to(wire: Wire, target: str) -> tuple[int, int]:
    """The status of a login to `target`."""
    keys = {"InitiatorName": NAME, "TargetName": target, "SessionType": "Normal"}
    answer = wire.login(keys, flags=0x87)
    assert answer is not None
    return answer.status


def reset(wire: Wire) -> None:
    """Vanish without a goodbye: the kernel sends RST."""
    wire.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    wire.socket.close()


# --- sessions -----------------------------------------------------------------------------------


@every_loop
def test_a_session_reads_what_it_wrote(loop: str) -> None:
    with serving_iscsi(loop) as served, served.logged_in() as wire:
        data = bytes(range(256)) * 2
        [written] = wire.ask(cdbs.write(7, 1), write=BLOCK, data=data)
        assert written.bhs[3] == 0
        [read] = wire.ask(cdbs.read(7, 1), read=BLOCK)
        assert read.data == data


@every_loop
def test_a_logout_is_answered_and_the_connection_closed(loop: str) -> None:
    with serving_iscsi(loop) as served, served.logged_in() as wire:
        assert wire.log_out().bhs[2] == 0
        assert wire.rest() == b""
        served.until_empty()
        assert served.on_loop(served.world.node.sessions) == []


@every_loop
def test_a_session_that_is_reinstated_loses_its_old_connection(loop: str) -> None:
    with serving_iscsi(loop) as served, served.logged_in() as old, served.logged_in() as new:
        assert old.rest() == b""
        assert new.ask(cdbs.read(0, 1), read=BLOCK)[0].data == bytes(BLOCK)


def test_operators_see_initiator_target_and_counts() -> None:
    with serving_iscsi() as served, served.logged_in() as wire:
        wire.ask(cdbs.write(0, 2), write=2 * BLOCK, data=bytes(2 * BLOCK))
        [info] = served.on_loop(served.listener.sessions)
        host, port = wire.socket.getsockname()
        assert info.peer == f"{host}:{port}"
        assert (info.initiator, info.target, info.commands) == (NAME, TARGET, 0)


# --- portals ------------------------------------------------------------------------------------


def group_of(wire: Wire) -> str:
    return wire.log_in().keys["TargetPortalGroupTag"]


def test_a_client_belongs_to_the_portal_group_of_the_address_that_it_came_to() -> None:
    with serving_iscsi(portals=["127.0.0.1:0", "127.0.0.2:0,7"]) as served:
        with served.connected(0) as first, served.connected(1, isid=OTHER_ISID) as second:
            assert (group_of(first), group_of(second)) == ("1", "7")
        listed = served.registry.reached_at
        assert [(portal.host, portal.group) for portal in listed] == [
            ("127.0.0.1", 1),
            ("127.0.0.2", 7),
        ]
        assert [portal.port for portal in listed] == [served.address(0)[1], served.address(1)[1]]


def test_a_wildcard_address_has_the_group_that_was_set_for_it() -> None:
    with serving_iscsi(portals=["0.0.0.0:0,5"]) as served:
        port = served.address()[1]
        with Wire(served.world, ("127.0.0.1", port)) as wire:
            assert group_of(wire) == "5"


# --- calls on threads ---------------------------------------------------------------------------


def register(wire: Wire) -> bytes:
    """A registration that is to be kept, which waits for the disk."""
    cdb = pr_client.out_cdb(REGISTER, 24)
    return wire.command(cdb, write=24, data=pr_client.out_list(0, 7, pr_client.PERSIST))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> tuple[World, threading.Event]:
    """A world whose units wait for the event before they keep something."""
    world, let = World(), threading.Event()
    surroundings = world.rig.surroundings
    save = surroundings.save

    def waiting(key: str, value: bytes | None) -> None:
        assert let.wait(TIMEOUT_S)
        save(key, value)

    monkeypatch.setattr(surroundings, "save", waiting)
    return world, let


@every_loop
def test_a_command_that_waits_for_a_disk_keeps_no_other_waiting(
    loop: str, slow: tuple[World, threading.Event]
) -> None:
    world, let = slow
    with serving_iscsi(loop, world=world) as served, served.logged_in() as wire:
        waiting = register(wire)
        wire.feed(waiting)
        [read] = wire.ask(cdbs.read(0, 1), read=BLOCK)
        assert read.data == bytes(BLOCK)
        let.set()
        [answer] = wire.take()
        assert (answer.itt, answer.bhs[3]) == (int.from_bytes(waiting[16:20], "big"), 0)
        assert world.rig.surroundings.kept


@every_loop
def test_a_client_that_vanishes_stays_known_until_its_calls_are_back(
    loop: str, slow: tuple[World, threading.Event]
) -> None:
    world, let = slow
    with serving_iscsi(loop, world=world) as served:
        with served.logged_in() as wire:
            wire.feed(register(wire))
            wire.ask(cdbs.read(0, 1), read=BLOCK)
            reset(wire)
        served.until(lambda: not served.listener.sessions())
        assert served.on_loop(lambda: served.listener.client_count) == 1
        let.set()
        served.until_empty()


# --- past versions ------------------------------------------------------------------------------


@every_loop
def test_a_past_version_is_opened_on_a_thread_and_closed_after_the_session(loop: str) -> None:
    world = past_world()
    with serving_iscsi(loop, world=world) as served:
        with served.connected() as wire:
            assert log_in_to(wire, PAST) == (0, 0)
            assert served.registry.opened[0].startswith("iscsi")
            assert past_device(world).clients
        served.until_empty()
        assert past_device(world).clients == []


def test_a_version_that_there_is_not_is_refused_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving_iscsi(world=past_world()) as served:
        served.registry.fail_with = NoSuchVersion("vm1", "monday")
        with served.connected() as wire:
            assert log_in_to(wire, PAST) == (2, 3)
    assert "iscsi version refused" not in caplog.messages


@pytest.mark.parametrize("error", [OutOfSpace("no room"), OSError("broken"), ValueError("a bug")])
def test_a_version_that_cannot_be_opened_is_refused_and_logged(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    with serving_iscsi(world=past_world()) as served:
        served.registry.fail_with = error
        with served.connected() as wire:
            assert log_in_to(wire, PAST) == (2, 3)
    [line] = [each for each in caplog.records if each.message == "iscsi version refused"]
    assert line.__dict__["reason"] == str(error)
    assert bool(line.exc_info) == isinstance(error, ValueError)


@every_loop
def test_a_version_that_comes_too_late_is_closed_again(loop: str) -> None:
    world = past_world()
    with serving_iscsi(loop, world=world) as served:
        served.registry.disk.clear()
        with served.connected() as wire:
            keys = {"InitiatorName": NAME, "TargetName": PAST, "SessionType": "Normal"}
            wire.feed(wire.make(pdu.LOGIN | pdu.IMMEDIATE, 0x87, data=pairs(keys)))
            served.until(lambda: served.listener.client_count == 1)
            reset(wire)
        served.registry.disk.set()
        served.until_empty()
        device = past_device(world)
        served.until(lambda: device.clients == [])


# --- bounds -------------------------------------------------------------------------------------


def test_clients_beyond_the_limit_are_turned_away() -> None:
    with (
        serving_iscsi(world=World(limits=Limits(max_connections=1))) as served,
        served.logged_in() as wire,
    ):
        with served.connected() as other:
            assert other.rest() == b""
        assert wire.ask(cdbs.read(0, 1), read=BLOCK)


def test_a_login_that_takes_too_long_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    world = World(limits=Limits(login_timeout_s=0.05))
    with serving_iscsi(world=world) as served, served.connected() as wire:
        assert wire.rest() == b""
        served.until_empty()
    assert "no session within 0.05 s" in [each.__dict__.get("reason") for each in caplog.records]


def test_a_silent_session_is_pinged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iscsi_listener, "TICK_S", 0.01)
    world = World(limits=Limits(keepalive_s=0.05))
    with serving_iscsi(world=world) as served, served.logged_in() as wire:
        [ping] = wire.take()
        assert ping.opcode == pdu.NOP_IN
        assert wire.rest() == b""  # no answer came: closed
        served.until_empty()


@every_loop
def test_pings_whose_answers_nobody_takes_are_not_read_either(loop: str) -> None:
    """A target grew by 187 MiB like this; here it is the write buffer and what came in one go."""
    with serving_iscsi(loop) as served, served.connected() as wire:
        wire.log_in({"MaxRecvDataSegmentLength": "262144"})
        ping = wire.other(pdu.NOP_OUT, data=bytes(64 << 10), immediate=True)
        wire.socket.setblocking(False)
        sent, unsent = 0, 0
        while sent < 256 << 20:
            left = memoryview(ping)[sent % len(ping) :]
            try:
                sent += wire.socket.send(left)
            except BlockingIOError:
                unsent = served.on_loop(lambda: served.listener.unsent_bytes)
                if unsent >= WRITE_HIGH_BYTES:
                    break
        assert WRITE_HIGH_BYTES <= unsent <= WRITE_HIGH_BYTES + 2 * BASE_BUFFER


# --- ends ---------------------------------------------------------------------------------------


@every_loop
def test_garbage_closes_its_connection_and_no_other(loop: str) -> None:
    with serving_iscsi(loop) as served, served.logged_in() as wire:
        with served.connected() as garbage:
            garbage.socket.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            assert garbage.rest() == b""
        assert wire.ask(cdbs.read(0, 1), read=BLOCK)[0].data == bytes(BLOCK)


@every_loop
def test_a_stop_asks_initiators_to_log_out_and_closes(loop: str) -> None:
    with serving_iscsi(loop) as served, served.logged_in() as wire:
        served.stop()
        [message] = wire.take()
        assert (message.opcode, message.bhs[36]) == (pdu.ASYNC, pdu.ASYNC_LOGOUT_REQUEST)
        assert wire.rest() == b""


def test_a_stop_lets_what_is_in_a_device_finish() -> None:
    world = World(deferred=True)
    with serving_iscsi(world=world) as served, served.logged_in() as wire:
        wire.feed(wire.command(cdbs.write(3, 1), write=BLOCK, data=b"z" * BLOCK))
        served.until(lambda: world.rig.device.waiting == 1)
        stopping = served.begin(served.listener.stop(TIMEOUT_S))
        [message] = wire.take()
        assert message.opcode == pdu.ASYNC
        served.on_loop(world.rig.device.finish)
        [answer] = wire.take()
        assert (answer.opcode, answer.bhs[3]) == (pdu.SCSI_RESPONSE, 0)
        stopping.result(TIMEOUT_S)
        assert world.rig.device.read(3 * BLOCK, BLOCK) == b"z" * BLOCK


def test_a_session_is_logged_when_it_begins_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), serving_iscsi() as served:
        with served.logged_in() as wire:
            wire.log_out()
        served.until_empty()
    told = [each for each in caplog.records if each.message.startswith("iscsi session")]
    assert [each.message for each in told] == ["iscsi session opened", "iscsi session closed"]
    assert [each.__dict__["initiator"] for each in told] == [NAME, NAME]
