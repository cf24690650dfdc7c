"""The sender alone: what it asks for, and its bounds. With members it is in test_group.py."""

from math import inf

import pytest

from transport.group.acks import NodeId, Quorum
from transport.group.chain import Chain
from transport.group.copying import COPYING
from transport.group.kept import Batch, Kept
from transport.group.lease import RENEW_S, Lease
from transport.group.link import (
    Copy,
    Effect,
    Fenced,
    GroupPolicy,
    Lag,
    Opened,
    Progress,
    ReadLog,
    Send,
    SyncOwn,
    Take,
)
from transport.group.primary import Primary
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.metastore_records import Mode
from volume.replica import Records
from volume.replicacopy import Based, Copied, Told
from volume.stream import Compare, Lack, Node
from volume.stream_wire import Position

VOLUME = b"v" * 16
A, B, C = (NodeId(name) for name in "abc")
POLICY = GroupPolicy(queue_bytes=1000, behind_after_s=3.0)


class Sender:
    """A primary of epoch 5, which began behind record 100; its effects by kind."""

    def __init__(self, members: str = "abc", wanted: int = 2, mode: Mode = Mode.MIRROR) -> None:
        nodes = [NodeId(name) for name in members]
        self.now = 1000.0
        self.lease = Lease(A, nodes, wanted)
        chain = Chain(((3, 60), (5, 100)))
        self.primary = Primary(
            *(VOLUME, 5, A, nodes, wanted, mode, chain, self.lease, POLICY),
        )
        self.sends: dict[NodeId, list[Send]] = {node: [] for node in nodes}
        self.others: list[Effect] = []
        self.add(self.primary.poll(self.now))

    def add(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.sends[effect.member].append(effect)
            else:
                self.others.append(effect)

    def next(self, member: NodeId) -> m.Request:
        """The oldest request to a member that was not answered."""
        return self.sends[member][0].message

    def answer(self, member: NodeId, message: Message) -> None:
        send = self.sends[member].pop(0)
        self.add(self.primary.answered(send.tag, message, self.now))

    def join(self, member: NodeId) -> None:
        """As one that has all of the chain."""
        assert self.next(member) == m.Seal(VOLUME, 5)
        self.answer(member, m.Sealed(5, 0, 0, ((3, 60), (5, 100))))

    def append(self, last: int, length: int = 10) -> None:
        """Records up to `last` are appended here, and taken when that is asked for."""
        first = self.primary._kept.taken + 1
        self.add(self.primary.appended(last, self.now))
        if self.had(Take):
            self.add(self.primary.taken(first, last, bytes(length), self.now))

    def had(self, kind: type[Effect]) -> bool:
        found = [effect for effect in self.others if isinstance(effect, kind)]
        self.others = [effect for effect in self.others if not isinstance(effect, kind)]
        return bool(found)

    def copy(self) -> Copy:
        """The one step of a stream that was asked for."""
        (found,) = [each for each in self.others if isinstance(each, Copy)]
        self.others.remove(found)
        return found

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.add(self.primary.poll(self.now))

    def state(self, member: NodeId) -> str:
        return next(each.state for each in self.primary.status(self.now) if each.member == member)

    def why(self, member: NodeId) -> str:
        return next(each.why for each in self.primary.status(self.now) if each.member == member)


def ack(received: int, durable: int = 0, epoch: int = 5) -> m.Ack:
    return m.Ack(epoch, received, durable)


def test_it_opens_when_w_have_noted_the_epoch() -> None:
    sender = Sender()
    assert not sender.had(Opened)
    sender.answer(B, m.Sealed(5, 0, 0, ((3, 60),)))  # all of the chain, but not that 5 has begun
    (read,) = [each for each in sender.others if isinstance(each, ReadLog)]
    assert (read.epoch, read.after) == (3, 60)
    records = Records(5, 61, 100, False, b"r")
    sender.add(sender.primary.read(read.tag, records, sender.now))
    message = sender.next(B)
    assert isinstance(message, m.Append)
    assert (message.written, message.first_seq, message.last_seq) == (5, 61, 100)


def test_a_member_at_the_beginning_is_opened() -> None:
    sender = Sender()
    primary = Primary(
        *(VOLUME, 5, A, [A, B], 2, Mode.MIRROR, Chain(((3, 100), (5, 100)))),
        *(sender.lease, POLICY),
    )
    sender.primary = primary
    sender.sends[B].clear()
    sender.add(primary.poll(sender.now))
    sender.answer(B, m.Sealed(5, 0, 0, ((3, 100),)))
    assert sender.next(B) == m.Open(VOLUME, 5, 100)
    assert not primary.open
    sender.answer(B, ack(100, 100))
    assert sender.had(Opened)
    assert primary.open


def test_what_is_not_of_the_chain_is_undone_first() -> None:
    sender = Sender()
    sender.answer(B, m.Sealed(5, 0, 0, ((3, 70),)))
    assert sender.next(B) == m.Undo(VOLUME, 5, 3, 60)
    sender.answer(B, ack(60, 60))
    assert sender.had(ReadLog)
    sender.answer(C, m.Sealed(5, 0, 0, ((3, 70),)))
    sender.answer(C, ack(61, 61))  # it has not done so
    assert sender.state(C) == "away"


def test_one_message_is_under_way_and_the_next_has_all_that_came_meanwhile() -> None:
    sender = Sender("ab")
    sender.join(B)
    sender.append(101)
    assert len(sender.sends[B]) == 1
    for last in (102, 103, 104):
        sender.add(sender.primary.appended(last, sender.now))
    assert not sender.had(Take)
    assert len(sender.sends[B]) == 1
    sender.answer(B, ack(101))
    assert sender.had(Take)
    assert sender.primary.acked == 101
    sender.add(sender.primary.taken(102, 104, b"xyz", sender.now))
    message = sender.next(B)
    assert isinstance(message, m.Append)
    assert (message.first_seq, message.last_seq) == (102, 104)


def test_a_flush_asks_those_that_have_it_and_the_own_disk() -> None:
    sender = Sender()
    sender.join(B)
    sender.join(C)
    sender.append(101)
    sender.add(sender.primary.flush(101, sender.now))
    assert sender.had(SyncOwn)
    assert [type(each.message) for each in sender.sends[B]] == [m.Append]
    sender.answer(B, ack(101))
    assert sender.next(B) == m.Sync(VOLUME, 5, 101)
    sender.answer(B, ack(101, 101))
    assert sender.primary.durable == 100
    sender.add(sender.primary.synced(101, sender.now))
    assert sender.primary.durable == 101
    assert Progress(101, 101) in sender.others


def test_an_answer_to_a_sync_that_was_overtaken_is_no_loss() -> None:
    """A member syncs on one thread and appends on another."""
    sender = Sender("ab")
    sender.join(B)
    sender.append(101)
    sender.answer(B, ack(101))
    sender.add(sender.primary.flush(101, sender.now))
    assert sender.next(B) == m.Sync(VOLUME, 5, 101)
    sync = sender.sends[B].pop(0)
    sender.append(102)
    sender.answer(B, ack(102))
    sender.add(sender.primary.answered(sync.tag, ack(101, 101), sender.now))
    assert sender.state(B) == "in step"
    sender.add(sender.primary.synced(101, sender.now))
    assert (sender.primary.acked, sender.primary.durable) == (102, 101)
    sender.add(sender.primary.flush(102, sender.now))
    sender.answer(B, ack(101, 101))
    assert sender.state(B) == "away", "it had more when that was asked"


def test_a_member_that_does_not_answer_is_behind_and_nobody_waits() -> None:
    sender = Sender()
    sender.join(B)
    sender.join(C)
    sender.others.clear()
    sender.append(101)
    sender.answer(C, ack(101))
    assert sender.primary.acked == 101
    sender.wait(POLICY.behind_after_s)
    assert sender.state(B) == "away"
    assert Lag(B, True, "no answer for 3 s") in sender.others
    late = sender.sends[B].pop(0)
    sender.wait(POLICY.retry_first_s)
    assert sender.next(B) == m.Seal(VOLUME, 5)
    sender.add(sender.primary.answered(late.tag, ack(101), sender.now))
    assert sender.state(B) == "sealing"


def test_what_is_kept_for_a_slow_member_is_bounded() -> None:
    sender = Sender()
    sender.join(B)
    sender.join(C)
    last = 100
    while sender.state(B) == "in step":
        last += 1
        sender.append(last, 300)
        sender.answer(C, ack(last))
        assert sender.primary._kept.bytes <= POLICY.queue_bytes
    assert "1000 bytes behind" in sender.why(B)
    assert sender.primary.acked == last


def test_a_lost_tap_is_made_up_for_from_the_log() -> None:
    sender = Sender("ab")
    sender.join(B)
    sender.add(sender.primary.appended(101, sender.now))
    assert sender.had(Take)
    sender.add(sender.primary.lost(150, sender.now))
    (read,) = [each for each in sender.others if isinstance(each, ReadLog)]
    assert (read.epoch, read.after) == (5, 100)


def test_where_one_journal_is_enough_what_is_written_is_taken_whoever_is_away() -> None:
    """Or the tap, which tells once until it is taken, would not tell of the next write."""
    sender = Sender("ab", wanted=1)
    for last in (101, 102):
        sender.add(sender.primary.appended(last, sender.now))
        assert sender.had(Take)
        sender.add(sender.primary.taken(last, last, bytes(10), sender.now))
        assert sender.primary.acked == last
    assert sender.primary._kept.bytes == 0


@pytest.mark.parametrize(
    "answer",
    [
        m.Error(m.Code.STALE, 6, "epoch 6 was promised"),
        m.Sealed(6, 0, 0, ((5, 100),)),
        m.Ack(6, 100, 100),
    ],
)
def test_a_later_epoch_ends_it(answer: m.Ack | m.Sealed | m.Streamed | m.Error) -> None:
    sender = Sender()
    sender.join(C)
    sender.answer(B, answer)
    assert sender.others[-1] == Fenced(6)
    assert sender.primary.fenced == 6
    assert not sender.primary.open
    assert sender.primary.deadline == inf
    assert sender.primary.poll(sender.now + 60) == []
    assert sender.primary.appended(200, sender.now) == []


@pytest.mark.parametrize(
    "answer",
    [
        m.Error(m.Code.GAP, 90, "has 90"),
        m.Error(m.Code.UNKNOWN, 0, "no part of it"),
        m.Error(m.Code.STALE, 4, "that cannot be"),
        m.Sealed(5, 0, 0, ((5, 100),)),  # to an APPEND
        m.Ack(4, 101, 101),
        m.Ack(5, 99, 99),
    ],
)
def test_an_answer_that_does_not_fit_begins_anew_with_the_member(
    answer: m.Ack | m.Sealed | m.Error,
) -> None:
    sender = Sender()
    sender.join(B)
    sender.append(101)
    assert isinstance(sender.next(B), m.Append)
    sender.answer(B, answer)
    assert sender.state(B) == "away"
    assert sender.primary.acked == 100
    sender.wait(POLICY.retry_most_s)
    assert sender.next(B) == m.Seal(VOLUME, 5)


def test_a_member_cannot_have_more_than_there_is() -> None:
    sender = Sender("ab")
    sender.join(B)
    sender.append(101)
    sender.answer(B, ack(1 << 40, 1 << 40))
    assert sender.primary.acked == 101
    assert sender.primary.durable == 100


def test_a_member_that_shares_nothing_that_is_told_gets_all() -> None:
    sender = Sender()
    sender.answer(B, m.Sealed(5, 0, 50, ((4, 70),)))
    assert sender.why(B) == COPYING
    assert sender.next(B) == m.Compare(VOLUME, 5, ())
    sender.answer(B, m.Compared(b"B" * 32, ()))
    copy = sender.copy()
    assert (copy.member, copy.at, copy.heard) == (B, 0, Based(b"B" * 32))
    nodes = [Node(Position(256, 1), b"1" * 32), Node(Position(512, 1), b"2" * 32)]
    sender.add(sender.primary.copied(copy.tag, Compare(nodes), sender.now))
    asked = ((256, 1, b"1" * 32), (512, 1, b"2" * 32))
    assert sender.next(B) == m.Compare(VOLUME, 5, asked)
    sender.answer(B, m.Compared(b"B" * 32, (1, 7)))  # one of them was not asked for
    copy = sender.copy()
    assert copy.heard == Told(frozenset([1]))
    sender.add(sender.primary.copied(copy.tag, Lack(nodes), sender.now))
    assert sender.next(B) == m.Have(VOLUME, 5, (b"1" * 32, b"2" * 32))
    sender.answer(B, m.Want((b"3" * 32, b"1" * 32)))
    copy = sender.copy()
    assert (copy.at, copy.heard) == (0, Told(frozenset([0])))
    ends = ((3, 60), (5, 110))
    piece = Copied(0, b"abc", False, 110, 0, ends)
    sender.add(sender.primary.copied(copy.tag, piece, sender.now))
    assert sender.next(B) == m.Stream(VOLUME, 5, 0, 0, (b"abc",))
    sender.answer(B, m.Streamed(3))
    copy = sender.copy()
    assert (copy.at, copy.heard) == (3, None)
    piece = Copied(3, b"de", True, 110, 0, ends)
    sender.add(sender.primary.appended(110, sender.now))
    sender.add(sender.primary.copied(copy.tag, piece, sender.now))
    sender.answer(B, m.Streamed(5))
    assert sender.next(B) == m.Adopt(VOLUME, 5, 0, 0, ends)
    sender.answer(B, ack(110, 110))
    assert sender.state(B) in ("in step", "catching up")


def test_states_that_have_names_are_copied_before_the_newest_one() -> None:
    sender = Sender()
    sender.answer(C, m.Sealed(5, 0, 0, ((3, 20),)))
    (read,) = [each for each in sender.others if isinstance(each, ReadLog)]
    sender.add(sender.primary.read(read.tag, Records(3, 0, 0, True, b""), sender.now))
    ends = ((3, 60), (5, 100))
    for after, piece in (
        (20, Copied(0, b"abc", True, 40, 0, ends, None)),
        (40, Copied(0, b"d", True, 100, 0, ends, b"names")),
    ):
        sender.answer(C, m.Compared(bytes(32), ()))
        copy = sender.copy()
        assert (copy.at, copy.after) == (0, after)
        sender.add(sender.primary.copied(copy.tag, piece, sender.now))
        sender.answer(C, m.Streamed(len(piece.data)))
    assert sender.next(C) == m.Adopt(VOLUME, 5, 20, 0, ends, (b"names",))


def test_a_member_that_the_log_does_not_lead_to_keeps_what_it_shares() -> None:
    sender = Sender()
    sender.answer(C, m.Sealed(5, 0, 0, ((3, 20),)))
    (read,) = [each for each in sender.others if isinstance(each, ReadLog)]
    sender.add(sender.primary.read(read.tag, Records(3, 0, 0, True, b""), sender.now))
    assert sender.why(C) == COPYING
    sender.answer(C, m.Compared(bytes(32), ()))
    copy = sender.copy()
    piece = Copied(0, b"abc", True, 100, 0, ((3, 60), (5, 100)))
    sender.add(sender.primary.copied(copy.tag, piece, sender.now))
    sender.answer(C, m.Streamed(3))
    assert sender.next(C) == m.Adopt(VOLUME, 5, 20, 0, ((3, 60), (5, 100)))


def test_a_member_whose_copy_has_to_bring_every_name_shares_nothing() -> None:
    sender = Sender()
    sender.join(B)
    sender.append(110)
    sender.answer(B, m.Error(m.Code.ANEW, 0, "it is damaged"))
    sender.wait(POLICY.retry_first_s)
    sender.answer(B, m.Sealed(5, 0, 0, ((3, 60), (5, 100))))
    assert sender.why(B) == COPYING
    sender.answer(B, m.Compared(bytes(32), ()))
    copy = sender.copy()
    assert copy.after == 0
    ends = ((3, 60), (5, 110))
    sender.add(sender.primary.copied(copy.tag, Copied(0, b"abc", True, 110, 0, ends), sender.now))
    sender.answer(B, m.Streamed(3))
    assert sender.next(B) == m.Adopt(VOLUME, 5, 0, 0, ends)
    sender.answer(B, m.Error(m.Code.FAILED, 0, "no"))  # the next time it may go on from there
    sender.wait(POLICY.retry_most_s)
    sender.answer(B, m.Sealed(5, 0, 0, ((3, 60), (5, 100))))
    assert sender.state(B) == "catching up"


def held(sender: Sender, member: NodeId) -> tuple[int, int]:
    """As status has it."""
    (found,) = [each for each in sender.primary.status(sender.now) if each.member == member]
    return found.received, found.durable


@pytest.mark.parametrize(
    ("sealed", "has"),
    [
        (m.Sealed(5, 0, 0, ((1, 0),)), 0),  # its part is another one
        (m.Sealed(5, 0, 50, ((4, 70),)), 0),  # what it shares cannot be told
        (m.Sealed(5, 0, 0, ((3, 60), (5, 104))), 104),  # it has lost power
        (m.Sealed(5, 0, 0, ((3, 60), (4, 120))), 60),
    ],
)
def test_what_a_member_has_lost_counts_no_more_once_it_has_said_what_it_has(
    sealed: m.Sealed, has: int
) -> None:
    sender = Sender()
    sender.join(B)
    sender.join(C)
    sender.append(110)
    sender.answer(B, ack(110, 110))
    sender.answer(C, ack(100))  # it had no room
    assert sender.primary.acked == 110
    sender.append(111)
    sender.answer(B, m.Error(m.Code.FAILED, 0, "its disk"))
    assert held(sender, B) == (110, 110)
    sender.wait(POLICY.retry_first_s)
    sender.answer(B, sealed)
    assert held(sender, B) == (has, has)
    assert sender.primary.acked == 110
    assert not sender.primary.has_all(Quorum(frozenset((B, C)), 1))
    assert not sender.primary.has_all(Quorum(frozenset((A, B, C)), 2))


def test_a_member_without_a_part_has_nothing() -> None:
    sender = Sender()
    sender.join(B)
    sender.append(110)
    sender.answer(B, ack(110, 110))
    sender.append(111)
    sender.answer(B, m.Error(m.Code.UNKNOWN, 0, "it is not here"))
    assert held(sender, B) == (0, 0)
    assert not sender.primary.has_all(Quorum(frozenset((B, C)), 1))


def test_a_node_that_has_made_its_part_anew_begins_anew() -> None:
    """It was called off, and is called again, while it seemed to be in step."""
    sender = Sender()
    node = NodeId("d")
    sender.sends[node] = []
    sender.add(sender.primary.learn(node, sender.now))
    sender.join(node)
    sender.append(110)
    sender.answer(node, ack(110, 110))
    assert sender.primary.in_step(node)
    sender.add(sender.primary.learn(node, sender.now))
    assert not sender.primary.in_step(node)
    assert held(sender, node) == (0, 0)
    assert sender.next(node) == m.Seal(VOLUME, 5)
    assert not sender.primary.has_all(Quorum(frozenset((A, node)), 2))


def test_an_answer_to_another_question_ends_a_copy() -> None:
    sender = Sender()
    sender.answer(B, m.Sealed(5, 0, 50, ((4, 70),)))
    sender.answer(B, m.Want(()))
    assert sender.state(B) == "away"


def test_a_volume_that_cannot_be_copied_is_tried_again_later() -> None:
    sender = Sender()
    sender.answer(B, m.Sealed(5, 0, 50, ((4, 70),)))
    sender.answer(B, m.Compared(bytes(32), ()))
    sender.add(sender.primary.copied(sender.copy().tag, None, sender.now))
    assert sender.state(B) == "away"
    sender.wait(POLICY.retry_most_s)
    assert sender.next(B) == m.Seal(VOLUME, 5)


def test_an_idle_member_is_asked_for_the_lease() -> None:
    sender = Sender("ab")
    sender.join(B)
    sender.wait(RENEW_S)
    assert sender.next(B) == m.Sync(VOLUME, 5, 0)
    assert sender.lease.renewed_at < 0
    sender.now += 1.0
    sender.answer(B, ack(100, 100))
    assert sender.lease.renewed_at == sender.now - 1.0  # when it was asked


def test_the_owner_is_not_called_again_before_there_is_something_to_do() -> None:
    sender = Sender()
    sender.join(B)
    sender.join(C)
    for _ in range(50):
        due = sender.primary.deadline
        assert due > sender.now
        sender.now = due
        sender.add(sender.primary.poll(sender.now))


def test_kept_batches() -> None:
    kept = Kept(10)
    kept.add(Batch(11, 12, b"ab"))
    kept.add(Batch(13, 13, b"c"))
    kept.add(Batch(14, 20, b"defg"))
    assert (kept.first, kept.taken, kept.bytes) == (11, 20, 7)
    assert [each.first for each in kept.behind(10, 3, 9)] == [11, 13]
    assert [each.first for each in kept.behind(11, 1, 9)] == [11]
    assert [each.first for each in kept.behind(12, 99, 1)] == [13]
    kept.trim([13, 15])
    assert (kept.first, kept.bytes) == (13, 5)
    kept.trim([])
    assert (kept.first, kept.bytes) == (21, 0)
    kept.lost(30)
    assert kept.first == 31
