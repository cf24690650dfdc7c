"""Access lists over real sockets: who a client is, and whom a change ends."""

import logging
import os
from pathlib import Path

import pytest

from blockd.access.rules import AccessList, Rule
from blockd.nbd import wire
from tests import scsi_cdbs as cdbs
from tests.fakes import FakeAccess, MemoryDevice
from tests.iscsi_initiator import NAME, World
from tests.nbd_client import NbdClient, OptionError
from tests.served import TIMEOUT_S, Served, serving
from tests.served_iscsi import ServedIscsi, serving_iscsi

LOCAL = Rule(address="127.0.0.0/8")
BLOCK = 512


def bar(served: Served | ServedIscsi) -> list[str]:
    return served.begin(served.listener.bar()).result(TIMEOUT_S)


def test_a_client_on_tcp_has_its_address() -> None:
    access = FakeAccess()
    with serving(access=access) as served:
        access.put("disk", LOCAL)
        served.attached().close()
        access.put("disk", Rule(address="10.0.0.0/8"))
        with served.client() as client, pytest.raises(OptionError):
            client.go("disk")


def test_a_client_on_a_unix_socket_has_its_user(socket_dir: Path) -> None:
    access = FakeAccess()
    with serving(access=access, unix=socket_dir / "s") as served:
        access.put("disk", Rule(uid=os.getuid()))
        with NbdClient(served.path) as client:
            client.greet()
            client.go("disk")
        access.put("disk", Rule(uid=os.getuid() + 1), LOCAL)
        with NbdClient(served.path) as client:
            client.greet()
            with pytest.raises(OptionError):
                client.go("disk")


def test_who_is_kept_out_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    access = FakeAccess({"disk": AccessList()})
    with serving(access=access) as served, served.client() as client:
        with pytest.raises(OptionError):
            client.go("disk")
        served.until(lambda: "nbd client not let in" in caplog.text)
    [record] = [each for each in caplog.records if each.message == "nbd client not let in"]
    assert (record.__dict__["volume"], record.levelno) == ("disk", logging.WARNING)
    assert record.__dict__["peer"].startswith("127.0.0.1:")


def test_a_change_ends_who_is_not_let_in_any_more(caplog: pytest.LogCaptureFixture) -> None:
    access = FakeAccess()
    with serving(access=access) as served, served.attached() as client:
        access.put("disk", LOCAL)
        assert bar(served) == []
        assert client.read(0, 4096) == bytes(4096)
        access.put("disk")
        assert bar(served) == ["nbd-1"]
        assert client.at_eof()
        assert bar(served) == []
    assert "nbd client ended, it is not let in any more" in caplog.text


def test_a_change_finishes_what_is_in_flight_first() -> None:
    access, device = FakeAccess(), MemoryDevice(deferred=True)
    with serving(access=access, device=device) as served, served.attached() as client:
        client.send_request(wire.CMD_WRITE, 0, 4096, payload=b"x" * 4096)
        served.until(lambda: device.waiting == 1)
        access.put("disk")
        ending = served.begin(served.listener.bar())
        served.on_loop(device.finish)
        assert client.read_reply().error == 0
        assert ending.result(TIMEOUT_S) == ["nbd-1"]
        assert client.at_eof()


def test_a_writer_who_may_read_only_from_now_on_is_ended_and_a_reader_stays() -> None:
    access = FakeAccess()
    reading = Rule(read_only=True)
    with serving(access=access) as served, served.attached() as writer:
        access.put("disk", reading)
        with served.attached() as reader:
            assert bar(served) == ["nbd-1"]
            assert writer.at_eof()
            assert reader.read(0, 4096) == bytes(4096)
            access.put("disk", Rule())
            assert bar(served) == []
            assert reader.read(0, 4096) == bytes(4096)


def test_a_client_that_negotiates_is_asked_again_when_it_attaches() -> None:
    access = FakeAccess()
    with serving(access=access) as served, served.client() as client:
        client.query_info("disk")
        access.put("disk")
        assert bar(served) == []
        with pytest.raises(OptionError):
            client.go("disk")


def test_a_change_ends_an_iscsi_session(caplog: pytest.LogCaptureFixture) -> None:
    access, world = FakeAccess(), World()
    name = world.rig.device.name
    with serving_iscsi(world=world, access=access) as served, served.logged_in() as wire_:
        access.put(name, Rule(initiator=NAME), LOCAL)
        assert bar(served) == []
        [answer] = wire_.ask(cdbs.read(0, 1), read=BLOCK)
        assert len(answer.data) == BLOCK
        access.put(name, Rule(initiator=NAME, read_only=True))
        [session] = served.on_loop(served.listener.sessions)
        assert bar(served) == [session.id]
        assert wire_.rest() == b""
    assert "iscsi session ended, it is not let in any more" in caplog.text
