"""What a node does when another one has it make a part of a volume."""

from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blockd.cluster.making import NAME_LOOK_S
from blockd.cluster.paths import VolumePaths
from blockd.cluster.volumes import CannotMove, ClusterVolumes, NotOfSeveralNodes
from tests.metastore_twin import DictMetaStore
from tests.sim.store_rig import StoreRig
from transport.peer import messages as m
from transport.peer.wire import Message
from transport.sessions import Peer, Sessions
from volume.metastore import ClusterRecords, Done
from volume.metastore_records import GroupState, Mode, VolumeGroup

ME, A, B, C = (letter * 32 for letter in "1abc")
VOLUME = bytes(range(16))
GROUP = VolumeGroup(
    *(VOLUME.hex(), "vm1", 5, A, (A, B, C), 3, 2, Mode.MIRROR, None, "main", GroupState.OPEN),
    coming=ME,
    replaces=C,
)


class Ring:
    def cancel(self) -> None:
        pass


class Posted:
    """Sessions of which only this is used: calls for their thread, and handlers."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.post = self.calls.put
        self.handlers: dict[type[m.Request], Any] = {}

    def serve(self, kind: type[m.Request], handler: object) -> None:
        self.handlers[kind] = handler

    def watch(self, watcher: object) -> None:
        pass

    def after(self, delay_s: float, call: Callable[[], None]) -> object:
        if delay_s == NAME_LOOK_S:  # what a part has to do by itself is not waited for
            self.calls.put(call)
        return Ring()

    def watched(self, descriptor: int, call: object) -> object:
        return None


def asked_in(epoch: int, group: VolumeGroup | None) -> Message:
    """The answer to a CREATE, with that row in the MetaStore."""
    records = ClusterRecords(DictMetaStore(), lambda: "e" * 32)
    if group is not None:
        assert isinstance(records.commit(records.create_volume(group)), Done)
    sessions, store = Posted(), StoreRig().store
    volumes = ClusterVolumes(
        *(ME, cast(Sessions, sessions), records, store.replicas, lambda: None),  # type: ignore[arg-type]
        *(1 << 30, cast(VolumePaths, None)),
    )
    volumes.start()
    answers: list[Message] = []
    create = m.Create(VOLUME, epoch, "vm1", 1 << 20, 512, 4096)
    peer = Peer(bytes.fromhex(A), "a", bytes(32), ())
    sessions.handlers[m.Create](peer, create, answers.append)
    while not answers:
        sessions.calls.get(timeout=30)()
    volumes.close()
    assert (store.replicas.get(VOLUME) is not None) == isinstance(answers[0], m.Ack)
    return answers[0]


def test_who_is_to_come_makes_its_part() -> None:
    assert asked_in(5, GROUP) == m.Ack(5, 0, 0)


@pytest.mark.parametrize(
    ("epoch", "group"),
    [
        (4, GROUP),
        (5, replace(GROUP, coming=None, replaces=None)),
        (5, replace(GROUP, state=GroupState.DELETED, primary=None, coming=None, replaces=None)),
        (5, None),
    ],
    ids=["a primary of before", "it comes no more", "deleted", "forgotten"],
)
def test_a_call_that_the_row_does_not_bear_out_makes_no_part(
    epoch: int, group: VolumeGroup | None
) -> None:
    """A part that was let go has taken its promise with it: this one would promise less."""
    answer = asked_in(epoch, group)
    assert isinstance(answer, m.Error)
    assert answer.code == m.Code.REFUSED


def test_a_volume_that_is_being_made_has_no_place_in_doubt() -> None:
    assert asked_in(1, None) == m.Ack(1, 0, 0)


def test_a_volume_that_cannot_be_moved_from_here_is_not_said_to_be_none() -> None:
    """It may be one of a single node, or one that other nodes have; who has it is named."""
    records = ClusterRecords(DictMetaStore(), lambda: "e" * 32)
    assert isinstance(records.commit(records.create_volume(GROUP)), Done)
    named = SimpleNamespace(nodes=[SimpleNamespace(node=A, name="n1")])
    volumes = ClusterVolumes(
        *(ME, cast(Sessions, Posted()), records, StoreRig().store.replicas, lambda: named),  # type: ignore[arg-type]
        *(1 << 30, cast(VolumePaths, None)),
    )
    with pytest.raises(NotOfSeveralNodes, match="alone: no volume of several nodes is called so"):
        volumes.move("alone", "n1")
    with pytest.raises(NotOfSeveralNodes, match="blockd cluster status"):
        volumes.replace_member("alone", "n1", None)
    with pytest.raises(CannotMove, match="no part of it; etcd says that n1 serves it: ask"):
        volumes.move("vm1", "n1")


@pytest.mark.parametrize("deleted", [True, False])
def test_a_part_of_a_volume_of_that_name_is_let_go_when_its_row_says_that_it_is_deleted(
    deleted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, without the next look at all rows; where it says nothing of the kind the new volume
    is refused, after a while."""
    if not deleted:
        monkeypatch.setattr("blockd.cluster.volumes.NAME_S", 0.3)
    records = ClusterRecords(DictMetaStore(), lambda: "e" * 32)
    old = b"o" * 16
    group = replace(
        GROUP, volume_id=old.hex(), members=(A, B, ME), primary=A, coming=None, replaces=None
    )
    assert isinstance(records.commit(records.create_volume(group)), Done)
    if deleted:
        found = records.volume(old.hex())
        assert found is not None
        assert isinstance(records.commit(records.delete_volume(found)), Done)
    sessions, store = Posted(), StoreRig().store
    store.replicas.create(old, "vm1", 1 << 20, 512, 4096, 5)
    volumes = ClusterVolumes(
        *(ME, cast(Sessions, sessions), records, store.replicas, lambda: None),  # type: ignore[arg-type]
        *(1 << 30, cast(VolumePaths, None)),
    )
    volumes.start()
    answers: list[Message] = []
    peer = Peer(bytes.fromhex(A), "a", bytes(32), ())
    create = m.Create(VOLUME, 1, "vm1", 1 << 20, 512, 4096)
    sessions.handlers[m.Create](peer, create, answers.append)
    while not answers:
        sessions.calls.get(timeout=30)()
    volumes.close()
    assert isinstance(answers[0], m.Ack if deleted else m.Error)
    assert (store.replicas.get(old) is None) == deleted
    assert (store.replicas.get(VOLUME) is not None) == deleted
