"""Configured targets as values: what a change gives, what is refused, to disk and back."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.iscsi.targets import Access, Credentials
from blockd.registry import stored
from blockd.registry.errors import (
    InvalidTarget,
    LunTaken,
    NoSuchEntry,
    NoSuchLun,
    TargetError,
)
from blockd.registry.stored import StoredLun, StoredTarget
from volume.errors import CorruptData, UnknownFormat

NAME = "iqn.2026-11.io.blockd:db"
UUID = "11" * 16
SECRET = b"correct horse"


def target() -> StoredTarget:
    return stored.created(NAME, "", None)


def decoded(value: StoredTarget) -> StoredTarget:
    return stored.decode(value.key, value.encode())


names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=40)
credentials = st.builds(
    Credentials, names, st.binary(min_size=stored.MIN_SECRET, max_size=stored.MAX_SECRET)
)


@given(
    st.builds(
        StoredTarget,
        name=st.just(NAME),
        alias=names,
        redirect=st.none() | st.just("[2001:db8::1]:3260"),
        luns=st.lists(st.builds(StoredLun, st.integers(0, 99), st.just(UUID), names)).map(tuple),
        next_lun=st.integers(0, 100),
        initiators=st.lists(names).map(tuple),
        addresses=st.just(("192.0.2.0/24",)),
        chap=st.lists(credentials).map(tuple),
        mutual=st.none() | credentials,
    )
)
def test_what_is_kept_comes_back(value: StoredTarget) -> None:
    assert decoded(value) == value


def test_what_a_newer_server_has_kept_is_refused() -> None:
    fields = json.loads(target().encode()) | {"version": 2}
    with pytest.raises(UnknownFormat, match="version 2"):
        stored.decode(target().key, json.dumps(fields).encode())


@pytest.mark.parametrize("gone", ["luns", "chap", "alias"])
def test_what_is_damaged_names_its_target(gone: str) -> None:
    fields = json.loads(target().encode())
    del fields[gone]
    with pytest.raises(CorruptData, match=rf"target {NAME} .*'{gone}'; restore meta from a copy"):
        stored.decode(target().key, json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alias", None),
        ("alias", "\ud800"),
        ("redirect", 1),
        ("luns", {}),
        ("luns", [{"lun": 1}]),
        ("luns", [{"lun": "1", "volume": UUID, "ref": ""}]),
        ("luns", [{"lun": -1, "volume": UUID, "ref": ""}]),
        ("luns", [{"lun": 1, "volume": 1, "ref": ""}]),
        ("luns", [{"lun": 1, "volume": UUID, "ref": None}]),
        ("luns", [{"lun": 1, "volume": UUID, "ref": "", "more": 1}]),
        ("next_lun", True),
        ("next_lun", 1.5),
        ("initiators", "iqn.2026-11.io.blockd:all"),
        ("addresses", [1]),
        ("chap", [{"user": 1, "secret": ""}]),
        ("chap", ["user"]),
        ("mutual", []),
        ("mutual", {"user": "a", "secret": 1}),
    ],
)
def test_a_field_of_another_type_is_damage(field: str, value: object) -> None:
    fields = json.loads(target().encode()) | {field: value}
    with pytest.raises(CorruptData, match=NAME):
        stored.decode(target().key, json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"1", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_object_is_damage(data: bytes) -> None:
    with pytest.raises(CorruptData, match=NAME):
        stored.decode(target().key, data)


def test_damage_is_told_without_the_secrets_beside_it() -> None:
    value = stored.with_chap(target(), "user", SECRET, mutual=False)
    data = value.encode()
    for damaged in (data.replace(b'"alias": "', b'"alias": "\xff'), data[:-1]):
        assert SECRET.hex().encode() in damaged
        with pytest.raises(CorruptData) as told:
            stored.decode(value.key, damaged)
        assert SECRET.hex() not in str(told.value)


def test_names_are_kept_without_regard_to_case() -> None:
    assert stored.created(NAME.upper().replace("IQN", "iqn"), "", None).name == NAME


@pytest.mark.parametrize("name", ["", "db", "iqn.2026-11", "iqn.2026-11.io.blockd:" + "x" * 223])
def test_what_is_no_iscsi_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidTarget, match="no iSCSI name"):
        stored.created(name, "", None)


@pytest.mark.parametrize("redirect", ["host", "host:", ":3260", "host:0", "host:65536", "h:x"])
def test_a_redirect_is_an_address(redirect: str) -> None:
    with pytest.raises(InvalidTarget, match="HOST:PORT"):
        stored.created(NAME, "", redirect)


# --- units --------------------------------------------------------------------------------------


def test_a_number_is_not_given_again_by_itself() -> None:
    value = stored.with_lun(stored.with_lun(target(), UUID, "", None), UUID, "", 7)
    value = stored.without_lun(value, 7)
    value = stored.with_lun(value, UUID, "monday", None)
    assert value.luns == (StoredLun(0, UUID), StoredLun(8, UUID, "monday"))
    assert decoded(stored.without_lun(value, 8)).next_lun == 9


def test_a_number_that_is_asked_for_is_given_when_it_is_free() -> None:
    value = stored.with_lun(target(), UUID, "", 3)
    with pytest.raises(LunTaken, match="LUN 3"):
        stored.with_lun(value, UUID, "", 3)
    again = stored.with_lun(stored.without_lun(value, 3), UUID, "", 3)
    assert again.luns == value.luns


@pytest.mark.parametrize("lun", [-1, 0x4000])
def test_numbers_are_those_that_initiators_can_address(lun: int) -> None:
    with pytest.raises(InvalidTarget, match="write 0 to 16383"):
        stored.with_lun(target(), UUID, "", lun)


def test_there_is_a_bound_on_units() -> None:
    value = target()
    for _ in range(stored.MAX_LUNS):
        value = stored.with_lun(value, UUID, "", None)
    with pytest.raises(InvalidTarget, match="the most"):
        stored.with_lun(value, UUID, "", None)


def test_a_number_that_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(NoSuchLun, match="no LUN 0"):
        stored.without_lun(target(), 0)


# --- access lists -------------------------------------------------------------------------------


def test_entries_are_names_and_networks() -> None:
    value = target()
    for entry in ("IQN.1993-08.org.debian:01:ab", "iqn.1993-08.*", "192.0.2.7/24", "2001:db8::1"):
        value = stored.with_entry(value, entry)
        assert stored.with_entry(value, entry) == value
    assert value.initiators == ("iqn.1993-08.org.debian:01:ab", "iqn.1993-08.*")
    assert value.addresses == ("192.0.2.0/24", "2001:db8::1/128")
    for entry in (*value.initiators, *value.addresses):
        value = stored.without_entry(value, entry)
    assert value == target()


@pytest.mark.parametrize("entry", ["", "host", "two words*", "192.0.2.0/33", "host/24"])
def test_what_is_neither_is_refused(entry: str) -> None:
    with pytest.raises(InvalidTarget, match="neither"):
        stored.with_entry(target(), entry)


def test_an_entry_that_is_not_listed_cannot_be_removed() -> None:
    with pytest.raises(NoSuchEntry, match=re.escape("192.0.2.0/24")):
        stored.without_entry(target(), "192.0.2.0/24")


# --- CHAP ---------------------------------------------------------------------------------------


def test_a_user_that_is_set_again_has_another_secret() -> None:
    value = stored.with_chap(target(), "host1", b"some other secret", mutual=False)
    value = stored.with_chap(value, "host1", SECRET, mutual=False)
    assert value.chap == (Credentials("host1", SECRET),)


def test_the_target_proves_itself_only_to_who_does() -> None:
    with pytest.raises(InvalidTarget, match="initiator's secret first"):
        stored.with_chap(target(), "us", SECRET, mutual=True)
    value = stored.with_chap(target(), "host1", SECRET, mutual=False)
    value = stored.with_chap(value, "us", b"battery staple", mutual=True)
    assert value.mutual == Credentials("us", b"battery staple")
    assert stored.without_chap(value, "host1", mutual=False) == target()
    assert stored.without_chap(value, None, mutual=True).mutual is None


def test_both_sides_have_secrets_of_their_own() -> None:
    value = stored.with_chap(target(), "host1", SECRET, mutual=False)
    with pytest.raises(InvalidTarget, match="must differ"):
        stored.with_chap(value, "us", SECRET, mutual=True)
    value = stored.with_chap(value, "us", b"battery staple", mutual=True)
    with pytest.raises(InvalidTarget, match="must differ"):
        stored.with_chap(value, "host2", b"battery staple", mutual=False)


@pytest.mark.parametrize(
    ("user", "secret"),
    [("", SECRET), ("a\nb", SECRET), ("host1", b"x" * 11), ("host1", b"x" * 256)],
)
def test_users_and_secrets_have_lengths_that_initiators_take(user: str, secret: bytes) -> None:
    with pytest.raises(InvalidTarget, match="CHAP"):
        stored.with_chap(target(), user, secret, mutual=False)


def test_a_user_that_is_not_there_cannot_be_cleared() -> None:
    with pytest.raises(NoSuchEntry, match="host1"):
        stored.without_chap(target(), "host1", mutual=False)


def test_no_error_and_no_repr_shows_a_secret() -> None:
    value = stored.with_chap(target(), "host1", SECRET, mutual=False)
    said = repr(value)
    for secret, mutual in ((SECRET, True), (SECRET[:5], False)):
        with pytest.raises(TargetError) as error:
            stored.with_chap(value, "us", secret, mutual=mutual)
        said += str(error.value)
    assert SECRET[:5].decode() not in said


def test_who_has_no_users_of_its_own_has_the_servers() -> None:
    defaults = Access(chap=(Credentials("all", SECRET),), mutual=Credentials("us", SECRET))
    access = stored.with_entry(target(), "192.0.2.0/24").access(defaults)
    assert (access.chap, access.mutual) == (defaults.chap, defaults.mutual)
    assert access.addresses == ("192.0.2.0/24",)
    own = stored.with_chap(target(), "host1", SECRET, mutual=False).access(defaults)
    assert (own.chap, own.mutual) == ((Credentials("host1", SECRET),), None)
