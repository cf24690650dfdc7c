"""What goes wrong with a disk while a daemon uses it, drawn from an act's generator.

    errors     calls fail once or a few times: EIO, ENOSPC, writes that stop half-way, stalls
    damage     what was stored is not what is read: bits flip, sectors cannot be read, writes go
               elsewhere in the file. Synced data only: what is lost with the cache anyway proves
               nothing
    lies       a sync says that it has been done

Each function returns what it did, for the run's record, or "" when there was nothing to do it to.
"""

import errno
import random
from collections.abc import Callable

from tests.sim.faults import Fail, Fault, Lie, Misdirect, ShortWrite, Stall
from tests.sim.image import PAGE_SIZE
from tests.sim.world.disk import WorldDisk
from volume.disk import SECTOR_SIZE

Trouble = Callable[[WorldDisk, random.Random], str]

JOURNAL_FLIP = "bit flipped in the journal"
JOURNAL, PACKS = "journal/*", "packs/*"


def _soon(rng: random.Random) -> int:
    return rng.choice((1, 1, 2, 3, 5, 8, 13))


def _fail(disk: WorldDisk, rng: random.Random, op: str, path: str, code: int = errno.EIO) -> str:
    count = 1 if op == "pread" else rng.choice((1, 1, 2, 4))  # more would be damage
    disk.faults.add(Fault(op, Fail(code), path, nth=_soon(rng), count=count))
    return f"{errno.errorcode[code]} {op} {path}"


def io_error(disk: WorldDisk, rng: random.Random) -> str:
    op, path = rng.choice(
        (
            ("pwrite", JOURNAL),
            ("sync", JOURNAL),
            ("pread", JOURNAL),
            ("pwrite", PACKS),
            ("sync", PACKS),
            ("pread", PACKS),
            ("open", PACKS),
            ("sync_dir", "*"),
            ("unlink", "*"),
        )
    )
    return _fail(disk, rng, op, path)


def no_space(disk: WorldDisk, rng: random.Random) -> str:
    return _fail(disk, rng, "pwrite", rng.choice((JOURNAL, PACKS)), errno.ENOSPC)


def short_write(disk: WorldDisk, rng: random.Random) -> str:
    path = rng.choice((JOURNAL, PACKS))
    length, code = rng.choice((0, 64, 512, 1000, 4096)), rng.choice((errno.EIO, errno.ENOSPC))
    disk.faults.add(Fault("pwrite", ShortWrite(length, code), path, nth=_soon(rng)))
    return f"short pwrite {path}"


def stall(disk: WorldDisk, rng: random.Random) -> str:
    op, path = rng.choice((("sync", "*"), ("pread", PACKS), ("pwrite", PACKS)))
    seconds = rng.choice((0.05, 0.5, 3.0))
    disk.faults.add(Fault(op, Stall(lambda: disk.stall(seconds)), path, nth=_soon(rng)))
    return f"stall {op}"


def flip(disk: WorldDisk, rng: random.Random) -> str:
    found = disk.synced_place("packs/", rng)
    if found is None:
        return ""
    path, offset = found
    disk.flip_bit(path, offset, rng.randrange(8))
    return "bit flipped in a pack"


def journal_flip(disk: WorldDisk, rng: random.Random) -> str:
    found = disk.synced_record(rng)
    if found is None:
        return ""
    path, offset = found
    disk.flip_bit(path, offset, rng.randrange(8))
    return JOURNAL_FLIP


def bad_sector(disk: WorldDisk, rng: random.Random) -> str:
    found = disk.synced_place("packs/", rng)
    if found is None:
        return ""
    path, offset = found
    disk.break_sector(path, offset // SECTOR_SIZE * SECTOR_SIZE)
    return "unreadable sector in a pack"


def misdirect(disk: WorldDisk, rng: random.Random) -> str:
    shift = rng.choice((SECTOR_SIZE, PAGE_SIZE, 2 * PAGE_SIZE))
    disk.faults.add(Fault("pwrite", Misdirect(shift), PACKS, nth=_soon(rng)))
    return "misdirected pwrite in a pack"


def lying_sync(disk: WorldDisk, rng: random.Random) -> str:
    path = rng.choice((JOURNAL, PACKS))
    disk.faults.add(Fault("sync", Lie(), path, nth=1, count=rng.choice((1, 4, None))))
    return f"lying sync {path}"


TROUBLES: dict[str, Trouble] = {
    "io-error": io_error,
    "no-space": no_space,
    "short-write": short_write,
    "stall": stall,
    "flip": flip,
    "journal-flip": journal_flip,
    "bad-sector": bad_sector,
    "misdirect": misdirect,
    "lying-sync": lying_sync,
}
