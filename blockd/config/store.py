"""Section [store]."""

import enum
from dataclasses import dataclass
from typing import Annotated

from blockd.config.values import Seconds, Size
from blockd.toml_decode import Range, SizeText


class Compression(enum.StrEnum):
    """Codec of new chunks."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"
    IGZIP = "igzip"


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]: the data directory. None leaves the store's own default."""

    journal_limit: Size | None = None
    """The most that the journal takes; it does not shrink when this is lowered."""
    reserve: Size | None = None
    """Free space that is never filled."""
    short_percent: Annotated[int, Range(0, 90)] | None = None
    """Old versions without a name give way when less than this part of the disk is left."""
    cache: Size | None = None
    """Memory for chunk places and decoded chunks."""
    hot_map: Size | None = None
    """Memory of the hot maps at which destaging starts."""
    destage_age_s: Seconds | None = None
    """About how old a write may get before it is in chunks."""
    destage_idle_s: Seconds | None = None
    """Destage when nothing was written for this long."""
    gc_interval_s: Seconds | None = None
    """At least this long between two garbage collections."""
    gc_condemn_s: Seconds | None = None
    """What nothing reaches is removed when it has been so for this long."""
    scrub_interval_s: Seconds | None = None
    """Every stored byte is read and verified once in this time."""
    window: Size | None = None
    """Disk space for the any-write window; as much again for versions that only a policy keeps."""
    window_s: Seconds | None = None
    """Of new volumes: single writes of at least this long can be restored, while there is room."""
    keep: str | None = None
    """Of new volumes: what stays of versions after that, as "60m,24h,7d"."""
    read_threads: Annotated[int, Range(1, 64)] | None = None
    """Threads for reads that have to wait for the disk."""
    compression: Compression | None = None
    """Of new volumes: how their chunks are packed, where that saves 12 %."""
    pack_size: Annotated[int, SizeText(low=1 << 20, high=1 << 30)] | None = None
    """A pack is sealed when it has grown to so much."""
    accept_journal_loss: bool | None = None
    """Open although flushed records of the journal are damaged: what follows them is dropped."""
