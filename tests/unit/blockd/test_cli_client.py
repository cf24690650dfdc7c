"""`blockd client ...` against a real control API: who is listed, who is disconnected, errors."""

from dataclasses import replace

import pytest

from blockd.api.iscsi_types import SessionInfo
from blockd.api.types import ConnectionInfo
from blockd.cli import exits
from blockd.iscsi.targets import IQN_PREFIX
from tests.command import Blockd, Result
from tests.fake_node import FakeNode

GiB = 1 << 30
HOST = "iqn.1993-08.org.debian:01:abc"
NBD = ConnectionInfo(
    "10.0.0.1:5", "vm1", True, ("host1",), 12.5, 3, 1, 4096, 2, 8192, 0, "nbd-4", 5
)
ISCSI = SessionInfo(
    *(HOST, "00023d000001", 7, IQN_PREFIX + "db", "10.0.0.2:9", None, 3, "iscsi-7"),
    *(("vm1", "vm2"), 61.0, 2, 1024, 3, 2048, 1),
)


@pytest.fixture(autouse=True)
def clients(node: FakeNode) -> None:
    node.store.create_volume("vm1", GiB)
    node.store.create_volume("vm2", GiB)
    node.clients = [
        NBD,
        replace(NBD, id="nbd-5", export="vm1@monday"),
        replace(NBD, id="nbd-6", export=None, names=(), tls=False),
        replace(NBD, id="nbd-7", export="vm2"),
    ]
    node.initiators = [ISCSI, replace(ISCSI, id="iscsi-8", target=None, volumes=())]


def test_both_protocols_are_in_one_list(blockd: Blockd) -> None:
    lines = blockd("client", "list").out.splitlines()
    assert lines[1].split() == (
        ["nbd-4", "vm1", "10.0.0.1:5", "host1", "12.5", "s", "3", "5", "4", "KiB", "8", "KiB", "0"]
    )
    assert lines[3].split()[:4] == ["nbd-6", "(negotiating)", "10.0.0.1:5", "-"]
    session = f"iscsi-7 vm1,vm2 10.0.0.2:9 {HOST} 0:01:01 3 5 1 KiB 2 KiB 1"
    assert " ".join(lines[5].split()) == session
    assert lines[6].split()[:2] == ["iscsi-8", "(discovery)"]


def test_programs_are_told_the_same(blockd: Blockd) -> None:
    told = blockd("client", "list", "--json").json
    assert [each["id"] for each in told["connections"]] == ["nbd-4", "nbd-5", "nbd-6", "nbd-7"]
    assert [each["id"] for each in told["sessions"]] == ["iscsi-7", "iscsi-8"]


def test_one_client_is_disconnected(node: FakeNode, blockd: Blockd) -> None:
    assert blockd("client", "disconnect", "nbd-4") == Result(
        0, "client nbd-4 is disconnected\n", ""
    )
    assert [each.id for each in node.clients] == ["nbd-5", "nbd-6", "nbd-7"]
    gone = blockd("client", "disconnect", "nbd-4")
    assert (gone.code, gone.out) == (exits.NOT_FOUND, "")
    assert "client nbd-4: there is none (any more)" in gone.err


def test_all_clients_of_a_volume_are_disconnected(node: FakeNode, blockd: Blockd) -> None:
    node.slow = {"nbd-5"}
    assert blockd("client", "disconnect", "--volume", "vm1").out.splitlines() == [
        "client nbd-4 is disconnected",
        "client nbd-5 is cut",
        "client iscsi-7 is disconnected",
    ]
    assert [each.id for each in node.clients] == ["nbd-6", "nbd-7"]
    assert blockd("client", "disconnect", "--volume", "vm1").out == "volume vm1 has no clients\n"


def test_only_those_of_a_version_are_disconnected(blockd: Blockd) -> None:
    done = blockd("client", "disconnect", "--volume", "vm1@monday", "--json")
    assert done.json == {"ids": ["nbd-5"], "cut": []}


def test_what_is_not_there_is_said(blockd: Blockd) -> None:
    assert blockd("client", "disconnect", "--volume", "x").code == exits.NOT_FOUND
    for name in ("a/b c", "", "..", "nbd-44"):
        assert blockd("client", "disconnect", name).code == exits.NOT_FOUND


def test_one_of_both_has_to_be_named(node: FakeNode, blockd: Blockd) -> None:
    assert blockd("client", "disconnect").code == exits.USAGE
    assert blockd("client", "disconnect", "nbd-4", "--volume", "vm1").code == exits.USAGE
    assert len(node.clients) == 4
