"""Who is in the cluster: the MetaStore's rows of nodes and tokens, read again and again.

A thread reads them every REFRESH_S, and at once when somebody knocks whose key is not known, but
never more often than each LEAST_S, whoever knocks. What was read last stays in use while the
MetaStore cannot be read: sessions do not depend on it. Only a cluster that is there, and does not
have this node, cuts the node off.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from transport.join import settled
from transport.keys import Identity
from transport.sessions import Guest, Peer
from volume.metastore import ClusterRecords, MetaStoreUnavailable, Stored
from volume.metastore_records import CorruptRecord, NodeRecord

logger = logging.getLogger(__name__)

REFRESH_S: Final = 5.0
LEAST_S: Final = 0.25
BEAT_TTL_S: Final = 30  # a node that has not said that it lives for so long has no beat


@dataclass(frozen=True, slots=True)
class Members:
    """Nodes and tokens at one time."""

    nodes: tuple[Stored[NodeRecord], ...] = ()
    """All, by id."""
    guests: tuple[Guest, ...] = ()
    """Keys of tokens that can be used."""
    problem: str = ""
    """Why this node is not, or may not be, among them; empty when all is well."""

    @property
    def peers(self) -> list[Peer]:
        return [
            Peer(
                bytes.fromhex(each.record.node_id),
                each.record.name,
                bytes.fromhex(each.record.public_key),
                each.record.addresses,
            )
            for each in self.nodes
        ]


Tell = Callable[[Members, frozenset[bytes]], None]
"""Told of each look, and of the keys that were to be looked for."""


class Membership:
    """Calls `tell` on its own thread after each look. `addresses` are where others reach us."""

    def __init__(
        self, records: ClusterRecords, identity: Identity, addresses: tuple[str, ...], tell: Tell
    ) -> None:
        self.members = Members(problem="etcd was not read yet")
        self._records = records
        self._identity = identity
        self._addresses = addresses
        self._tell = tell
        self._lock = threading.Lock()
        self._asked: set[bytes] = set()
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="blockd-members")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Waits for a call to etcd that is under way."""
        self._stop.set()
        self._wanted.set()
        if self._thread.ident:
            self._thread.join()

    def others(self) -> set[bytes] | None:
        """The other nodes of the cluster, as etcd has them; None while that is not known. Any
        thread."""
        members = self.members
        if members.problem:
            return None
        return {each.node for each in members.peers} - {self._identity.node}

    def look(self, *keys: bytes) -> None:
        """Read again soon, and see whether these keys are known by then. Any thread."""
        with self._lock:
            self._asked.update(keys)
        self._wanted.set()

    # -- the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wanted.clear()
            with self._lock:
                asked, self._asked = frozenset(self._asked), set()
            before = self.members
            self.members = self._read()
            if self.members.problem != before.problem:
                _log(self.members.problem)
            self._tell(self.members, asked)
            self._stop.wait(LEAST_S)
            self._wanted.wait(REFRESH_S - LEAST_S)

    def _read(self) -> Members:
        records, me = self._records, self._identity
        try:
            cluster = records.cluster()
            if cluster is None:
                return replace(self.members, problem="etcd has no cluster under this prefix")
            if cluster.record.cluster_id != me.cluster_id:
                other = cluster.record.cluster_id
                return replace(
                    self.members, problem=f"etcd has cluster {other}, this is of {me.cluster_id}"
                )
            nodes = tuple(records.nodes())
            mine = next((each for each in nodes if each.record.node_id == me.node_id), None)
            if mine is None:
                return Members(problem="this node was removed from the cluster")
            if mine.record.public_key != me.keys.public.hex():
                return Members(problem="the cluster has another key of this node")
            self._say(mine)
            return Members(nodes, self._guests())
        except (MetaStoreUnavailable, CorruptRecord) as error:
            return replace(self.members, problem=str(error))

    def _guests(self) -> tuple[Guest, ...]:
        tokens = [each.record for each in self._records.join_tokens()]
        now = time.time()
        return tuple(Guest(bytes.fromhex(t.public_key)) for t in tokens if t.expires_s > now)

    def _say(self, mine: Stored[NodeRecord]) -> None:
        """That this node lives, and where."""
        self._records.beat(mine.record.node_id, time.time_ns(), BEAT_TTL_S)
        if mine.record.addresses != self._addresses:
            moved = replace(mine.record, addresses=self._addresses)
            settled(self._records, self._records.change_node(mine, moved))
            self._wanted.set()


def _log(problem: str) -> None:
    if problem:
        logger.warning("cluster", extra={"reason": problem})
    else:
        logger.info("cluster is read from etcd")
