"""`blockd volume access ...` and its API against a real control API: lists, errors, exit codes."""

import os
import pwd

import pytest

from blockd.access import kept
from blockd.access.rules import Rule
from blockd.api.client import ApiError, Client
from blockd.cli import exits
from tests.command import Blockd, Result
from tests.fake_node import FakeNode, raw_client

GiB = 1 << 30
SHA256 = "ab" * 32
OPEN = "volume vm1: no access list; all that reach the listeners are let in"


@pytest.fixture(autouse=True)
def volumes(node: FakeNode) -> None:
    for name in ("vm1", "vm2"):
        node.store.create_volume(name, GiB)


def rules(node: FakeNode, volume: str = "vm1") -> tuple[Rule, ...] | None:
    device = node.store.get(volume)
    assert device is not None
    access = node.access.list_of(device)
    return None if access is None else access.rules


def test_a_volume_begins_without_a_list(blockd: Blockd) -> None:
    assert blockd("volume", "access", "show", "vm1") == Result(0, OPEN + "\n", "")
    assert "access        all that reach the listeners" in blockd("volume", "show", "vm1").out


def test_rules_are_added_in_order(node: FakeNode, blockd: Blockd) -> None:
    blockd("volume", "access", "allow", "vm1", "--address", "192.0.2.0/24", "--read-only")
    blockd(
        "volume", "access", "allow", "vm1", "--initiator", "iqn.2026-11.test:*", "--chap-user", "a"
    )
    done = blockd("volume", "access", "deny", "vm1", "--address", "192.0.2.7")
    assert done == Result(0, "volume vm1: 3 rule(s); all others are kept out (rule added)\n", "")
    assert blockd("volume", "access", "show", "vm1").out.splitlines() == [
        "volume vm1: 3 rule(s); all others are kept out",
        "RULE  ACTION  WHO                                        ACCESS",
        "   1  allow   address 192.0.2.0/24                       read-only",
        "   2  allow   initiator iqn.2026-11.test:*, chap-user a  read-write",
        "   3  deny    address 192.0.2.7/32                       none",
    ]
    assert rules(node, "vm2") is None


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--address", "::1"), Rule(address="::1/128")),
        (("--uid", "1000"), Rule(uid=1000)),
        (("--uid", pwd.getpwuid(os.getuid()).pw_name), Rule(uid=os.getuid())),
        (("--certificate", "host1.example.org"), Rule(certificate="host1.example.org")),
        (("--fingerprint", SHA256.upper()), Rule(fingerprint=SHA256)),
        (("--psk", "host1"), Rule(psk="host1")),
        (("--initiator", "IQN.2026-11.test:a"), Rule(initiator="iqn.2026-11.test:a")),
        (("--chap-user", "host1"), Rule(chap_user="host1")),
        (("--everybody", "--read-only"), Rule(read_only=True)),
    ],
    ids=str,
)
def test_every_kind_of_client_can_be_named(
    node: FakeNode, blockd: Blockd, options: tuple[str, ...], rule: Rule
) -> None:
    assert blockd("volume", "access", "allow", "vm1", *options).code == exits.OK
    assert rules(node) == (rule,)


def test_the_last_rule_leaves_a_list_that_lets_nobody_in(node: FakeNode, blockd: Blockd) -> None:
    blockd("volume", "access", "allow", "vm1", "--uid", "0")
    done = blockd("volume", "access", "remove", "vm1", "1")
    assert done.out == "volume vm1: no rule allows anybody; nobody is let in (rule removed)\n"
    assert rules(node) == ()
    done = blockd("volume", "access", "clear", "vm1")
    assert done.out == OPEN + " (list removed)\n"
    assert rules(node) is None


def test_to_deny_without_a_list_is_refused(node: FakeNode, blockd: Blockd) -> None:
    """All others would be shut out as well, or none."""
    done = blockd("volume", "access", "deny", "vm1", "--uid", "0")
    assert done.code == exits.USAGE
    assert "say first who may attach" in done.err
    assert rules(node) is None


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("allow", "vm1"), exits.USAGE, "say whom"),
        (("allow", "vm1", "--everybody", "--uid", "0"), exits.USAGE, "say whom"),
        (("allow", "vm1", "--address", "10.0.0.5/8"), exits.USAGE, "bits are set behind"),
        (("allow", "vm1", "--uid", "nobody-of-that-name"), exits.USAGE, "no user of that name"),
        (("allow", "vm1", "--uid", "1", "--initiator", "iqn.2026-11.a:b"), exits.USAGE, "rule of"),
        (("allow", "none", "--uid", "0"), exits.NOT_FOUND, "none"),
        (("show", "none"), exits.NOT_FOUND, "none"),
        (("clear", "none"), exits.NOT_FOUND, "none"),
        (("deny", "vm1"), exits.USAGE, "say whom"),
        (("remove", "vm1", "1"), exits.USAGE, "there is no rule 1"),
    ],
    ids=str,
)
def test_bad_input_changes_nothing(
    node: FakeNode, blockd: Blockd, arguments: tuple[str, ...], code: int, told: str
) -> None:
    done = blockd("volume", "access", *arguments)
    assert (done.code, told in done.err) == (code, True), done
    assert rules(node) is None


def test_a_damaged_list_is_not_changed_but_made_anew(node: FakeNode, blockd: Blockd) -> None:
    device = node.store.get("vm1")
    assert device is not None
    node.store.states[kept.volume_key(device.volume_uuid)] = b"damaged"
    node.access.__init__(node.store)  # type: ignore[misc] # as at a start
    assert "damaged, nobody is let in" in blockd("volume", "access", "show", "vm1").out
    assert "list damaged" in blockd("volume", "show", "vm1").out
    refused = blockd("volume", "access", "allow", "vm1", "--uid", "0")
    assert (refused.code, "clear vm1" in refused.err) == (exits.USAGE, True)
    blockd("volume", "access", "clear", "vm1")
    assert blockd("volume", "access", "allow", "vm1", "--uid", "0").code == exits.OK
    assert rules(node) == (Rule(uid=0),)


def test_json_is_the_apis(node: FakeNode, blockd: Blockd) -> None:
    shown = blockd("volume", "access", "show", "vm1", "--json").json
    assert shown == {
        "volume": "vm1",
        "rules": None,
        "damaged": False,
        "revision": "none",
        "cut": [],
    }
    changed = blockd("volume", "access", "allow", "vm1", "--uid", "0", "--json").json
    [rule] = changed["rules"]
    assert {name: value for name, value in rule.items() if value} == {}
    assert rule["uid"] == 0


def test_a_change_tells_whom_it_cut(node: FakeNode, blockd: Blockd) -> None:
    async def watch() -> list[str]:
        return ["nbd-3", "iscsi-1"]

    node.access.watch(watch)
    out = blockd("volume", "access", "allow", "vm1", "--uid", "0").out
    assert "(rule added; cut: nbd-3, iscsi-1)" in out


def test_two_changes_of_one_list_are_not_mixed(node: FakeNode) -> None:
    with Client(node.control) as client:
        seen = client.access("vm1")
        client.set_access("vm1", [Rule(uid=0)], seen.revision)
        with pytest.raises(ApiError) as raised:
            client.set_access("vm1", [Rule(uid=1)], seen.revision)
    assert raised.value.code == "access_changed"
    assert rules(node) == (Rule(uid=0),)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"rules": "allow"},
        {"rules": [{"uid": "0"}]},
        {"rules": [{"host": "x"}]},
        {"rules": [{"uid": 1, "address": "10.0.0.1"}]},
        {"rules": [], "later": 1},
    ],
    ids=str,
)
def test_bodies_that_make_no_sense_are_refused(node: FakeNode, body: dict[str, object]) -> None:
    with raw_client(node) as http:
        answer = http.put("/v1/volumes/vm1/access", json=body)
    assert answer.status_code == 422
    assert rules(node) is None


def test_a_volume_can_be_created_closed(node: FakeNode, blockd: Blockd) -> None:
    assert blockd("volume", "create", "vm3", "1M", "--closed").code == exits.OK
    assert rules(node, "vm3") == ()
    assert blockd("volume", "create", "vm3", "1M", "--closed").code == exits.CONFLICT
    assert rules(node, "vm3") == ()


def test_a_clone_has_the_list_and_a_deleted_volume_none(node: FakeNode, blockd: Blockd) -> None:
    blockd("volume", "access", "allow", "vm1", "--uid", "0")
    blockd("volume", "clone", "vm1", "copy")
    assert rules(node, "copy") == (Rule(uid=0),)
    for name in ("vm1", "copy"):
        assert blockd("volume", "delete", name, "--yes").code == exits.OK
    assert node.store.states == {}
