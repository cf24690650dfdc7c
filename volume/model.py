"""Values that the volume layer hands out: what a person or the control API sees. All immutable."""

from dataclasses import dataclass

MIN_BLOCK_SIZE = 512
BLOCK_SIZES = (512, 4096)
MAX_VOLUME_SIZE = 1 << 60  # 1 EiB
DEFAULT_BLOCK_SIZE = 512  # every client can use it; the preferred size told to clients is 4096
DEFAULT_CHUNK_SIZE = 64 * 1024
MIN_CHUNK_SIZE = 4 * 1024
MAX_CHUNK_SIZE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """A volume as shown to people. Sizes are bytes, `seq` counts the volume's journal records."""

    name: str
    uuid: str
    number: int
    size: int
    block_size: int
    chunk_size: int
    created_ns: int
    epoch: int
    seq: int
    """Last record acknowledged to a client."""
    commit: str | None
    """Commit that the head descends from (hex), None before the first."""
    commit_seq: int
    """Last record that is in chunks; the records after it are in the journal only."""
    hot_bytes: int
    """Bytes of the volume whose newest version is in the journal only."""
    clients: tuple[str, ...]
    compression: str = "none"
    """Codec of its chunks: "none", "lz4", "zstd" or "igzip"."""
    snapshot_count: int = 0


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The state of a data directory. Sizes are bytes, ages are seconds."""

    path: str
    uuid: str
    state: str
    """"ok", "full" (writes get ENOSPC) or "sealed" (a sync failed; writes get EIO)."""
    reason: str | None
    """Why the state is not "ok"."""
    node_epoch: int
    volume_count: int
    lsn: int
    synced_lsn: int
    checkpoint_lsn: int
    journal_bytes: int
    """Journal bytes that hold records not yet in chunks."""
    journal_limit: int
    """Most that the journal may hold before writers wait; more while a volume is not destaged."""
    hot_bytes: int
    oldest_hot_age_s: float
    """Age of the oldest write that is in the journal only; 0.0 when there is none."""
    pack_count: int
    pack_bytes: int
    cache_bytes: int
    cache_limit: int
    disk_free_bytes: int
    disk_total_bytes: int
    space_left_bytes: int
    """What clients can still write before ENOSPC."""
    space_short_bytes: int
    """Space is short when less than this is left: versions without a name give way."""
    destage_held_up: str | None = None
    """Which volumes are not destaged, and for which damage. The others are, but the journal keeps
    what all of them write: in the end writers wait. None: all of them are destaged."""


@dataclass(frozen=True, slots=True)
class StoreCounters:
    """What a store did since it was opened. Bytes are those of chunks, before compression unless
    said otherwise; nodes of manifests are chunks, too."""

    destage_rounds: int
    chunk_bytes: int
    """That were to become chunks."""
    zero_bytes: int
    """Of those: all zeros, which are not stored."""
    duplicate_bytes: int
    """Of those: stored already."""
    new_bytes: int
    """Of those: stored."""
    stored_bytes: int
    """The same, after compression."""
    place_hits: int
    """Reads of a chunk whose place was in memory."""
    place_misses: int
    node_hits: int
    """Manifest nodes that were in memory."""
    node_misses: int
    repaired_reads: int
    """Reads that met damage, and were answered by what another node has."""
    unrepaired_reads: int
    """Reads that waited for that in vain."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A name for a version of a volume. Times are nanoseconds since 1970."""

    volume: str
    name: str
    seq: int
    """Last journal record of the volume that is in it."""
    epoch: int
    size: int
    created_ns: int
    commit: str | None
    """Commit (hex); None while the newest of its bytes are in the journal only."""
    pinned: bool
    """Neither a schedule nor `delete` without force removes it."""
    scheduled: bool
    """Made by the volume's schedule, which removes it again."""


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """Snapshots that the store makes by itself. Times are seconds, or ns since 1970."""

    volume: str
    every_s: int
    keep: str
    """What stays, as "24h,7d,4w"; see `volume.retention`."""
    next_ns: int


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """A version in a volume's log. Times are nanoseconds since 1970."""

    seq: int
    epoch: int
    time_ns: int
    kind: str
    """"head" (the newest state), "commit" (in chunks), "point" (a snapshot whose bytes are still
    in the journal), or one record of the journal: "write", "unmap", "zero", or "clone" for a
    range that was cloned."""
    size: int
    """Of the volume, at that version."""
    bytes: int
    """Of a record: its length. Of the others: how much of the volume changed since the version
    before, in whole chunks."""
    offset: int | None
    """Of a record."""
    commit: str | None
    snapshots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionLog:
    """The versions of a volume, newest first."""

    volume: str
    versions: tuple[VersionInfo, ...]
    more: bool
    """Older ones were left out because of the limit."""
    window_start_ns: int | None
    """Since then every single write can be restored; None: no such window."""


@dataclass(frozen=True, slots=True)
class HistoryPolicy:
    """How long a volume's versions stay without a name."""

    window_s: int
    """Every write of at least this long can be restored, while the disk has room."""
    keep: str
    """What stays of older versions, as "60m,24h,7d"; "" for none."""


@dataclass(frozen=True, slots=True)
class RestoreInfo:
    """What a restore did."""

    volume: VolumeInfo
    restored_seq: int
    kept: str
    """Snapshot of the state before."""
    had_name: bool = False
    """That snapshot was there before; else it was made for this."""


@dataclass(frozen=True, slots=True)
class DiffInfo:
    """Where two versions differ, in whole chunks of the volume."""

    old: str
    new: str
    old_size: int
    new_size: int
    extents: tuple[tuple[int, int], ...]
    """(offset, length), ascending, no two adjacent: the first so many as were asked for."""
    changed_bytes: int
    """Of all of them."""
    extent_count: int
    """Of all of them."""


@dataclass(frozen=True, slots=True)
class SpaceRow:
    """What one root takes of the packs. Bytes are of pack entries, headers included, unless said
    otherwise."""

    volume: str
    kind: str
    """"head", "snapshot" or "history" (all versions of the volume that have no name)."""
    name: str | None
    """Of the snapshot."""
    logical_bytes: int
    """Of the volume that are not holes, in whole chunks."""
    raw_bytes: int
    """What it reaches, each chunk once, before compression."""
    stored_bytes: int
    """The same as stored."""
    exclusive_bytes: int
    """Stored bytes that nothing else reaches: freed when it is deleted."""
    shared_bytes: int
    """Stored bytes that something else reaches as well."""
    pinned_by: tuple[str, ...]
    """What keeps it: "head", "pin", "schedule", "window", "keep", clients that read it."""


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """Where the disk's bytes are; see `SpaceRow` for what is counted."""

    rows: tuple[SpaceRow, ...]
    volumes: tuple[tuple[str, int], ...]
    """(volume, stored bytes that are freed when it is deleted with all its versions)."""
    live_bytes: int
    """Stored bytes that some root reaches."""
    garbage_bytes: int
    """Stored bytes that none reaches: gc's next work."""
    pack_bytes: int
    """Pack files, with headers and footers."""
    journal_bytes: int
    """Segment files, all of them."""
    window_bytes: int
    """Those of them that are kept for the any-write window only."""


@dataclass(frozen=True, slots=True)
class ReceiveInfo:
    """A version stream that is being received, or was cut off. Times are ns since 1970."""

    name: str
    """Of the volume that it will become, or become a new version of."""
    commit: str
    """That is being received (hex)."""
    base: str | None
    """Commit that it is a difference to."""
    source: str
    """Name of the volume at the sender, as its commit says."""
    size: int
    """Of the volume, bytes."""
    fraction: float
    """Of the volume that is here, durably."""
    received_bytes: int
    """In chunks, as they were sent."""
    stored_bytes: int
    """Of those, what was not here before."""
    started_ns: int
    updated_ns: int
    active: bool
    """A stream is coming in now."""
    token: str
    """For `blockd send --resume`."""
