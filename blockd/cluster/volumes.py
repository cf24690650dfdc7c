"""The volumes of which this node is a member: a `Part` for each, and what other nodes ask of them.

    start      a part for each replica of the store: it reads the MetaStore's record before it does
               anything, and serves nobody until it is the primary
    hand_over  volumes that are served here are moved to members in step, while clients are served
    stop       what is still served here is given up, so that others go on with it at once

All of it runs on the sessions' thread, but for what says otherwise.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Final

from blockd.api.cluster_types import (
    ClusterStatus,
    ClusterVolume,
    LocalVolume,
    MovedVolume,
    ReplacedMember,
    StripesInfo,
)
from blockd.api.types import ClusterInfo
from blockd.cluster.around import DaemonAround
from blockd.cluster.domains import Domains
from blockd.cluster.handing import HandOver
from blockd.cluster.lags import local, told
from blockd.cluster.making import (
    NAME_LOOK_S,
    NAME_S,
    CannotMake,
    Wanted,
    choose_members,
    make,
    named_so,
)
from blockd.cluster.paths import VolumePaths
from blockd.cluster.replacing import CannotReplace, Seen, call, resolve
from blockd.cluster.status import Asking
from transport.devicemap import DeviceMap
from transport.errors import TransportError
from transport.group.acks import NodeId
from transport.group.ending import has_place
from transport.group.leading import tap_bytes
from transport.group.link import State
from transport.group.member import ASKED_OF_MEMBERS, Members
from transport.group.part import Part
from transport.group.partstatus import PartStatus
from transport.group.watch import FIRST_EPOCH
from transport.peer import caller
from transport.peer import messages as m
from transport.peer.wire import Message
from transport.sessions import Answer, Guest, Peer, Sessions, error, waited
from volume.errors import NoSuchVolume, VolumeBusy, VolumeError, VolumeHasSnapshots
from volume.metastore import ClusterRecords, Stored
from volume.metastore_records import Mode, NodeRecord, VolumeGroup
from volume.replica import Replica
from volume.replicas import Replicas

logger = logging.getLogger(__name__)

STOP_S: Final = 10.0  # for the MetaStore to note that volumes are closed
PART_S: Final = 60.0  # for a move, or for all to let a deleted volume go
OPEN_S: Final = 15.0  # a new volume is opened at once, unless members are slow


class CannotMove(VolumeError):
    """A volume stays where it is."""

    code = "cannot_move"


class NotOfSeveralNodes(NoSuchVolume):
    """There may be one of that name that a node has by itself."""

    def __init__(self, name: str) -> None:
        VolumeError.__init__(
            self,
            f"volume {name}: no volume of several nodes is called so; `blockd cluster status` "
            "shows those that there are",
        )
        self.name = name


class CannotDelete(VolumeError):
    """A volume of several nodes stays, or it is not known."""

    code = "cannot_delete"


class ClusterVolumes:
    """`info` tells of the nodes; it waits. `cut` ends all connections of a volume, by its name;
    from any thread, and does not wait."""

    def __init__(
        self,
        node_id: str,
        sessions: Sessions,
        records: ClusterRecords,
        replicas: Replicas,
        info: Callable[[], ClusterInfo],
        journal_limit: int,
        paths: VolumePaths,
    ) -> None:
        self._me = NodeId(node_id)
        self._sessions = sessions
        self._records = records
        self._replicas = replicas
        self._info = info
        self._tap_bytes = tap_bytes(journal_limit)
        self._paths = paths
        self.cut: Callable[[str, str], None] = lambda volume, why: None
        self.served_here: Callable[[], None] = lambda: None
        """Called, and not waited for, when a volume is served here from now on."""
        self.stripes: Callable[[ClusterInfo], StripesInfo | None] = lambda info: None
        """How stripes are; waits."""
        self.devices: Callable[[], DeviceMap] = lambda: DeviceMap(0, {})
        """Where nodes stand, as it was read last."""
        self._around = DaemonAround(sessions, replicas.syncer())
        self._members = Members(replicas, self._around.clock())
        self._parts: dict[bytes, Part] = {}
        self._served: set[bytes] = set()
        self._opened = threading.Condition()
        """Of `_served`."""

    # -- life; any thread but the sessions'

    def start(self) -> None:
        """Before the sessions are started."""
        for kind in (*ASKED_OF_MEMBERS, m.Take):
            self._sessions.serve(kind, self._asked)
        self._sessions.serve(m.Lag, self._lag)
        self._sessions.watch(self._heard_of)
        self._sessions.appended_to = self._members.cores
        self._sessions.post(self._around.start)
        self._sessions.post(self._begin)

    def hand_over(self) -> None:
        """Before `stop`, while clients are served. Waits for a while; what fails is logged."""
        moved = HandOver(self._me, self._sessions, lambda: list(self._parts.values())).run()
        if moved:
            logger.info("handed over volumes=%d", moved)

    def stop(self) -> None:
        """Before the sessions are stopped. Idempotent."""
        done = threading.Event()

        def end() -> None:
            left = len(self._parts)

            def ended() -> None:
                nonlocal left
                left -= 1
                if left <= 0:
                    done.set()

            for part in self._parts.values():
                part.stop(ended)
            if not self._parts:
                done.set()

        try:
            self._sessions.result_of(lambda: self._sessions.post(end))
        except TransportError:
            return
        if not done.wait(STOP_S):
            logger.warning("volumes are not noted as closed; others wait for their lease")

    def close(self) -> None:
        """After the sessions have ended."""
        self._around.close()

    # -- for people; any thread but the sessions'

    def status(self) -> ClusterStatus:
        """Nodes, volumes and stripes, by asking all members. TransportError."""
        info = self._info()
        found = self._asked_about(info)
        return replace(found, stripes=self.stripes(info))

    def _asked_about(self, info: ClusterInfo) -> ClusterStatus:
        return Asking(self._sessions, self._records, info).status(self._statuses)

    def here(self) -> list[LocalVolume]:
        """Volumes as this node alone knows them. TransportError."""
        names = {each.node: each.name for each in self._info().nodes}
        return [local(part, names) for part in self._statuses()]

    def create(
        self, name: str, sizes: tuple[int, int, int], replicas: int, quorum: int, mode: Mode
    ) -> ClusterVolume:
        """Make a volume on this node and others, and open it. `sizes`: of the volume, its blocks
        and its chunks. VolumeError, TransportError."""
        if quorum > replicas:
            raise CannotMake(f"volume {name}: W={quorum} of R={replicas} nodes cannot be")
        connected = [each.node for each in self._info().nodes if each.connected and not each.me]
        nodes = {each.record.node_id: each for each in self._records.nodes()}
        _, *others = Domains(nodes, self.devices()).spread(self._me, connected, replicas)
        members = choose_members(self._me, others, replicas)
        self._make(Wanted(name, *sizes, members, quorum, mode))
        return self._shown(name)

    def create_like(self, source: str, name: str, sizes: tuple[int, int, int]) -> bool:
        """Make a volume on the nodes that have volume `source`, with its W and mode, and open it
        here; False: that one is of this node alone. As `create`, but that one which is there, is
        served here and was never written to is taken: the same command goes on after a crash."""
        replica = self._named(source)
        if replica is None:
            return False
        there = self._named(name)
        if there is not None and there.serving is not None and there.newest == 0:
            return True
        found = self._records.volume(replica.uuid.hex())
        if found is None:
            raise NoSuchVolume(source)
        group = found.record
        self._make(Wanted(name, *sizes, group.members, group.write_quorum, group.mode))
        return True

    def _make(self, wanted: Wanted) -> None:
        group = make(
            *(wanted, self._me, self._sessions, self._records, self._replicas),
            lambda other: self._sessions.post(partial(self._in_the_way, other)),
        )
        volume = bytes.fromhex(group.volume_id)
        self._sessions.post(partial(self._look, volume))
        with self._opened:
            self._opened.wait_for(lambda: volume in self._served, OPEN_S)

    def move(self, name: str, node: str) -> MovedVolume:
        """Have another node, by name or id, be the primary of a volume that is served here.
        VolumeError, TransportError."""
        info, began = self._info(), time.monotonic()
        target = next((each for each in info.nodes if node in (each.node, each.name)), None)
        if target is None:
            names = ", ".join(each.name for each in info.nodes)
            raise CannotMove(f"volume {name}: there is no node {node}; nodes are {names}")
        found = self._records.volume_named(name)
        if found is None:
            raise NotOfSeveralNodes(name)
        replica, to = self._named(name), NodeId(target.node)
        problem: str | None = "this node has no part of it"
        if replica is not None:
            problem = self._have_part(replica.uuid, lambda part, then: part.move(to, then))
        if problem is not None:
            if (serves := found.record.primary) not in (None, self._me):
                who = next((each.name for each in info.nodes if each.node == serves), serves)
                problem += f"; etcd says that {who} serves it: ask that one"
            raise CannotMove(f"volume {name} stays where it is: {problem}")
        return MovedVolume(name, target.name, time.monotonic() - began)

    def replace_member(self, name: str, old: str, new: str | None) -> ReplacedMember:
        """Have another node, by name or id, come in the place of a member; None: the one that has
        the fewest volumes. Noted on return: the primary sees to it. Any node may be asked.
        VolumeError, TransportError."""
        found = self._records.volume_named(name)
        if found is None:
            raise NotOfSeveralNodes(name)
        info, record = self._info(), found.record
        nodes = {each.record.node_id: each for each in self._records.nodes()}
        names = [each.record for each in nodes.values()]
        goes = old if old in record.members else resolve(names, old)
        if goes not in record.members:
            members = ", ".join(_name(nodes, each) for each in record.members)
            raise CannotReplace(f"volume {name}: {old} is no member of it; those are {members}")
        connected = {each.node for each in info.nodes if each.connected}
        seen = Seen({bytes.fromhex(record.volume_id): found}, nodes, connected)
        if new is not None:
            comes = resolve(names, new)
            if comes in (*record.members, *record.leaving):
                what = (
                    "is a member" if comes in record.members else "has not let go of its old part"
                )
                raise CannotReplace(f"volume {name}: {new} {what}; name another node")
        else:
            candidates = seen.candidates(record, goes, Domains(nodes, self.devices()))
            if record.coming is not None and record.replaces == goes:
                candidates = [record.coming]
            if not candidates:
                raise CannotReplace(
                    f"volume {name}: no node that can be reached is free to come; see "
                    "`blockd cluster show`, or have one join"
                )
            comes = candidates[0]
        call(self._records, found, comes, goes)
        self._sessions.post(partial(self._look, bytes.fromhex(record.volume_id)))
        return ReplacedMember(name, _name(nodes, goes), _name(nodes, comes))

    def delete(self, name: str, *, force: bool) -> bool:
        """Delete a volume that several nodes have, with its versions; whether it is one. Durable,
        and nobody serves it any more; members that are away let it go when they come back.
        VolumeBusy, VolumeHasSnapshots unless `force`. VolumeError, TransportError."""
        replica = self._named(name)
        if replica is None:
            return False
        if replica.volume.clients and not force:
            raise VolumeBusy(name, replica.volume.clients)
        if (count := replica.snapshot_count) and not force:
            raise VolumeHasSnapshots(name, count)
        problem = self._have_part(replica.uuid, lambda part, then: part.delete(then))
        if problem is not None:
            raise CannotDelete(f"volume {name} is not deleted: {problem}")
        return True

    def _named(self, name: str) -> Replica | None:
        return next((each for each in self._replicas if each.name == name), None)

    def _have_part(
        self, volume: bytes, do: Callable[[Part, Callable[[str | None], None]], None]
    ) -> str | None:
        """Have the volume's part do something, and wait for what it tells. TransportError."""
        ended: Future[str | None] = Future()

        def begin() -> None:
            part = self._parts.get(volume)
            if part is None:
                ended.set_result("it is being made")
            else:
                do(part, ended.set_result)

        self._sessions.post(begin)
        return waited(ended, PART_S)

    def _shown(self, name: str) -> ClusterVolume:
        return next(each for each in self._asked_about(self._info()).volumes if each.name == name)

    def _statuses(self) -> list[PartStatus]:
        return self._sessions.result_of(lambda: [part.status() for part in self._parts.values()])

    # -- for who looks at the rows (blockd.cluster.replacing.Parts)

    def noted(self, rows: Mapping[bytes, Stored[VolumeGroup]]) -> None:
        def note() -> None:
            for volume, part in list(self._parts.items()):
                if volume in rows:
                    part.noted(rows[volume])

        self._sessions.post(note)

    def has_part(self, volume: bytes) -> bool:
        return self._replicas.get(volume) is not None

    def in_step(self) -> dict[bytes, list[str]]:
        return {
            each.volume: [
                str(member.member)
                for member in each.members
                if member.counts and member.state in (State.STEP.value, "primary")
            ]
            for each in self._statuses()
            if each.doing == "serving"
        }

    def refused(self) -> dict[bytes, float]:
        return {
            each.volume: each.change.refused_s
            for each in self._statuses()
            if each.change is not None and each.change.refused_s is not None
        }

    # -- the thread's

    def _begin(self) -> None:
        for replica in self._replicas:
            self._add(replica.uuid)

    def _heard_of(self, peer: Peer, event: caller.Event) -> None:
        if isinstance(event, caller.Up | caller.Down):
            self._paths.reached(peer.node.hex(), isinstance(event, caller.Up))
        if isinstance(event, caller.Up):
            for part in self._parts.values():
                part.reachable()

    def _add(self, volume: bytes) -> Part | None:
        member = self._members.member(volume)
        if member is None:
            return None
        part = self._parts.get(volume)
        if part is None:
            part = Part(
                *(self._around, member, self._records, self._me, self),
                tap_bytes=self._tap_bytes,
            )
            self._parts[volume] = part
            part.start()
        return part

    def _look(self, volume: bytes) -> None:
        part = self._add(volume)
        if part is not None:
            part.look()

    def _asked(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        part = self._parts.get(getattr(message, "volume", b""))
        if isinstance(message, m.Create) and (part is None or not part.withdrawn):
            create = message
            if part is None and create.epoch > FIRST_EPOCH:
                self._around.ask_store(
                    lambda: self._records.volume(create.volume.hex()),
                    partial(self._called, create, answer),
                )
            else:
                self._create(create, answer)
            return
        volume: bytes = getattr(message, "volume", b"")
        if part is None:
            answer(error(m.Code.UNKNOWN, f"volume {volume.hex()}: no part of it is here"))
            return
        if isinstance(message, m.Seal | m.Open | m.Close):
            self._paths.look(volume)
        part.asked(message, answer)

    def _lag(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        assert isinstance(message, m.Lag)
        part = self._parts.get(message.volume)
        answer(m.Lags(()) if part is None else told(part.status()))

    def _called(
        self, message: m.Create, answer: Answer, found: Stored[VolumeGroup] | Exception | None
    ) -> None:
        """A part that was let go has taken its promise with it, so only the row says that whoever
        asks is not a primary of before: it would be one again with what this node acknowledges."""
        if isinstance(found, Exception):
            answer(error(m.Code.FAILED, f"volume {message.name}: its row is not read: {found}"))
        elif (
            found is None
            or not has_place(found.record, self._me)
            or found.record.epoch > message.epoch
        ):
            why = f"volume {message.name}: by its row no part is to be made here now"
            answer(error(m.Code.REFUSED, f"{why} in epoch {message.epoch}"))
        else:
            self._create(message, answer)

    def _create(self, message: m.Create, answer: Answer, until: float | None = None) -> None:
        if until is None:
            until = self._around.clock() + NAME_S
        self._around.work(
            lambda: self._members.answer(message, self._around.clock()),
            partial(self._created, message, answer, until),
        )

    def _created(
        self, message: m.Create, answer: Answer, until: float, result: Message | Exception
    ) -> None:
        if isinstance(result, Exception):
            answer(error(m.Code.FAILED, str(result)))
            return
        if isinstance(result, m.Ack):
            self._add(message.volume)
        other = named_so(self._replicas, message) if isinstance(result, m.Error) else None
        if other is None or self._around.clock() >= until:
            answer(result)
            return
        self._in_the_way(other)
        self._around.after(NAME_LOOK_S, lambda: self._create(message, answer, until))

    def _in_the_way(self, volume: bytes) -> None:
        """Another volume is to have the name of this part: if its row says that it is deleted, or
        is not this node's any more, it is let go now."""
        part = self._add(volume)
        if part is None:
            return

        def read(found: Stored[VolumeGroup] | Exception | None) -> None:
            if isinstance(found, Stored) and self._parts.get(volume) is part:
                part.noted(found)

        self._around.ask_store(lambda: self._records.volume(volume.hex()), read)

    # -- what parts tell (transport.group.around.Clients)

    def opening(self, volume: bytes) -> None:
        self._paths.settle()

    def opened(self, volume: bytes, epoch: int) -> None:
        with self._opened:
            self._served.add(volume)
            self._opened.notify_all()
        self._paths.opened(volume, epoch)
        self.served_here()

    def closed(self, volume: bytes, why: str) -> None:
        with self._opened:
            self._served.discard(volume)
        self._paths.closed(volume)
        replica = self._replicas.get(volume)
        if replica is not None:
            self.cut(replica.name, why)

    def deleted(self, volume: bytes) -> None:
        self._parts.pop(volume, None)
        self._members.forget(volume)

        def done(result: Exception | None) -> None:
            if isinstance(result, Exception):  # the next start sees the record again
                logger.error("a deleted volume cannot be let go volume=%s %s", volume.hex(), result)

        self._around.work(partial(self._replicas.remove, volume), done)


def _name(nodes: Mapping[str, Stored[NodeRecord]], node: str) -> str:
    return nodes[node].record.name if node in nodes else node
