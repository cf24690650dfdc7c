"""What the disks of all nodes hold, whatever anybody says of it.

A power cut *harms* a member when records are gone that it had: it may have been one of the W that
an acknowledgement counted. So when a takeover has chosen what the volume is, that must have all
that was acknowledged, unless W members or more were harmed, or had no say in it: a *lossy* choice,
which still has to be a prefix with all that was flushed in it.

A lossy choice may be followed although nobody ever served in its epoch: members note that the epoch
begins, and whoever takes over next believes them, and goes back for it. So what a node shows when
it begins to serve is as whole as the least whole choice in its chain since somebody served last;
and a member that has gone back since such a choice is harmed by it.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from tests.sim.cluster.damage import Damage
from tests.sim.cluster.history import History
from tests.sim.cluster.metastore import SimMetaStore
from tests.sim.cluster.node import Node, VolumeSpec
from tests.sim.cluster.versions import Versions
from tests.sim.world.stamps import Violation
from transport.group.link import State
from volume.metastore import ClusterRecords, Done, Stored, Transaction
from volume.metastore_records import ClusterRecord, GroupState, Mode, VolumeGroup

HAS_SAID = (State.UNDOING.value, State.COPYING.value)
"""States of a member in which the primary has just heard what it has, and not sent any more."""
End = tuple[int, int]
"""(epoch, seq) of a member's newest record."""


class Surroundings(Protocol):
    """What it looks at."""

    nodes: dict[str, Node]
    metastore: SimMetaStore
    history: History
    spec: VolumeSpec
    versions: Versions
    damage: Damage

    def note(self, what: str) -> None: ...
    def count(self, what: str) -> None: ...
    def primary(self) -> Node | None: ...


class Truth:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._harmed: dict[str, End] = {}
        self._before: dict[str, End] = {}  # of nodes that are down, when they went
        self._newest_epoch = 0
        self._lossy: set[int] = set()  # epochs whose choice was, since somebody served last
        self._doubtful: dict[str, End] = {}  # what nodes had when the first of these was made
        self._anew: set[str] = set()  # nodes whose part is another one, which nobody has heard of
        self._records = ClusterRecords(world.metastore.truth(), lambda: "0" * 32)

    # -- the beginning

    def found_cluster(self) -> None:
        """The volume is made, with an empty part on each of its members, and nobody serves it."""
        world, spec, records = self._world, self._world.spec, self._records
        members = spec.members(list(world.nodes))
        group = VolumeGroup(
            *(spec.uuid.hex(), spec.name, 1, None, members),
            *(spec.shape.members, spec.shape.wanted, spec.shape.mode),
            *(None, "main", GroupState.CLOSED),
        )
        cluster = ClusterRecord("c" * 32, 0)
        for transaction in (records.found(cluster), records.create_volume(group)):
            outcome = records.commit(transaction)
            assert isinstance(outcome, Done)
        for name in members:
            world.nodes[name].create(1)

    @property
    def stored(self) -> Stored[VolumeGroup]:
        """The volume's record as it is."""
        found = self._records.volume(self._world.spec.uuid.hex())
        assert found is not None
        return found

    @property
    def members(self) -> Sequence[str]:
        return self.stored.record.members

    def settle(self, transaction: Transaction) -> bool:
        """Whether an operator's transaction was done."""
        return isinstance(self._records.settle(transaction), Done)

    @property
    def records(self) -> ClusterRecords:
        return self._records

    # -- what happens

    def crashing(self, node: Node) -> None:
        """The node is about to lose its process or power."""
        self.check_disks()
        end = node.end()
        if end is not None:
            self._before[node.name] = max(end, self._before.get(node.name, end))

    def started(self, node: Node) -> None:
        """It runs again: what is left?"""
        before, end = self._before.pop(node.name, None), node.end()
        if before is not None and (end is None or end < before):
            self._world.count("harmed")
            self._world.note(f"{node.name[:4]} has {end} of {before}")
            self._harmed[node.name] = max(before, self._harmed.get(node.name, before))

    def made_anew(self, node: Node) -> None:
        """It had no part of the volume, and has an empty one now."""
        self._anew.add(node.name)

    def chosen(self, epoch: int, asked: Collection[str]) -> None:
        """A takeover knows what the volume is, by what the members `asked` have promised."""
        for name, had in self._doubtful.items():
            end = self._world.nodes[name].end()
            if end is not None and end < had:
                self._harmed[name] = max(had, self._harmed.get(name, had))
        if self._is_whole(asked):
            return
        self._lossy.add(epoch)
        for name, node in self._world.nodes.items():
            end = node.end() or self._before.get(name)
            if end is not None:
                self._doubtful.setdefault(name, end)

    def _is_whole(self, asked: Collection[str]) -> bool:
        """Whether one of them has to have all that was acknowledged."""
        shape = self._world.spec.shape
        misled = [each for each in asked if each in self._harmed]
        lost = [each for each in self.members if each not in asked or each in self._harmed]
        return not (shape.mode is Mode.MIRROR and misled and len(lost) >= shape.wanted)

    def opened(self, node: Node, epoch: int, image: bytes) -> bool | None:
        """A node begins to serve. Whether all that was acknowledged has to be in it; None: it has
        no say any more."""
        world = self._world
        if epoch <= self._newest_epoch:
            return None  # too late: what it shows is stale, which clients will notice
        self._newest_epoch = epoch
        whole = self._lossy.isdisjoint(node.epochs())
        self._lossy = {each for each in self._lossy if each > epoch}
        if not self._lossy:
            self._doubtful.clear()
        world.versions.settle_restores(node, whole=whole)
        if not whole:
            world.count("opened after loss")
            world.history.taken_over_after_loss(image)
        else:
            world.history.taken_over(image)
        self._recovered()
        return whole

    def _recovered(self) -> None:
        """Who has again what it had lost?"""
        for name, harmed in list(self._harmed.items()):
            end = self._world.nodes[name].end()
            if end is not None and end >= harmed:
                del self._harmed[name]

    def check_status(self) -> None:
        """What the primary says of a member, its disk has: unless that has lost power since, or
        made its part anew, which the primary may not have heard. It has when it brings the member
        into step: that has just said, synced, what it has. Violation."""
        self.check_disks()
        world = self._world
        primary = world.primary()
        if primary is None or primary.part is None or not primary.part.serving:
            return
        status = primary.part.status()
        for each in status.members:
            name = str(each.member)
            replica = world.nodes[name].replica
            if replica is None or replica.promised != primary.serving:
                continue
            received, durable = replica.held
            if each.received <= received and each.durable <= durable:
                self._anew.discard(name)
            elif each.state in HAS_SAID or not (name in self._harmed or name in self._anew):
                raise Violation(
                    f"I10 status says that {name[:4]} ({each.state}) has {each.received} records, "
                    f"{each.durable} of them durable; it has {received} and {durable}"
                )

    def check_disks(self) -> None:
        """A disk that has failed a sync is sealed, which status says, and not asked to sync again.
        Violation."""
        for node in self._world.nodes.values():
            disk, store = node.machine.disk, node.machine.store
            if not disk.failed_syncs or store is None:
                continue
            self._world.count("sealed")
            if disk.tried_again:
                raise Violation(
                    f"I2 {node.name[:4]} has synced {disk.tried_again} again, which had failed"
                )
            if store.status().state != "sealed":
                failed = ", ".join(sorted(disk.failed_syncs))
                raise Violation(f"I10 syncs of {failed} failed; {node.name[:4]} is said to be well")

    # -- the end

    def settled(self) -> bool:
        """Whether every member has all of the volume, and the primary says so."""
        world = self._world
        primary = world.primary()
        if primary is None:
            return False
        record = self.stored.record
        members = record.members
        if record.coming is not None or record.leaving or not world.damage.settled:
            return False
        if any(
            each.replica is not None for each in world.nodes.values() if each.name not in members
        ):
            return False
        whole = all(world.nodes[name].end() == primary.end() for name in members)
        return (
            whole and self._copies(primary) == sorted(members) and world.damage.is_still_settled()
        )

    @staticmethod
    def _copies(primary: Node) -> list[str]:
        """Members that have all of the volume, as status says."""
        assert primary.part is not None
        status = primary.part.status()
        whole = [each for each in status.members if each.counts]
        whole = [each for each in whole if each.received >= status.received]
        return sorted(str(each.member) for each in whole)

    def last_look(self) -> None:
        """All is healed, and nobody writes. Violation."""
        world = self._world
        primary = world.primary()
        if primary is None or primary.part is None:
            raise Violation("I13 nobody serves the volume although all is healed")
        world.damage.last_look()
        record = self.stored.record
        members = record.members
        if not self.settled():
            ends = {name[:4]: each.end() for name, each in world.nodes.items()}
            copies = [name[:4] for name in self._copies(primary)]
            change = [record.coming, record.replaces, *record.leaving]
            raise Violation(
                f"I10 all is healed; disks hold {ends}, and status says {copies}; "
                f"who comes, for whom, and who leaves: {[name and name[:4] for name in change]}"
            )
        image = primary.onlooker.image()
        world.versions.settle_restores(primary, whole=True)
        world.history.final(image)
        for name in members:
            if world.nodes[name].onlooker.image() != image:
                raise Violation(f"I10 {name[:4]} has another volume than {primary.name[:4]}")
        others = [world.nodes[name] for name in members if name != primary.name]
        world.versions.last_look([primary, *others])
