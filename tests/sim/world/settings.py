"""What the stores of worlds are like: small, so that everything happens often."""

import random
from dataclasses import replace

from tests.sim.store_rig import KIB, SEGMENT_BYTES
from volume.options import StoreOptions

VOLUMES = {"left": (96 * KIB, 4 * KIB), "right": (64 * KIB, 16 * KIB)}
"""Name -> size, chunk size."""

OPTIONS = StoreOptions(
    journal_limit=8 * SEGMENT_BYTES,
    segment_bytes=SEGMENT_BYTES,
    pack_bytes=48 * KIB,
    reserve_bytes=0,
    cache_bytes=256 * KIB,
    manifest_cache_bytes=64 * KIB,
    destage_age_s=0.4,
    destage_idle_s=0.1,
    gc_interval_s=0.3,
    gc_condemn_s=0.2,
    scrub_interval_s=2.0,
    window_bytes=0,
    window_s=0,
    history_keep="",
)


def drawn_options(rng: random.Random) -> StoreOptions:
    """A store small enough that everything happens often, but not always in the same way."""
    return replace(
        OPTIONS,
        journal_limit=rng.choice((6, 8, 12)) * SEGMENT_BYTES,
        pack_bytes=rng.choice((20, 48, 128)) * KIB,
        cache_bytes=rng.choice((32, 256)) * KIB,
        manifest_cache_bytes=rng.choice((0, 64)) * KIB,
        destage_age_s=rng.choice((0.1, 0.4, 2.0)),
        destage_idle_s=rng.choice((0.05, 0.1, 1.0)),
        gc_condemn_s=rng.choice((0.0, 0.2)),
        compression=rng.choice(("none", "lz4", "lz4", "zstd")),
        scrub_interval_s=rng.choice((1.0, 10.0)),
        window_bytes=rng.choice((0, 0, 6)) * SEGMENT_BYTES,
        read_threads=rng.choice((1, 4)),
    )
