"""Clients that an operator disconnects, over real sockets: what they get first, and when they are
cut. `test_cli_client` has the command and its errors."""

from blockd.iscsi import pdu
from blockd.nbd import wire
from tests import scsi_cdbs as cdbs
from tests.fakes import MemoryDevice
from tests.iscsi_initiator import World
from tests.served import TIMEOUT_S, Served, serving
from tests.served_iscsi import serving_iscsi

BLOCK = 512


def ids(served: Served) -> list[str]:
    return served.on_loop(lambda: [each.id for each in served.listener.connections()])


def test_an_nbd_client_is_disconnected_and_the_others_stay() -> None:
    with serving() as served, served.attached() as first, served.attached() as second:
        [one, two] = ids(served)
        assert served.begin(served.listener.disconnect_id(one)).result(TIMEOUT_S)
        assert first.at_eof()
        assert second.read(0, 4096) == bytes(4096)
        assert ids(served) == [two]
        assert served.begin(served.listener.disconnect_id(one)).result(TIMEOUT_S) is None


def test_an_id_is_not_used_again() -> None:
    with serving() as served:
        with served.attached():
            [before] = ids(served)
        served.until_empty()
        with served.attached():
            assert ids(served) != [before]


def test_what_is_in_a_device_is_answered_first() -> None:
    world = World(deferred=True)
    with serving_iscsi(world=world) as served, served.logged_in() as wire:
        wire.feed(wire.command(cdbs.write(3, 1), write=BLOCK, data=b"z" * BLOCK))
        served.until(lambda: world.rig.device.waiting == 1)
        [session] = served.on_loop(served.listener.sessions)
        assert (session.volumes, session.write_bytes) == ((world.rig.device.name,), BLOCK)
        leaving = served.begin(served.listener.disconnect_id(session.id))
        [message] = wire.take()
        assert (message.opcode, message.bhs[36]) == (pdu.ASYNC, pdu.ASYNC_LOGOUT_REQUEST)
        assert not leaving.done()
        served.on_loop(world.rig.device.finish)
        [answer] = wire.take()
        assert (answer.opcode, answer.bhs[3]) == (pdu.SCSI_RESPONSE, 0)
        assert leaving.result(TIMEOUT_S)
        assert wire.rest() == b""


def test_a_client_whose_device_is_stuck_is_cut() -> None:
    device = MemoryDevice(deferred=True)
    with serving(device=device) as served, served.attached() as client:
        client.send_request(wire.CMD_READ, 0, 4096)
        served.until(lambda: device.waiting == 1)
        [stuck] = served.on_loop(lambda: list(served.listener._clients))
        assert not served.begin(served.listener.disconnect(stuck, 0.01)).result(TIMEOUT_S)
        assert client.at_eof()
        assert ids(served) == []
        served.on_loop(device.finish)  # comes back to nobody


def test_two_who_disconnect_a_client_are_both_told() -> None:
    device = MemoryDevice(deferred=True)
    with serving(device=device) as served, served.attached() as client:
        client.send_request(wire.CMD_READ, 0, 4096)
        served.until(lambda: device.waiting == 1)
        [name] = ids(served)
        both = [served.begin(served.listener.disconnect_id(name)) for _ in range(2)]
        served.on_loop(device.finish)
        assert [each.result(TIMEOUT_S) for each in both] == [True, True]
