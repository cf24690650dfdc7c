"""Bytes of persistent reservations: parameter lists, parameter data, TransportIDs, what is kept.

A registration belongs to a `Registrant`: an initiator port (name and ISID) at a target port (the
relative target port identifier, which is the portal group tag). Either may be left open, so that
one registration stands for several I_T nexuses: no ISID is any session of that initiator, no target
port is all of them (ALL_TG_PT). Registrations of one unit never overlap. A unit that is part of
several targets counts ports with the same tag as one.

Kept state, all numbers big-endian:

    offset  size  what
    0       4     "BDPR"
    4       2     version, 1
    6       1     type of the reservation, 0: none
    7       1     0
    8       2     index of the registration that holds it, FFFFh: none, or all of them
    10      2     number of registrations
    12            registrations: key (8), target port (2, 0: all), whether for one ISID (1), ISID
                  (6, or zeros), length of the name (1), name in UTF-8
    end     4     CRC-32C of all before it

References are to SPC-4.
"""

import struct
from dataclasses import dataclass
from typing import Final

from blockd.scsi.sense import PARAMETER_LIST_LENGTH, CheckCondition, invalid_field
from native import crc32c

# TYPE field (6.15.3.4).
WRITE_EXCLUSIVE: Final = 1
EXCLUSIVE_ACCESS: Final = 3
WRITE_EXCLUSIVE_REGISTRANTS_ONLY: Final = 5
EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: Final = 6
WRITE_EXCLUSIVE_ALL_REGISTRANTS: Final = 7
EXCLUSIVE_ACCESS_ALL_REGISTRANTS: Final = 8

ALL_REGISTRANTS: Final = (WRITE_EXCLUSIVE_ALL_REGISTRANTS, EXCLUSIVE_ACCESS_ALL_REGISTRANTS)
SHARED: Final = (
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    *ALL_REGISTRANTS,
)
"""Types that let registrants in, and tell them when the reservation is released (5.13.11.2.2)."""
WRITE_EXCLUSIVE_TYPES: Final = (
    WRITE_EXCLUSIVE,
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    WRITE_EXCLUSIVE_ALL_REGISTRANTS,
)
TYPES: Final = (WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS, *SHARED)

MAX_REGISTRATIONS: Final = 1024  # 64 hosts with 16 paths each; bounds memory and the kept state
MAX_NAME_BYTES: Final = 223  # RFC 7143 4.2.7.1
ISID_BYTES: Final = 6
BASIC_LIST_BYTES: Final = 24  # table 216
MAX_LIST_BYTES: Final = 16 << 10  # holds TransportIDs of 64 initiators with the longest names
_TRANSPORT_IDS_AT: Final = 28
_MIN_TRANSPORT_ID_TEXT: Final = 20  # 7.6.4.6: ADDITIONAL LENGTH is at least that

_DEVICE_NAME: Final = 0x05  # 7.6.4.6: format 00b, protocol iSCSI: the initiator, any session
_PORT_NAME: Final = 0x45  # format 01b: name, ",i,0x", ISID
_ISID_MARK: Final = ",i,0x"

_BASIC = struct.Struct(">QQ4xB3x")
_MOVE = struct.Struct(">QQxBHI")
_FULL_STATUS = struct.Struct(">Q4xBB4xHI")

_MAGIC: Final = b"BDPR"
_VERSION: Final = 1
_HEADER = struct.Struct(">4sHBxHH")
_ENTRY = struct.Struct(">QHB6sB")
_CHECKSUM = struct.Struct(">I")
_NOBODY: Final = 0xFFFF


class DamagedState(Exception):
    """What was kept cannot be what was once written."""


@dataclass(frozen=True, slots=True)
class Registrant:
    """Whom a registration is for; see the module's text. One without None is a single nexus."""

    initiator: str
    """iSCSI name."""
    isid: bytes | None
    target_port: int | None

    def overlaps(self, other: "Registrant") -> bool:
        """Whether some nexus belongs to both."""
        return (
            self.initiator == other.initiator
            and (self.isid == other.isid or self.isid is None or other.isid is None)
            and (
                self.target_port == other.target_port
                or self.target_port is None
                or other.target_port is None
            )
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    kind: int
    """TYPE field, 6.15.3.4."""
    holder: Registrant | None
    """None for the types that all registrants hold."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlasts a restart (APTPL); a registrant's key, in the order of registration."""

    keys: dict[Registrant, int]
    reservation: Reservation | None


@dataclass(frozen=True, slots=True)
class BasicList:
    """Parameter list of every service action but REGISTER AND MOVE (6.16.3)."""

    key: int
    action_key: int
    persist: bool
    """APTPL."""
    all_ports: bool
    """ALL_TG_PT."""
    others: tuple[tuple[str, bytes | None], ...] | None
    """Initiators and their ISIDs, by TransportID; None when SPEC_I_PT is zero."""


@dataclass(frozen=True, slots=True)
class MoveList:
    """Parameter list of REGISTER AND MOVE (6.16.4)."""

    key: int
    action_key: int
    persist: bool
    unregister: bool
    to: Registrant


def decode_basic(data: bytes) -> BasicList:
    """CheckCondition."""
    if len(data) < BASIC_LIST_BYTES:
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    key, action_key, flags = _BASIC.unpack_from(data)
    others = None
    if flags & 0x08:
        others = _decode_others(data)
    elif len(data) != BASIC_LIST_BYTES:
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    return BasicList(key, action_key, bool(flags & 0x01), bool(flags & 0x04), others)


def _decode_others(data: bytes) -> tuple[tuple[str, bytes | None], ...]:
    """The TransportIDs behind a basic list with SPEC_I_PT."""
    if len(data) < _TRANSPORT_IDS_AT:
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    if int.from_bytes(data[BASIC_LIST_BYTES:_TRANSPORT_IDS_AT], "big") != (
        len(data) - _TRANSPORT_IDS_AT
    ):
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    others = []
    at = _TRANSPORT_IDS_AT
    while at < len(data):
        length = 4 + int.from_bytes(data[at + 2 : at + 4], "big")
        if at + length > len(data):
            raise CheckCondition(PARAMETER_LIST_LENGTH)
        others.append(decode_transport_id(data[at : at + length], at))
        at += length
    return tuple(others)


def decode_move(data: bytes) -> MoveList:
    """CheckCondition."""
    if len(data) < _MOVE.size:
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    key, action_key, flags, target_port, length = _MOVE.unpack_from(data)
    if length != len(data) - _MOVE.size:
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    initiator, isid = decode_transport_id(data[_MOVE.size :], _MOVE.size)
    if not target_port:
        raise invalid_field(18, in_cdb=False)
    to = Registrant(initiator, isid, target_port)
    return MoveList(key, action_key, bool(flags & 0x01), bool(flags & 0x02), to)


def encode_transport_id(initiator: str, isid: bytes | None) -> bytes:
    text = initiator if isid is None else f"{initiator}{_ISID_MARK}{isid.hex()}"
    encoded = text.encode() + b"\0"
    encoded = encoded.ljust(max(_MIN_TRANSPORT_ID_TEXT, len(encoded) + -len(encoded) % 4), b"\0")
    form = _DEVICE_NAME if isid is None else _PORT_NAME
    return bytes((form, 0)) + len(encoded).to_bytes(2, "big") + encoded


def decode_transport_id(data: bytes, at: int) -> tuple[str, bytes | None]:
    """Initiator and ISID; `at` is where in the parameter list this TransportID is. CheckCondition:
    the initiator would otherwise believe that somebody was registered who is not."""
    wrong = invalid_field(at, in_cdb=False)
    if len(data) < 4 + _MIN_TRANSPORT_ID_TEXT or len(data) % 4:
        raise wrong
    if data[0] not in (_DEVICE_NAME, _PORT_NAME):
        raise wrong
    encoded, _, padding = data[4:].partition(b"\0")
    if len(encoded) == len(data) - 4 or padding.strip(b"\0"):
        raise wrong
    try:
        text = encoded.decode()
    except UnicodeDecodeError:
        raise wrong from None
    if data[0] == _DEVICE_NAME:
        return _initiator_name(text, wrong), None
    name, mark, digits = text.rpartition(_ISID_MARK)
    if not mark or len(digits) != 2 * ISID_BYTES or not digits.isascii() or not digits.isalnum():
        raise wrong
    try:
        return _initiator_name(name, wrong), bytes.fromhex(digits)
    except ValueError:
        raise wrong from None


def _initiator_name(name: str, wrong: CheckCondition) -> str:
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        raise wrong
    return name


def encode_keys(generation: int, keys: list[int]) -> bytes:
    """READ KEYS (6.15.2)."""
    return _list_header(generation, 8 * len(keys)) + struct.pack(f">{len(keys)}Q", *keys)


def encode_reservation(generation: int, kind: int, key: int) -> bytes:
    """READ RESERVATION (6.15.3) while there is one, of scope LU_SCOPE (0)."""
    return _list_header(generation, 16) + struct.pack(">Q5xB2x", key, kind)


def encode_no_reservation(generation: int) -> bytes:
    return _list_header(generation, 0)


def encode_full_status(
    generation: int, keys: dict[Registrant, int], reservation: Reservation | None
) -> bytes:
    """READ FULL STATUS (6.15.5)."""
    out = bytearray()
    for registrant, key in keys.items():
        holds = reservation is not None and reservation.holder in (None, registrant)
        kind = reservation.kind if reservation is not None and holds else 0
        flags = 0x02 * (registrant.target_port is None) | 0x01 * holds
        transport_id = encode_transport_id(registrant.initiator, registrant.isid)
        port = registrant.target_port or 0
        out += _FULL_STATUS.pack(key, flags, kind, port, len(transport_id)) + transport_id
    return _list_header(generation, len(out)) + bytes(out)


def _list_header(generation: int, length: int) -> bytes:
    return struct.pack(">II", generation & 0xFFFFFFFF, length)


def encode_kept(kept: Kept) -> bytes:
    reservation = kept.reservation
    holder = _NOBODY
    if reservation is not None and reservation.holder is not None:
        holder = list(kept.keys).index(reservation.holder)
    kind = reservation.kind if reservation is not None else 0
    out = bytearray(_HEADER.pack(_MAGIC, _VERSION, kind, holder, len(kept.keys)))
    for who, key in kept.keys.items():
        name = who.initiator.encode()
        out += _ENTRY.pack(
            *(key, who.target_port or 0, who.isid is not None, who.isid or b"", len(name))
        )
        out += name
    return bytes(out) + _CHECKSUM.pack(crc32c(out))


def decode_kept(data: bytes) -> Kept:
    """DamagedState, with a text that says what is wrong."""
    if len(data) < _HEADER.size + _CHECKSUM.size:
        raise DamagedState(f"{len(data)} bytes are too few")
    (expected,) = _CHECKSUM.unpack(data[-_CHECKSUM.size :])
    found = crc32c(data[: -_CHECKSUM.size])
    if found != expected:
        raise DamagedState(f"checksum is {found:08x} instead of {expected:08x}")
    magic, version, kind, holder, count = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise DamagedState(f"begins with {magic!r} version {version}, not {_MAGIC!r} {_VERSION}")
    keys: dict[Registrant, int] = {}
    at = _HEADER.size
    try:
        for _ in range(count):
            key, port, has_isid, isid, length = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size
            name = data[at : at + length].decode()
            at += length
            keys[Registrant(name, isid if has_isid else None, port or None)] = key
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedState(f"registration {len(keys)}: {error}") from None
    if at != len(data) - _CHECKSUM.size or len(keys) != count:
        raise DamagedState(f"{count} registrations end at byte {at} of {len(data)}")
    return Kept(keys, _kept_reservation(kind, holder, list(keys)))


def _kept_reservation(kind: int, holder: int, registrants: list[Registrant]) -> Reservation | None:
    if not kind:
        return None
    if kind not in TYPES or (kind in ALL_REGISTRANTS) != (holder == _NOBODY):
        raise DamagedState(f"a reservation of type {kind} is held by registration {holder}")
    if holder == _NOBODY:
        return Reservation(kind, None)
    if holder >= len(registrants):
        raise DamagedState(f"registration {holder} of {len(registrants)} holds the reservation")
    return Reservation(kind, registrants[holder])
