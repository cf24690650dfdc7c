"""Rules, and what they grant to a client.

    no list     the volume is as open as the listeners that the client came through
    a list      lets in whom an allow rule fits, unless a deny rule fits him as well; read-only when
                all the allow rules that fit are
    damaged     lets nobody in

A rule is a set of conditions, and fits a client when all of them do; without any it fits everybody.
What a protocol does not tell fits no condition: an initiator has no certificate, a client of a unix
socket no address. So rules of several protocols stand side by side in one list.
"""

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Final

from blockd.access import networks
from blockd.access.networks import Address
from blockd.iscsi import names

MAX_RULES: Final = 256  # of a volume; every client that attaches is compared with all of them
MAX_TEXT: Final = 255  # characters of a name in a certificate, of a key, of a CHAP user
MAX_UID: Final = (1 << 32) - 2  # the last one means "no user"
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")


class Grant(enum.IntEnum):
    """What a client may do with a volume; more is greater."""

    NOTHING = 0
    READ = 1
    WRITE = 2


class AccessError(Exception):
    """A rule, or a change of a list, that cannot be. `code` is stable and machine-readable."""

    code = "access_error"


class InvalidRule(AccessError):
    code = "invalid_rule"


class AccessChanged(AccessError):
    """Somebody else was quicker."""

    code = "access_changed"

    def __init__(self, volume: str) -> None:
        super().__init__(
            f"volume {volume}: its access list is not the one that was looked at; "
            f"see `blockd volume access show {volume}`, and try again"
        )


@dataclass(frozen=True, slots=True)
class Client:
    """What is known of somebody who wants to attach; nothing where the protocol tells nothing."""

    address: Address | None = None
    uid: int | None = None
    """User at the other end of a unix socket."""
    certificate: tuple[str, ...] = ()
    """Names in the TLS certificate that it proved to have."""
    fingerprint: str | None = None
    """SHA-256 of that certificate, in hexadecimal."""
    psk: str | None = None
    """Identity of its pre-shared key."""
    initiator: str | None = None
    """iSCSI name, normalised. Anybody can say any."""
    chap_user: str | None = None
    """Whom it proved to be."""
    chap_to_come: bool = False
    """It may still prove to be any CHAP user: allow rules for one fit, deny rules do not."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions, as the control API has them; None is no condition."""

    deny: bool = False
    read_only: bool = False
    """Of an allow rule: whoever comes in by it may only read."""
    address: str | None = None
    """Network of a TCP client, as 192.0.2.0/24."""
    uid: int | None = None
    """User id of a client of a unix socket."""
    certificate: str | None = None
    """Name in the client's TLS certificate: common name, DNS, URI or e-mail name."""
    fingerprint: str | None = None
    """SHA-256 of the client's certificate, 64 hexadecimal digits."""
    psk: str | None = None
    """Identity of the client's pre-shared key."""
    initiator: str | None = None
    """iSCSI name, or its beginning and '*'."""
    chap_user: str | None = None
    """Whom an initiator has proved to be, by CHAP."""

    @property
    def conditions(self) -> dict[str, str | int]:
        """Those that there are, by name."""
        found = ((name, getattr(self, name)) for name in CONDITIONS)
        return {name: value for name, value in found if value is not None}

    def fits(self, client: Client) -> bool:
        return all(
            getattr(self, name) is None or condition(self, client)
            for name, condition in _FITS.items()
        )

    def __str__(self) -> str:
        """As operators read it: `allow address=192.0.2.0/24 read-only`."""
        words = ["deny" if self.deny else "allow"]
        words += [f"{name.replace('_', '-')}={value}" for name, value in self.conditions.items()]
        if len(words) == 1:
            words.append("everybody")
        return " ".join(words) + (" read-only" if self.read_only else "")


CONDITIONS: Final = tuple(
    field.name for field in fields(Rule) if field.name not in ("deny", "read_only")
)


def _fits_address(rule: Rule, client: Client) -> bool:
    assert rule.address is not None
    return client.address is not None and client.address in networks.network(rule.address)


def _fits_initiator(rule: Rule, client: Client) -> bool:
    assert rule.initiator is not None
    return client.initiator is not None and names.matches(rule.initiator, client.initiator)


def _fits_chap_user(rule: Rule, client: Client) -> bool:
    if client.chap_to_come:
        return not rule.deny
    return client.chap_user == rule.chap_user


_FITS: Final[dict[str, Callable[[Rule, Client], bool]]] = {
    "address": _fits_address,
    "uid": lambda rule, client: client.uid == rule.uid,
    "certificate": lambda rule, client: rule.certificate in client.certificate,
    "fingerprint": lambda rule, client: client.fingerprint == rule.fingerprint,
    "psk": lambda rule, client: client.psk == rule.psk,
    "initiator": _fits_initiator,
    "chap_user": _fits_chap_user,
}


@dataclass(frozen=True, slots=True)
class AccessList:
    """The rules of one volume, in the order they came; none of them: nobody is let in."""

    rules: tuple[Rule, ...] = ()
    damaged: bool = False
    """It cannot be read: nobody is let in until it is made anew."""

    def grant(self, client: Client) -> Grant:
        allowing = [rule for rule in self.rules if not rule.deny and rule.fits(client)]
        if self.damaged or not allowing:
            return Grant.NOTHING
        if any(rule.deny and rule.fits(client) for rule in self.rules):
            return Grant.NOTHING
        return Grant.READ if all(rule.read_only for rule in allowing) else Grant.WRITE


def checked(rules: tuple[Rule, ...]) -> AccessList:
    """A list of these rules, written as rules are compared, each once. InvalidRule."""
    found = tuple(dict.fromkeys(map(checked_rule, rules)))
    if len(found) > MAX_RULES:
        raise InvalidRule(f"{len(found)} rules; a volume has {MAX_RULES} at most")
    return AccessList(found)


def checked_rule(rule: Rule) -> Rule:
    """InvalidRule for what can fit nobody, or cannot be meant."""
    if rule.deny and rule.read_only:
        raise InvalidRule(f"rule '{rule}': who is denied does not read either; leave out read-only")
    _check_kinds(rule)
    for name in ("certificate", "psk", "chap_user"):
        value = getattr(rule, name)
        if value is not None and not (0 < len(value) <= MAX_TEXT and value.isprintable()):
            what = name.replace("_", " ")
            raise InvalidRule(f"{what}: give 1 to {MAX_TEXT} printable characters")
    if rule.uid is not None and not 0 <= rule.uid <= MAX_UID:
        raise InvalidRule(f"uid {rule.uid}: give the number of a user, 0 to {MAX_UID}")
    if rule.address is not None:
        rule = replace(rule, address=_network(rule.address))
    if rule.fingerprint is not None:
        rule = replace(rule, fingerprint=_fingerprint(rule.fingerprint))
    if rule.initiator is not None:
        if not names.is_pattern(rule.initiator):
            raise InvalidRule(
                f"initiator {_shown(rule.initiator)}: write an iSCSI name, as "
                "iqn.1993-08.org.debian:01:abc, or its beginning and '*'"
            )
        rule = replace(rule, initiator=names.normalised(rule.initiator))
    return rule


_APART: Final = (
    (("uid",), ("address", "initiator", "chap_user"), "a unix socket"),
    (("psk",), ("certificate", "fingerprint"), "a pre-shared key"),
    (("initiator", "chap_user"), ("psk", "certificate", "fingerprint"), "iSCSI"),
)
"""Conditions that no client fits both of: one of the first, and one of the second."""


def _check_kinds(rule: Rule) -> None:
    given = rule.conditions
    for one, other, where in _APART:
        both = [name for name in (*one, *other) if name in given]
        if any(name in one for name in both) and any(name in other for name in both):
            shown = " and ".join(name.replace("_", " ") for name in both)
            raise InvalidRule(
                f"rule '{rule}': no client has {shown} ({where} has no such thing); "
                "make a rule of each"
            )


def _shown(text: str) -> str:
    return ascii(text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "...")


def _reason(error: ValueError) -> str:
    """ipaddress repeats what it was given."""
    return "bits are set behind its prefix" if "host bits" in str(error) else "not a network"


def _network(text: str) -> str:
    try:
        return str(networks.network(text))
    except ValueError as error:
        raise InvalidRule(
            f"address {_shown(text)}: {_reason(error)}; write 192.0.2.0/24, 2001:db8::/32 or a "
            "single address"
        ) from error


def _fingerprint(text: str) -> str:
    """As `openssl x509 -fingerprint -sha256` prints it, or without colons."""
    digits = text.rpartition("=")[2].replace(":", "").strip().lower()
    if _FINGERPRINT.fullmatch(digits) is None:
        raise InvalidRule(
            f"fingerprint {_shown(text)}: give the SHA-256 of the certificate, 64 hexadecimal "
            "digits, as `openssl x509 -in CERT -noout -fingerprint -sha256` prints them"
        )
    return digits
