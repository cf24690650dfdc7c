"""When a member tries to become the primary, and when it leaves that to others."""

from transport.group.acks import NodeId
from transport.group.takeover_run import GaveUp, Why
from transport.group.watch import Begin, Read, Watch, WatchPace
from volume.metastore import Row, Stored
from volume.metastore_records import GroupState, Mode, VolumeGroup

A, B, C = (NodeId(letter * 32) for letter in "abc")
PACE = WatchPace()


def record(
    epoch: int = 1, primary: str | None = A, state: GroupState = GroupState.OPEN
) -> Stored[VolumeGroup]:
    group = VolumeGroup(
        *("7" * 32, "vm1", epoch, primary, (A, B, C), 3, 2, Mode.MIRROR, None, "main"), state
    )
    return Stored(group, Row(group.key, b"", epoch))


def watch(me: NodeId = C, now: float = 0.0, chance: float = 0.0) -> Watch:
    return Watch(me, now, lambda: chance, PACE)


def reading(me: NodeId = C) -> Watch:
    made = watch(me)
    assert made.poll(made.deadline) == Read()
    assert made.deadline > 1e9  # until it is told
    return made


def test_a_primary_that_asks_nothing_is_missed() -> None:
    made = watch()
    made.heard(100.0)
    assert made.deadline == 100.0 + PACE.notice_s
    made.heard(101.0)
    assert made.poll(100.0 + PACE.notice_s) is None
    assert made.poll(101.0 + PACE.notice_s) == Read()


def test_members_try_one_after_the_other() -> None:
    first, second = reading(B), reading(C)
    for made in (first, second):
        made.found(record(), 1.0)
        made.dropped(10.0)
    assert second.deadline - first.deadline == PACE.stagger_s


def test_after_a_start_the_record_is_read_before_anything_else() -> None:
    made = watch(A, 50.0)
    assert made.poll(50.0) == Read()
    assert made.found(record(), 50.1) == Begin(record(), False, 0)


def test_somebody_elses_takeover_gets_time_once() -> None:
    made = reading()
    sealing = record(2, B, GroupState.SEALING)
    assert made.found(sealing, 1.0) is None
    due = made.deadline
    assert due >= 1.0 + PACE.grace_s
    assert made.poll(due) == Read()
    assert made.found(sealing, due) == Begin(sealing, False, 0)


def test_a_volume_that_was_never_open_is_left_to_who_made_it_for_a_while() -> None:
    made, new = reading(), record(1, A, GroupState.CLOSED)
    assert made.found(new, 1.0) is None
    assert made.deadline == 1.0 + PACE.head_start_s
    assert made.poll(made.deadline) == Read()
    assert made.found(new, 5.0) == Begin(new, False, 0)
    assert reading(A).found(new, 1.0) == Begin(new, False, 0)
    stopped = record(2, A, GroupState.CLOSED)  # by who says good-bye
    assert reading().found(stopped, 1.0) == Begin(stopped, False, 0)


def test_a_seal_of_another_member_gives_it_time() -> None:
    made = watch()
    made.promised(3.0)
    assert made.deadline >= 3.0 + PACE.grace_s
    made.heard(4.0)  # it is the primary now
    assert made.deadline == 4.0 + PACE.notice_s


def test_nobody_tries_for_a_volume_that_is_not_its_own() -> None:
    for found in (None, record(state=GroupState.DELETED)):
        made = reading()
        assert made.found(found, 1.0) is None
        assert made.deadline == 1.0 + PACE.recheck_s
    stranger = reading(NodeId("d" * 32))
    assert stranger.found(record(), 1.0) is None


def test_tries_that_fail_become_rare_but_never_end() -> None:
    made = reading()
    now, pauses = 0.0, []
    for _ in range(9):
        assert isinstance(made.found(record(), now), Begin)
        made.gave_up(GaveUp(Why.ALONE, "", 5), now)
        pauses.append(made.deadline - now)
        now = made.deadline
        assert made.poll(now) == Read()
    assert pauses == sorted(pauses)
    assert pauses[0] == PACE.again_first_s / 2
    assert pauses[-1] == PACE.again_most_s / 2
    begin = made.found(record(), now)
    assert begin is not None
    assert begin.floor == 5


def test_what_failed_without_a_member_is_tried_again_when_that_is_there() -> None:
    made = reading()
    made.found(record(), 0.0)
    for _ in range(5):
        made.gave_up(GaveUp(Why.ALONE, "", 1), 0.0)
    assert made.deadline > 5.0
    made.reachable(1.0)
    assert made.deadline <= 1.0 + 2 * PACE.stagger_s
    made.unread(2.0)
    assert made.deadline > 2.0


def test_a_primary_that_wants_another_node_to_be_it_is_heard_though_it_writes() -> None:
    made = watch()
    made.heard(10.0)
    made.asked(11.0)
    made.heard(11.1)
    assert made.poll(11.1) == Read()
    begin = made.found(record(), 11.2)
    assert begin is not None
    assert begin.agreed
    made.gave_up(GaveUp(Why.FAILED, "", 1), 12.0)
    assert made.poll(made.deadline) == Read()
    begin = made.found(record(), 13.0)
    assert begin is not None
    assert not begin.agreed  # that wish has been answered


def test_a_member_that_cannot_do_it_leaves_the_next_try_to_others() -> None:
    failed, other = reading(B), reading(C)
    assert failed.found(record(), 1.0) is not None
    failed.gave_up(GaveUp(Why.FAILED, "its log does not reach back", 2), 5.0)
    other.dropped(1.0)
    other.promised(5.0)
    sealing = record(2, B, GroupState.SEALING)
    due = other.deadline
    assert other.poll(due) == Read()
    assert other.found(sealing, due) is None  # time once more, for what it has read now
    assert other.deadline < failed.deadline


def test_a_primary_that_says_good_bye_is_followed_at_once() -> None:
    made = watch()
    made.heard(10.0)
    made.left(10.5)
    assert made.deadline <= 10.5 + 2 * PACE.stagger_s


def test_nothing_is_due_while_this_node_is_the_primary() -> None:
    made = reading()
    assert isinstance(made.found(record(2, C), 1.0), Begin)
    made.heard(2.0)
    made.promised(3.0)
    made.changed(4.0)
    made.reachable(5.0)
    assert made.poll(1e6) is None
    made.dropped(7.0)
    assert made.deadline < 20.0
