"""Settings of a data directory, with their defaults and bounds."""

from dataclasses import dataclass

from volume import codecs
from volume.errors import InvalidSize

MIB = 1024 * 1024

SEGMENT_BYTES = 64 * MIB
"""Large, so that rotation is rare; a place in the hot map has 26 bits for the offset."""
MIN_SEGMENT_BYTES = 16 * 1024
JOURNAL_LIMIT = 4096 * MIB
JOURNAL_SHARE = 10
"""The default journal takes at most one JOURNAL_SHARE-th of the disk."""
WINDOW_SHARE = 20
"""The default any-write window takes one WINDOW_SHARE-th of the disk."""
MAX_WINDOW_SEGMENTS = 1024
"""64 GiB of log; each segment takes a file descriptor or two."""
MIN_SEGMENTS = 4
"""One that is written, one ready, one being destaged, one kept for trims."""
SEGMENTS_WANTED = 16
"""On small disks segments shrink so that the journal still has this many."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a store uses its directory. Sizes are bytes, times are seconds."""

    journal_limit: int | None = None
    """Most that the journal takes; None: 4 GiB or a tenth of the disk, the smaller."""
    segment_bytes: int | None = None
    """Size of a journal segment; only looked at when the store is made."""
    pack_bytes: int = 64 * MIB
    reserve_bytes: int = 64 * MIB
    """Kept free on the disk: writes get ENOSPC before it is touched."""
    short_percent: int = 10
    """Space is short when less than this part of the disk is left: versions that nobody named give
    way, and iSCSI initiators are told."""
    cache_bytes: int = 64 * MIB
    """Chunk places and decoded chunks."""
    manifest_cache_bytes: int = 16 * MIB
    hot_map_bytes: int = 128 * MIB
    """Memory of the hot maps at which destaging starts, however little the journal holds."""
    destage_age_s: float = 30.0
    """The oldest write that is in the journal only is at most about this old."""
    destage_idle_s: float = 5.0
    """Destage when nothing was written for this long."""
    destage_fill: float = 0.25
    """Destage when this part of the journal is used; while clients write at full speed twice as
    much, up to a half."""
    gc_interval_s: float = 10.0
    """At least this long between two garbage collections."""
    gc_condemn_s: float = 60.0
    """What nothing reaches is removed when it has been so for this long."""
    scrub_interval_s: float = 14 * 24 * 3600.0
    """Every stored byte is read and verified once in this time."""
    damage_patience_s: float = 30.0
    """What cannot be read while a written chunk is put together is given up as lost when that has
    been so for this long: a disk may fail a read now and then. Until then rounds are repeated."""
    read_threads: int = 4
    """Threads for reads that have to wait for the disk."""
    compression: str = codecs.CODEC_NAMES[codecs.DEFAULT_CODEC]
    """Codec of new volumes: "none", "lz4", "zstd" or "igzip"; a chunk is packed where that saves
    12 %. docs/benchmarks.md ("Codecs") says what each costs."""
    window_bytes: int | None = None
    """Journal segments kept after they were destaged, and versions that they are replayed over, so
    that every write in them can be restored; None: 5 % of the disk. Up to twice as much to reach
    the volumes' `window_s`. As much again for versions that only a policy keeps."""
    window_s: int = 600
    """Of new volumes: every write of at least this long can be restored, while there is room."""
    history_keep: str = "60m,24h,7d"
    """Of new volumes: which versions stay after that; see `volume.retention`."""
    accept_journal_loss: bool = False
    """Open although flushed records of the journal are damaged, dropping what follows them."""


@dataclass(frozen=True, slots=True)
class JournalGeometry:
    """How large the journal is. Sizes are bytes."""

    segment_bytes: int
    limit: int

    @property
    def max_segments(self) -> int:
        return max(MIN_SEGMENTS, self.limit // self.segment_bytes)


def journal_geometry(
    options: StoreOptions, disk_total: int, existing_segment_bytes: int | None
) -> JournalGeometry:
    """The journal's size: from the options, from the disk, and from what is there already."""
    limit = options.journal_limit
    if limit is None:
        limit = min(JOURNAL_LIMIT, disk_total // JOURNAL_SHARE)
    if existing_segment_bytes is not None:
        segment_bytes = existing_segment_bytes
    elif options.segment_bytes is not None:
        segment_bytes = options.segment_bytes
    else:
        segment_bytes = SEGMENT_BYTES
        while segment_bytes > 2 * MIB and limit // segment_bytes < SEGMENTS_WANTED:
            segment_bytes //= 2
    if segment_bytes % 4096 or not MIN_SEGMENT_BYTES <= segment_bytes <= SEGMENT_BYTES:
        raise InvalidSize(
            "segment_bytes", segment_bytes, "must be a multiple of 4 KiB from 16 KiB to 64 MiB"
        )
    return JournalGeometry(segment_bytes, max(limit, MIN_SEGMENTS * segment_bytes))


def window_segments(options: StoreOptions, disk_total: int, segment_bytes: int) -> int:
    """How many segments the any-write window holds."""
    given = options.window_bytes
    wanted = (disk_total // WINDOW_SHARE if given is None else given) // segment_bytes
    return min(wanted, MAX_WINDOW_SEGMENTS)
