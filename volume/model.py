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
    """Most that the journal may hold before writers wait."""
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
