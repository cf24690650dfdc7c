"""A node of a world: a machine, the process on it, its sessions, and its part of the volume.

The part is the product's (`transport.group.part`), in surroundings that are simulated. The process
ends by kill -9, by a power cut between two events or in the middle of one, or politely; `power_on`
starts the next one on what that left.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from blockd.cluster.chunkrepair import answer_get, answer_get_at
from native import Request
from tests.sim.cluster.around import SimAround, SimTimer
from tests.sim.cluster.clients import Session
from tests.sim.cluster.machine import Machine
from tests.sim.cluster.metastore import MetaStoreClient, SimMetaStore
from tests.sim.cluster.network import Network, Reply, Sessions
from tests.sim.cluster.onlooker import Onlooker
from tests.sim.cluster.plan import Shape
from tests.sim.cluster.timeline import NodeClock, Process, Timeline
from tests.sim.faults import Fault
from tests.sim.simdisk import PowerCut
from tests.sim.world.stamps import Violation
from transport.group.acks import NodeId
from transport.group.link import GroupPolicy
from transport.group.member import Members
from transport.group.part import Part
from transport.group.takeover_run import Takeover
from transport.peer import messages as m
from transport.peer.policy import Policy
from volume.diskerror import seals
from volume.errors import StoreSealed, VolumeError
from volume.metastore import ClusterRecords, Stored
from volume.metastore_records import VolumeGroup
from volume.options import StoreOptions
from volume.replica import Replica
from volume.store import Store
from volume.volume import Volume

POLICY = Policy(ping_every_s=2.5, silent_after_s=6.0, reconnect_most_s=3.0)
"""Fewer pings than in the product, since each costs the simulation time."""
RECORD_S = 5.0  # between two looks at the volume's record
TEND_S = (0.2, 3.0)  # after something was appended, a store's threads look at what there is to do


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """The one volume of a world. Sizes are bytes."""

    uuid: bytes
    name: str
    size: int
    chunk_size: int
    shape: Shape
    queue_bytes: int
    """Records that a primary keeps for members that lag."""
    options: StoreOptions

    def seen(self, image: bytes) -> bytes:
        """What clients know of it: beyond what they were told the size is there are zeros."""
        if any(image[self.size :]):
            raise Violation("I8 nobody has written there, and it does not read as zeros")
        return image[: self.size].ljust(self.size, b"\0")

    def members(self, nodes: Sequence[str]) -> tuple[str, ...]:
        return tuple(nodes[: self.shape.members])


class Surroundings(Protocol):
    """What a node needs of its world."""

    seed: int
    timeline: Timeline
    network: Network
    metastore: SimMetaStore
    spec: VolumeSpec
    names: Sequence[str]

    def note(self, what: str) -> None: ...
    def count(self, what: str) -> None: ...
    def crashing(self, node: "Node") -> None:
        """A node is about to lose its process."""

    def started(self, node: "Node") -> None:
        """It has one again, which has opened what was left."""

    def chosen(self, epoch: int, asked: Collection[str]) -> None:
        """A takeover knows what the volume is, by the promises of the members `asked`."""

    def made_anew(self, node: "Node") -> None:
        """A node that had no part of the volume has an empty one."""

    def opened(self, node: "Node", epoch: int, image: bytes) -> None:
        """A node begins to serve the volume, which reads as `image`."""

    def cut_client(self, session: Session) -> None: ...


class NodeProcess(Process):
    """A process whose machine may lose its power in the middle of a call."""

    def __init__(self, node: "Node") -> None:
        super().__init__(node.world.timeline, node.clock)
        self._node = node

    def run(self, call: Callable[[], None]) -> None:
        if not self.alive or self._stopped:
            super().run(call)
            return
        try:
            call()
            self._node.look_around(self)
        except PowerCut:
            pass  # it was its last
        except Exception:
            if not self._node.machine.disk.is_off:  # to C it looks like a disk error
                raise
        self._node.look_at_power(self)


class Node:
    def __init__(self, world: Surroundings, name: str) -> None:
        self.world = world
        self.name = name
        self.clock = NodeClock(world.timeline, f"{world.seed}:{name}")
        self.machine = Machine(self.clock, f"{world.seed}:{name}", world.spec.options)
        self.process: Process = NodeProcess(self)
        self.process.end()
        self.part: Part | None = None
        self.serving: int | None = None
        self.let_in = False
        """The epoch in which clients are let in."""
        self.starts = 0
        self._sessions: Sessions | None = None
        self._members: Members | None = None
        self._around: SimAround | None = None
        self._records: ClusterRecords
        self._random = random.Random(f"node:{world.seed}:{name}")
        self._attached: list[Session] = []
        self._struck_for_s: float | None = None
        self.onlooker = Onlooker(self)
        self._tends = False  # soon
        self._seen_lsn = 0
        self._chosen: set[int] = set()  # epochs in which it has chosen what the volume is

    @property
    def up(self) -> bool:
        return self.process.alive

    @property
    def replica(self) -> Replica | None:
        """Its part of the volume, as a store has it that runs."""
        store = self.machine.store
        return None if store is None else store.replicas.get(self.world.spec.uuid)

    # -- life

    def power_on(self) -> None:
        """Start a process, unless there is one."""
        if self.up:
            return
        self.world.network.off.discard(self.name)
        self.process = process = NodeProcess(self)
        process.run(self._start)

    def _start(self) -> None:
        world, process = self.world, self.process
        self.starts += 1
        try:
            store = self.machine.boot()
        except StoreSealed:
            world.note(f"{self.name[:4]} is sealed")
            world.count("does not start sealed")
            process.end()
            return
        process.on_due.clear()
        self._members = Members(store.replicas, self.clock.monotonic())
        others = [each for each in world.names if each != self.name]
        self._sessions = Sessions(world.network, process, self.name, others, self, POLICY)
        etcd = MetaStoreClient(world.metastore, process, self.name)
        seed = f"{world.seed}:{self.name}:{self.starts}"
        self._around = SimAround(process, self._sessions, etcd, seed)
        self._records = ClusterRecords(etcd.view, self.new_token)
        world.note(f"{self.name[:4]} runs")
        world.started(self)
        if self.replica is not None:
            self.begin_part()
        if world.spec.shape.nodes > world.spec.shape.members:  # members may be replaced
            self._look_at_record(process)

    def _look_at_record(self, process: Process) -> None:
        """As a daemon does every few seconds (blockd/cluster/replacing.py)."""

        def found(stored: Stored[VolumeGroup] | Exception | None) -> None:
            part = self.part
            if part is not None and stored is not None and not isinstance(stored, Exception):
                part.noted(stored)

        def look() -> None:
            records, uuid = self._records, self.world.spec.uuid.hex()
            assert self._around is not None
            if self.part is not None:
                self._around.ask_store(lambda: records.volume(uuid), found)
            elif self.replica is None:
                self._around.ask_store(lambda: _has_left(records, uuid, self.name), _ignore)
            process.after(RECORD_S, look)

        process.after(RECORD_S * self._random.random(), look)

    def new_token(self) -> str:
        return self._random.randbytes(16).hex()

    def create(self, epoch: int) -> None:
        """Make its part of the volume, empty."""
        spec, store = self.world.spec, self.machine.store
        assert store is not None
        store.replicas.create(spec.uuid, spec.name, spec.size, 512, spec.chunk_size, epoch)
        self.process.run(self.begin_part)

    def begin_part(self) -> None:
        assert self._members is not None
        assert self._around is not None
        spec = self.world.spec
        member = self._members.member(spec.uuid)
        assert member is not None
        policy = GroupPolicy(queue_bytes=spec.queue_bytes)
        self.part = Part(*(self._around, member, self._records, NodeId(self.name), self, policy))
        self.part.start()

    def crash(self, *, power: bool) -> None:
        """The process is gone, or the machine's power."""
        if not self.up:
            return
        self.world.crashing(self)
        self._end(told=not power)
        if power:
            self.world.network.off.add(self.name)
            self.clock.restart(self._random.uniform(0.0, 100.0))
            self.machine.cut()
        else:
            self.machine.kill()
        self.world.note(f"{self.name[:4]} {'loses power' if power else 'is killed'}")

    def shut_down(self, away_s: float) -> None:
        """As at SIGTERM, and start again so much later."""
        if not self.up or self.process.stopped:
            return
        process, part = self.process, self.part

        def stopped() -> None:
            if self.process is process and process.alive:
                assert self._sessions is not None
                assert self.machine.store is not None
                self._sessions.close()
                self.machine.store.close()
                self.crash(power=False)
                self.world.timeline.after(away_s, self.power_on)

        if part is None:
            process.run(stopped)
        else:
            process.run(lambda: part.stop(stopped))

    def _end(self, *, told: bool) -> None:
        self.process.end()
        if self._sessions is not None:
            self.world.network.ended(self._sessions, told=told)
        if told:
            self.cut_clients()
        self._attached.clear()
        self.part = self._sessions = self._members = self._around = self.serving = None
        self._struck_for_s = None
        self._tends = False

    def strike_at(self, operation: int, away_s: float) -> None:
        """Lose power at the disk's `operation`-th change from now, for so long."""
        if self.up and self._struck_for_s is None:
            self._struck_for_s = away_s
            self.machine.disk.crash_at(operation)

    def look_around(self, process: Process) -> None:
        """After a call: what has come of it that threads of a daemon would see to?"""
        around = self._around
        if around is None or process is not self.process or not process.alive:
            return
        if around.watched:
            around.look_at_taps()
        part = self.part
        if part is not None and part._takeover is not None:
            self._note_choice(part._takeover)
        store = self.machine.store
        if store is None or self._tends:
            return
        lsn, _, _, ready, *_ = store._journal.state()
        if lsn != self._seen_lsn or ready <= 1 or store._destager.retry_due:
            self._tends = True
            process.after(self._random.uniform(*TEND_S), lambda: self._tend(store))

    def _note_choice(self, takeover: Takeover) -> None:
        if takeover._choice and takeover.epoch not in self._chosen:
            self._chosen.add(takeover.epoch)
            members = takeover._members.items()
            asked = {str(node) for node, one in members if one.promise}
            self.world.chosen(takeover.epoch, asked)

    def _tend(self, store: Store) -> None:
        """What the threads of a store do."""
        self._tends = False
        self._seen_lsn = store._journal.state()[0]
        as_a_thread(store, lambda: _tend_all(store))
        as_a_thread(store, store.upkeep.destage_if_due)

    def look_at_power(self, process: Process) -> None:
        """Whether a call has been the last one."""
        if process is self.process and process.alive and self.machine.disk.is_off:
            away_s, self._struck_for_s = self._struck_for_s or 1.0, None
            self.world.count("struck")
            self.crash(power=True)
            self.world.timeline.after(away_s, self.power_on)

    def sicken(self, fault: Fault) -> None:
        """Something of its disk fails from now on, as long as this process lives."""
        if self.up:
            self.machine.disk.faults.add(fault)

    def mend(self) -> None:
        """Somebody has looked at its disk, and started the machine anew, if it is sealed: what was
        not synced may be gone."""
        self.machine.disk.faults.clear()
        if self.machine.sealed:
            self.crash(power=True)
            self.machine.unseal()
            self.power_on()

    def lose_disk(self) -> None:
        """The machine starts again with an empty disk: this node has nothing of the volume."""
        self.crash(power=True)
        self.machine.wipe()

    def heal(self) -> None:
        """Nothing more befalls it, and it runs."""
        self.go_on()
        self.mend()
        self.machine.disk.crash_never()
        self._struck_for_s = None
        self.clock.drift(1.0)
        self.go_on()
        self.power_on()

    def stop(self) -> None:
        """SIGSTOP."""
        if self.up:
            self.process.stop()

    def go_on(self) -> None:
        if self.up and self.process.stopped:
            self.process.go_on()

    # -- what it asks other nodes, and they it

    def ask(
        self, node: str, message: m.Request, timeout_s: float, done: Callable[..., None]
    ) -> None:
        """PeerBusy."""
        assert self._sessions is not None
        self._sessions.ask(node, message, timeout_s, done)

    def is_connected(self, node: str) -> bool:
        return self._sessions is not None and self._sessions.asking(node).open

    def after(self, delay_s: float, call: Callable[[], None]) -> SimTimer:
        """On its clock of intervals."""
        assert self._around is not None
        return self._around.after(delay_s, call)

    def process_soon(self, call: Callable[[], None]) -> None:
        """As on another thread."""
        self.process.after(self._random.uniform(0.0, 0.005), call)

    def asked(self, peer: str, message: m.Request, reply: Reply) -> None:
        """Called by its sessions."""
        part = self.part
        if isinstance(message, m.Create) and not (part is not None and part.withdrawn):
            assert self._members is not None
            reply(self._members.answer(message, self.clock.monotonic()))
            if part is None and self.replica is not None:
                self.world.made_anew(self)
                self.begin_part()
        elif isinstance(message, m.Get):
            try:
                reply(answer_get(self.store.chunk_repair, message))
            except OSError as error:
                reply(m.Error(m.Code.FAILED, 0, str(error)))
        elif isinstance(message, m.GetAt):
            try:
                reply(answer_get_at(self.store.chunk_repair, message))
            except (VolumeError, OSError) as error:
                reply(m.Error(m.Code.FAILED, 0, str(error)))
        elif part is not None and getattr(message, "volume", b"") == part.uuid:
            part.asked(message, reply)
        else:
            assert self._members is not None
            reply(self._members.answer(message, self.clock.monotonic()))

    # -- clients

    def opening(self, volume: bytes) -> None:
        """Called by the part: they are about to."""
        assert self.replica is not None
        assert self.replica.gate.shut
        self.let_in = True

    def opened(self, volume: bytes, epoch: int) -> None:
        """Called by the part: clients may come."""
        assert self.let_in
        self.let_in = False
        self.serving = epoch
        self.world.opened(self, epoch, self.onlooker.image())

    def deleted(self, volume: bytes) -> None:
        """Called by the part: this node has no place in the volume any more."""
        assert self._members is not None
        assert self.machine.store is not None
        self.world.note(f"{self.name[:4]} lets go")
        self.part = self.serving = None
        self._members.forget(volume)
        self.machine.store.replicas.remove(volume)

    def closed(self, volume: bytes, why: str) -> None:
        """Called by the part: none may."""
        self.world.note(f"{self.name[:4]} serves no more")
        self.serving = None
        self.cut_clients()

    def attach(self, client: str) -> int | None:
        return self.serving

    def serve(
        self, session: Session, batch: Sequence[Request], done: Callable[[list[Request]], None]
    ) -> None:
        if not session.open:
            return
        if self.serving != session.epoch:
            self.world.cut_client(session)
            return
        if session not in self._attached:
            self._attached.append(session)
        self.volume.submit(batch, done)

    def cut_clients(self) -> None:
        attached, self._attached = self._attached, []
        for session in attached:
            if session.open:
                self.world.cut_client(session)

    # -- what the world looks at

    @property
    def store(self) -> Store:
        """Of the process that runs."""
        assert self.machine.store is not None
        return self.machine.store

    @property
    def volume(self) -> Volume:
        replica = self.replica
        assert replica is not None
        return replica.volume

    def end(self) -> tuple[int, int] | None:
        """(epoch, seq) of the newest record of its part; None when there is none that runs."""
        replica = self.replica
        return None if replica is None else replica.ends()[-1]

    def epochs(self) -> list[int]:
        """That its part has gone through, as far back as it knows."""
        replica = self.replica
        assert replica is not None
        return [epoch for epoch, _ in replica.ends()]

    def has(self, epoch: int, seq: int) -> bool | None:
        """Whether its part has that record of that epoch; None: it does not know so far back."""
        replica = self.replica
        assert replica is not None
        if seq <= replica.start:
            return None
        return next((each for each, last in replica.ends() if seq <= last), None) == epoch

    def names(self) -> dict[str, int]:
        """The snapshots that this node has, and which records they are after."""
        rows = self.store._history.snapshots(self.volume.record.number)
        return {row.name: row.seq for row in rows}

    # -- what the nemesis and operators do

    def move_to(self, node: str, then: Callable[[str | None], None]) -> None:
        """An operator has another node be the primary."""
        part = self.part
        if part is not None:
            self.process.run(lambda: part.move(NodeId(node), then))

    def tidy(self, *, collect: bool) -> None:
        """A round of the destager, and of gc."""
        store = self.machine.store
        if store is not None:
            self.process.run(lambda: as_a_thread(store, lambda: _tidy(store, collect)))


def _has_left(records: ClusterRecords, volume: str, node: str) -> None:
    """A node has no part of the volume any more: note it, where that was waited for."""
    found = records.volume(volume)
    if found is not None and node in found.record.leaving:
        records.settle(records.left_volume(found, node))


def _ignore(result: object) -> None:
    pass


def _tidy(store: Store, collect: bool) -> None:
    store.destage()
    if collect:
        store.collect()
    while store.tend():
        pass


def _tend_all(store: Store) -> None:
    while store.upkeep._tend_all():
        pass


def as_a_thread(store: Store, work: Callable[[], object]) -> None:
    """Do what a thread of a store does, and fail as it does (`volume.background`): it ends when the
    disk cannot be trusted."""
    if store._seal.reason is not None:
        return
    try:
        work()
    except OSError as error:
        if seals(error):
            store._seal.close(error)
    except VolumeError:
        pass
