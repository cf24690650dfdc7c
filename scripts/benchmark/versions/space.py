"""What many versions of one disk take in blockd, qcow2 and borg, fed with the same changes.

One system after the other; in each, the last day is read back and compared at the end.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import report

from versions import workload
from versions.common import Settings, size, table
from versions.systems import Blockd, Borg, Qcow2Chain, Qcow2Snapshots, System
from versions.workload import Workload

SYSTEMS: tuple[Callable[[Path], System], ...] = (
    Qcow2Snapshots,
    Qcow2Chain,
    Borg,
    lambda folder: Borg(folder, "fixed,65536"),
    lambda folder: Blockd(folder, "none", 65536),
    lambda folder: Blockd(folder, "lz4", 65536),
    lambda folder: Blockd(folder, "zstd", 65536),
    lambda folder: Blockd(folder, "igzip", 65536),
    lambda folder: Blockd(folder, "zstd", 16384),
)


def measure(settings: Settings) -> list[str]:
    shape = workload.QUICK if settings.quick else workload.FULL
    settings.say("    the image and its changes")
    given = settings.folder / "input"
    given.mkdir()
    work = Workload(given, shape)
    last = given / "last.raw"
    workload.copy_sparse(work.base, last)
    for number in range(shape.days):
        workload.apply(work.day(number), last)
    rows = []
    for make in SYSTEMS:
        folder = settings.folder / "system"
        system = make(folder)
        began = time.monotonic()
        base, clones, days = feed(system, work)
        system.check(shape.days - 1, last)
        system.close()
        shutil.rmtree(folder)
        settings.say(f"    {system.name}: {size(days)} MiB, {time.monotonic() - began:.0f} s")
        added = [size(clones - base), size(days - clones)]
        rows.append([system.name, size(base), *added, size(days)])
    return lines(work, rows)


def feed(system: System, work: Workload) -> tuple[int, int, int]:
    """Stored bytes after the base, after the clones, after the days."""
    system.base(work.base)
    base = system.stored_bytes()
    for number in range(work.shape.clones):
        system.clone(number, work.clone(number))
    clones = system.stored_bytes()
    for number in range(work.shape.days):
        system.day(number, work.day(number))
    return base, clones, system.stored_bytes()


def lines(work: Workload, rows: list[list[str]]) -> list[str]:
    shape = work.shape
    changed = work.changed_bytes()
    used = work.base.stat().st_blocks * 512
    head = (
        "stored, MiB",
        "the image",
        f"+ {shape.clones} clones",
        f"+ {shape.days} days",
        "all versions",
    )
    return [
        f"An ext4 of {shape.image_bytes >> 20} MiB, {size(used)} MiB of it used: files of this "
        f"machine's Debian, and a file of {shape.database_bytes >> 20} MiB that stands for a "
        f"database. {shape.clones} clones with a few files of their own ({size(changed[0])} MiB of "
        f"blocks in all); {shape.days} days on which files are replaced, added and removed and "
        f"{shape.pages} pages of the database overwritten ({size(changed[1])} MiB of blocks). "
        "Every version can be read in each system. blockd without its journal, a ring of fixed "
        f"size. {report.version_of(('qemu-img', '--version'))}, "
        f"{report.version_of(('borg', '--version'))}.",
        "",
        *table(head, rows),
    ]
