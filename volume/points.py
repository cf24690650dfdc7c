"""POINT records: where volumes are at one moment, and the name that this gets.

    u32 count, (u32 number, u64 seq) for each volume     written by the native journal, which knows
    u8 version, u8 flags, u64 time, u16 length, name      the tail: written here
    (u64 epoch, u64 size) for each volume, in that order

The record is the promise; the rows in `meta/` (`volume.history`) follow it. It names no more than
what is before it in the log, so it cannot outlive that: after a power cut the log ends before or
behind it, and the name is gone or whole.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from volume import layout
from volume.errors import CorruptJournal


@dataclass(frozen=True, slots=True)
class PointVolume:
    number: int
    seq: int
    epoch: int
    size: int


@dataclass(frozen=True, slots=True)
class PointRecord:
    """One POINT record; `name` is "" for a point without a name."""

    lsn: int
    time_ns: int
    name: str
    pinned: bool
    scheduled: bool
    volumes: tuple[PointVolume, ...]


def encode_tail(
    time_ns: int, name: str, *, pinned: bool, scheduled: bool, states: Sequence[tuple[int, int]]
) -> bytes:
    """What follows the volumes; `states`: (epoch, size) of each."""
    flags = layout.SNAPSHOT_PINNED * pinned | layout.SNAPSHOT_SCHEDULED * scheduled
    text = name.encode()
    header = layout.POINT_HEADER.pack(layout.POINT_VERSION, flags, time_ns, len(text))
    return b"".join((header, text, *(layout.POINT_STATE.pack(*state) for state in states)))


def decode(lsn: int, payload: bytes) -> PointRecord:
    """The record of that payload. CorruptJournal when it makes no sense."""
    try:
        return _decode(lsn, payload)
    except (ValueError, IndexError, struct.error) as error:
        raise CorruptJournal(
            f"journal: record {lsn} names a version, but makes no sense ({error}); it was written "
            "by another version, or is damaged"
        ) from error


def _decode(lsn: int, payload: bytes) -> PointRecord:
    (count,) = layout.POINT_COUNT.unpack_from(payload)
    at = layout.POINT_COUNT.size
    places = [
        layout.POINT_VOLUME.unpack_from(payload, at + index * layout.POINT_VOLUME.size)
        for index in range(count)
    ]
    at += count * layout.POINT_VOLUME.size
    version, flags, time_ns, name_length = layout.POINT_HEADER.unpack_from(payload, at)
    if version != layout.POINT_VERSION:
        raise ValueError(f"version {version}")
    at += layout.POINT_HEADER.size
    name = payload[at : at + name_length].decode()
    at += name_length
    if len(payload) != at + count * layout.POINT_STATE.size:
        raise ValueError(f"{len(payload)} bytes long")
    states = layout.POINT_STATE.iter_unpack(payload[at:])
    volumes = tuple(
        PointVolume(number, seq, epoch, size)
        for (number, seq), (epoch, size) in zip(places, states, strict=True)
    )
    return PointRecord(
        lsn,
        time_ns,
        name,
        bool(flags & layout.SNAPSHOT_PINNED),
        bool(flags & layout.SNAPSHOT_SCHEDULED),
        volumes,
    )
