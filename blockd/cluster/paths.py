"""Who serves the volumes that this node is a member of, and where (`blockd.paths.Paths`).

    this node       its own part of the volume says: always true
    which other     the volume's row of the MetaStore, as it was read last
    can be reached  the sessions with peers
    where           the row `exports` (`blockd.cluster.exports`), read every LOOK_S

A volume's row is read when something about the volume was heard here (`look`: another node seals,
opens or closes it, or this one does), again soon while nobody serves it, and every REST_S. It costs
the MetaStore nothing per write. A row that was read before a takeover that this node has promised
to is known to be old. While the MetaStore is silent what was read stays: nobody takes over then.

The row `exports` is kept in the store as well, as it was read last: after a start a node has the
number that it had before, and initiators that come back at once find the target port that they
know. Who comes before a node has its first number is told to come again (`blockd.iscsi.login`).

A thread reads and writes rows. `ways` and `number` are quick, for any thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from typing import Final, Protocol

from blockd.cluster.exports import (
    ExportsRecord,
    NodeExports,
    read_exports,
    write_exports,
)
from blockd.cluster.reservations import SharedReservations, VolumeState
from blockd.paths import Way, WayState, tag_of, told_where
from volume.errors import VolumeError
from volume.metastore import ClusterRecords, Stored
from volume.metastore_records import GroupState, VolumeGroup, decode, encode
from volume.replica import Replica

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0  # as for nodes (blockd.cluster.membership)
REST_S: Final = 30.0  # from a row by which a volume is served to the next look at it
SOON_S: Final = 0.25  # while it is not: then twice as long, ..., LOOK_S
PROVE_S: Final = 2.0  # a client that attaches waits so long for the MetaStore
SILENT_S: Final = 5.0  # it is not asked again by clients, after it did not answer one
KEPT: Final = "cluster/exports"
"""What the row is kept under in the store."""
PROVERS: Final = 4  # clients whose question to the MetaStore is under way


class KnownReplicas(Protocol):
    """What this needs of `volume.replica.Replicas`."""

    def get(self, uuid: bytes) -> Replica | None: ...
    def __iter__(self) -> Iterator[Replica]: ...


class Kept(Protocol):
    """What this needs of the store, as `blockd.api.node.Store`."""

    def kept(self, prefix: str) -> dict[str, bytes]: ...
    def keep(self, name: str, value: bytes | None) -> None: ...


@dataclass(frozen=True, slots=True)
class AttachToken:
    """This node became the primary of a volume in that epoch; see `blockd.paths`."""

    volume: bytes
    epoch: int
    node: str


@dataclass(slots=True)
class _Watched:
    """A volume whose row is looked at."""

    due: float
    wait_s: float = SOON_S
    group: VolumeGroup | None = None


class VolumePaths:
    """See the module's text. `me`: this node's id; `names`: of nodes, by id; any thread."""

    def __init__(
        self,
        records: ClusterRecords,
        replicas: KnownReplicas,
        me: str,
        names: Callable[[], Mapping[str, str]],
        clock: Callable[[], float] = time.monotonic,
        prove_s: float = PROVE_S,
        kept: Kept | None = None,
    ) -> None:
        """CorruptRecord: what was kept of the row `exports` makes no sense."""
        self._records = records
        self._replicas = replicas
        self._me = me
        self._names = names
        self._clock = clock
        self._prove_s = prove_s
        self._lock = threading.Lock()
        self._volumes: dict[bytes, _Watched] = {}
        self._kept = kept
        self._nodes: Mapping[str, NodeExports] = {} if kept is None else _recalled(kept)
        self._reached: set[str] = set()
        self._tokens: dict[bytes, AttachToken] = {}
        self._shared = SharedReservations(records)
        self._wanted: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._watchers: list[Callable[[], None]] = []
        self._settle: list[Callable[[], None]] = []
        self._exports_due = 0.0
        self._silent_until = 0.0
        self._problem = ""
        self._wake = threading.Event()
        self._stopped = False
        self._provers = ThreadPoolExecutor(PROVERS, "blockd-attach")
        self._thread = threading.Thread(target=self._run, name="blockd-paths")

    # -- life

    def start(self) -> None:
        self._thread.start()
        self._shared.start(self._changed)

    def stop(self) -> None:
        """Waits for calls to the MetaStore that are under way. Idempotent."""
        self._shared.stop()
        self._stopped = True
        self._wake.set()
        if self._thread.ident:
            self._thread.join()
        self._provers.shutdown()

    # -- what is told; any thread, quick

    def advertise(self, nbd: tuple[str, ...], iscsi: tuple[str, ...]) -> None:
        """Clients reach this node there; as in `NodeExports`."""
        with self._lock:
            self._wanted = nbd, iscsi
            self._exports_due = 0.0
        self._wake.set()

    def reached(self, node: str, up: bool) -> None:
        """Whether another node can be asked."""
        with self._lock:
            before = len(self._reached)
            self._reached.add(node) if up else self._reached.discard(node)
            changed = len(self._reached) != before
        if changed:
            self._changed()

    def look(self, volume: bytes) -> None:
        """Something has happened to a volume."""
        with self._lock:
            watched = self._volumes.setdefault(volume, _Watched(0.0))
            watched.due, watched.wait_s = 0.0, SOON_S
        self._wake.set()

    def opened(self, volume: bytes, epoch: int) -> None:
        """This node is the volume's primary."""
        with self._lock:
            self._tokens[volume] = AttachToken(volume, epoch, self._me)
        self._shared.opened(volume, epoch)
        self.look(volume)
        self._changed()

    def closed(self, volume: bytes) -> None:
        """It is no more."""
        self._shared.closed(volume)
        with self._lock:
            self._tokens.pop(volume, None)
        self.look(volume)
        self._changed()

    def watch(self, changed: Callable[[], None], settle: Callable[[], None] | None = None) -> None:
        self._watchers.append(changed)
        if settle is not None:
            self._settle.append(settle)

    def settle(self) -> None:
        """Return when the front ends have seen to all changes until now: sessions that are served
        past a volume's unit are called back when it is closed, before it can be open again. Waits;
        OSError when they do not come to it."""
        for each in self._settle:
            each()

    # -- what is known; any thread, quick

    def shared(self, volume: bytes) -> VolumeState:
        return self._shared.of(volume)

    @property
    def number(self) -> int:
        own = self._nodes.get(self._me)
        return 0 if own is None else own.number

    def ways(self, volume: bytes) -> tuple[Way, ...]:
        replica = self._replicas.get(volume)
        nodes = self._nodes
        if replica is None or self._me not in nodes:
            return ()
        watched = self._volumes.get(volume)
        group = None if watched is None else watched.group
        members = {self._me, *(group.members if group is not None else ())}
        names = self._names()
        found = [
            Way(
                *(names.get(node, node), nodes[node].number, node == self._me),
                self._state(node, replica, group),
                nodes[node].nbd,
                tuple(_with_tag(nodes[node].number, each) for each in nodes[node].iscsi),
            )
            for node in members
            if node in nodes
        ]
        return tuple(sorted(found, key=lambda way: way.number))

    def _state(self, node: str, replica: Replica, group: VolumeGroup | None) -> WayState:
        here = replica.volume
        primary = group is not None and group.primary == node
        taking = primary and group is not None and group.state is GroupState.SEALING
        if node == self._me:
            if here.leads:
                return WayState.SERVING
            return WayState.CHANGING if here.opened or taking else WayState.STANDBY
        if node not in self._reached:
            return WayState.UNREACHABLE
        if here.opened or not primary or group is None or group.state is GroupState.CLOSED:
            return WayState.STANDBY
        if taking or group.epoch < replica.promised:  # what was read is of before that promise
            return WayState.CHANGING
        return WayState.SERVING

    # -- attach tokens; waits, any thread

    def refusal(self, volume: bytes) -> str | None:
        token = self._tokens.get(volume)
        why = self._disproved(volume, token)
        if why is not None:
            return why
        assert token is not None
        found = self._asked(volume)
        if isinstance(found, Stored):
            row = found.record
            if (row.epoch, row.primary) != (token.epoch, self._me):
                self.look(volume)
                return (
                    f"volume {row.name}: the cluster is in epoch {row.epoch} of it, this node "
                    f"serves epoch {token.epoch}; try again, or another node"
                )
        elif found is None:
            return f"volume {volume.hex()}: the cluster has no such volume any more"
        return self._disproved(volume, token)  # that took its time

    def _disproved(self, volume: bytes, token: AttachToken | None) -> str | None:
        """What this node knows by itself."""
        replica = self._replicas.get(volume)
        if replica is None:
            return f"volume {volume.hex()}: this node does not have it any more"
        why = replica.volume.elsewhere
        if why is None and token is not None and self._tokens.get(volume) == token:
            return None
        told = told_where(replica.name, self.ways(volume))
        return told or why or f"volume {replica.name}: this node has just lost it; try again"

    def _asked(self, volume: bytes) -> Stored[VolumeGroup] | str | None:
        """The row as it is now; a text: why that is not known."""
        if self._clock() < self._silent_until:
            return "the metastore did not answer a moment ago"
        asking = self._provers.submit(self._records.volume, volume.hex())
        try:
            return asking.result(self._prove_s)
        except (TookTooLong, VolumeError, OSError) as error:
            asking.cancel()
            self._silent_until = self._clock() + SILENT_S
            facts = {"volume": volume.hex(), "reason": str(error) or "no answer"}
            logger.warning("clients attach by the lease alone", extra=facts)
            return str(error)

    # -- the thread

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            try:
                changed = self._look()
                self._tell("")
            except (VolumeError, OSError) as error:  # what was read before stays
                self._tell(str(error))
                changed, wait_s = True, LOOK_S
            else:
                wait_s = max(0.0, self._next_due() - self._clock())
            if changed:
                self._changed()
            if not self._stopped:
                self._wake.wait(wait_s)

    def _look(self) -> bool:
        """Read and write what is due; whether anything is another than before."""
        now = self._clock()
        changed = False
        if now >= self._exports_due:
            with self._lock:
                self._exports_due = now + LOOK_S
            changed = self._look_at_exports()
        present = {each.uuid for each in self._replicas}
        with self._lock:
            for volume in self._volumes.keys() - present:
                del self._volumes[volume]
                self._shared.forget(volume)
                self._tokens.pop(volume, None)
            for volume in present - self._volumes.keys():
                self._volumes[volume] = _Watched(now)
            due = [volume for volume, each in self._volumes.items() if now >= each.due]
        for volume in due:
            if self._stopped:
                break
            changed |= self._look_at(volume)
        return changed

    def _look_at_exports(self) -> bool:
        wanted = self._wanted
        if wanted is None:
            found = read_exports(self._records)
        else:
            found = write_exports(self._records, self._me, *wanted)
        if found is None or found.record.nodes == self._nodes:
            return False
        if self._kept is not None:
            self._kept.keep(KEPT, encode(found.record))  # before anybody is told of it
        self._nodes = found.record.nodes
        return True

    def _look_at(self, volume: bytes) -> bool:
        with self._lock:
            watched = self._volumes.get(volume)
            if watched is None:
                return False
            watched.due = self._clock() + LOOK_S  # unless somebody says `look` meanwhile
        found = self._records.volume(volume.hex())
        group = None if found is None else found.record
        before, watched.group = watched.group, group
        served = group is not None and group.state is GroupState.OPEN
        if before != group:
            watched.wait_s = SOON_S
        with self._lock:
            if watched.due:
                watched.due = self._clock() + (REST_S if served else watched.wait_s)
        watched.wait_s = min(watched.wait_s * 2, LOOK_S)
        return before != group

    def _next_due(self) -> float:
        with self._lock:
            return min([self._exports_due, *(each.due for each in self._volumes.values())])

    def _changed(self) -> None:
        for each in self._watchers:
            each()

    def _tell(self, problem: str) -> None:
        """In the log, once."""
        if problem and problem != self._problem:
            logger.warning("ways to volumes not read", extra={"reason": problem})
        self._problem = problem


def _recalled(store: Kept) -> Mapping[str, NodeExports]:
    value = store.kept(KEPT).get(KEPT)
    return {} if value is None else decode(ExportsRecord, ExportsRecord.prefix, value).nodes


def _with_tag(number: int, portal: str) -> str:
    address, _, local = portal.rpartition(",")
    return f"{address},{tag_of(number, int(local))}"
