"""A world: one machine that serves, clients, an operator and a nemesis, all from one seed.

    World(plan).live() -> Report

The nemesis cuts the power, kills the daemon, has it restarted; after each of these all volumes are
read and judged before clients come back. At the end the machine crashes once more, everything is
judged, destaged, collected, and read again.
"""

import contextlib
import functools
import gc
import hashlib
import logging
import random
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import native
from blockd.nbd import wire
from tests.nbd_client import OptionError, RequestError, Session
from tests.sim.simdisk import DEFAULT_CAPACITY
from tests.sim.store_rig import KIB, SEGMENT_BYTES
from tests.sim.world import plan as plans
from tests.sim.world.clients import GONE, Client, NbdClient
from tests.sim.world.iscsi_client import IscsiClient
from tests.sim.world.ledger import REPEATS, UNREADABLE, Ledger, Violation
from tests.sim.world.machine import ISCSI_PORT, NBD_PORT, Machine, ServerGone
from tests.sim.world.mischief import JOURNAL_FLIP
from tests.sim.world.nemesis import Gone, Nemesis
from tests.sim.world.net import Forgotten, Link, Network
from tests.sim.world.operator import Operator, Pending
from tests.sim.world.plan import Act, Plan, Profile
from tests.sim.world.primitives import Event, installed
from tests.sim.world.threads import Group, SimThread, Threads
from volume import sites
from volume.disk import SECTOR_SIZE
from volume.errors import CorruptData, NoSuchVersion, VolumeError
from volume.model import VolumeInfo
from volume.options import StoreOptions
from volume.past import LINGER_S
from volume.store import Store

T = TypeVar("T")

VOLUMES = {"left": (96 * KIB, 4 * KIB), "right": (64 * KIB, 16 * KIB)}
"""Name -> size, chunk size."""
PAUSE_S = 0.02  # between two acts of an actor, on average
READ_BYTES = 32 * KIB
ALWAYS = (1 << 32) - 1
MOST_NODES = 3
"""Of a volume's head in chunks: a leaf or two, and its commit."""
LOG_LINES = 40
LOST = ("I2", "I3", "I4")
"""What a lying disk breaks: what was promised is lost. It must not show anything else."""

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


@dataclass(slots=True)
class Report:
    """How a world went."""

    seed: int
    profile: str
    digest: str
    acts: int
    error: str = ""
    """What was violated; empty when all went well."""
    details: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    time_s: float = 0.0
    """Simulated."""


class World:
    def __init__(
        self,
        plan: Plan,
        tell: Callable[[str], None] | None = None,
        *,
        broken: str | None = None,
    ) -> None:
        """`tell` is called with each event. `broken`: a safety rule that the store is made to break
        (native/src/sites.h), to see whether that is noticed."""
        self._broken = broken
        self._tell = tell
        self.plan = plan
        self.seed = plan.seed
        self.counts: Counter[str] = Counter()
        self.notes: deque[str] = deque(maxlen=LOG_LINES)
        self._digest = hashlib.blake2b(digest_size=16)

    def live(self) -> Report:
        run = Threads(str(self.seed))
        self.run = run
        _still_collector()
        logging.disable(logging.CRITICAL)
        error = details = ""
        try:
            with installed(run, lambda name: self.machine.passed(name)):
                self._begin(run)
                try:
                    self._live()
                except KeyboardInterrupt:
                    raise
                except BaseException as failure:
                    if not self._explained(failure):
                        error, details = _told(failure)
                finally:
                    run.ending = True
                    self._end()
        finally:
            logging.disable(logging.NOTSET)
            gc.enable()
        for name, (_, fired) in sites.counts().items():
            if fired and self.profile.rare:
                self.counts[f"rare: {name}"] += fired
        sites.disarm()
        self.counts["unsealed"] += self.machine.unsealed
        self.counts["records"] = self.ledger.record_count
        self.counts["switches"] = run.switches
        return Report(
            self.seed,
            self.plan.profile.name,
            self._digest.hexdigest(),
            len(self.plan.acts),
            error,
            details,
            self.counts,
            run.now_s,
        )

    def _explained(self, failure: BaseException) -> bool:
        """Whether that is how a world may end whose disk lost what it had promised."""
        profile = self.profile
        what = ""
        if isinstance(failure, Gone):
            what = "refused to open a damaged store"
        elif isinstance(failure, Forgotten) and profile.damage:
            what = "stalled by damage"  # of a manifest node: see volume/destager.py
        elif isinstance(failure, Violation) and str(failure)[:2] in LOST:
            if profile.lies:
                what = "lies found out"
            elif self.counts[f"fault: {JOURNAL_FLIP}"]:
                what = "lost to a damaged journal"  # nothing behind it proves that it was there
        if what:
            self.counts[what] += 1
        return bool(what)

    # -- what actors use

    def note(self, what: str) -> None:
        """An event of the run: part of its digest."""
        line = f"{self.run.now_ns} {what}"
        self.notes.append(line)
        if self._tell is not None:
            self._tell(line)
        self._digest.update(line.encode())

    def call(self, work: Callable[[Store], T]) -> T:
        return self.machine.call(work)

    def write_some(self, volume: str, rng: random.Random) -> None:
        client = NbdClient(self, f"nbd-{volume}", volume, NBD_PORT)
        for _ in range(2):
            client.act("io", rng)
        client.close()

    def connect(self, port: int) -> Link:
        return self.network.connect(port)

    def failed(self, client: str, what: str, error: int) -> None:
        self.counts[f"error {error}"] += 1
        if not self.profile.errors:
            raise Violation(f"{client}: {what} was answered with error {error}")
        if self.machine.sealed:
            self.nemesis.call()

    # -- life

    def _begin(self, run: Threads) -> None:
        self.ledger = Ledger()
        self.pending: Pending | None = None
        self.network = Network(run, str(self.seed))
        self.network.short_reads = random.Random(f"net:{self.seed}").random() < 0.5
        self.options = drawn_options(random.Random(f"options:{self.seed}"))
        self.machine = Machine(
            *(run, self.network, str(self.seed), self.options, self._landed),
            capacity=self.profile.capacity,
        )
        self.nemesis = Nemesis(self)
        if self.profile.rare:
            self._arm()
        if self._broken is not None:
            native.arm_site(self._broken, 0, ALWAYS, self.seed)
        self.open_gate = Event()
        self._actors: list[SimThread] = []
        self._helpers: list[SimThread] = []

    def _arm(self) -> None:
        """Have what is rare happen: another choice of it in each world."""
        rng = random.Random(f"rare:{self.seed}")
        for name, site in sites.RARE_SITES.items():
            if rng.random() < 0.5:
                sites.arm(name, chance=site.chance, seed=str(self.seed))

    @property
    def profile(self) -> Profile:
        return self.plan.profile

    def _landed(self, path: str, offset: int, data: bytes) -> None:
        self.note(f"{path} {offset} {len(data)} {hash_of(data)}")
        self.ledger.landed(path, offset, data)

    def _live(self) -> None:
        if not self.machine.boot():
            raise Violation(f"a new store does not start: {self.machine.failure!r}")
        for name, (size, chunk) in VOLUMES.items():
            create = functools.partial(_created, name=name, size=size, chunk_size=chunk)
            info = self.machine.call(create)
            self.ledger.add(name, size, info.number)
        self.open_gate.set()
        medic = Group("medic")
        self._helpers = [self.run.spawn("medic", self.nemesis.attend, medic)]
        for actor in (*plans.CLIENTS, plans.OPERATOR, plans.NEMESIS):
            if acts := self.plan.of(actor):
                self._actors.append(self._start(actor, acts))
        for thread in self._actors:
            self.run.join(thread)
        self._last_look()

    def _end(self) -> None:
        """Have all threads end, whatever they are doing."""
        self.machine.abandon()
        for group in [thread.group for thread in (*self._helpers, *self._actors)]:
            self.run.kill(group)

    # -- actors

    def _start(self, actor: str, acts: list[Act]) -> SimThread:
        group = Group(actor)
        if actor == plans.NEMESIS:
            return self.run.spawn(actor, lambda: self._nemesis(acts), group)
        if actor == plans.OPERATOR:
            return self.run.spawn(actor, lambda: self._operator(acts), group)
        protocol, volume, *_ = actor.split("-")
        client: Client = (
            NbdClient(self, actor, volume, NBD_PORT)
            if protocol == "nbd"
            else IscsiClient(self, actor, volume, ISCSI_PORT)
        )
        return self.run.spawn(actor, lambda: self._client(client, acts), group)

    def _rng(self, act: Act) -> random.Random:
        return random.Random(f"{self.seed}:{act.index}")

    def _client(self, client: Client, acts: list[Act]) -> None:
        for act in acts:
            rng = self._rng(act)
            self.run.sleep(rng.expovariate(1 / PAUSE_S))
            self.open_gate.wait()
            try:
                client.act(act.kind, rng)
                self.counts[act.kind] += 1
            except (*GONE, OptionError):
                self.counts["lost connections"] += 1
                client.lost()

    def _operator(self, acts: list[Act]) -> None:
        operator = Operator(self, {name: size for name, (size, _) in VOLUMES.items()})
        for act in acts:
            rng = self._rng(act)
            self.run.sleep(rng.expovariate(1 / PAUSE_S / 2))
            self.open_gate.wait()
            self.note(f"operator {act.kind}")
            try:
                operator.act(act.kind, act.index, rng)
                self.counts[act.kind] += 1
            except (*GONE, ServerGone, OptionError, RequestError):
                self.counts["lost answers"] += 1
                if self.pending is not None:
                    self._mended()
            except (VolumeError, OSError) as error:
                if not self.profile.errors:
                    raise Violation(f"operator: {act.kind} failed: {error!r}") from error
                self.counts[f"refused: {act.kind}"] += 1
                self._mended()

    def _nemesis(self, acts: list[Act]) -> None:
        for act in acts:
            rng = self._rng(act)
            self.run.sleep(rng.expovariate(1 / PAUSE_S / 6))
            self.note(f"nemesis {act.kind}")
            self.counts[act.kind] += 1
            self.nemesis.act(act, rng)

    def _mended(self) -> None:
        """Wait until somebody has seen to the daemon."""
        before = self.nemesis.mended
        self.nemesis.call()
        while self.nemesis.mended == before:
            self.run.sleep(PAUSE_S)

    # -- looking at everything

    def image(self, export: str) -> bytes:
        """All bytes of an export, over NBD; where a damaged disk may have lost some, sectors that
        cannot be read are full of UNREADABLE."""
        link = self.connect(NBD_PORT)
        session = Session(link.send, link.take)
        session.greet()
        session.structured_reply()
        size = session.go(export).size
        parts = [
            self._bytes(session, at, min(READ_BYTES, size - at))
            for at in range(0, size, READ_BYTES)
        ]
        session.send_disconnect()
        link.shut()
        return b"".join(parts)

    def _bytes(self, session: Session, offset: int, length: int, tries: int = 3) -> bytes:
        try:
            return session.read(offset, length)
        except RequestError as error:
            if error.reply.error != wire.EIO or not self.profile.errors or not tries:
                raise Violation(f"I11 a read of [{offset}, +{length}) failed: {error}") from error
        if length > SECTOR_SIZE:
            half = max(SECTOR_SIZE, length // 2 // SECTOR_SIZE * SECTOR_SIZE)
            rest = self._bytes(session, offset + half, length - half)
            return self._bytes(session, offset, half) + rest
        if self.profile.damage:
            self.counts["unreadable sectors"] += 1
            return UNREADABLE * REPEATS
        return self._bytes(session, offset, length, tries - 1)  # it was one call's error

    def _last_look(self) -> None:
        """One more crash; then everything is read before and after garbage has been collected."""
        self.machine.capacity = DEFAULT_CAPACITY
        self.machine.fail_point = None
        how = random.Random(f"last:{self.seed}").choice(("power-cut", "kill", "restart"))
        self.nemesis.crash(how)
        self.machine.disk.faults.clear()
        for (volume, name), snapshot in sorted(self.ledger.snapshots.items()):
            with self._unless_damaged():
                self.ledger.check_snapshot(snapshot, self.image(f"{volume}@{name}"))
        before = self._images()
        with self._unless_damaged():
            self._forget_the_past()
            self._check_garbage(before)
        after = self._images()
        for name, image in before.items():
            self._check_same(name, image, after[name])

    def _images(self) -> dict[str, bytes]:
        return {name: self.image(name) for name in sorted(self.ledger.by_name)}

    @contextlib.contextmanager
    def _unless_damaged(self) -> Iterator[None]:
        """Where a disk has lost what it had, what needs it fails."""
        try:
            yield
        except (CorruptData, OptionError, NoSuchVersion):
            if not self.profile.damage:
                raise
            self.counts["damage in the way"] += 1

    def _forget_the_past(self) -> None:
        """Nothing but the heads of the volumes is left."""
        for receive in self.machine.call(lambda store: store.receives()):
            self.machine.call(functools.partial(_receive_dropped, name=receive.name))
        for info in self.machine.call(lambda store: store.snapshots.all()):
            delete = functools.partial(_snapshot_deleted, volume=info.volume, name=info.name)
            self.machine.call(delete)
        self._begin_round()  # the last one needs what restored volumes were before
        self.run.sleep(LINGER_S + 1.0)  # until versions that were read are let go of
        for _ in range(3):  # what is dead is condemned first
            self.run.sleep(0.5)
            self.machine.call(lambda store: store.collect())

    def _begin_round(self) -> None:
        """Write what is there already, so that there is something to destage."""
        link = self.connect(NBD_PORT)
        session = Session(link.send, link.take)
        session.greet()
        session.go("left")
        data = self._bytes(session, 0, SECTOR_SIZE)
        if UNREADABLE not in data:
            session.write(0, data)
        session.send_disconnect()
        link.shut()

    def _check_garbage(self, images: dict[str, bytes]) -> None:
        """I9: what is stored is what the volumes' heads have, a node and a commit for each."""
        report = self.machine.call(lambda store: store.collect(dry_run=True))
        infos = self.machine.call(lambda store: store.volumes())
        chunks: set[bytes] = set()
        for info in infos:
            image = images[info.name]
            for at in range(0, len(image), info.chunk_size):
                chunk = image[at : at + info.chunk_size].ljust(info.chunk_size, b"\0")
                if any(chunk):
                    chunks.add(chunk)
        most = len(chunks) + MOST_NODES * len(infos)
        if self.options.window_bytes or self.counts["clock"]:
            # And what the window needs; first versions stay until a date that was set back has
            # caught up with them.
            most = report.chunks_live
        if self.profile.damage:
            return  # gc leaves alone what it cannot tell
        if report.chunks_removed or report.condemned_chunks or report.chunks_live > most:
            raise Violation(f"I9 {len(chunks)} chunks in {len(infos)} volumes, gc says {report}")
        if report.chunks_live < len(chunks):
            raise Violation(f"I9 {len(chunks)} chunks are read, {report.chunks_live} are stored")

    def _check_same(self, name: str, before: bytes, after: bytes) -> None:
        for at in range(0, len(before), SECTOR_SIZE):
            old, new = before[at : at + SECTOR_SIZE], after[at : at + SECTOR_SIZE]
            if old != new and UNREADABLE * REPEATS not in (old, new):
                raise Violation(f"I1 {name} changes at {at} while nobody writes")


def _receive_dropped(store: Store, name: str) -> None:
    store.abort_receive(name)


def _snapshot_deleted(store: Store, volume: str, name: str) -> None:
    store.snapshots.delete(volume, name, force=True)


def _created(store: Store, name: str, size: int, chunk_size: int) -> VolumeInfo:
    return store.create_volume(name, size, block_size=512, chunk_size=chunk_size)


_frozen = False


def _still_collector() -> None:
    """Nothing of a world is freed at a moment that depends on what ran before it. What is there
    already is looked at once only."""
    global _frozen
    gc.collect()
    if not _frozen:
        gc.freeze()
        _frozen = True
    gc.disable()


def hash_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _told(failure: BaseException) -> tuple[str, str]:
    text = f"{type(failure).__name__}: {failure}"
    return text, "".join(traceback.format_exception(failure))


def lived(seed: int, acts: int, kept: Iterable[int] | None = None) -> Report:
    """Run the world of a seed."""
    plan = plans.drawn(seed, acts)
    return World(plan if kept is None else plan.keep(kept)).live()


__all__ = ["OPTIONS", "Report", "ServerGone", "World", "lived"]
