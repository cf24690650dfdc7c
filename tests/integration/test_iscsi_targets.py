"""Targets of a real daemon: made by the CLI, kept over kill -9, guarded by CHAP and access lists;
what becomes of sessions when volumes grow, are put back or deleted."""

import re
import socket
import struct
from pathlib import Path

import pytest

from blockd.iscsi.targets import IQN_PREFIX
from blockd.scsi.reservations import REGISTER
from tests import pr_client
from tests import scsi_cdbs as cdbs
from tests.clients import FindTool, finish_tool, run_tool
from tests.daemon import Daemon, StartDaemon
from tests.iscsi_initiator import Pdu, World
from tests.served_iscsi import Wire

MiB = 1 << 20
BLOCK = 512
SECRET = "correct horse battery"
DB = IQN_PREFIX + "db"
HOST = "iqn.2026-11.test:db1"
READ_KEYS = bytes.fromhex("5e00000000000001000000000000")[:10]


@pytest.fixture
def server(daemon: StartDaemon) -> Daemon:
    return daemon("--volume", "vm1=16M", "--volume", "vm2=32M", "--iscsi", "127.0.0.1:0")


@pytest.fixture
def inquire(client_tool: FindTool) -> str:
    return client_tool("iscsi-inq")


def wire(server: Daemon) -> Wire:
    """A session on the target of vm1."""
    host, port = server.iscsi_address.rsplit(":", 1)
    made = Wire(World(), (host, int(port)))
    made.log_in()
    return made


def url(server: Daemon, target: str, lun: int = 0, user: str = "") -> str:
    return f"iscsi://{user}{server.iscsi_address}/{target}/{lun}"


def asked(session: Wire, cdb: bytes, *, read: int = 0) -> Pdu:
    """The answer, unit attentions passed over."""
    while True:
        [answer] = session.ask(cdb, read=read)
        if not (answer.bhs[3] == 2 and answer.data and sense(answer)[0] == 6):
            return answer


def sense(answer: Pdu) -> tuple[int, int]:
    """Key, and ASC with ASCQ, behind the length of the sense data."""
    data = answer.data[2:]
    return data[2] & 0xF, data[12] << 8 | data[13]


# --- configured targets -------------------------------------------------------------------------


def test_a_target_outlives_kill_9(
    server: Daemon, client_tool: FindTool, inquire: str, tmp_path: Path
) -> None:
    server.run("snapshot", "create", "vm1@monday")
    server.run("target", "create", "db", "--alias", "data base", "--lun", "vm2")
    server.run("target", "lun", "add", "db", "vm1@monday", "--lun", "5")
    server.run("target", "acl", "add", "db", HOST)
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    server.run("target", "chap", "set", "db", "--user", "host1", "--secret-file", str(secret))
    before = server.run_json("target", "show", "db")
    server.kill()
    server.start()
    assert server.run_json("target", "show", "db") == before
    assert SECRET not in str(before) + server.stderr()

    user = f"host1%{SECRET}@"
    assert "BLOCKD" in run_tool(inquire, "-i", HOST, url(server, DB, user=user))
    capacity = client_tool("iscsi-readcapacity16")
    told = run_tool(capacity, "-i", HOST, url(server, DB, 5, user))
    assert re.search(r"Total size:\s*16777216", told), told


def test_who_is_not_listed_or_has_another_secret_stays_out(server: Daemon, inquire: str) -> None:
    server.run("target", "create", "db", "--lun", "vm1")
    server.run("target", "acl", "add", "db", HOST)
    server.run(
        *("target", "chap", "set", "db", "--user", "host1", "--secret-stdin"),
        stdin=SECRET.encode(),
    )
    good = url(server, DB, user=f"host1%{SECRET}@")
    assert run_tool(inquire, "-i", HOST, good)
    for initiator, where in (
        (HOST + "x", good),
        (HOST, url(server, DB)),
        (HOST, url(server, DB, user=f"host1%{SECRET}x@")),
        (HOST, url(server, DB, user=f"host2%{SECRET}@")),
    ):
        assert finish_tool(inquire, "-i", initiator, where).returncode, (initiator, where)
    assert SECRET not in server.stderr()


def test_sessions_are_listed_and_keep_a_target_from_being_deleted(server: Daemon) -> None:
    server.run("target", "create", "vm1", "--lun", "vm2")
    with wire(server) as session:
        [listed] = server.run_json("target", "sessions")
        assert listed["target"] == IQN_PREFIX + "vm1"
        assert server.finish("target", "delete", "vm1").returncode
        server.run("target", "delete", "vm1", "--force")
        assert session.rest() == b""
    assert server.run_json("target", "sessions") == []


# --- volumes under sessions ---------------------------------------------------------------------


def test_a_volume_that_grows_says_so(server: Daemon) -> None:
    with wire(server) as session:
        asked(session, bytes(6))
        server.run("volume", "resize", "vm1", "20M")
        [told] = session.ask(bytes(6))
        assert sense(told) == (6, 0x2A09)
        answer = asked(session, bytes((0x25, *bytes(9))), read=8)
        assert struct.unpack(">II", answer.data) == (20 * MiB // BLOCK - 1, BLOCK)


@pytest.mark.parametrize(
    "change",
    [
        ("volume", "restore", "vm1", "--to", "monday", "--force"),
        ("volume", "delete", "vm1", "--force"),
    ],
    ids=["put back", "deleted"],
)
def test_a_session_learns_that_its_volume_is_gone(server: Daemon, change: list[str]) -> None:
    with wire(server) as session:
        [written] = session.ask(cdbs.write(0, 1), write=BLOCK, data=b"a" * BLOCK)
        assert written.bhs[3] in (0, 2)
        server.run("snapshot", "create", "vm1@monday")
        without_force = [part for part in change if part != "--force"]
        assert server.finish(*without_force).returncode
        server.run(*change)
        assert sense(asked(session, cdbs.read(0, 1), read=BLOCK)) == (2, 0x0403)
        if "restore" in change:
            with wire(server) as again:
                assert asked(again, cdbs.read(0, 1), read=BLOCK).bhs[3] == 0


def test_a_past_version_is_read_and_not_written(server: Daemon, client_tool: FindTool) -> None:
    qemu_io = client_tool("qemu-io")
    run_tool(qemu_io, "-f", "raw", "-c", "write -P 7 0 64k", server.iscsi_url("vm1"))
    server.run("snapshot", "create", "vm1@monday")
    run_tool(qemu_io, "-f", "raw", "-c", "write -P 8 0 64k", server.iscsi_url("vm1"))
    past = server.iscsi_url("vm1:at:monday")
    assert "failed" not in run_tool(qemu_io, "-r", "-f", "raw", "-c", "read -P 7 0 64k", past)
    written = finish_tool(qemu_io, "-f", "raw", "-c", "write -P 9 0 64k", past)
    assert written.returncode or "failed" in written.stdout + written.stderr


def test_persistent_reservations_outlive_kill_9(server: Daemon) -> None:
    with wire(server) as session:
        asked(session, bytes(6))
        registration = pr_client.out_list(0, 0x1234, pr_client.PERSIST)
        [answer] = session.ask(pr_client.out_cdb(REGISTER, 24), write=24, data=registration)
        assert answer.bhs[3] == 0
        server.kill()
    server.start()
    with wire(server) as session:
        told = asked(session, READ_KEYS, read=256)
        assert told.data[4:] == struct.pack(">IQ", 8, 0x1234)


# --- exposure -----------------------------------------------------------------------------------


def test_other_machines_are_not_let_in_without_chap(daemon: StartDaemon) -> None:
    server = daemon("--iscsi", "0.0.0.0:0", start=False)
    done = finish_tool(*server.command())
    assert done.returncode
    assert "--iscsi-chap" in done.stdout + done.stderr


def test_with_chap_users_of_the_server_nobody_discovers_anything_without_one(
    daemon: StartDaemon, client_tool: FindTool, tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.write_text(f"host1:{SECRET}\n")
    users.chmod(0o600)
    server = daemon("--volume", "vm1=16M", "--iscsi", "0.0.0.0:0", "--iscsi-chap", str(users))
    port = server.iscsi_address.rsplit(":", 1)[1]
    server.run("target", "create", "db", "--lun", "vm1")
    listing = client_tool("iscsi-ls")
    assert finish_tool(listing, f"iscsi://127.0.0.1:{port}").returncode
    listed = run_tool(listing, f"iscsi://host1%{SECRET}@127.0.0.1:{port}")
    # Only what somebody made; the portal has the address that the initiator used.
    assert listed.split() == [f"Target:{DB}", f"Portal:127.0.0.1:{port},1"]
    inquire = client_tool("iscsi-inq")
    assert run_tool(inquire, f"iscsi://host1%{SECRET}@127.0.0.1:{port}/{DB}/0")
    assert finish_tool(inquire, f"iscsi://127.0.0.1:{port}/{DB}/0").returncode


def test_a_port_that_is_taken_is_named(daemon: StartDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = finish_tool(*daemon("--iscsi", address, start=False).command())
    assert done.returncode
    assert f"iscsi address {address}" in done.stdout + done.stderr
