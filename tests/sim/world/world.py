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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import native
from blockd.api.limit_types import VolumeLimits
from tests.nbd_client import OptionError, RequestError
from tests.sim.world import plan as plans
from tests.sim.world.clients import GONE, Client, NbdClient
from tests.sim.world.iscsi_client import IscsiClient
from tests.sim.world.ledger import Ledger
from tests.sim.world.look import LastLook, Viewer
from tests.sim.world.machine import ISCSI_PORT, NBD_PORT, Machine, ServerGone
from tests.sim.world.mischief import JOURNAL_FLIP
from tests.sim.world.nemesis import Gone, Nemesis
from tests.sim.world.net import Forgotten, Link, Network
from tests.sim.world.operator import Operator, Pending
from tests.sim.world.plan import Act, Plan, Profile
from tests.sim.world.primitives import Event, installed
from tests.sim.world.settings import VOLUMES, drawn_options
from tests.sim.world.stamps import Violation
from tests.sim.world.threads import Group, SimThread, Threads
from volume import sites
from volume.errors import StoreClosing, VolumeError
from volume.model import VolumeInfo
from volume.store import Store

T = TypeVar("T")

PAUSE_S = 0.02  # between two acts of an actor, on average
ALWAYS = (1 << 32) - 1
LOG_LINES = 40
LOST = ("I2", "I3", "I4")
"""What a lying disk breaks: what was promised is lost. It must not show anything else."""


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
        still_collector()
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

    def image(self, export: str) -> bytes:
        with Viewer(self) as viewer:
            return viewer.image(export)

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
            if self.profile.limited:
                self._limit(name)
        self.open_gate.set()
        medic = Group("medic")
        self._helpers = [self.run.spawn("medic", self.nemesis.attend, medic)]
        for actor in (*plans.CLIENTS, plans.OPERATOR, plans.NEMESIS):
            if acts := self.plan.of(actor):
                self._actors.append(self._start(actor, acts))
        for thread in self._actors:
            self.run.join(thread)
        if self.profile.limited:
            self._count_held()
        LastLook(self).look()

    def _count_held(self) -> None:
        """Since the last start."""
        with contextlib.suppress(ServerGone):  # it may have ended just now
            held = self.machine.call(lambda _: self.machine.rate_limits.held())
            self.counts["requests held back"] += sum(count for _, _, count, _ in held)

    def _limit(self, volume: str) -> None:
        """Less than its clients ask for; kept over every crash."""
        rng = random.Random(f"limit:{self.seed}:{volume}")
        limits = VolumeLimits(
            iops=rng.choice((0, 20, 100)),
            bandwidth=rng.choice((0, 64 << 10, 1 << 20)),
            write_iops=rng.choice((5, 20, 100)),
            burst_s=rng.choice((0.01, 0.1)),
        )
        self.machine.call(lambda _: self.machine.rate_limits.set(volume, limits))

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
            except (*GONE, ServerGone, OptionError, RequestError, StoreClosing):
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


def _created(store: Store, name: str, size: int, chunk_size: int) -> VolumeInfo:
    return store.create_volume(name, size, block_size=512, chunk_size=chunk_size)


_frozen = False


def still_collector() -> None:
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
