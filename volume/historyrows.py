"""Rows of the history (`volume.history`): what they say, and their bytes in `meta/`.

Keys and values are those of `volume.layout`; `*_put` give the items of a transaction. Bytes from
`meta/` are checked: CorruptData.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from volume import layout
from volume.framing import corrupt_value, framed, text, unframed, unpacked, unpacked_key
from volume.layout import ZERO_ID, ChunkId

MAX_KEEP_LENGTH = 64  # bytes of a policy's text
_U32 = layout.META_NUMBER_KEY


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a volume. `commit`, `root` and `height` say nothing while it is a point."""

    number: int
    """Of the volume."""
    seq: int
    epoch: int
    lsn: int
    """Of the last record of the journal, of whatever volume, that is before it."""
    time_ns: int
    size: int
    """Of the volume, bytes."""
    changed_bytes: int = 0
    commit: ChunkId = ZERO_ID
    """ZERO_ID in an empty volume."""
    root: ChunkId = ZERO_ID
    height: int = 1


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    number: int
    name: str
    seq: int
    created_ns: int
    pinned: bool = False
    scheduled: bool = False


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A position of the log; `lsn` is the next record's."""

    lsn: int
    sequence: int
    position: int
    chain: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set for a volume beside its size."""

    window_s: int
    keep: str
    codec: int
    schedule_s: int = 0
    schedule_keep: str = ""
    schedule_next_ns: int = 0


def version_key(number: int, seq: int) -> bytes:
    return layout.META_PREFIX_VERSION + layout.META_VERSION_KEY.pack(number, seq)


def point_key(number: int, seq: int) -> bytes:
    return layout.META_PREFIX_POINT + layout.META_VERSION_KEY.pack(number, seq)


def snapshot_key(number: int, name: str) -> bytes:
    return layout.META_PREFIX_SNAPSHOT + _U32.pack(number) + name.encode()


def dropped_key(number: int, seq: int, name: str) -> bytes:
    return layout.META_PREFIX_DROPPED + layout.META_VERSION_KEY.pack(number, seq) + name.encode()


def round_key(lsn: int) -> bytes:
    return layout.META_PREFIX_ROUND + layout.META_ROUND_KEY.pack(lsn)


def settings_key(number: int) -> bytes:
    return layout.META_PREFIX_SETTINGS + _U32.pack(number)


def versions_put(rows: Iterable[VersionRow]) -> dict[bytes, bytes]:
    return {version_key(row.number, row.seq): _version_value(row) for row in rows}


def points_put(rows: Iterable[VersionRow]) -> dict[bytes, bytes]:
    return {point_key(row.number, row.seq): _version_value(row) for row in rows}


def snapshots_put(rows: Iterable[SnapshotRow]) -> dict[bytes, bytes]:
    puts = {}
    for row in rows:
        puts[snapshot_key(row.number, row.name)] = snapshot_value(row)
    return puts


def snapshot_value(row: SnapshotRow) -> bytes:
    flags = layout.SNAPSHOT_PINNED * row.pinned | layout.SNAPSHOT_SCHEDULED * row.scheduled
    return framed(layout.META_SNAPSHOT_ROW.pack(row.seq, row.created_ns, flags))


def state_key(name: str) -> bytes:
    return layout.META_PREFIX_STATE + name.encode()


def state_put(name: str, state: bytes) -> Mapping[bytes, bytes]:
    return {state_key(name): framed(state)}


def round_put(row: RoundRow) -> Mapping[bytes, bytes]:
    value = layout.META_ROUND_ROW.pack(row.sequence, row.position, row.chain, row.time_ns)
    return {round_key(row.lsn): framed(value)}


def settings_put(number: int, settings: Settings) -> Mapping[bytes, bytes]:
    keep, schedule_keep = settings.keep.encode(), settings.schedule_keep.encode()
    assert max(len(keep), len(schedule_keep)) <= MAX_KEEP_LENGTH
    fixed = layout.META_SETTINGS_ROW.pack(
        settings.window_s,
        settings.schedule_s,
        settings.schedule_next_ns,
        settings.codec,
        len(keep),
        len(schedule_keep),
    )
    return {settings_key(number): framed(fixed + keep + schedule_keep)}


def _version_value(row: VersionRow) -> bytes:
    return framed(
        layout.META_VERSION_ROW.pack(
            row.epoch,
            row.lsn,
            row.time_ns,
            row.commit,
            row.root,
            row.height,
            row.size,
            row.changed_bytes,
        )
    )


def version_row(prefix: bytes, key: bytes, value: bytes) -> VersionRow:
    epoch, lsn, time_ns, commit, root, height, size, changed = unpacked(
        layout.META_VERSION_ROW, key, unframed(key, value)
    )
    number, seq = version_of(prefix, key)
    return VersionRow(number, seq, epoch, lsn, time_ns, size, changed, commit, root, height)


def version_of(prefix: bytes, key: bytes) -> tuple[int, int]:
    """The volume number and seq that the key of a version row or a point says."""
    number, seq = unpacked_key(layout.META_VERSION_KEY, prefix, key)
    return number, seq


def snapshot_row(key: bytes, value: bytes) -> SnapshotRow:
    seq, created_ns, flags = unpacked(layout.META_SNAPSHOT_ROW, key, unframed(key, value))
    name_at = len(layout.META_PREFIX_SNAPSHOT) + _U32.size
    (number,) = unpacked_key(_U32, layout.META_PREFIX_SNAPSHOT, key[:name_at])
    return SnapshotRow(
        number,
        text(key, key[name_at:]),
        seq,
        created_ns,
        bool(flags & layout.SNAPSHOT_PINNED),
        bool(flags & layout.SNAPSHOT_SCHEDULED),
    )


def dropped_of(key: bytes) -> tuple[int, int, str]:
    """Volume number, seq and name that the key of a `dropped` row says."""
    prefix = layout.META_PREFIX_DROPPED
    name_at = len(prefix) + layout.META_VERSION_KEY.size
    number, seq = unpacked_key(layout.META_VERSION_KEY, prefix, key[:name_at])
    return number, seq, text(key, key[name_at:])


def dropped_row(key: bytes, value: bytes) -> SnapshotRow:
    number, _, name = dropped_of(key)
    return snapshot_row(snapshot_key(number, name), value)


def created_ns(item: tuple[bytes, bytes]) -> int:
    """Of a snapshot's row."""
    at_ns: int = unpacked(layout.META_SNAPSHOT_ROW, item[0], unframed(*item))[1]
    return at_ns


def round_row(key: bytes, value: bytes) -> RoundRow:
    fields = unpacked(layout.META_ROUND_ROW, key, unframed(key, value))
    (lsn,) = unpacked_key(layout.META_ROUND_KEY, layout.META_PREFIX_ROUND, key)
    return RoundRow(lsn, *fields)


def settings_of(key: bytes, value: bytes) -> Settings:
    body = unframed(key, value)
    fixed = layout.META_SETTINGS_ROW
    if len(body) < fixed.size:
        corrupt_value("meta", key, f"is {len(body)} bytes long")
    window_s, schedule_s, next_ns, codec, keep_length, other_length = fixed.unpack_from(body)
    if len(body) != fixed.size + keep_length + other_length:
        corrupt_value("meta", key, f"is {len(body)} bytes long")
    texts = body[fixed.size :]
    return Settings(
        window_s,
        text(key, texts[:keep_length]),
        codec,
        schedule_s,
        text(key, texts[keep_length:]),
        next_ns,
    )
