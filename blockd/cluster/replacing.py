"""Who is to be a member of which volume: dead and draining nodes are replaced, rows of what is gone
are forgotten.

Each node looks at all rows of volumes and nodes every LOOK_S, gives each row to the part that it is
about, and decides for the volumes that it serves:

    a member's node was removed, or is draining            another one is called in its place
    it could not be reached for `replace_after`            the same
    the node that comes could not be reached for as long   another one is called instead
    it has refused to make its part for as long            the same

Who comes stands on another machine than the members that stay, in another rack and at another site,
where there is such a node (`blockd.cluster.domains`); of several, the one with the fewest volumes.

Volumes with the fewest copies first, and AT_ONCE of them at a time; one that gets no copy, since
who comes makes no part or nobody may be called, holds no other up. Decisions are rows
(`ClusterRecords.call_member`); carrying them out is the primary's, whoever that is by then
(transport/group/changing.py). So nothing is lost when this node goes in the middle of it, and a
person's `blockd volume replace-member` is the same row.

Whose part of a volume is gone takes itself off the row's list of who leaves; nodes that are no
nodes any more are taken off, by a member, or by anybody where no member is a node any more. A
deleted volume whose list is empty is forgotten (`purge_volume`) after PURGE_S: by then no creation
of it can be on its way. So a tombstone is there as long as a node of the cluster may have a part.

What cannot be read or written is tried again at the next look.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from blockd.api.types import ClusterInfo
from blockd.cluster.domains import Domains
from blockd.cluster.rounds import Rounds
from transport.devicemap import DeviceMap
from volume.errors import VolumeError
from volume.metastore import ClusterRecords, Done, Stored
from volume.metastore_records import GroupState, NodeRecord, VolumeGroup

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0
AT_ONCE: Final = 2
"""Volumes of one primary that get a new member at a time: each is a copy of all of it."""
PURGE_S: Final = 3600.0
MAX_LEFT: Final = 16
"""Nodes that have not let go yet; beyond that nobody is called."""


class CannotReplace(VolumeError):
    """The members of a volume stay as they are."""

    code = "cannot_replace"


class Parts(Protocol):
    """The volumes of which this node has a part: blockd.cluster.volumes.ClusterVolumes."""

    def noted(self, rows: Mapping[bytes, Stored[VolumeGroup]]) -> None:
        """What the MetaStore has, as it was read a moment ago."""

    def has_part(self, volume: bytes) -> bool: ...
    def in_step(self) -> Mapping[bytes, Collection[str]]:
        """Of each volume that is served here, the members that have all of it."""

    def refused(self) -> Mapping[bytes, float]:
        """Volumes that are served here and for which who comes makes no part: for how many
        seconds."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All rows at one look, and who can be reached."""

    volumes: Mapping[bytes, Stored[VolumeGroup]]
    nodes: Mapping[str, Stored[NodeRecord]]
    connected: Collection[str]
    """This node among them."""

    def load(self, node: str) -> int:
        """Of how many volumes a node is a member, or is to be one."""
        return sum(
            node in (*each.record.members, each.record.coming)
            for each in self.volumes.values()
            if each.record.state is not GroupState.DELETED
        )

    def candidates(self, record: VolumeGroup, goes: str | None, domains: Domains) -> list[str]:
        """Who may come to a volume in the place of `goes`, the best first: on another machine than
        the members that stay, in another rack, at another site, and with the fewest volumes."""
        taken = {*record.members, record.coming, *record.leaving}
        stay = [node for node in record.members if node not in (goes, record.replaces)]
        free = [
            node
            for node, stored in self.nodes.items()
            if node not in taken and node in self.connected and not stored.record.draining
        ]
        return sorted(free, key=lambda node: (domains.shared(node, stay), self.load(node), node))


def call(records: ClusterRecords, found: Stored[VolumeGroup], coming: str, replaces: str) -> None:
    """Note who comes. CannotReplace, VolumeError."""
    record = found.record
    if (record.coming, record.replaces) == (coming, replaces):
        return
    if len(record.leaving) >= MAX_LEFT:
        raise CannotReplace(
            f"volume {record.name}: {len(record.leaving)} nodes have not let go of their part yet; "
            "wait for them, or take those that are lost out by `blockd cluster remove --lost`"
        )
    outcome = records.settle(records.call_member(found, coming, replaces))
    if not isinstance(outcome, Done):
        raise CannotReplace(
            f"volume {record.name}: its record has changed meanwhile, or its change is not known; "
            "try again"
        )


class Replacing:
    """`info` tells of the nodes; it waits. `replace_after_s` 0: nobody is dead."""

    def __init__(
        self,
        me: str,
        records: ClusterRecords,
        parts: Parts,
        info: Callable[[], ClusterInfo],
        replace_after_s: float,
        devices: Callable[[], DeviceMap],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`devices`: as they were read last."""
        self._me = me
        self._records = records
        self._parts = parts
        self._info = info
        self._replace_after_s = replace_after_s
        self._devices = devices
        self._clock = clock
        self._away: dict[str, float] = {}
        """Since when nodes cannot be reached from here."""
        self._gone: dict[bytes, float] = {}
        """Since when deleted volumes have nobody left."""
        trouble = "members of volumes are not looked after"
        self._rounds = Rounds("blockd-replacing", self.step, trouble, LOOK_S)

    def start(self) -> None:
        self._rounds.start()

    def stop(self) -> None:
        """Waits for a call to etcd that is under way."""
        self._rounds.stop()

    def look(self) -> None:
        """Soon."""
        self._rounds.look()

    # -- one look

    def step(self) -> None:
        """Look at all rows, and do what follows. VolumeError, TransportError."""
        seen = self._look()
        self._parts.noted(seen.volumes)
        self._forget(seen)
        self._replace(seen)

    def _look(self) -> Seen:
        volumes = {bytes.fromhex(each.record.volume_id): each for each in self._records.volumes()}
        nodes = {each.record.node_id: each for each in self._records.nodes()}
        connected = {each.node for each in self._info().nodes if each.connected}
        now = self._clock()
        self._away = {
            node: self._away.get(node, now) for node in nodes if node not in {*connected, self._me}
        }
        return Seen(volumes, nodes, connected | {self._me})

    # -- what is gone

    def _forget(self, seen: Seen) -> None:
        now, records = self._clock(), self._records
        empty: dict[bytes, float] = {}
        for volume, found in seen.volumes.items():
            record = found.record
            left = [
                node
                for node in record.leaving
                if node not in seen.nodes or (node == self._me and not self._parts.has_part(volume))
            ]
            mine = self._me in left or self._me in (record.primary, *record.members)
            # Of a deleted volume whose members have all been removed, nobody is one.
            mine = mine or (
                record.state is GroupState.DELETED and seen.nodes.keys().isdisjoint(record.members)
            )
            if left and mine:
                records.settle(records.left_volume(found, *left))
            elif record.state is GroupState.DELETED and not record.leaving:
                empty[volume] = self._gone.get(volume, now)
                if now - empty[volume] >= PURGE_S:
                    records.settle(records.purge_volume(found))
        self._gone = empty

    # -- who is replaced

    def _replace(self, seen: Seen) -> None:
        served = self._parts.in_step()
        mine = [
            (volume, found)
            for volume, found in seen.volumes.items()
            if volume in served
            and found.record.state is GroupState.OPEN
            and found.record.primary == self._me
        ]
        mine.sort(key=lambda each: (len(served[each[0]]), each[1].record.name))
        refused = self._parts.refused()
        copies = sum(
            found.record.coming is not None and volume not in refused for volume, found in mine
        )
        problem: CannotReplace | None = None
        for volume, found in mine:
            try:
                copies += self._look_at(found, seen, refused.get(volume), more=copies < AT_ONCE)
            except CannotReplace as error:  # the others have their turn all the same
                problem = problem or error
        if problem is not None:
            raise problem

    def _look_at(
        self, found: Stored[VolumeGroup], seen: Seen, refused_s: float | None, *, more: bool
    ) -> bool:
        """Whether another copy begins. CannotReplace."""
        record = found.record
        if record.coming is not None:
            refused = more and refused_s is not None and 0 < self._replace_after_s <= refused_s
            if refused or self._lost(record.coming, seen):
                return self._call(found, seen, record.replaces or "", record.coming) and refused
            return False
        goes = self._goes(record, seen) if more else None
        return goes is not None and self._call(found, seen, goes, None)

    def _goes(self, record: VolumeGroup, seen: Seen) -> str | None:
        """The member that is to be replaced first: a lost one, then one whose node drains."""
        lost = [node for node in record.members if self._lost(node, seen)]
        drains = [
            node
            for node in record.members
            if node in seen.nodes and seen.nodes[node].record.draining
        ]
        drains.sort(key=lambda node: node == self._me)  # which costs clients a new connection
        return next(iter([*lost, *drains]), None)

    def _lost(self, node: str, seen: Seen) -> bool:
        if node not in seen.nodes:
            return True
        since = self._away.get(node)
        after_s = self._replace_after_s
        return since is not None and after_s > 0 and self._clock() - since >= after_s

    def _call(
        self, found: Stored[VolumeGroup], seen: Seen, goes: str, instead_of: str | None
    ) -> bool:
        """Whether somebody was called."""
        record = found.record
        domains = Domains(seen.nodes, self._devices())
        candidates = seen.candidates(record, goes, domains)
        if not candidates:
            return False
        logger.info(
            "a member is replaced",
            extra={
                **{"volume": record.name, "node": goes, "coming": candidates[0]},
                "instead": instead_of or "",
            },
        )
        call(self._records, found, candidates[0], goes)
        self._rounds.look()  # the part hears of it at once
        return True


def resolve(nodes: Sequence[NodeRecord], name: str) -> str:
    """The id of a node by name or id. CannotReplace."""
    for node in nodes:
        if name in (node.name, node.node_id):
            return node.node_id
    names = ", ".join(node.name for node in nodes)
    raise CannotReplace(f"there is no node {name}; nodes are {names}")
