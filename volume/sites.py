"""Sites: named places where a test rig steps in; this module arms them, and lists them all.

    fail point   the process kills itself there (SIGKILL), at the n-th time that it comes by
    rare site    what hardly ever happens, happens: a short read, a full map, an early rotation

They are in the product because what they test is the product as it is run: the daemon, its threads
and real files. In production nothing is armed, and a site is one test of a flag. Only the
environment of a test rig arms any, and then the log says so at every start:

    BLOCKD_FAIL_POINT=NAME[:NTH]          kill the process at the NTH time (default: the first)
    BLOCKD_RARE=SEED[:NAME=CHANCE,...]    all rare sites at their usual chance, or only these
    BLOCKD_SITES_REPORT=PATH              append "reached NAME", "fired NAME": the first of each

The same seed draws the same for the n-th time that a site is reached; how threads interleave is the
kernel's business. The sites of the C core are in native/src/sites.h, where a third kind lives:
safety rules that a test breaks on purpose (tests/sim/broken_rules.py), which no environment can.
`python -m volume.sites` lists all names.
"""

import logging
import os
import random
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import native

log = logging.getLogger(__name__)

FAIL_POINT = "BLOCKD_FAIL_POINT"
RARE = "BLOCKD_RARE"
REPORT = "BLOCKD_SITES_REPORT"

FAIL_POINTS: Mapping[str, str] = {
    # the journal; in native/src/journal.c
    "journal.append.before": "a group of records is about to be written",
    "journal.append.after": "it is in the page cache, and nobody has been told",
    "journal.sync.before": "fdatasync for a flush is about to begin",
    "journal.sync.after": "it is done, and nobody has been told",
    "journal.rotate.before": "the next segment is about to get its header",
    "journal.rotate.after": "it has it, and no record",
    "journal.release.after": "segments before the checkpoint are free",
    "journal.recycle.after": "a segment of the window is ready for use again",
    # segment files
    "segment.prepare.zeroed": "a new segment file is full of zeros, not synced",
    "segment.prepare.synced": "it and its name are durable, and the journal has not got it",
    "segment.forgotten": "no replay may begin in the oldest segments; they are still there",
    "segment.removed": "a segment file is gone",
    # a destage round
    "destage.frozen": "the cut is made",
    "destage.chunks-appended": "new chunks of a volume are in the pack's buffer",
    "destage.manifest-written": "and its manifest nodes",
    "destage.built": "and the commits, nothing synced",
    "destage.heads-appended": "chunks are durable, HEAD records are in the journal, not synced",
    "destage.heads-synced": "HEAD records are durable; the transaction is next",
    "destage.moved": "heads and checkpoint have moved; memory has not",
    "destage.done": "before the segments are released",
    "head.transaction.before": "heads and checkpoint are about to move in one transaction",
    "head.transaction.after": "they have",
    # packs and the index
    "pack.begun": "a new pack has its header, not synced",
    "pack.written": "entries are written, not synced",
    "pack.synced": "entries are durable; the index does not know them",
    "pack.footer-written": "a pack has its footer, not synced",
    "chunks.indexed": "the index knows the new chunks",
    "chunks.stored-anew": "chunks that were damaged have a sound copy, which the index knows",
    # names and versions
    "snapshot.recorded": "a POINT record is in the journal; its row is not even in memory",
    "names.synced": "the journal is synced for rows that are in memory only",
    "names.stored": "those rows are in meta/",
    "snapshot.dropped": "a name is gone from meta/",
    "volume.create.before": "the rows of a new volume are about to be written",
    "volume.create.after": "they are, and nobody can attach yet",
    "clone.made": "a clone is there; gc has not been told of its tree",
    "volume.delete.before": "a volume's rows are about to go",
    "volume.delete.after": "they are gone, its clients do not know",
    "restore.retired": "a head is about to be replaced; no write is acknowledged any more",
    "restore.synced": "what the volume was is durable; the transaction is next",
    "restore.replaced": "the new head is in meta/",
    "resize.unmapped": "what comes or goes is unmapped, durably; the size is the old one",
    "resize.stored": "the size is the new one",
    "range.kept": "the tree that a cloned range refers to is kept; the record is next",
    "range.recorded": "the REFER record is in the journal",
    # gc
    "gc.marked": "everything reachable is marked",
    "gc.condemned": "what is dead in each pack is known",
    "gc.copied": "live chunks of a pack are copied and synced; the index has the old places",
    "gc.indexed": "the index has the new places",
    "gc.unindexed": "the index has forgotten the dead chunks of a pack that is still there",
    "gc.removed": "the pack is gone, its folder not synced",
    # streams
    "receive.begun": "there is a progress record",
    "receive.stored": "chunks of a batch are durable; the progress record does not know",
    "receive.saved": "it does",
    "receive.landed": "the volume is there; the progress record still is, too",
    # scrub
    "scrub.noted": "scrub has noted where it is and what is damaged",
    # blockd doctor --repair-index
    "repair.distrusted": "meta/ says that the index is not to be trusted",
    "repair.deleted": "the index is gone",
    "repair.filled": "it is made anew, not synced",
    "repair.synced": "it is synced, and still not trusted",
    # what targets and units keep
    "kept.write.before": "a row of a target, a reservation or a mode page is about to be written",
    "kept.write.after": "it is durable, and nobody has been told",
    "kept.delete.before": "such rows are about to go",
    "kept.delete.after": "they are gone",
    # opening and closing
    "open.epoch": "the node epoch is raised, nothing else",
    "open.index-rebuilt": "the index is rebuilt, and not yet trusted",
    "open.pack-adopted": "a pack that a crash left unsealed has been cut and synced, not sealed",
    "open.replayed": "the journal is replayed, not synced",
    "close.index-synced": "journal and index are synced; the index is not marked clean",
}
"""Name -> what has happened by then. Those of the core are armed there."""


@dataclass(frozen=True, slots=True)
class Rare:
    """A rare site."""

    what: str
    chance: float
    """Each time, in the nightly profile."""


RARE_SITES: Mapping[str, Rare] = {
    "journal.rotate-early": Rare("a segment ends long before it is full", 0.002),
    "journal.no-segment": Rare("no segment is ready: writes wait", 0.3),
    "file.short-read": Rare("preadv returns half of what was asked for", 0.05),
    "file.short-write": Rare("pwritev takes half of the buffers", 0.05),
    "file.would-wait": Rare("a read that must not wait for the disk would", 0.2),
    "batch.conflict": Rare("somebody else wrote between a read and its conditional write", 0.5),
    "table.forget": Rare("places of chunks are forgotten at once", 0.05),
    "disk.short-read": Rare("pread returns half of what was asked for", 0.05),
    "disk.short-write": Rare("pwrite takes half of the buffer", 0.05),
    "ack.delayed": Rare("a group commit is answered later than the next one begins", 0.2),
    "backlog.delayed": Rare(
        "finished writes are reported as if the journal were nearly full", 0.02
    ),
    "pack.full-early": Rare("a pack is sealed long before it is full", 0.002),
    "kv.map-full": Rare("the LMDB map is full and has to grow", 0.01),
    "kv.release": Rare("LMDB's pages are let go of under its readers", 0.02),
    "nodes.forget": Rare("no manifest node is in the cache", 0.02),
    "destage.fails": Rare("a round fails after its chunks, and is done again", 0.05),
    "destage.due": Rare("a round begins at once", 0.05),
    "gc.yields": Rare("gc stops after each item, and lets others run", 0.3),
    "gc.due": Rare("gc runs at once", 0.1),
    "version.closed": Rare("a version that nobody reads is closed at once", 0.3),
    "receive.batch": Rare("a batch of a stream is stored long before it is full", 0.3),
    "socket.short-read": Rare("a socket gives a few bytes at a time", 0.02),
}
"""Name -> what happens, and how often. Those of the core are armed there."""


@dataclass(slots=True)
class _Site:
    nth: int
    """When to fire, from 1; 0: by chance."""
    chance: float
    seed: str
    reached: int = 0
    fired: int = 0

    def fires(self) -> bool:
        self.reached += 1
        if self.nth:
            fires = self.reached == self.nth
        else:
            fires = random.Random(f"{self.seed}:{self.reached}").random() < self.chance
        self.fired += fires
        return fires


_armed = False
_lock = threading.Lock()
_sites: dict[str, _Site] = {}
_report = -1


def fail_point(name: str) -> None:
    """The process ends here if the rig says so."""
    if _armed:
        _decide(name)


def rare(name: str) -> bool:
    """Whether the rare event called `name` happens now."""
    return _armed and _decide(name)


def _decide(name: str) -> bool:
    with _lock:
        site = _sites.get(name)
        if site is None:
            return False
        fires = site.fires()
        if site.reached == 1:
            _tell(f"reached {name}")
        if site.fired == 1 and fires:
            _tell(f"fired {name}")
    if fires and name in FAIL_POINTS:
        os.kill(os.getpid(), signal.SIGKILL)
    return fires


def _tell(line: str) -> None:
    if _report >= 0:
        os.write(_report, f"{line}\n".encode())


def arm(name: str, *, nth: int = 0, chance: float = 0.0, seed: str = "0") -> None:
    """Arm one site: it fires at the `nth` time, or by chance. KeyError: there is no such site."""
    global _armed
    if name in _core_names():
        native.arm_site(name, nth, int(chance * (1 << 32)), hash_of(seed, name))
        return
    if name not in FAIL_POINTS and name not in RARE_SITES:
        raise KeyError(name)
    with _lock:
        _sites[name] = _Site(nth, chance, f"{seed}:{name}")
        _armed = True


def disarm() -> None:
    """Nothing fires any more."""
    global _armed
    native.disarm_sites()
    with _lock:
        _armed = False
        _sites.clear()


def counts() -> dict[str, tuple[int, int]]:
    """Armed, or once armed, sites: how often each was reached, and has fired."""
    found = {name: (reached, fired) for _, name, reached, fired in native.native_sites()}
    with _lock:
        found.update({name: (site.reached, site.fired) for name, site in _sites.items()})
    return found


def arm_from(environ: Mapping[str, str]) -> None:
    """Arm what the environment of a test rig says, with a warning in the log. ValueError."""
    global _report
    point, rarely = environ.get(FAIL_POINT), environ.get(RARE)
    if point is None and rarely is None:
        return
    if path := environ.get(REPORT):
        _report = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        native.report_sites(_report)
    if point is not None:
        name, _, nth = point.partition(":")
        _arm_known(FAIL_POINT, name, FAIL_POINTS, nth=int(nth or 1))
    if rarely is not None:
        seed, _, chosen = rarely.partition(":")
        chances = {name: site.chance for name, site in RARE_SITES.items()}
        if chosen:
            pairs = (each.partition("=") for each in chosen.split(","))
            chances = {name: float(chance or 1.0) for name, _, chance in pairs}
        for name, chance in chances.items():
            _arm_known(RARE, name, RARE_SITES, chance=chance, seed=seed)
    log.warning(
        "test rig: this process is not for production fail_point=%s rare=%s",
        *(point or "-", rarely or "-"),
    )


def _arm_known(
    variable: str,
    name: str,
    known: Mapping[str, object],
    *,
    nth: int = 0,
    chance: float = 0.0,
    seed: str = "0",
) -> None:
    if name not in known:
        raise ValueError(f"{variable}: there is no {name!r}; `python -m volume.sites` lists all")
    arm(name, nth=nth, chance=chance, seed=seed)


def hash_of(seed: str, name: str) -> int:
    """A seed for one site of the core, 64 bits."""
    return random.Random(f"{seed}:{name}").getrandbits(64)


def _core_names() -> frozenset[str]:
    return frozenset(name for _, name, _, _ in native.native_sites())


def main() -> None:
    """Print all names: kind, name, and what it means."""
    width = max(map(len, [*FAIL_POINTS, *RARE_SITES]))
    for name, what in FAIL_POINTS.items():
        print(f"point  {name:{width}}  {what}")
    for name, site in RARE_SITES.items():
        print(f"rare   {name:{width}}  {site.what} (chance {site.chance})")


if __name__ == "__main__":
    main()
