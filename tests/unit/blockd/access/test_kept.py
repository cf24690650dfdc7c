"""Access lists on disk: what cannot be read lets nobody in."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.access import kept
from blockd.access.rules import AccessList, Rule

UUID = bytes(range(16))
KEY = kept.volume_key(UUID)
RULES = AccessList((Rule(address="10.0.0.0/8", read_only=True), Rule(deny=True, uid=7), Rule()))


def encoded(**changes: object) -> bytes:
    return json.dumps(json.loads(kept.encode(KEY, RULES)) | changes).encode()


@pytest.mark.parametrize("access", [RULES, AccessList(), kept.DAMAGED])
@pytest.mark.parametrize("key", [KEY, kept.coming_key("vm2")])
def test_a_list_is_read_as_it_was_kept(key: str, access: AccessList) -> None:
    assert kept.decode(key, kept.encode(key, access)) == access


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b"[" * 100_000,
        encoded(version=2),
        encoded(volume="00" * 16),
        encoded(rules=None),
        encoded(rules="allow"),
        encoded(rules={"deny": False}),
        encoded(rules=[7]),
        encoded(rules=[{"deny": 0}]),
        encoded(rules=[{"uid": True}]),
        encoded(rules=[{"address": None}]),
        encoded(rules=[{"address": "10.0.0.1/8"}]),
        encoded(rules=[{"initiator": "IQN.2026-11.test:a"}]),
        encoded(rules=[{"later": "x"}]),
        encoded(rules=[{"uid": 1, "address": "10.0.0.1/32"}]),
        encoded(rules=[{"uid": 1}, {"uid": 1}]),
    ],
)
def test_what_is_not_understood_lets_nobody_in(value: bytes) -> None:
    assert kept.decode(KEY, value) == kept.DAMAGED


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list(value: bytes) -> None:
    assert kept.decode(KEY, value) == kept.DAMAGED
    kept.volume_told(value)


def test_a_list_says_whose_it_is() -> None:
    assert kept.volume_told(kept.encode(KEY, RULES)) == UUID
    assert kept.volume_told(kept.encode(kept.coming_key("vm2"), RULES)) is None
    assert kept.volume_told(b"{}") is None
