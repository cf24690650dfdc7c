"""What rules grant to whom, and which rules cannot be."""

from dataclasses import fields, replace
from typing import Any

import pytest

from blockd.access import networks
from blockd.access.rules import (
    CONDITIONS,
    MAX_RULES,
    AccessList,
    Client,
    Grant,
    InvalidRule,
    Rule,
    checked,
    checked_rule,
)

SHA256 = "ab" * 32
HOST = "iqn.2026-11.test:host1"
EVERYTHING = Client(
    address=networks.address("192.0.2.7"),
    uid=1000,
    certificate=("alice", "alice.example.org"),
    fingerprint=SHA256,
    psk="ward",
    initiator=HOST,
    chap_user="user1",
)
FITTING = {
    "address": "192.0.2.0/24",
    "uid": 1000,
    "certificate": "alice.example.org",
    "fingerprint": SHA256,
    "psk": "ward",
    "initiator": HOST,
    "chap_user": "user1",
}
OTHERS: dict[str, Any] = {
    "address": networks.address("192.0.3.7"),
    "uid": 0,
    "certificate": ("mallory",),
    "fingerprint": "cd" * 32,
    "psk": "guard",
    "initiator": HOST + "x",
    "chap_user": "user",
}


def rule(name: str) -> Rule:
    return Rule(**{name: FITTING[name]})  # type: ignore[arg-type]


def grant(client: Client, *rules: Rule) -> Grant:
    return AccessList(rules).grant(client)


def client(address: str) -> Client:
    return Client(networks.address(address))


def test_every_condition_is_tried_here() -> None:
    assert set(FITTING) == set(OTHERS) == set(CONDITIONS)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_lets_in_whom_it_fits_alone(name: str) -> None:
    assert grant(EVERYTHING, rule(name)) is Grant.WRITE
    assert grant(replace(EVERYTHING, **{name: OTHERS[name]}), rule(name)) is Grant.NOTHING


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_a_protocol_does_not_tell_fits_nothing(name: str) -> None:
    assert grant(Client(), rule(name)) is Grant.NOTHING


def test_all_conditions_of_a_rule_have_to_fit() -> None:
    both = Rule(address="192.0.2.0/24", initiator=HOST)
    assert grant(EVERYTHING, both) is Grant.WRITE
    for name in ("address", "initiator"):
        assert grant(replace(EVERYTHING, **{name: OTHERS[name]}), both) is Grant.NOTHING


def test_any_rule_will_do() -> None:
    rules = (rule("address"), rule("initiator"))
    for name in ("address", "initiator"):
        assert grant(replace(EVERYTHING, **{name: OTHERS[name]}), *rules) is Grant.WRITE


def test_an_empty_list_lets_nobody_in() -> None:
    assert AccessList().grant(EVERYTHING) is Grant.NOTHING


def test_a_damaged_list_lets_nobody_in() -> None:
    assert AccessList((Rule(),), damaged=True).grant(EVERYTHING) is Grant.NOTHING


def test_a_rule_without_conditions_fits_everybody() -> None:
    assert grant(Client(), Rule()) is Grant.WRITE


def test_who_is_denied_stays_out_whatever_else_fits() -> None:
    rules = (Rule(), rule("address"), Rule(deny=True, initiator=HOST))
    assert grant(EVERYTHING, *rules) is Grant.NOTHING
    assert grant(replace(EVERYTHING, initiator=None), *rules) is Grant.WRITE


def test_to_deny_somebody_lets_nobody_in() -> None:
    assert grant(client("192.0.2.1"), Rule(deny=True, address="10.0.0.0/8")) is Grant.NOTHING


def test_a_grant_to_read_is_as_much_as_the_best_rule_gives() -> None:
    reading = Rule(read_only=True, address="192.0.2.0/24")
    assert grant(EVERYTHING, reading) is Grant.READ
    assert grant(EVERYTHING, reading, rule("initiator")) is Grant.WRITE
    assert grant(EVERYTHING, reading, replace(rule("initiator"), read_only=True)) is Grant.READ


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.1.2.3", "11.0.0.1"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.1"),
        ("2001:db8::/32", "2001:db8::1", "2001:db9::1"),
        ("fe80::/10", "fe80::1%eth0", "::1"),
        ("0.0.0.0/0", "10.1.2.3", "2001:db8::1"),
        ("::/0", "2001:db8::1", "10.1.2.3"),
    ],
)
def test_networks_of_both_kinds(network: str, inside: str, outside: str) -> None:
    wanted = checked_rule(Rule(address=network))
    assert grant(client(inside), wanted) is Grant.WRITE
    assert grant(client(outside), wanted) is Grant.NOTHING


def test_initiators_are_compared_without_case_and_by_their_beginning() -> None:
    wanted = checked_rule(Rule(initiator="IQN.2026-11.test:*"))
    assert grant(EVERYTHING, wanted) is Grant.WRITE
    assert grant(Client(initiator="iqn.2026-12.test:host1"), wanted) is Grant.NOTHING


def test_a_chap_user_that_is_still_to_be_proved_may_be_let_in_and_is_not_denied() -> None:
    coming = Client(initiator=HOST, chap_to_come=True)
    assert grant(coming, rule("chap_user")) is Grant.WRITE
    assert grant(coming, Rule(), Rule(deny=True, chap_user="user1")) is Grant.WRITE
    assert grant(coming, Rule(chap_user="user1", initiator=HOST + "x")) is Grant.NOTHING


# --- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (Rule(address="10.0.0.5/8"), "bits are set behind its prefix"),
        (Rule(address="10.0.0"), "write 192.0.2.0/24"),
        (Rule(address="host1.example.org"), "write 192.0.2.0/24"),
        (Rule(address=""), "write 192.0.2.0/24"),
        (Rule(uid=-1), "number of a user"),
        (Rule(uid=1 << 32), "number of a user"),
        (Rule(certificate=""), "certificate: give 1 to 255"),
        (Rule(certificate="a\nb"), "certificate: give 1 to 255"),
        (Rule(psk="x" * 256), "psk: give 1 to 255"),
        (Rule(chap_user="\x1b[0m"), "chap user: give 1 to 255"),
        (Rule(fingerprint="ab" * 20), "64 hexadecimal digits"),
        (Rule(fingerprint="zz" * 32), "64 hexadecimal digits"),
        (Rule(initiator="host1"), "write an iSCSI name"),
        (Rule(initiator="iqn.2026-11.test:a b*"), "write an iSCSI name"),
        (Rule(initiator="iqn.2026-11.test:\ud800"), "write an iSCSI name"),
        (Rule(initiator="\ud800*"), "write an iSCSI name"),
        (Rule(initiator="a" * 300 + "*"), "write an iSCSI name"),
        (Rule(certificate="\ud800"), "certificate: give 1 to 255"),
        (Rule(address="1" * 60_000), r"1\.\.\.': not a network"),
        (Rule(deny=True, read_only=True, uid=1), "leave out read-only"),
        (Rule(address="10.0.0.1", uid=1), "no client has uid and address"),
        (Rule(uid=1, initiator=HOST), "no client has uid and initiator"),
        (Rule(psk="a", certificate="b"), "no client has psk and certificate"),
        (Rule(initiator=HOST, fingerprint=SHA256), "make a rule of each"),
        (Rule(chap_user="a", psk="b"), "make a rule of each"),
    ],
    ids=str,
)
def test_rules_that_fit_nobody_or_cannot_be_meant_are_refused(wrong: Rule, told: str) -> None:
    with pytest.raises(InvalidRule, match=told):
        checked((wrong,))


def test_rules_are_kept_as_they_are_compared_and_once() -> None:
    colons = "SHA256 Fingerprint=" + ":".join([SHA256[:2].upper()] * 32)
    access = checked(
        (
            Rule(fingerprint=colons),
            Rule(fingerprint=SHA256),
            Rule(initiator="IQN.2026-11.TEST:Host1"),
            Rule(address="::ffff:192.0.2.7"),
        )
    )
    wanted = (
        Rule(fingerprint=SHA256),
        Rule(initiator=HOST),
        Rule(address="192.0.2.7/32"),
    )
    assert access.rules == wanted


def test_a_list_has_a_bound() -> None:
    rules = tuple(Rule(uid=number) for number in range(MAX_RULES + 1))
    assert len(checked(rules[:-1]).rules) == MAX_RULES
    with pytest.raises(InvalidRule, match=f"{MAX_RULES + 1} rules; a volume has {MAX_RULES}"):
        checked(rules)


def test_a_rule_reads_as_a_person_would_say_it() -> None:
    assert str(Rule(address="10.0.0.0/8", read_only=True)) == "allow address=10.0.0.0/8 read-only"
    assert str(Rule(deny=True, chap_user="a")) == "deny chap-user=a"
    assert str(Rule()) == "allow everybody"
    assert {field.name for field in fields(Rule)} == {"deny", "read_only", *CONDITIONS}
