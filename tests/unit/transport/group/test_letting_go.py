"""A part that is being let go: what was asked before, and what comes meanwhile."""

from typing import cast

from tests.around_rig import Around
from tests.group_rig import OPTIONS, SIZE, VOLUME
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_replica import Source
from transport.group.acks import NodeId
from transport.group.around import Clients
from transport.group.member import Members
from transport.group.part import Part
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.metastore import ClusterRecords, Row, Stored
from volume.metastore_records import GroupState, Mode, VolumeGroup


def append(first: int, last: int, data: bytes, *, sync: bool) -> m.Append:
    return m.Append(VOLUME, 1, 1, first, last, int(sync), (data,))


def test_a_sync_that_ends_while_the_part_is_let_go_has_nothing_answered_any_more() -> None:
    rig, source, around = StoreRig(options=OPTIONS), Source(), Around(100.0)
    source.begin(1)
    members = Members(rig.store.replicas, 100.0)
    members.answer(m.Create(VOLUME, 1, "vm1", SIZE, 512, 4096), 100.0)
    rig.tend()
    member = members.member(VOLUME)
    assert member is not None
    nobody = cast("ClusterRecords", None)
    part = Part(around, member, nobody, NodeId("a"), cast("Clients", None))
    answers: list[Message] = []
    part.asked(append(1, 1, source.records(1), sync=False), answers.append)
    for _ in range(len(around.works)):  # it begins the epoch
        around.works.popleft()()
    part.asked(append(2, 2, source.records(1), sync=False), answers.append)
    part.asked(append(3, 3, source.records(1), sync=True), answers.append)
    assert answers == [m.Ack(1, 1, 0), m.Ack(1, 2, 0)]
    assert members.cores

    group = VolumeGroup(
        *(VOLUME.hex(), "vm1", 1, NodeId("b"), (NodeId("b"),), 1, 1, Mode.MIRROR, None, "main"),
        GroupState.OPEN,
    )
    part._leave(Stored(group, Row("", b"", 1)))
    assert part.withdrawn
    around.works.pop()()
    assert not members.cores  # what comes with every write would be taken without the part
    assert isinstance(answers[-1], m.Error)
    assert answers[-1].code == m.Code.BUSY
