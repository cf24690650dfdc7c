"""What a primary does at once, what it leaves to threads that may wait, and when it looks again."""

import pytest

from native import OP_WRITE, Request
from tests.around_rig import Around
from tests.group_rig import OPTIONS, SIZE, TAP_BYTES, VOLUME
from tests.sim.store_rig import StoreRig
from transport.group.acks import NodeId
from transport.group.chain import Chain
from transport.group.copying import COPYING
from transport.group.leading import EXPIRE_S, Leading
from transport.group.link import GroupPolicy, Lag, Send
from transport.peer import messages as m
from transport.peer.caller import Answered
from volume.layout import ZERO_ID
from volume.metastore_records import GroupState, Mode, VolumeGroup
from volume.replica import Replica
from volume.replicacopy import Based

NODES = tuple(NodeId(digit * 32) for digit in "abc")


def ignore(*_: object) -> None:
    pass


class Served:
    """A volume of three that this node serves; the others are in step."""

    def __init__(self, *, plain: bool = True) -> None:
        self.around = Around()
        self.rig = StoreRig(options=OPTIONS)
        self.replica: Replica = self.rig.store.replicas.create(VOLUME, "vm1", SIZE, 512, 4096, 1)
        self.rig.tend()
        self.replica.promise(1)
        descriptor, _ = self.replica.tap(TAP_BYTES)
        group = VolumeGroup(
            *(VOLUME.hex(), "vm1", 1, NODES[0], NODES, 3, 2, Mode.MIRROR, None, "main"),
            GroupState.OPEN,
        )
        self.leading = Leading(
            *(self.around, self.replica, group, NODES[0]),
            *(Chain(self.replica.ends(), self.replica.start), GroupPolicy()),
            opened=ignore,
            fenced=ignore,
            failed=ignore,
            moved=ignore,
            plain=plain,
        )
        self.leading.start(descriptor)
        while self.around.asked:
            self.answer()
        self.replica.serve(1)
        self.leading.serves()
        assert not self.around.works

    def answer(self) -> m.Request:
        """A member does what it was asked first."""
        _, message, then = self.around.asked.popleft()
        answer: m.Ack | m.Sealed
        match message:
            case m.Seal():
                answer = m.Sealed(1, 0, 0, ((1, 0),))
            case m.Append():
                answer = m.Ack(1, message.last_seq, 0)
            case _:
                answer = m.Ack(1, 0, 0)
        then(Answered(1, answer))
        return message

    def write(self) -> None:
        self.rig.tend()
        core = self.replica.volume.core
        self.replica.gate.pass_on(
            core.submit([Request(OP_WRITE, 0, 512, b"x" * 512)], self.rig.clock.now_ns())[0],
            lambda _: None,
        )
        self.around.taps[0]()


def test_what_was_just_written_is_sent_at_once_and_by_no_other_thread() -> None:
    served = Served()
    served.write()
    assert [type(message) for _, message, _ in served.around.asked] == [m.Append, m.Append]
    assert not served.around.works
    served.write()
    served.write()  # while the first is under way these wait, to go together
    assert len(served.around.asked) == 2
    served.answer()
    assert served.leading.primary.acked == 1
    _, grown, _ = served.around.asked[-1]
    assert isinstance(grown, m.Append)
    assert (grown.first_seq, grown.last_seq) == (2, 3)


def test_what_would_have_to_be_read_from_the_disk_is_left_to_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = Served(plain=False)
    monkeypatch.setattr(served.replica, "take_at_once", lambda: None)
    served.write()
    assert not served.around.asked
    (take,) = served.around.works
    served.write()
    assert len(served.around.works) == 1  # one takes at a time
    take()
    assert [type(message) for _, message, _ in served.around.asked] == [m.Append, m.Append]


def test_nobody_looks_at_the_clock_of_a_volume_where_nobody_waits() -> None:
    served = Served()
    around = served.around
    assert not around.timers
    served.write()
    ((delay_s, look),) = around.timers
    assert delay_s == EXPIRE_S
    served.write()
    assert len(around.timers) == 1
    around.timers.clear()
    look()
    ((_, look),) = around.timers  # they still wait
    while around.asked:
        served.answer()
    assert served.replica.gate.waiting == 0
    around.timers.clear()
    look()
    assert not around.timers


def test_what_follows_from_a_look_at_the_members_is_done_with_it() -> None:
    served = Served()
    leading, sync = served.leading, Send(NODES[1], 99, m.Sync(VOLUME, 1, 0), 1.0)
    todo = [sync]
    leading._moved = lambda: leading.carry_out([todo.pop()]) if todo else None
    leading.carry_out([])
    assert [message for _, message, _ in served.around.asked] == [sync.message]


def test_a_stream_that_a_member_does_not_go_on_with_holds_nothing() -> None:
    served = Served()
    served.write()
    served.rig.settle()
    member, replica = NODES[1], served.replica
    history, number = served.rig.store._history, replica.volume.record.number
    replica.copy(member, 0, 100, Based(ZERO_ID))
    served.leading.carry_out([Lag(NodeId(member), True, COPYING)])
    assert history.is_held(number, 1)
    served.leading.carry_out([Lag(NodeId(member), True, "no answer for 3 s")])
    assert not history.is_held(number, 1)
