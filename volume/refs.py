"""Refs: how people name a version of a volume.

    vol                              the head: its newest state
    vol@snapshot                     a snapshot
    vol@seq:12345                    the state after that journal record of the volume
    vol@commit:3f9a0c11              a commit, by the first 8 or more hex digits of its id
    vol@2026-11-22T10:31:05.25Z      the state at that instant; an offset (+01:00) instead of Z
    vol@-10m                         the state that long ago: -90s, -1h30m, -2d

What follows the `@` is told apart by its form alone: snapshot names have no ':' and do not begin
with '-', so no ref can mean two things. A time needs at least hours and minutes ("2026-11-22" is a
snapshot name); without Z or offset it is UTC, as everything that blockd prints, since the daemon's
time zone is not the one of who asks. A time is an instant: it names the last version at or before
it. `format_time` prints times so that they name just the version that they were printed for.

Refs come from clients: they are bounded, and whatever an error quotes of them is printable.

Pure functions; the clock is passed in.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

from volume.errors import InvalidDuration, InvalidName, InvalidSnapshotName, NoSuchVersion
from volume.retention import parse_duration

MAX_NAME_LENGTH = 128  # characters of a volume's or a snapshot's name; LMDB keys have 511 bytes
MAX_SEQ = (1 << 64) - 1
MIN_COMMIT_DIGITS = 8
COMMIT_DIGITS = 64
MAX_TIME_NS = (1 << 63) - 1  # in the year 2262
_NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_SNAPSHOT_CHARACTERS = _ALPHANUMERIC | frozenset("._-")
_VOLUME_CHARACTERS = _SNAPSHOT_CHARACTERS | frozenset(":")
_COPY_NAME = re.compile(r"\.copy-[0-9a-f]{8}\Z")
_DIGITS = re.compile(r"[0-9]{1,20}")
_HEX = re.compile(rf"[0-9a-f]{{{MIN_COMMIT_DIGITS},{COMMIT_DIGITS}}}")
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
    r"(?:(Z)|([+-])(\d\d)(?::?(\d\d))?)?",
    re.ASCII | re.IGNORECASE,
)
_TIME_FORM = "write a time as 2026-11-22T10:31:05Z"


@dataclass(frozen=True, slots=True)
class HeadRef:
    """The newest state of a volume."""

    volume: str

    def __str__(self) -> str:
        return self.volume


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    volume: str
    name: str

    def __str__(self) -> str:
        return f"{self.volume}@{self.name}"


@dataclass(frozen=True, slots=True)
class SeqRef:
    """The state after the volume's journal record `seq`; 0 is the empty volume."""

    volume: str
    seq: int

    def __str__(self) -> str:
        return f"{self.volume}@seq:{self.seq}"


@dataclass(frozen=True, slots=True)
class CommitRef:
    """A commit whose id begins with `digits` (8 to 64, lower-case hex)."""

    volume: str
    digits: str

    def __str__(self) -> str:
        return f"{self.volume}@commit:{self.digits}"


@dataclass(frozen=True, slots=True)
class TimeRef:
    """The last version at or before `time_ns` (since 1970, UTC)."""

    volume: str
    time_ns: int

    def __str__(self) -> str:
        return f"{self.volume}@{format_time(self.time_ns)}"


Ref = HeadRef | SnapshotRef | SeqRef | CommitRef | TimeRef
"""For `match`. `str` of each is a ref that `parse` reads; its times are absolute."""


def split(text: str) -> tuple[str, str | None]:
    """Volume and what follows the first '@' (None without one); neither is checked."""
    volume, at, version = text.partition("@")
    return volume, version if at else None


def parse(text: str, now_ns: int) -> Ref:
    """What a whole ref means. `now_ns` is the time that -10m counts from.

    InvalidName: the volume, or a snapshot, cannot be called that. NoSuchVersion: not a ref."""
    volume, version = split(text)
    if version is None:
        check_volume_name(volume)
        return HeadRef(volume)
    return parse_version(volume, version, now_ns)


def parse_version(volume: str, version: str, now_ns: int) -> Ref:
    """What `version`, the part behind the '@', means for `volume`. Errors as `parse`."""
    check_volume_name(volume)
    if len(version) > MAX_NAME_LENGTH:
        why = f"is {len(version)} characters long, {MAX_NAME_LENGTH} are the most"
        raise _refused(volume, version, why)
    if version.startswith(f"{volume}@"):
        raise _refused(volume, version, "write only what follows the '@'")
    form, colon, value = version.partition(":")
    if colon and form == "seq":
        return SeqRef(volume, _seq(volume, version, value))
    if colon and form == "commit":
        return CommitRef(volume, _digits(volume, version, value))
    if version.startswith("-"):
        return TimeRef(volume, _ago(volume, version, now_ns))
    if colon:
        return TimeRef(volume, _time(volume, version))
    check_snapshot_name(version)
    return SnapshotRef(volume, version)


def check_volume_name(name: str) -> None:
    """Raise InvalidName unless `name` may name a volume."""
    _check(name, _VOLUME_CHARACTERS, InvalidName)


def check_new_volume_name(name: str) -> None:
    """As `check_volume_name`, of a volume that somebody makes or renames: those in which a copy
    from another node lands have names of their own, and are deleted without asking."""
    check_volume_name(name)
    if _COPY_NAME.search(name):
        raise InvalidName(name, "names that end in .copy- and 8 hex digits are not for volumes")


def copy_name(name: str, uuid: bytes) -> str:
    """Of the volume that a copy of volume `name` lands in: one that nobody else can give."""
    return f"{name[:100]}.copy-{uuid.hex()[:8]}"


def check_snapshot_name(name: str) -> None:
    """Raise InvalidSnapshotName unless `name` may name a snapshot: as volumes, but without ':'."""
    _check(name, _SNAPSHOT_CHARACTERS, InvalidSnapshotName)


def format_time(time_ns: int) -> str:
    """A time in UTC to all of its digits: 2026-11-22T10:31:05Z, ...05.250Z, ...05.000000001Z."""
    seconds, nanoseconds = divmod(time_ns, _NS)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{nanoseconds:09}"
    while fraction.endswith("000"):
        fraction = fraction[:-3]
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 date and time. ValueError, saying why.

    Without Z or offset it is UTC; the fraction has up to 9 digits."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"is not a time; {_TIME_FORM}")
    date, hours, minutes, seconds, fraction, _, sign, offset_hours, offset_minutes = match.groups()
    offset = timedelta(hours=int(offset_hours or 0), minutes=int(offset_minutes or 0))
    try:
        zone = timezone(-offset if sign == "-" else offset)
        when = datetime.fromisoformat(f"{date}T{hours}:{minutes}:{seconds or '00'}")
        elapsed = when.replace(tzinfo=zone) - _EPOCH
    except (ValueError, OverflowError) as error:
        raise ValueError(f"is not a time ({error}); {_TIME_FORM}") from error
    time_ns = (elapsed.days * 86400 + elapsed.seconds) * _NS + int((fraction or "").ljust(9, "0"))
    if not 0 <= time_ns <= MAX_TIME_NS:
        raise ValueError("is outside of the years 1970 to 2262")
    return time_ns


# -- inside


def _check(name: str, allowed: frozenset[str], error: type[InvalidName]) -> None:
    if not name:
        raise error(name, "is empty")
    if len(name) > MAX_NAME_LENGTH:
        raise error(f"{name[:MAX_NAME_LENGTH]}...", f"is {len(name)} characters long")
    if name[0] not in _ALPHANUMERIC:
        raise error(name, f"starts with {name[0]!r}")
    for character in name:
        if character not in allowed:
            raise error(name, f"contains {character!r}")


def _refused(volume: str, version: str, why: str) -> NoSuchVersion:
    shown = version if len(version) <= MAX_NAME_LENGTH else f"{version[:MAX_NAME_LENGTH]}..."
    return NoSuchVersion(volume, shown if shown.isprintable() else ascii(shown), why)


def _seq(volume: str, version: str, value: str) -> int:
    if not _DIGITS.fullmatch(value) or int(value) > MAX_SEQ:
        raise _refused(volume, version, "is not a seq; write a number, as seq:12345")
    return int(value)


def _digits(volume: str, version: str, value: str) -> str:
    digits = value.lower()
    if not _HEX.fullmatch(digits):
        why = f"is not a commit; write {MIN_COMMIT_DIGITS} to {COMMIT_DIGITS} hex digits of its id"
        raise _refused(volume, version, why)
    return digits


def _ago(volume: str, version: str, now_ns: int) -> int:
    try:
        time_ns = now_ns - parse_duration(version[1:]) * _NS
    except InvalidDuration as error:
        why = "is not a time; write how long ago, as -10m or -1h30m"
        raise _refused(volume, version, why) from error
    if time_ns < 0:
        raise _refused(volume, version, "is before 1970")
    return time_ns


def _time(volume: str, version: str) -> int:
    try:
        return parse_time(version)
    except ValueError as error:
        raise _refused(volume, version, str(error)) from error
