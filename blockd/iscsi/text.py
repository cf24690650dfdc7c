"""Text of login and text PDUs: key=value pairs, and how each key is negotiated. RFC 7143 6 and 13.

The table `KEYS` says for every key that is negotiated what values it takes and how the result is
made of what the initiator offers and what we want:

    least, most     the smaller (larger) of both numbers
    either, both    Yes if one of both says Yes; if both do
    list            the first of the initiator's values that we know, unknown ones are passed over
    declared        the initiator's value holds, and is not answered

A value that is not of its key's kind is answered "Reject", and the key keeps its default, and so is
a key that has no business where it stands; a key that nobody here knows is answered
"NotUnderstood". None of these ends the login (6.2).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from blockd.iscsi.targets import Portal

MAX_TEXT: Final = 64 << 10  # bytes of one sequence of PDUs (C bit); the keys below make 2 KiB
MAX_PAIRS: Final = 64
"""Initiators send 20. "NotUnderstood" to so many keys of any length, and our own keys with it, fit
into the 8192 bytes that a login response may have (13.12)."""
MAX_KEY: Final = 63  # 6.1
MAX_VALUE: Final = 255  # 6.1, but for BINARY_KEYS, which have up to
MAX_BINARY_VALUE: Final = 1024 * 2 + 2  # a CHAP challenge in hexadecimal (12.1.3)
BINARY_KEYS: Final = ("CHAP_C", "CHAP_R")

OUR_MAX_RECV: Final = 262144  # bytes of one Data-Out: what open-iscsi and libiscsi send at the most
OUR_MAX_BURST: Final = 16776192  # as open-iscsi offers
OUR_FIRST_BURST: Final = 262144
OUR_MAX_R2T: Final = 16

YES: Final = "Yes"
NO: Final = "No"
REJECT: Final = "Reject"
NOT_UNDERSTOOD: Final = "NotUnderstood"
IRRELEVANT: Final = "Irrelevant"
ANSWERS: Final = (REJECT, NOT_UNDERSTOOD, IRRELEVANT)
"""What is never an offer: the initiator's answer to something we said."""

# 6.1: standard-label; but iSCSIProtocolLevel is small, and X#NodeArchitecture has a # (13.26).
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9.\-+@_#]*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]+")


class TextError(Exception):
    """Text that is not key=value pairs, or has one key twice."""


def parse(data: bytes) -> dict[str, str]:
    """The pairs of a whole text, in their order. TextError."""
    pairs: dict[str, str] = {}
    if data and data[-1] == 0:
        data = data[:-1]
    if not data:
        return pairs
    parts = data.split(b"\0", MAX_PAIRS + 1)
    if len(parts) > MAX_PAIRS:
        raise TextError(f"more than {MAX_PAIRS} keys")
    for part in parts:
        if not part:
            continue  # padding that was counted in by a careless initiator
        raw_key, equals, raw_value = part.partition(b"=")
        try:
            key, value = raw_key.decode("ascii"), raw_value.decode()
        except UnicodeDecodeError:
            raise TextError("text that is not UTF-8") from None
        if not equals or len(key) > MAX_KEY or not _KEY.fullmatch(key):
            raise TextError(f"not a key and a value: {part[:MAX_KEY]!r}")
        if len(raw_value) > (MAX_BINARY_VALUE if key in BINARY_KEYS else MAX_VALUE):
            raise TextError(f"the value of {key} is {len(raw_value)} bytes long")
        if key in pairs:
            raise TextError(f"{key} stands twice")
        pairs[key] = value
    return pairs


def encode(pairs: Sequence[tuple[str, str]]) -> bytes:
    """Pairs as text, each ended by a NUL."""
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What holds for a session, named as RFC 7143 section 13 does. Defaults are the RFC's."""

    header_digest: bool = False
    """CRC32C."""
    data_digest: bool = False
    initial_r2t: bool = True
    immediate_data: bool = True
    max_recv_data_segment_length: int = 8192
    """The initiator's: bytes of one Data-In."""
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True


Choose = Callable[[str], object]
"""The result for an offered value. ValueError: it is none that the key can have."""


@dataclass(frozen=True, slots=True)
class Key:
    """How one key is negotiated; `field` of `Parameters` takes the result, "" if nothing does."""

    field: str
    choose: Choose
    answered: bool = True
    discovery: bool = True
    """Whether it means something in a discovery session; else the answer is Irrelevant."""
    any_time: bool = False
    """May be offered in the full feature phase, too."""


def number(text: str, low: int, high: int) -> int:
    """A decimal or hexadecimal number in a range. ValueError."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    if not low <= value <= high:
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    if text not in (YES, NO):
        raise ValueError(text)
    return text == YES


def _least(ours: int, low: int, high: int) -> Choose:
    return lambda text: min(ours, number(text, low, high))


def _most(ours: int, low: int, high: int) -> Choose:
    return lambda text: max(ours, number(text, low, high))


def _either(ours: bool) -> Choose:
    return lambda text: _boolean(text) or ours


def _both(ours: bool) -> Choose:
    return lambda text: _boolean(text) and ours


def _first_of(*known: str) -> Choose:
    def choose(text: str) -> object:
        for value in text.split(","):
            if value in known:
                return value
        raise ValueError(text)

    return choose


def _digest(text: str) -> object:
    return _first_of("CRC32C", "None")(text) == "CRC32C"


_SEGMENT = (512, (1 << 24) - 1)
KEYS: Final[Mapping[str, Key]] = {
    "HeaderDigest": Key("header_digest", _digest),
    "DataDigest": Key("data_digest", _digest),
    "MaxConnections": Key("", _least(1, 1, 65535), discovery=False),
    "InitialR2T": Key("initial_r2t", _either(False), discovery=False),
    "ImmediateData": Key("immediate_data", _both(True), discovery=False),
    "MaxRecvDataSegmentLength": Key(
        "max_recv_data_segment_length",
        lambda text: number(text, *_SEGMENT),
        answered=False,
        any_time=True,
    ),
    "MaxBurstLength": Key("max_burst_length", _least(OUR_MAX_BURST, *_SEGMENT), discovery=False),
    "FirstBurstLength": Key(
        "first_burst_length", _least(OUR_FIRST_BURST, *_SEGMENT), discovery=False
    ),
    "DefaultTime2Wait": Key("default_time2wait", _most(2, 0, 3600)),
    "DefaultTime2Retain": Key("default_time2retain", _least(0, 0, 3600)),
    "MaxOutstandingR2T": Key("max_outstanding_r2t", _least(OUR_MAX_R2T, 1, 65535), discovery=False),
    "DataPDUInOrder": Key("data_pdu_in_order", _either(True), discovery=False),
    "DataSequenceInOrder": Key("data_sequence_in_order", _either(True), discovery=False),
    "ErrorRecoveryLevel": Key("", _least(0, 0, 2)),
    "TaskReporting": Key("", _first_of("RFC3720"), discovery=False),
    "iSCSIProtocolLevel": Key("", _least(1, 0, 31)),  # 1: RFC 7143
    # Declared for people, and of no use here.
    "InitiatorAlias": Key("", str, answered=False, any_time=True),
    "X#NodeArchitecture": Key("", str, answered=False),
    # Markers are gone from RFC 7143, which still wants an answer (13.25).
    "IFMarker": Key("", _both(False)),
    "OFMarker": Key("", _both(False)),
    "IFMarkInt": Key("", lambda text: REJECT),
    "OFMarkInt": Key("", lambda text: REJECT),
}
ELSEWHERE: Final = frozenset(
    (
        *("InitiatorName", "TargetName", "SessionType", "AuthMethod"),
        *("CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"),
        *("TargetAlias", "TargetAddress", "TargetPortalGroupTag", "SendTargets"),
    )
)
"""Keys of the RFC that are not negotiated by the table: they belong to the first login request, to
the security stage, to targets alone or to the full feature phase, and are refused elsewhere."""


@dataclass(slots=True)
class Negotiation:
    """The keys of `KEYS` for one connection; `parameters` is what holds so far."""

    discovery: bool = False
    parameters: Parameters = field(default_factory=Parameters)
    _seen: set[str] = field(default_factory=set)

    def answers(self, offers: Mapping[str, str]) -> list[tuple[str, str]]:
        """Take all offers of one text in a login; our answers. TextError as `offered`."""
        # The burst first, since the first burst is answered with no more than that.
        ordered = sorted(offers, key=lambda key: key != "MaxBurstLength")
        found = (self.offered(key, offers[key]) for key in ordered)
        return [answer for answer in found if answer is not None]

    def offered(self, key: str, value: str) -> tuple[str, str] | None:
        """Take the initiator's offer; our answer, or None when it gets none.

        TextError: it was offered before (6.3: once in a login)."""
        if value in ANSWERS:
            return None
        rule = KEYS.get(key)
        if rule is None:
            return key, REJECT if key in ELSEWHERE else NOT_UNDERSTOOD
        if key in self._seen:
            raise TextError(f"{key} was negotiated already")
        self._seen.add(key)
        if self.discovery and not rule.discovery:
            return key, IRRELEVANT
        return self._result(key, rule, value)

    def renewed(self, key: str, value: str) -> tuple[str, str] | None:
        """As `offered`, in the full feature phase."""
        if value in ANSWERS:
            return None
        rule = KEYS.get(key)
        if rule is None:
            return key, REJECT if key in ELSEWHERE else NOT_UNDERSTOOD
        return self._result(key, rule, value) if rule.any_time else (key, REJECT)

    def _result(self, key: str, rule: Key, value: str) -> tuple[str, str] | None:
        try:
            result = rule.choose(value)
        except ValueError:
            return key, REJECT
        if key == "FirstBurstLength":
            assert isinstance(result, int)
            result = min(result, self.parameters.max_burst_length)
        if rule.field:
            change: dict[str, Any] = {rule.field: result}
            self.parameters = replace(self.parameters, **change)
        if not rule.answered:
            return None
        return key, _shown(key, result)

    def settled(self) -> Parameters:
        """At the end of a login: what holds, made consistent. The first burst is part of a burst
        (13.14), also when MaxBurstLength came after it or FirstBurstLength not at all."""
        found = self.parameters
        first = min(found.first_burst_length, found.max_burst_length)
        self.parameters = replace(found, first_burst_length=first)
        return self.parameters


def _shown(key: str, result: object) -> str:
    if key in ("HeaderDigest", "DataDigest"):
        return "CRC32C" if result else "None"
    if isinstance(result, bool):
        return YES if result else NO
    return str(result)


def send_targets(targets: Iterable[tuple[str, Sequence[Portal]]]) -> list[tuple[str, str]]:
    """The answer to SendTargets (RFC 7143 appendix C): each target's name with all its portals. Of
    other keys the appendix says nothing, and libiscsi gives up at a TargetAlias."""
    pairs: list[tuple[str, str]] = []
    for name, portals in targets:
        pairs.append(("TargetName", name))
        pairs += [("TargetAddress", str(portal)) for portal in portals]
    return pairs
