"""What `blockd doctor` sees of the limits that volumes are to have: rows that cannot be read."""

from pathlib import Path

from blockd.api.limit_types import PREFIX, decode
from volume.disk import SystemClock
from volume.errors import VolumeError
from volume.kv import LmdbKeyValue
from volume.meta import Meta
from volume.states import states
from volume.store import META_MAP_BYTES


def unreadable_limits(meta: Path) -> list[tuple[str, str]]:
    """(volume, why its limits cannot be read). VolumeError, OSError for meta/ as a whole."""
    found: dict[str, str] = {}
    kv = LmdbKeyValue(meta, synced=True, map_size=META_MAP_BYTES)
    try:
        volumes = Meta(kv, SystemClock()).volumes()
        names = {PREFIX + volume.uuid.hex(): volume.name for volume in volumes}

        def damaged(name: str, error: VolumeError) -> None:
            found[name] = str(error)

        for name, value in states(kv, PREFIX, damaged):
            try:
                decode(value)
            except ValueError as error:
                found[name] = str(error)
    finally:
        kv.close()
    return [(names[name], reason) for name, reason in sorted(found.items()) if name in names]
