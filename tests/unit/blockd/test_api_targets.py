"""/v1/targets and /v1/sessions over a real socket: what is made, told, refused, and never shown."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockd.api.client import ApiError, Client
from blockd.api.iscsi_types import SessionInfo as Session
from blockd.iscsi.targets import IQN_PREFIX
from tests.fake_node import FakeNode, raw_client
from volume.errors import StoreSealed

DB = IQN_PREFIX + "db"
GiB = 1 << 30
SECRET = "a secret of 24 bytes ok"
OTHER = "another one, long enough"
HOST = "iqn.1993-08.org.debian:01:abc"


@pytest.fixture
def client(node: FakeNode) -> Iterator[Client]:
    node.store.create_volume("vm1", GiB)
    node.store.create_volume("vm2", 2 * GiB, block_size=4096)
    with Client(node.control) as connected:
        yield connected


def refused(code: str) -> "pytest.RaisesExc[ApiError]":
    return pytest.RaisesExc(ApiError, check=lambda error: error.code == code)


# --- targets ------------------------------------------------------------------------------------


def test_every_volume_is_a_target_by_itself(client: Client) -> None:
    first, second = client.targets()
    assert (first.name, second.name) == (IQN_PREFIX + "vm1", IQN_PREFIX + "vm2")
    assert first.automatic
    [lun] = second.luns
    assert (lun.lun, lun.source, lun.size, lun.block_size) == (0, "vm2", 2 * GiB, 4096)
    assert not lun.read_only
    assert len(lun.naa) == 32
    assert client.targets(automatic=False) == []
    assert client.target(IQN_PREFIX + "vm1") == first


def test_a_created_target_has_its_units_in_order(client: Client, node: FakeNode) -> None:
    node.store.snapshots.create("monday", ["vm1"])
    made = client.create_target(DB, alias="the db", luns=["vm1", "vm2", "vm1@monday"])
    assert [(lun.lun, lun.source, lun.read_only) for lun in made.luns] == [
        (0, "vm1", False),
        (1, "vm2", False),
        (2, "vm1@monday", True),
    ]
    assert (made.alias, made.automatic, made.session_count) == ("the db", False, 0)
    assert client.target(DB) == made
    assert client.targets(automatic=False) == [made]
    assert len({lun.naa for lun in made.luns}) == 3


def test_the_same_volume_is_the_same_unit_in_all_targets(client: Client) -> None:
    made = client.create_target(DB, luns=["vm1"])
    assert made.luns[0].naa == client.target(IQN_PREFIX + "vm1").luns[0].naa


def test_a_target_that_cannot_have_all_of_its_units_is_not_made(
    client: Client, node: FakeNode
) -> None:
    with refused("no_such_volume"):
        client.create_target(DB, luns=["vm1", "nothing"])
    with refused("no_such_version"):
        client.create_target(DB, luns=["vm1@nothing"])
    assert client.targets(automatic=False) == []
    assert node.store.states == {}


def test_a_target_is_made_once(client: Client) -> None:
    client.create_target(DB)
    with refused("target_exists"):
        client.create_target(DB.upper())


@pytest.mark.parametrize("name", ["db", "iqn.2026-11", "iqn.2026-11.io.blockd:a b", ""])
def test_a_name_that_is_no_iscsi_name_is_refused(client: Client, name: str) -> None:
    with refused("invalid_target"):
        client.create_target(name)


def test_alias_and_redirect_change_one_by_one(client: Client) -> None:
    client.create_target(DB, alias="old")
    changed = client.change_target(DB, redirect="192.0.2.7:3260")
    assert (changed.alias, changed.redirect) == ("old", "192.0.2.7:3260")
    changed = client.change_target(DB, alias="new", redirect="")
    assert (changed.alias, changed.redirect) == ("new", None)
    with refused("invalid_target"):
        client.change_target(DB, redirect="nowhere")


def test_a_target_that_cannot_have_all_its_units_is_not_kept_for_a_moment(
    client: Client, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr(node.store, "keep", lambda name, _: kept.append(name))
    with refused("no_such_volume"):
        client.create_target(DB, luns=["vm1", "nothing"])
    assert kept == []


def test_a_deleted_target_is_gone(client: Client, node: FakeNode) -> None:
    client.create_target(DB, luns=["vm1"])
    client.delete_target(DB)
    with refused("no_such_target"):
        client.target(DB)
    with refused("no_such_target"):
        client.delete_target(DB)
    assert node.store.states == {}


def test_what_is_not_durable_is_not_so(client: Client, node: FakeNode) -> None:
    client.create_target(DB)
    node.store.fail_with = StoreSealed("a test")
    with refused("store_sealed"):
        client.add_lun(DB, "vm1")
    assert client.target(DB).luns == ()


# --- units --------------------------------------------------------------------------------------


def test_a_number_is_not_given_twice(client: Client) -> None:
    client.create_target(DB, luns=["vm1", "vm2"])
    client.remove_lun(DB, 1)
    assert client.add_lun(DB, "vm2").lun == 2
    assert client.add_lun(DB, "vm1", 1).lun == 1
    assert client.add_lun(DB, "vm1", 9).lun == 9
    assert client.add_lun(DB, "vm1").lun == 10


def test_a_number_that_is_taken_or_cannot_be_is_refused(client: Client) -> None:
    client.create_target(DB, luns=["vm1"])
    with refused("lun_taken"):
        client.add_lun(DB, "vm2", 0)
    for number in (-1, 1 << 14):
        with refused("invalid_target"):
            client.add_lun(DB, "vm2", number)
    with refused("no_such_lun"):
        client.remove_lun(DB, 5)


def test_a_unit_stays_when_its_volume_is_called_otherwise(client: Client) -> None:
    before = client.create_target(DB, luns=["vm1"]).luns[0]
    client.rename_volume("vm1", "vm9")
    assert client.target(DB).luns[0] == replace(before, source="vm9")


def test_a_volume_that_is_a_unit_is_deleted_by_force_only(client: Client, node: FakeNode) -> None:
    client.create_target(DB, luns=["vm1"])
    with refused("volume_is_lun"):
        client.delete_volume("vm1")
    client.delete_volume("vm1", force=True)
    [lun] = client.target(DB).luns
    assert (lun.present, lun.naa, lun.size) == (False, "", 0)
    client.remove_lun(DB, 0)
    assert client.target(DB).luns == ()


def test_a_volume_whose_version_is_a_unit_counts_as_one(client: Client, node: FakeNode) -> None:
    node.store.snapshots.create("monday", ["vm1"])
    client.create_target(DB, luns=["vm1@monday"])
    with refused("volume_is_lun"):
        client.delete_volume("vm1")


# --- access -------------------------------------------------------------------------------------


def test_initiators_and_networks_are_listed_apart(client: Client) -> None:
    client.create_target(DB)
    client.add_acl(DB, HOST.upper())
    client.add_acl(DB, "iqn.1993-08.org.debian:*")
    changed = client.add_acl(DB, "192.0.2.7/24")
    assert changed.initiators == (HOST, "iqn.1993-08.org.debian:*")
    assert changed.addresses == ("192.0.2.0/24",)
    assert client.remove_acl(DB, "192.0.2.0/24").addresses == ()
    with refused("no_such_entry"):
        client.remove_acl(DB, "192.0.2.0/24")
    with refused("invalid_target"):
        client.add_acl(DB, "what is this")


def test_chap_users_come_and_go(client: Client) -> None:
    client.create_target(DB)
    assert client.set_chap(DB, "host", SECRET).chap_users == ("host",)
    both = client.set_chap(DB, "us", OTHER, mutual=True)
    assert (both.chap_users, both.mutual_user) == (("host",), "us")
    assert client.clear_chap(DB, mutual=True).mutual_user is None
    with refused("no_such_entry"):
        client.clear_chap(DB, "nobody")
    assert client.clear_chap(DB).chap_users == ()


@pytest.mark.parametrize(
    ("user", "secret", "mutual"),
    [("host", "too short", False), ("", SECRET, False), ("us", SECRET, True)],
)
def test_a_secret_that_proves_little_is_refused_and_not_repeated(
    client: Client, caplog: pytest.LogCaptureFixture, user: str, secret: str, mutual: bool
) -> None:
    client.create_target(DB)
    client.set_chap(DB, "host", SECRET)
    with refused("invalid_target") as caught, caplog.at_level(logging.DEBUG):
        client.set_chap(DB, user, secret, mutual=mutual)
    assert secret not in str(caught.value)
    assert secret not in caplog.text


def test_no_answer_has_a_secret(client: Client, node: FakeNode, tmp_path: Path) -> None:
    client.create_target(DB)
    client.set_chap(DB, "host", SECRET)
    client.set_chap(DB, "us", OTHER, mutual=True)
    with raw_client(node) as http:
        for path in ("/v1/targets", f"/v1/targets/{DB}", "/v1/sessions", "/v1/status"):
            body = http.get("http://blockd" + path).text
            for secret in (SECRET, OTHER):
                assert secret not in body
                assert secret.encode().hex() not in body
        wrong = {"user": "host", "secret": [SECRET]}
        body = http.put(f"http://blockd/v1/targets/{DB}/chap", json=wrong).text
        assert "invalid_request" in body
        assert SECRET not in body


# --- sessions -----------------------------------------------------------------------------------


def test_sessions_are_listed(client: Client, node: FakeNode) -> None:
    node.initiators = [
        Session(HOST, "00023d000001", 7, DB, "192.0.2.7:999", "host", 3),
        Session(HOST, "00023d000002", 8, None, "192.0.2.7:998", None, 0),
    ]
    first, discovery = client.sessions()
    assert (first.initiator, first.target, first.user, first.commands) == (HOST, DB, "host", 3)
    assert discovery.target is None
