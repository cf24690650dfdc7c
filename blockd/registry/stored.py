"""A configured target as it is kept: a JSON object under `iscsi/target/<IQN>`.

    version     1
    alias, redirect                 text; redirect may be null
    luns        [{lun, volume, ref}]    uuid of the volume, and "" or which version of it
    next_lun    the number that the next unit gets: above all that were ever used
    initiators, addresses           access lists
    chap        [{user, secret}]    secrets in hexadecimal
    mutual      {user, secret} or null

Volumes are known by uuid, so a unit stays when its volume gets another name. Changes are made by
functions that give another value; each checks what it is given.
"""

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from blockd.iscsi.names import is_name, is_pattern, normalised
from blockd.iscsi.targets import Access, Credentials
from blockd.registry.errors import InvalidTarget, LunTaken, NoSuchEntry, NoSuchLun
from blockd.scsi.target import MAX_LUN
from volume.errors import CorruptData, UnknownFormat

PREFIX: Final = "iscsi/target/"
VERSION: Final = 1
MIN_SECRET: Final = 12
"""Bytes of a CHAP secret: 96 bits, below which RFC 7143 9.2.1 asks for IPsec."""
MAX_SECRET: Final = 255  # CHAP_R cannot be checked in less memory; initiators stop at 16 or 255
MAX_USER: Final = 255
MAX_ALIAS: Final = 255  # RFC 7143 13.7
MAX_LUNS: Final = 256  # of one target: peripheral addressing, as all initiators do
MAX_ENTRIES: Final = 1024  # of an access list; every login looks through it


@dataclass(frozen=True, slots=True)
class StoredLun:
    lun: int
    volume: str
    """Uuid, in hexadecimal."""
    ref: str = ""
    """Which version of it; empty: the volume itself."""


@dataclass(frozen=True, slots=True)
class StoredTarget:
    name: str
    alias: str = ""
    redirect: str | None = None
    luns: tuple[StoredLun, ...] = ()
    """Ascending."""
    next_lun: int = 0
    initiators: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    chap: tuple[Credentials, ...] = ()
    mutual: Credentials | None = None

    @property
    def key(self) -> str:
        """What it is kept under."""
        return PREFIX + self.name

    def encode(self) -> bytes:
        value = {
            "version": VERSION,
            "alias": self.alias,
            "redirect": self.redirect,
            "luns": [{"lun": e.lun, "volume": e.volume, "ref": e.ref} for e in self.luns],
            "next_lun": self.next_lun,
            "initiators": self.initiators,
            "addresses": self.addresses,
            "chap": [_encoded(each) for each in self.chap],
            "mutual": self.mutual and _encoded(self.mutual),
        }
        return json.dumps(value).encode()

    def access(self, defaults: Access) -> Access:
        """Who may log in. Without credentials of its own, those of `defaults` count."""
        return Access(
            self.initiators,
            self.addresses,
            self.chap or defaults.chap,
            self.mutual or (None if self.chap else defaults.mutual),
        )


def decode(key: str, value: bytes) -> StoredTarget:
    """What `StoredTarget.encode` made. CorruptData; UnknownFormat: a newer server's."""
    name = key.removeprefix(PREFIX)
    try:
        fields = json.loads(value)
        if fields["version"] != VERSION:
            raise UnknownFormat("meta", f"target {name} has version {fields['version']}")
        return StoredTarget(
            name=name,
            alias=_text(fields["alias"]),
            redirect=None if fields["redirect"] is None else _text(fields["redirect"]),
            luns=tuple(_lun(each) for each in _list(fields["luns"])),
            next_lun=_number(fields["next_lun"], MAX_LUN + 1),
            initiators=tuple(_text(each) for each in _list(fields["initiators"])),
            addresses=tuple(_text(each) for each in _list(fields["addresses"])),
            chap=tuple(_credentials(each) for each in _list(fields["chap"])),
            mutual=None if fields["mutual"] is None else _credentials(fields["mutual"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptData(
            f"meta: target {name} cannot be read: {type(error).__name__}: {error}; "
            "restore meta from a copy"
        ) from error


def _encoded(credentials: Credentials) -> dict[str, str]:
    return {"user": credentials.user, "secret": credentials.secret.hex()}


def _credentials(fields: dict[str, Any]) -> Credentials:
    return Credentials(_text(fields["user"]), bytes.fromhex(fields["secret"]))


def _lun(fields: dict[str, Any]) -> StoredLun:
    unit = StoredLun(**fields)
    _number(unit.lun, MAX_LUN)
    _text(unit.volume)
    _text(unit.ref)
    return unit


# JSON says nothing of types. Errors tell a type and no value: that may be a secret.


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text expected, not {type(value).__name__}")
    value.encode()  # ValueError: half a surrogate pair
    return value


def _number(value: object, highest: int) -> int:
    if type(value) is not int or not 0 <= value <= highest:  # True is an int as well
        raise ValueError(f"a number from 0 to {highest} expected")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list expected, not {type(value).__name__}")
    return value


# -- changes


def created(name: str, alias: str, redirect: str | None) -> StoredTarget:
    """A target without units. InvalidTarget."""
    if not is_name(name):
        raise InvalidTarget(
            f"target {name!r}: no iSCSI name; write it as iqn.2026-11.io.blockd:NAME, "
            "with letters, digits, '.', '-' and ':' in NAME"
        )
    return changed(StoredTarget(normalised(name)), alias, redirect)


def changed(target: StoredTarget, alias: str, redirect: str | None) -> StoredTarget:
    if len(alias.encode()) > MAX_ALIAS or not alias.isprintable():
        raise InvalidTarget(f"target {target.name}: an alias has up to {MAX_ALIAS} bytes of text")
    if redirect is not None and not _is_address(redirect):
        raise InvalidTarget(
            f"target {target.name}: redirect {redirect!r}: write HOST:PORT or [IPV6]:PORT"
        )
    return replace(target, alias=alias, redirect=redirect)


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon) and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def with_lun(target: StoredTarget, volume: str, ref: str, lun: int | None) -> StoredTarget:
    """One more unit, at `lun`, or at a number that no other had. `volume`: uuid in hexadecimal;
    `ref`: which version, if not its head. InvalidTarget, LunTaken."""
    if len(target.luns) >= MAX_LUNS:
        raise InvalidTarget(f"target {target.name}: has {MAX_LUNS} units, the most there can be")
    if lun is None:
        lun = target.next_lun
    if not 0 <= lun <= MAX_LUN:
        raise InvalidTarget(f"target {target.name}: LUN {lun}: write 0 to {MAX_LUN}")
    if any(each.lun == lun for each in target.luns):
        raise LunTaken(target.name, lun)
    luns = sorted((*target.luns, StoredLun(lun, volume, ref)), key=lambda each: each.lun)
    return replace(target, luns=tuple(luns), next_lun=max(target.next_lun, lun + 1))


def without_lun(target: StoredTarget, lun: int) -> StoredTarget:
    """NoSuchLun."""
    luns = tuple(each for each in target.luns if each.lun != lun)
    if len(luns) == len(target.luns):
        raise NoSuchLun(target.name, lun)
    return replace(target, luns=luns)


def with_entry(target: StoredTarget, entry: str) -> StoredTarget:
    """An initiator name, or the beginning of one and *, or a network. InvalidTarget."""
    entry, is_network = _entry(target, entry)
    held = target.addresses if is_network else target.initiators
    if entry in held:
        return target
    if len(held) >= MAX_ENTRIES:
        raise InvalidTarget(f"target {target.name}: its access list has {MAX_ENTRIES} entries")
    return _with_list(target, is_network, (*held, entry))


def without_entry(target: StoredTarget, entry: str) -> StoredTarget:
    """NoSuchEntry, InvalidTarget."""
    entry, is_network = _entry(target, entry)
    held = target.addresses if is_network else target.initiators
    if entry not in held:
        raise NoSuchEntry(target.name, entry)
    return _with_list(target, is_network, (each for each in held if each != entry))


def _with_list(target: StoredTarget, is_network: bool, entries: Iterable[str]) -> StoredTarget:
    if is_network:
        return replace(target, addresses=tuple(entries))
    return replace(target, initiators=tuple(entries))


def _entry(target: StoredTarget, entry: str) -> tuple[str, bool]:
    """As it is kept, and whether it is a network."""
    try:
        return str(ipaddress.ip_network(entry, strict=False)), True
    except ValueError:
        pass
    if is_pattern(entry):
        return normalised(entry), False
    raise InvalidTarget(
        f"target {target.name}: {entry!r} is neither an initiator's name, as "
        "iqn.1993-08.org.debian:01:abc or iqn.1993-08.org.debian:*, nor a network, as 192.0.2.0/24"
    )


def with_chap(target: StoredTarget, user: str, secret: bytes, *, mutual: bool) -> StoredTarget:
    """Let an initiator prove itself so, or with `mutual` the target. InvalidTarget."""
    check_credentials(f"target {target.name}", user, secret)
    given = Credentials(user, secret)
    if mutual:
        if not target.chap:
            raise InvalidTarget(
                f"target {target.name}: it proves itself only to who proves himself; "
                "set the initiator's secret first"
            )
        _check_differ(target, given, target.chap)
        return replace(target, mutual=given)
    if target.mutual is not None:
        _check_differ(target, target.mutual, (given,))
    others = tuple(each for each in target.chap if each.user != user)
    if len(others) >= MAX_ENTRIES:
        raise InvalidTarget(f"target {target.name}: it has {MAX_ENTRIES} CHAP users")
    return replace(target, chap=(*others, given))


def without_chap(target: StoredTarget, user: str | None, *, mutual: bool) -> StoredTarget:
    """Forget one user, all of them, or with `mutual` what the target proves itself by."""
    if mutual:
        return replace(target, mutual=None)
    if user is None:
        return replace(target, chap=(), mutual=None)
    chap = tuple(each for each in target.chap if each.user != user)
    if len(chap) == len(target.chap):
        raise NoSuchEntry(target.name, f"CHAP user {user}")
    return replace(target, chap=chap, mutual=target.mutual if chap else None)


def check_credentials(what: str, user: str, secret: bytes) -> None:
    """InvalidTarget, which does not show the secret."""
    if not 0 < len(user.encode()) <= MAX_USER or not user.isprintable():
        raise InvalidTarget(f"{what}: a CHAP user name has 1 to {MAX_USER} printable bytes")
    if not MIN_SECRET <= len(secret) <= MAX_SECRET:
        raise InvalidTarget(
            f"{what}: the CHAP secret of {user} has {len(secret)} bytes; "
            f"use {MIN_SECRET} to {MAX_SECRET}"
        )


def _check_differ(target: StoredTarget, own: Credentials, others: Iterable[Credentials]) -> None:
    """RFC 7143 9.2.1: one secret in both directions could be had by reflection."""
    if any(own.secret == each.secret for each in others):
        raise InvalidTarget(
            f"target {target.name}: the target's secret must differ from the initiators'"
        )
