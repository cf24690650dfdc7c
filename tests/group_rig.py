"""Several stores on simulated disks as the members of one volume, and a wire that loses things.

A request of the primary is carried out once, twice or not at all, now or after the primary has
given it up; its answer comes or is lost. That is what a session may do (transport/peer/caller.py).
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from native import OP_WRITE, Request
from tests.sim.crash import CrashState
from tests.sim.store_rig import SMALL, StoreRig
from transport.group.acks import NodeId
from transport.group.chain import Chain
from transport.group.lease import Lease
from transport.group.link import (
    Copy,
    Effect,
    Fenced,
    GroupPolicy,
    Opened,
    Progress,
    ReadLog,
    Send,
    SyncOwn,
    Take,
)
from transport.group.member import Members
from transport.group.primary import Primary
from transport.group.takeover import choose
from transport.peer import messages as m
from transport.peer.wire import Envelope, Message, decode, encode
from volume.errors import CannotRestore, JournalFull, NoSuchVersion, NotPrimary, VolumeError
from volume.metastore_records import Mode
from volume.options import StoreOptions
from volume.replica import Replica

VOLUME = bytes(range(16))
SIZE = 64 << 10
BLOCK = 512
OPTIONS = replace(SMALL, window_bytes=24 * 16384, window_s=3600, journal_limit=12 * 16384)
TAP_BYTES = 4 << 20
COPY_BYTES = 5000  # of a stream at once, so that it takes several


def over_the_wire(message: Message) -> Message:
    """As the other side gets it."""
    frames = [bytes(memoryview(frame)) for frame in encode(message, Envelope(1, 2, 3))]
    return decode(frames, m.KINDS)[1]


def epochs(chain: Chain) -> list[int]:
    """In which epoch each record was written, by seq from 1."""
    found: list[int] = []
    for epoch, end in chain.ends:
        found += [epoch] * (end - len(found))
    return found


class Node:
    """One member: a store, which can die and come back."""

    def __init__(self, number: int, name: str, options: StoreOptions) -> None:
        self.id = NodeId(name)
        self.rig = StoreRig(options=options, seed=number)
        self.boots = 0
        self.up = True
        self.told_durable = 0
        """What it has said to be durable."""
        self._members()

    def _members(self) -> None:
        self.members = Members(self.rig.store.replicas, 0.0)
        self.rig.tend()

    @property
    def replica(self) -> Replica:
        found = self.rig.store.replicas.get(VOLUME)
        assert found is not None
        return found

    @property
    def ready(self) -> int:
        """Segments of the journal that can be written."""
        return self.rig.store._journal.state()[3]

    def chain(self) -> Chain:
        return Chain(self.replica.ends(), self.replica.start)

    def answer(self, message: m.Request, now: float) -> Message:
        before = self.replica.promised
        self.rig.tend()
        answer = self.members.answer(message, now)
        if isinstance(answer, m.Ack):
            self.told_durable = answer.durable
        elif isinstance(answer, m.Sealed):
            self.told_durable = answer.chain.seq
        assert self.replica.promised >= before
        return answer

    def kill(self) -> None:
        """kill -9, and a start: everything that was written is there."""
        received = self.replica.held[0]
        self.rig = self.rig.killed()
        self._members()
        assert self.replica.held == (received, received)

    def cut(self, rng: random.Random) -> None:
        """A power cut, which leaves any legal part of what was not synced."""
        state = CrashState(self.rig.disk.trace)
        for op in self.rig.disk.trace.ops:
            state.apply(op)
        promised, durable = self.replica.promised, self.told_durable
        self.boots += 1
        self.rig = self.rig.rebooted(state.drawn("cut", rng))
        self._members()
        assert self.replica.promised == promised
        assert self.replica.held[0] >= durable


class Group:
    """The nodes, and a Primary on one of them. Time is a number."""

    def __init__(
        self,
        count: int,
        wanted: int,
        rng: random.Random,
        mode: Mode = Mode.MIRROR,
        options: StoreOptions = OPTIONS,
    ) -> None:
        self.rng = rng
        self.now = 1.0
        self.nodes = {
            NodeId(name): Node(number, name, options) for number, name in enumerate("abcd"[:count])
        }
        self.wanted = wanted
        self.mode = mode
        self.faults = 0.0
        """How often something goes wrong with a request."""
        self.cut_off: set[NodeId] = set()
        self.writes: dict[tuple[int, int], tuple[int, bytes]] = {}
        """(offset, data) of each record that there ever was, by epoch and seq."""
        self.restores: dict[tuple[int, int], int] = {}
        """Which seq was gone back to by a record that is no write."""
        self.acked = self.durable = 0
        self.shown: list[int] = []
        """What clients were told of is never gone again: the epoch of each record, by seq..."""
        self.flushed: list[int] = []
        """...not by power cuts either."""
        self.opened = False
        self.lossy = False
        """Whether a power cut has taken records that were acknowledged, perhaps."""
        self.fenced: int | None = None
        self.late: list[Callable[[], None]] = []
        """Requests that were given up, and are carried out later."""
        self._todo: list[Effect] = []
        for node in self.nodes.values():
            node.rig.store.replicas.create(VOLUME, "vm1", SIZE, BLOCK, 4096, 1)
            node.rig.tend()
        self.me = next(iter(self.nodes))
        self.primary = self._begin(1)

    @property
    def node(self) -> Node:
        return self.nodes[self.me]

    @property
    def others(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.id != self.me]

    # -- the primary

    def _begin(self, epoch: int) -> Primary:
        replica = self.node.replica
        replica.promise(epoch)
        replica.begin(epoch, replica.held[0])
        replica.tap(TAP_BYTES)
        self.opened = False
        self.fenced = None
        self._todo = []
        primary = Primary(
            *(VOLUME, epoch, self.me, list(self.nodes), self.wanted, self.mode),
            *(self.node.chain(), Lease(self.me, list(self.nodes), self.wanted), GroupPolicy()),
        )
        self.primary = primary
        self._add(primary.poll(self.now))
        return primary

    def write(self) -> bool:
        """One write of a client; whether the journal has it. None is let in before W have noted
        that the epoch is open."""
        offset = self.rng.randrange(SIZE // BLOCK) * BLOCK
        length = min(self.rng.randint(1, 8) * BLOCK, SIZE - offset)
        data = self.rng.randbytes(length)
        rig = self.node.rig
        rig.tend()
        if self.node.ready < 2:
            rig.settle()
        if self.node.ready < 2:
            return False  # the tap holds on to the journal
        request = Request(OP_WRITE, offset, length, data)
        ((done,), *waiting) = self.node.replica.volume.core.submit([request], rig.clock.now_ns())
        assert not any(waiting)
        if done.error:
            return False
        assert done.waits
        seq = self.node.replica.held[0]
        assert self.writes.setdefault((self.primary.epoch, seq), (offset, data))[1] is data
        self._add(self.primary.appended(seq, self.now))
        return True

    def restore(self, to: int, name: str | None = None) -> bool:
        """Go back to record `to`, with a name for what the volume is now."""
        node, rig = self.node, self.node.rig
        rig.settle()
        if node.ready < 2:
            return False
        volume, before = node.replica.volume, self.seq
        seq = 0
        with (
            suppress(NoSuchVersion, CannotRestore, JournalFull, NotPrimary),
            rig.store.versions.settled(f"vm1@seq:{to}") as (record, row),
        ):
            seq = rig.store._notes.restore(volume, row, record.uuid, name)
        for each in range(before + 1, self.seq + 1):
            self.writes[self.primary.epoch, each] = (0, b"")
        if seq:
            self.restores[self.primary.epoch, seq] = to
        if self.seq > before:
            self._add(self.primary.appended(self.seq, self.now))
        return seq > 0

    def flush(self) -> None:
        self._add(self.primary.flush(self.seq, self.now))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._add(self.primary.poll(self.now))

    def step(self) -> bool:
        """Do one of the things that are to be done; whether there was any."""
        if not self._todo:
            return False
        at = self.rng.randrange(len(self._todo)) if self.faults else 0
        effect = self._todo.pop(at)
        match effect:
            case Send():
                self._send(effect)
            case Take():
                self._take()
            case ReadLog(tag, epoch, after, limit):
                found = self.node.replica.read(epoch, after, limit)
                self._add(self.primary.read(tag, found, self.now))
            case Copy(tag, member, at, limit, heard, after):
                try:
                    copied = self.node.replica.copy(
                        member, at, min(limit, COPY_BYTES), heard, after
                    )
                except VolumeError:
                    copied = None
                self._add(self.primary.copied(tag, copied, self.now))
            case SyncOwn():
                self.node.replica.sync()
                self._add(self.primary.synced(self.node.replica.held[1], self.now))
        return True

    def _add(self, effects: list[Effect]) -> None:
        """What is decided counts at this moment; the rest is done later."""
        for effect in effects:
            match effect:
                case Progress(acked, durable):
                    self._progress(acked, durable)
                case Opened():
                    self.opened = True
                    self.node.replica.serve(self.primary.epoch)
                    self.shown = self.flushed = epochs(self.primary._chain)
                    self.lossy = False
                case Fenced(epoch):
                    self.fenced = epoch
                    self._todo.clear()
                case _:
                    self._todo.append(effect)

    def settle(self, seconds: float = 120.0) -> None:
        """Everything that is to be done, for so long, with what faults there are."""
        until = self.now + seconds
        while self.now < until:
            while self.step():
                pass
            for node in self.nodes.values():
                if node.ready < 3:
                    node.rig.settle()
            self.pass_time(max(0.01, min(self.primary.deadline, until) - self.now))

    def _take(self) -> None:
        taken = self.node.replica.take()
        if taken.lost:
            self._add(self.primary.lost(taken.last, self.now))
        else:
            self._add(self.primary.taken(taken.first, taken.last, taken.data, self.now))

    def _progress(self, acked: int, durable: int) -> None:
        """What is promised to clients is where it has to be, or was when a member said so."""
        assert acked >= self.acked
        assert durable >= self.durable
        self.acked, self.durable = acked, durable
        records = epochs(self.node.chain())
        self.shown, self.flushed = records[:acked], records[:durable]
        held = [node.replica.held for node in self.nodes.values() if self._agrees(node)]
        assert sum(synced >= durable for _, synced in held) >= self.wanted
        if not self.lossy:
            assert sum(received >= acked for received, _ in held) >= self.wanted

    def _agrees(self, node: Node) -> bool:
        return node.replica.ends()[-1][0] == self.primary.epoch

    def cut(self, node: Node) -> None:
        """A power cut of a member: what it has acknowledged and not synced may be lost."""
        before = node.replica.held[0]
        node.cut(self.rng)
        self.lossy |= node.replica.held[0] < before

    # -- the wire

    def _send(self, send: Send) -> None:
        node = self.nodes[send.member]
        message = over_the_wire(send.message)
        assert isinstance(message, m.Request)
        primary, lost = self.primary, send.member in self.cut_off or not node.up
        roll = self.rng.random() if self.faults else 1.0
        if lost or roll < self.faults / 3:  # never got there
            self._add(primary.failed(send.tag, "lost on the way", self.now))
            return
        if roll < self.faults * 2 / 3:  # given up, and carried out later all the same
            self.late.append(lambda: self._late(node, message))
            self._add(primary.failed(send.tag, "too late", self.now))
            return
        answer = over_the_wire(node.answer(message, self.now))
        if roll < self.faults:  # carried out, but nobody heard
            self._add(primary.failed(send.tag, "no answer", self.now))
            return
        if self.faults and self.rng.random() < 0.2:  # its answer was lost, so it was asked again
            answer = over_the_wire(node.answer(message, self.now))
        self._add(primary.answered(send.tag, answer, self.now))

    def _late(self, node: Node, message: m.Request) -> None:
        if node.up:
            node.answer(message, self.now)

    def carry_out_late(self) -> None:
        late, self.late = self.late, []
        for call in late:
            call()

    # -- takeover

    def take_over(self, me: NodeId, asked: list[NodeId], epoch: int = 0) -> bool:
        """`me` becomes the primary after the one that there is has died, with promises of `asked`;
        whether it has the state of the volume. `epoch`: 0 for the next one."""
        epoch = epoch or self.primary.epoch + 1
        promises: dict[NodeId, Chain] = {}
        for node in asked:
            answer = self.nodes[node].answer(m.Seal(VOLUME, epoch), self.now)
            assert isinstance(answer, m.Sealed), answer
            promises[node] = answer.chain
        choice = choose(promises, len(self.nodes), self.wanted)
        if choice is None:
            return False
        self.me = me
        for task in choice.tasks:
            if task.member == me:
                assert task.keep is not None
                if not self._mend(me, epoch, task.keep, choice.source):
                    return self.take_over(choice.source, asked)  # as it asks that one to
        assert self.node.replica.held[0] == choice.chain.seq
        records = epochs(choice.chain)
        assert records[: len(self.flushed)] == self.flushed
        if not self.lossy:
            assert records[: len(self.shown)] == self.shown
        self.acked = self.durable = choice.chain.seq
        self._begin(epoch)
        return True

    def _mend(self, me: NodeId, epoch: int, keep: tuple[int, int], source: NodeId) -> bool:
        """False: it lacks a state that a record goes back to."""
        own = self.nodes[me]
        assert isinstance(own.answer(m.Undo(VOLUME, epoch, *keep), self.now), m.Ack)
        while True:
            log = self.nodes[source].answer(m.ReadLog(VOLUME, *keep, 4 << 20), self.now)
            assert isinstance(log, m.Log), log
            if not log.payload:
                assert not log.more
                return True
            append = m.Append(
                *(VOLUME, epoch, log.epoch, log.first_seq, log.last_seq, 1, log.payload)
            )
            answer = own.answer(append, self.now)
            if isinstance(answer, m.Error) and (answer.code, answer.detail) == (m.Code.GAP, 0):
                return False
            assert isinstance(answer, m.Ack), answer
            own.rig.settle()
            keep = (log.epoch, answer.received)

    # -- what is there

    @property
    def seq(self) -> int:
        """Of the newest record of the primary."""
        return self.node.replica.held[0]

    def expected(self, chain: Chain) -> bytes:
        image = bytearray(SIZE)
        images = [bytes(image)]
        for seq, epoch in enumerate(epochs(chain), 1):
            offset, data = self.writes[epoch, seq]
            image[offset : offset + len(data)] = data
            if (to := self.restores.get((epoch, seq))) is not None:
                image = bytearray(images[to])
            images.append(bytes(image))
        return images[-1]

    def content(self, node: Node) -> bytes:
        """What a member's volume holds, as one who opens it after all reads it."""
        gate, seq = node.replica.gate, node.replica.held[0]
        shut = gate.shut
        if shut:
            gate.open(seq, strict=False, timeout_s=1.0)
        gate.advance(seq, seq)
        gate.lease(1 << 62)
        data = node.rig.read("vm1")
        assert data == node.rig.read_version(f"vm1@seq:{seq}")
        if shut:
            gate.close()
        return data
