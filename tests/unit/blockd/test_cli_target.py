"""`blockd target ...` against a real control API: output, errors, exit codes, where secrets go."""

import io
import sys
from pathlib import Path

import pytest

from blockd.api.iscsi_types import SessionInfo
from blockd.cli import exits
from blockd.iscsi.targets import IQN_PREFIX
from blockd.iscsi_attach import PREFIX
from tests.command import Blockd, Result
from tests.fake_node import FakeNode

DB = IQN_PREFIX + "db"
GiB = 1 << 30
SECRET = "sixteen bytes ok"
HOST = "iqn.1993-08.org.debian:01:abc"


@pytest.fixture(autouse=True)
def volumes(node: FakeNode) -> None:
    node.store.create_volume("vm1", GiB)
    node.store.create_volume("vm2", 2 * GiB)


def secret_of(node: FakeNode, user: str) -> bytes:
    [found] = [each for each in node.targets.named(DB).target.access.chap if each.user == user]
    return found.secret


def secret_file(folder: Path, content: bytes) -> str:
    path = folder / "secret"
    path.touch(mode=0o600)
    path.write_bytes(content)
    return str(path)


def test_the_prefix_is_the_engines() -> None:
    assert PREFIX == IQN_PREFIX


def test_a_target_is_created_by_its_short_name(node: FakeNode, blockd: Blockd) -> None:
    result = blockd("target", "create", "db", "--lun", "vm1", "--lun", "vm2", "--alias", "a db")
    assert result == Result(0, f"created target {DB}, 2 LUNs\n", "")
    assert node.targets.named(DB).target.alias == "a db"


def test_a_foreign_name_is_taken_as_it_is(node: FakeNode, blockd: Blockd) -> None:
    name = "iqn.2001-04.com.example:storage.disk1"
    assert blockd("target", "create", name).code == exits.OK
    assert [each.stored.name for each in node.targets.configured()] == [name]


def test_list_shows_what_was_created_and_with_all_what_is_there(blockd: Blockd) -> None:
    blockd("target", "create", "db", "--lun", "vm1")
    assert blockd("target", "list").out.splitlines() == [
        "TARGET                    LUNS  UNITS  ACCESS  SESSIONS",
        "iqn.2026-11.io.blockd:db     1  vm1    all            0",
    ]
    names = [line.split()[0] for line in blockd("target", "list", "--all").out.splitlines()[1:]]
    assert names == [DB, IQN_PREFIX + "vm1", IQN_PREFIX + "vm2"]
    assert [each["name"] for each in blockd("target", "list", "--json").json] == [DB]


def test_show_has_units_access_and_commands(blockd: Blockd) -> None:
    blockd("target", "create", "db", "--lun", "vm2")
    blockd("target", "acl", "add", "db", HOST)
    out = blockd("target", "show", "db").out
    assert f"initiators   {HOST}" in out
    assert "chap         not asked for" in out
    assert "  0  vm2     2 GiB" in out
    assert f"sudo iscsiadm -m node -T {DB} -p 127.0.0.1:3260 --login" in out
    assert f"qemu-img info iscsi://127.0.0.1:3260/{DB}/0" in out


def test_show_knows_the_target_that_a_volume_has_by_itself(blockd: Blockd) -> None:
    out = blockd("target", "show", "vm1").out
    assert "by itself, for the volume" in out
    assert blockd("target", "show", "vm1", "--json").json["automatic"] is True


def test_with_chap_the_commands_leave_room_for_a_secret(blockd: Blockd, tmp_path: Path) -> None:
    blockd("target", "create", "db", "--lun", "vm1")
    file = secret_file(tmp_path, SECRET.encode() + b"\n")
    blockd("target", "chap", "set", "db", "--user", "host", "--secret-file", file)
    out = blockd("target", "show", "db").out
    assert "-n node.session.auth.password -v SECRET" in out
    assert "iscsi://USER%SECRET@127.0.0.1:3260/" in out
    assert SECRET not in out


def test_alias_and_redirect_are_changed(node: FakeNode, blockd: Blockd) -> None:
    blockd("target", "create", "db")
    assert blockd("target", "change", "db", "--redirect", "192.0.2.7:3260").code == exits.OK
    assert node.targets.named(DB).target.redirect == "192.0.2.7:3260"
    blockd("target", "change", "db", "--redirect", "")
    assert node.targets.named(DB).target.redirect is None


def test_a_deleted_target_is_not_there(blockd: Blockd) -> None:
    blockd("target", "create", "db")
    assert blockd("target", "delete", "db").out == f"deleted target {DB}\n"
    result = blockd("target", "delete", "db")
    assert result.code == exits.NOT_FOUND
    assert result.err.startswith(f"blockd: target {DB}: there is none")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("target", "create", "db"), exits.CONFLICT),
        (("target", "create", "no good"), exits.USAGE),
        (("target", "create", "x", "--lun", "nothing"), exits.NOT_FOUND),
        (("target", "show", "nothing"), exits.NOT_FOUND),
        (("target", "lun", "add", "db", "vm1", "--lun", "0"), exits.CONFLICT),
        (("target", "lun", "remove", "db", "7"), exits.NOT_FOUND),
        (("target", "acl", "remove", "db", HOST), exits.NOT_FOUND),
        (("target", "acl", "add", "db", "what?"), exits.USAGE),
        (("volume", "delete", "vm1", "--yes"), exits.CONFLICT),
    ],
)
def test_what_cannot_be_done_has_its_exit_code(
    blockd: Blockd, arguments: tuple[str, ...], code: int
) -> None:
    blockd("target", "create", "db", "--lun", "vm1")
    result = blockd(*arguments)
    assert result.code == code, result
    assert result.out == ""
    assert result.err.count("\n") == 1


# --- units --------------------------------------------------------------------------------------


def test_units_come_and_go(node: FakeNode, blockd: Blockd) -> None:
    node.store.snapshots.create("monday", ["vm1"])
    blockd("target", "create", "db", "--lun", "vm1")
    assert blockd("target", "lun", "add", "db", "vm1@monday").out == (
        "target db: LUN 1 is vm1@monday\n"
    )
    assert blockd("target", "lun", "add", "db", "vm2", "--lun", "5", "--json").json["lun"] == 5
    lines = blockd("target", "lun", "list", "db").out.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["0", "vm1"], ["1", "vm1@monday"], ["5", "vm2"]]
    assert ["read-only" in line for line in lines] == [False, True, False]
    assert blockd("target", "lun", "remove", "db", "1").out == "target db: LUN 1 removed\n"


def test_a_unit_whose_volume_is_gone_is_shown_so(blockd: Blockd) -> None:
    blockd("target", "create", "db", "--lun", "vm1")
    blockd("volume", "delete", "vm1", "--force")
    assert " gone " in blockd("target", "lun", "list", "db").out
    assert "(gone)" in blockd("target", "list").out


# --- access -------------------------------------------------------------------------------------


def test_access_lists(blockd: Blockd) -> None:
    blockd("target", "create", "db")
    assert blockd("target", "acl", "add", "db", HOST).out == f"target db: {HOST} may log in\n"
    blockd("target", "acl", "add", "db", "192.0.2.0/24")
    assert blockd("target", "acl", "list", "db").out.splitlines() == [HOST, "192.0.2.0/24"]
    assert blockd("target", "acl", "list", "db", "--json").json == {
        "initiators": [HOST],
        "addresses": ["192.0.2.0/24"],
    }
    blockd("target", "acl", "remove", "db", HOST)
    out = blockd("target", "acl", "remove", "db", "192.0.2.0/24").out
    assert out == "target db: 192.0.2.0/24 removed; the list is empty: all may\n"


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file(
    node: FakeNode, blockd: Blockd, tmp_path: Path, ending: str
) -> None:
    blockd("target", "create", "db")
    file = secret_file(tmp_path, (SECRET + ending).encode())
    result = blockd("target", "chap", "set", "db", "--user", "host", "--secret-file", file)
    assert result == Result(0, "target db: initiators prove themselves as host\n", "")
    assert secret_of(node, "host") == SECRET.encode()


def test_a_secret_comes_from_standard_input(
    node: FakeNode, blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    blockd("target", "create", "db")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SECRET.encode() + b"\n")))
    assert (
        blockd("target", "chap", "set", "db", "--user", "host", "--secret-stdin").code == exits.OK
    )
    assert secret_of(node, "host") == SECRET.encode()


def test_without_a_terminal_a_secret_is_not_asked_for(
    blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    blockd("target", "create", "db")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SECRET.encode())))
    result = blockd("target", "chap", "set", "db", "--user", "host")
    assert result.code == exits.USAGE
    assert "--secret-file" in result.err


def test_no_option_takes_a_secret(blockd: Blockd) -> None:
    result = blockd("target", "chap", "set", "db", "--user", "host", "--secret", SECRET)
    assert result.code == exits.USAGE


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"short", exits.USAGE), (b"x" * 5000, exits.USAGE), (b"\xff" * 16, exits.USAGE)],
)
def test_what_is_no_secret_is_refused_and_not_shown(
    blockd: Blockd, tmp_path: Path, content: bytes, code: int
) -> None:
    blockd("target", "create", "db")
    file = secret_file(tmp_path, content)
    result = blockd("target", "chap", "set", "db", "--user", "host", "--secret-file", file)
    assert result.code == code
    assert content.decode(errors="replace") not in result.err


def test_a_secret_file_that_is_not_there_is_named(blockd: Blockd) -> None:
    result = blockd(
        "target", "chap", "set", "db", "--user", "host", "--secret-file", "/nothing/here"
    )
    assert result.code == exits.USAGE
    assert "secret file /nothing/here: No such file or directory" in result.err


def test_a_secret_file_that_others_can_read_is_refused(blockd: Blockd, tmp_path: Path) -> None:
    blockd("target", "create", "db")
    file = secret_file(tmp_path, SECRET.encode())
    Path(file).chmod(0o644)
    result = blockd("target", "chap", "set", "db", "--user", "host", "--secret-file", file)
    assert result.code == exits.USAGE
    assert f"secret file {file}: mode 0644 opens it to others; run: chmod 600 {file}" in result.err


def test_chap_is_cleared(node: FakeNode, blockd: Blockd, tmp_path: Path) -> None:
    blockd("target", "create", "db")
    for user, options in (("host", ()), ("us", ("--mutual",))):
        file = secret_file(tmp_path, f"{user} {SECRET}".encode())
        assert (
            blockd(
                "target", "chap", "set", "db", "--user", user, "--secret-file", file, *options
            ).code
            == 0
        )
    assert node.targets.named(DB).target.access.mutual is not None
    assert blockd("target", "chap", "clear", "db", "--mutual").out == (
        "target db: CHAP users: host\n"
    )
    assert blockd("target", "chap", "clear", "db").out == (
        "target db: CHAP users: none, initiators log in without\n"
    )
    assert blockd("target", "chap", "clear", "db", "--user", "x", "--mutual").code == exits.USAGE


# --- who is logged in, and how to ----------------------------------------------------------------


def test_sessions_are_listed_there_and_in_the_status(node: FakeNode, blockd: Blockd) -> None:
    node.initiators = [
        SessionInfo(HOST, "00023d000001", 7, DB, "192.0.2.7:999", "host", 3),
        SessionInfo(HOST, "00023d000002", 8, None, "192.0.2.7:998", None, 0),
    ]
    lines = blockd("target", "sessions").out.splitlines()
    assert lines[1].split() == [HOST, "db", "192.0.2.7:999", "host", "00023d000001", "3"]
    assert "(discovery)" in lines[2]
    status = blockd("status").out.splitlines()
    assert status[-3:] == lines
    assert "connections   0 nbd, 2 iscsi sessions" in status
    assert len(blockd("status", "--json").json["sessions"]) == 2


def test_a_volume_shows_how_initiators_attach_it(blockd: Blockd) -> None:
    out = blockd("volume", "show", "vm1").out
    assert f"attach by iscsi://127.0.0.1:3260/{IQN_PREFIX}vm1/0" in out
    assert "  sudo iscsiadm -m discovery -t sendtargets -p 127.0.0.1:3260" in out
    assert f"  sudo iscsiadm -m node -T {IQN_PREFIX}vm1 -p 127.0.0.1:3260 --login" in out
