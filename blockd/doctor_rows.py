"""What `blockd doctor` sees of what volumes are to have besides their bytes: limits, access lists.

Both are rows of meta/. What cannot be read is not guessed: no limits, and nobody let in.
"""

from collections.abc import Iterator
from pathlib import Path

from blockd.access import kept
from blockd.api import limit_types
from blockd.findings import FAIL, OK, WARN, Finding
from volume.datadir import META_MAP_BYTES
from volume.disk import SystemClock
from volume.kv import LmdbKeyValue
from volume.meta import Meta
from volume.states import states


def rows(meta: Path) -> list[Finding]:
    """VolumeError, OSError: meta/ as a whole cannot be read."""
    kv = LmdbKeyValue(meta, synced=True, map_size=META_MAP_BYTES)
    try:
        names = {each.uuid.hex(): each.name for each in Meta(kv, SystemClock()).volumes()}
        return [*_limits(kv, names), *_access_lists(kv, names)]
    finally:
        kv.close()


def _limits(kv: LmdbKeyValue, names: dict[str, str]) -> Iterator[Finding]:
    unreadable: dict[str, str] = {}
    prefix = limit_types.PREFIX
    for key, value in states(kv, prefix, lambda key, why: unreadable.update({key: str(why)})):
        try:
            limit_types.decode(value)
        except ValueError as error:
            unreadable[key] = str(error)
    known = [(names[uuid], uuid) for key in unreadable if (uuid := key[len(prefix) :]) in names]
    for volume, uuid in sorted(known):
        reason = unreadable[prefix + uuid]
        message = f"those of volume {volume} cannot be read, nothing is limited: {reason}"
        fix = f"set them again while the daemon runs: blockd volume limit {volume} --iops N"
        yield Finding("limits", WARN, message, f"{fix} (or --none)")
    if not known:
        yield Finding("limits", OK, "all can be read")


def _access_lists(kv: LmdbKeyValue, names: dict[str, str]) -> Iterator[Finding]:
    damaged: list[str] = []
    found = dict(states(kv, kept.PREFIX, lambda key, _: damaged.append(key)))
    damaged += [key for key, value in found.items() if kept.decode(key, value).damaged]
    for key in damaged:
        name = names.get(key.removeprefix(kept.VOLUME))
        which = key if name is None else f"{key}, of volume {name},"
        fix = f"blockd volume access clear {name or 'NAME'}, then allow"
        message = f"{which} is damaged: that volume lets nobody in"
        yield Finding("access lists", FAIL, message, fix)
    if not damaged:
        yield Finding("access lists", OK, f"{len(found)} volume(s) have one")
