"""Versions through real sockets: opened off the loop, bounded, closed whatever the client does; and
what real clients make of them."""

import json
import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blockd.listener import LOOKUP_THREADS
from blockd.nbd import wire
from blockd.nbd.limits import Limits
from tests.clients import FindTool, finish_tool, run_tool
from tests.fakes import MemoryDevice
from tests.nbd_client import NbdClient, OptionError, export_query, option
from tests.served import LOOPS, Served, serving

MIB = 1 << 20
BLOCK = 4096
VERSION = "disk@monday"
GO = option(wire.OPT_GO, export_query(VERSION))

every_loop = pytest.mark.parametrize("loop", list(LOOPS))


def changed_disk() -> MemoryDevice:
    """8 MiB; blocks 0 and 1 were written before version monday, 1 and 300 after it."""
    device = MemoryDevice(size=8 * MIB)
    device.write(0, b"a" * BLOCK * 2)
    device.snapshot("monday")
    device.write(BLOCK, b"b" * BLOCK)
    device.write(300 * BLOCK, b"c" * BLOCK)
    return device


@contextmanager
def versions(loop: str = "uvloop", **options: Any) -> Iterator[Served]:
    """In the end every version that was opened is closed."""
    with serving(loop, device=changed_disk(), **options) as served:
        yield served
        served.exports.disk.set()
        served.until_empty()
    assert served.exports.leaked == []


def reset(client: NbdClient) -> None:
    """Vanish without a goodbye: the kernel sends RST."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextmanager
def stuck_client(served: Served) -> Iterator[NbdClient]:
    """A client whose version is being opened, by a disk that does not answer."""
    served.exports.disk.clear()
    asked = len(served.exports.asked)
    with served.client() as client:
        client.send_raw(GO)
        served.until(lambda: len(served.exports.asked) > asked)
        yield client


# --- the loop goes on ---------------------------------------------------------------------------


@every_loop
def test_version_is_served_and_listed_as_a_connection(loop: str) -> None:
    with versions(loop) as served, served.client() as client:
        client.go(VERSION)
        assert client.read(0, 3 * BLOCK) == b"a" * 2 * BLOCK + bytes(BLOCK)
        (info,) = served.on_loop(served.listener.connections)
        assert info.export == VERSION
        (version,) = served.exports.opened
        assert served.on_loop(lambda: list(version.clients)) == [info.peer]
        client.disconnect()


@every_loop
def test_others_are_served_while_a_version_is_opened(loop: str) -> None:
    with versions(loop) as served, stuck_client(served) as client:
        with served.attached() as other:
            assert other.read(0, 1) == b"a"
        served.exports.disk.set()
        while client.read_option_reply().reply != wire.REP_ACK:
            pass
        assert client.read(BLOCK, 1) == b"a"


def test_unknown_version_is_refused_and_negotiation_goes_on() -> None:
    with versions() as served, served.client() as client:
        with pytest.raises(OptionError, match="disk@friday"):
            client.go("disk@friday")
        client.go(VERSION)
        client.disconnect()


def test_bug_of_the_store_is_an_answer_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR), versions() as served, served.client() as client:
        served.exports.fail_with = ZeroDivisionError("the bug")
        with pytest.raises(OptionError, match="internal error"):
            client.go(VERSION)
        served.exports.fail_with = None
        client.go(VERSION)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the bug"


# --- bounds -------------------------------------------------------------------------------------


@every_loop
def test_handshake_timeout_holds_while_a_version_is_opened(loop: str) -> None:
    limits = Limits(handshake_timeout_s=0.3)
    with versions(loop, limits=limits) as served, stuck_client(served) as client:
        assert client.at_eof()
        assert len(served.on_loop(served.listener.connections)) == 1, "it still costs a thread"


def test_only_so_many_versions_are_looked_for_at_once() -> None:
    with versions() as served:
        served.exports.disk.clear()
        clients = [served.client() for _ in range(LOOKUP_THREADS + 3)]
        for client in clients:
            client.send_raw(GO)
        served.until(lambda: len(served.exports.asked) == LOOKUP_THREADS)
        with served.attached() as other:  # some turns of the loop later
            other.read(0, 1)
        assert len(served.exports.asked) == LOOKUP_THREADS
        served.exports.disk.set()
        for client in clients:
            while client.read_option_reply().reply != wire.REP_ACK:
                pass
            client.close()


def test_only_so_many_versions_are_open_at_once() -> None:
    with versions(max_open_versions=2) as served:
        clients = [served.client() for _ in range(3)]
        clients[0].go(VERSION)
        clients[1].query_info(VERSION)
        with pytest.raises(OptionError, match="try again later"):
            clients[2].go(VERSION)
        clients[2].go("disk")
        clients[0].disconnect()
        served.until(lambda: len(served.listener.connections()) == 2)
        clients[1].go(VERSION)
        for client in clients:
            client.close()


def test_bytes_of_an_impatient_client_wait_in_its_socket() -> None:
    with versions() as served, stuck_client(served) as client:
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):  # the kernel's buffers are full, ours are not
            client.send_raw(bytes(64 * MIB))
        (info,) = served.on_loop(served.listener.connections)
        assert info.in_flight == 0


# --- clients that leave -------------------------------------------------------------------------


@every_loop
def test_version_opened_for_a_client_that_vanished_is_closed(loop: str) -> None:
    with versions(loop) as served:
        with stuck_client(served) as client:
            reset(client)
        served.exports.disk.set()
        served.until_empty()
        assert [version.closes for version in served.exports.opened] == [1]


@every_loop
def test_client_that_vanishes_attached_closes_its_version(loop: str) -> None:
    with versions(loop) as served:
        client = served.client()
        client.go(VERSION)
        reset(client)
        served.until_empty()
        assert [version.closes for version in served.exports.opened] == [1]


@every_loop
def test_stop_waits_for_questions_and_closes_what_they_opened(loop: str) -> None:
    with serving(loop, device=changed_disk()) as served, stuck_client(served) as client:
        stopping = served.begin(served.listener.stop(0.05))
        client.at_eof()
        served.until(lambda: not served.listener.connections())
        assert not stopping.done()
        served.exports.disk.set()
        stopping.result(5.0)
        assert served.exports.leaked == []
        assert len(served.exports.opened) == 1


# --- real clients -------------------------------------------------------------------------------


def uri(served: Served, name: str) -> str:
    host, port = served.address
    return f"nbd://{host}:{port}/{name}"


def run_json(*command: str | Path) -> Any:
    return json.loads(run_tool(*command))


def dirty_map(qemu_img: str, served: Served, name: str, context: str) -> list[tuple[int, int]]:
    """Where qemu-img sees bit 0 of `context`: as it has no word for it, it says "no data"."""
    host, port = served.address
    server = f"server.type=inet,server.host={host},server.port={port}"
    image = f"driver=nbd,{server},export={name},x-dirty-bitmap={context}"
    extents = run_json(qemu_img, "map", "--output=json", "--image-opts", image)
    return [(each["start"], each["length"]) for each in extents if not each["data"]]


@pytest.mark.parametrize("kind", ["qemu:dirty-bitmap:", "blockd:changed-since:"])
def test_nbdinfo_maps_what_changed(client_tool: FindTool, kind: str) -> None:
    nbdinfo = client_tool("nbdinfo")
    with versions() as served:
        extents = run_json(nbdinfo, f"--map={kind}monday", "--json", uri(served, "disk"))
    changed = [(each["offset"], each["length"]) for each in extents if each["type"] == 1]
    assert changed == [(BLOCK, BLOCK), (300 * BLOCK, BLOCK)]
    assert sum(each["length"] for each in extents) == 8 * MIB


def test_nbdinfo_shows_a_version_and_its_contexts(client_tool: FindTool) -> None:
    nbdinfo = client_tool("nbdinfo")
    with versions() as served:
        (shown,) = run_json(nbdinfo, "--json", "--no-content", uri(served, VERSION))["exports"]
    assert shown["is_read_only"] is True
    assert set(shown["contexts"]) >= {"base:allocation", "qemu:dirty-bitmap:monday"}


def test_nbdinfo_lists_versions_on_request(client_tool: FindTool) -> None:
    nbdinfo = client_tool("nbdinfo")
    with versions(list_versions=True) as served:
        listed = run_json(nbdinfo, "--list", "--json", "--no-content", uri(served, ""))["exports"]
    assert [each["export-name"] for each in listed] == ["disk", VERSION]


def test_nbdinfo_refuses_a_version_that_is_not_there(client_tool: FindTool) -> None:
    nbdinfo = client_tool("nbdinfo")
    with versions() as served:
        missing = finish_tool(nbdinfo, "--size", uri(served, "disk@friday"))
        unmapped = finish_tool(nbdinfo, "--map=qemu:dirty-bitmap:friday", uri(served, "disk"))
    assert "disk@friday" in missing.stderr
    assert unmapped.returncode
    assert "qemu:dirty-bitmap:friday" in unmapped.stderr


def test_qemu_img_maps_what_changed(client_tool: FindTool) -> None:
    qemu_img = client_tool("qemu-img")
    with versions() as served:
        found = dirty_map(qemu_img, served, "disk", "qemu:dirty-bitmap:monday")
    assert found == [(BLOCK, BLOCK), (300 * BLOCK, BLOCK)]


def test_qemu_img_refuses_changes_since_what_is_not_there(client_tool: FindTool) -> None:
    qemu_img = client_tool("qemu-img")
    with versions() as served:
        host, port = served.address
        image = f"driver=nbd,server.type=inet,server.host={host},server.port={port},export=disk"
        context = "x-dirty-bitmap=qemu:dirty-bitmap:friday"
        done = finish_tool(qemu_img, "map", "--image-opts", f"{image},{context}")
    assert done.returncode
    assert "qemu:dirty-bitmap:friday" in done.stderr


def test_incremental_backup_through_qemus_bitmap_is_bit_exact(
    client_tool: FindTool, tmp_path: Path
) -> None:
    """A full copy of monday; then only what changed, from a later version, goes on top of it."""
    qemu_img, nbdcopy = client_tool("qemu-img"), client_tool("nbdcopy")
    backup, now = tmp_path / "backup", tmp_path / "now"
    with versions() as served:
        run_tool(nbdcopy, uri(served, VERSION), backup)
        served.on_loop(lambda: served.device.snapshot("tuesday"))
        served.on_loop(lambda: served.device.write(7 * MIB, b"later"))
        tuesday = "disk@tuesday"
        changed = dirty_map(qemu_img, served, tuesday, "qemu:dirty-bitmap:monday")
        with served.client() as client, backup.open("r+b") as image:
            client.go(tuesday)
            for offset, length in changed:
                image.seek(offset)
                image.write(client.read(offset, length))
        run_tool(qemu_img, "convert", "-f", "raw", "-O", "raw", uri(served, tuesday), now)
    assert backup.read_bytes() == now.read_bytes()
    assert sum(length for _, length in changed) == 2 * BLOCK
    assert b"later" not in now.read_bytes()


def test_nbdcopy_reads_a_version_over_many_connections(
    client_tool: FindTool, tmp_path: Path
) -> None:
    nbdcopy = client_tool("nbdcopy")
    with versions() as served:
        run_tool(nbdcopy, "--connections=4", uri(served, VERSION), tmp_path / "image")
    data = (tmp_path / "image").read_bytes()
    assert data == b"a" * 2 * BLOCK + bytes(8 * MIB - 2 * BLOCK)
