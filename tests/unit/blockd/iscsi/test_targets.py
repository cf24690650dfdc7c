"""Targets: whom an access list lets in, how names are compared, how portals are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.iscsi.names import normalised
from blockd.iscsi.targets import Access, Credentials, Portal

HOST = "iqn.1993-08.org.debian:01:abcdef"
HERE = "192.0.2.7"


def test_an_empty_list_lets_everybody_in() -> None:
    assert Access().admits(HOST, HERE)
    assert Access().admits(HOST, "no address at all")


@pytest.mark.parametrize(
    ("listed", "admitted"),
    [
        (HOST, True),
        (HOST.upper(), True),  # names are compared without regard to case
        ("iqn.1993-08.org.debian:*", True),
        ("IQN.1993-08.ORG.DEBIAN:*", True),
        ("*", True),
        (HOST + "*", True),
        (HOST + "0", False),
        (HOST[:-1], False),  # a beginning is a match with a star only
        ("iqn.1993-08.org.debian:02:*", False),
        ("iqn.*.debian:01:abcdef", False),  # a star matches at the end only
        ("", False),
    ],
)
def test_names_match_as_a_whole_or_up_to_a_star(listed: str, admitted: bool) -> None:
    assert Access(initiators=("iqn.2000-01.other", listed)).admits(HOST, HERE) is admitted
    assert Access(initiators=(listed,)).admits(HOST.upper(), HERE) is admitted


@pytest.mark.parametrize(
    ("networks", "address", "admitted"),
    [
        (("192.0.2.0/24",), HERE, True),
        (("192.0.2.7",), HERE, True),
        (("192.0.2.9/24",), HERE, True),  # bits behind the mask do not matter
        (("198.51.100.0/24", "192.0.2.0/24"), HERE, True),
        (("192.0.2.8/29",), HERE, False),
        (("2001:db8::/32",), HERE, False),
        (("2001:db8::/32",), "2001:db8::7", True),
        (("2001:db8::/32",), "2001:db9::7", False),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("192.0.2.0/24",), "::ffff:192.0.2.7", True),  # IPv4 on a socket for both
        (("::/0",), "::ffff:192.0.2.7", False),
        (("192.0.2.0/24",), "", False),
        (("192.0.2.0/24",), "unix", False),
    ],
)
def test_addresses_are_matched_by_network(
    networks: tuple[str, ...], address: str, admitted: bool
) -> None:
    assert Access(addresses=networks).admits(HOST, address) is admitted


def test_name_and_address_have_to_match_both() -> None:
    access = Access(initiators=(HOST,), addresses=("192.0.2.0/24",))
    assert access.admits(HOST, HERE)
    assert not access.admits(HOST, "198.51.100.1")
    assert not access.admits("iqn.2000-01.other", HERE)


@pytest.mark.parametrize("network", ["10.0.0.0/99", "example.org", "", "10.0.0"])
def test_a_network_that_is_none_is_refused_when_the_list_is_made(network: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        Access(addresses=("192.0.2.0/24", network))


@given(st.text(), st.text())
def test_any_name_and_address_get_an_answer(name: str, address: str) -> None:
    access = Access(initiators=("iqn.2000-01.other:*",), addresses=("192.0.2.0/24",))
    assert access.admits(name, address) in (True, False)


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("IQN.1993-08.org.Debian:01:ABC", "iqn.1993-08.org.debian:01:abc"),
        ("eui.02004567A425678D", "eui.02004567a425678d"),
        ("iqn.2001-04.com.example:\N{LATIN CAPITAL LETTER E WITH ACUTE}", None),
    ],
)
def test_names_are_compared_in_one_case(name: str, compared: str | None) -> None:
    assert normalised(name) == (compared or name.lower())


def test_composed_and_decomposed_letters_are_the_same_name() -> None:
    decomposed = "iqn.2001-04.com.example:e\N{COMBINING ACUTE ACCENT}"
    assert normalised(decomposed) == "iqn.2001-04.com.example:\N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.mark.parametrize(
    ("portal", "written"),
    [
        (Portal("192.0.2.1", 3260, 1), "192.0.2.1:3260,1"),
        (Portal("2001:db8::1", 3260, 2), "[2001:db8::1]:3260,2"),
        (Portal("storage.example", 860, 65535), "storage.example:860,65535"),
    ],
)
def test_portals_are_written_as_target_addresses(portal: Portal, written: str) -> None:
    assert str(portal) == written


def test_secrets_are_not_shown() -> None:
    access = Access(chap=(Credentials("host1", b"a secret of host1"),))
    assert "a secret" not in f"{access!r} {access.chap[0]}"
    assert "host1" in repr(access)
