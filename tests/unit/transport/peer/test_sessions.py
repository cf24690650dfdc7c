"""Sessions, message by message: who is let in, what ends one, what is ignored."""

import pytest

from tests.peer_messages import hello, welcome
from transport.peer import answerer, caller
from transport.peer import messages as m
from transport.peer.answerer import Answerer
from transport.peer.caller import Caller
from transport.peer.policy import Policy, Reason
from transport.peer.wire import Envelope, Frames, Message, decode, encode

POLICY = Policy(requests=2)
NODE, OTHER = b"b" * 16, b"x" * 16
VOLUME = b"v" * 16
MINE, THEIRS = 11, 22
SYNC = m.Sync(VOLUME, 1, 5)


def new_caller(greeting: m.Hello | None = None) -> Caller:
    engine = Caller("host2", greeting or hello(), NODE, POLICY, lambda: MINE, lambda: 0.0)
    assert engine.poll(0.0) == [caller.Connect()]
    return engine


def sent(engine: Caller | Answerer) -> list[tuple[int, Message]]:
    """What the engine has to say: request and message."""
    found = []
    while frames := engine.take():
        envelope, message = decode(frames, m.KINDS)
        found.append((envelope.request, message))
    return found


def to_caller(message: Message, request: int = 0, sender: int = THEIRS, to: int = MINE) -> Frames:
    return encode(message, Envelope(sender, to, request))


def opened_caller() -> Caller:
    engine = new_caller()
    assert engine.received(to_caller(welcome(NODE)), 0.0) == [caller.Up(welcome(NODE))]
    assert sent(engine) == [(0, hello())]
    return engine


def new_answerer() -> Answerer:
    def judge(each: m.Hello) -> m.Error | None:
        return m.Error(m.Code.CLUSTER, 0, "of another one") if each.cluster == OTHER else None

    return Answerer(welcome(NODE), judge, POLICY, THEIRS, 0.0)


def to_answerer(message: Message, request: int = 0, sender: int = MINE, to: int = THEIRS) -> Frames:
    return encode(message, Envelope(sender, to, request))


def opened_answerer() -> Answerer:
    engine = new_answerer()
    assert engine.received(to_answerer(hello(), to=0), 0.0) == [answerer.Opened(hello())]
    assert sent(engine) == [(0, m.Welcome(NODE, b"c" * 16, 1, 0, 2, POLICY.request_bytes, "test"))]
    return engine


def reason_of(events: list[caller.Event] | list[answerer.Event]) -> Reason:
    ends = [each for each in events if isinstance(each, (caller.Down, answerer.Ended))]
    assert len(ends) == 1
    return ends[0].reason


# -- who asks


def test_a_peer_that_does_not_greet_is_given_up_and_tried_again() -> None:
    engine = new_caller()
    assert engine.poll(4.9) == []
    assert reason_of(engine.poll(5.0)) is Reason.HANDSHAKE
    assert engine.deadline == 5.0 + POLICY.reconnect_first_s / 2
    assert engine.poll(engine.deadline) == [caller.Connect()]


def test_tries_come_at_growing_intervals_up_to_a_bound() -> None:
    engine = new_caller()
    now, pauses = 0.0, []
    for _ in range(12):
        engine.lost(now, "refused")
        pauses.append(engine.deadline - now)
        now = engine.deadline
        engine.poll(now)
    assert pauses[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert pauses[-1] == pytest.approx(POLICY.reconnect_most_s / 2)


def test_a_peer_that_is_known_to_be_there_is_tried_at_once() -> None:
    engine = new_caller()
    for now in range(1, 9):
        engine.lost(float(now), "refused")
        engine.poll(engine.deadline)
    engine.lost(9.0, "refused")
    assert engine.poll(9.1) == []
    engine.hurry(9.1)
    assert engine.poll(9.1) == [caller.Connect()]
    engine.hurry(9.2)
    assert engine.poll(9.2) == []  # it is being tried


def test_who_spoke_nonsense_is_not_hurried_to() -> None:
    engine = opened_caller()
    engine.received([b"garbage"], 1.0)
    engine.hurry(1.1)
    assert engine.poll(1.1) == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (welcome(OTHER), "node 7878"),
        (welcome(NODE, cluster=OTHER), "of cluster 7878"),
        (m.Error(m.Code.CLUSTER, 0, "no"), "CLUSTER: no"),
        (m.Error(999, 0, "no"), "code 999: no"),
    ],
)
def test_a_peer_that_is_another_one_is_refused(answer: Message, why: str) -> None:
    engine = new_caller()
    events = engine.received(to_caller(answer), 1.0)
    assert reason_of(events) is Reason.REFUSED
    assert engine.last is not None
    assert why in engine.last.text
    assert not engine.open


@pytest.mark.parametrize(
    "message",
    [m.Pong(1), m.Welcome(NODE, b"c" * 16, 2, 0, 1, 1 << 24, ""), SYNC],
    ids=lambda each: type(each).__name__,
)
def test_nonsense_instead_of_a_greeting_ends_the_try(message: Message) -> None:
    engine = new_caller()
    assert reason_of(engine.received(to_caller(message), 1.0)) is Reason.NONSENSE
    assert engine.deadline >= 1.0 + POLICY.nonsense_s / 2


@pytest.mark.parametrize(
    "message",
    [
        SYNC,
        m.Ping(1),
        m.Cancel(),
        hello(),
        m.Want(()),  # not the answer of a SYNC
    ],
    ids=lambda each: type(each).__name__,
)
def test_nonsense_in_a_session_ends_it_and_is_counted(message: Message) -> None:
    engine = opened_caller()
    number = engine.request(SYNC, 1.0, 60.0)
    events = engine.received(to_caller(message, number), 1.0)
    assert reason_of(events) is Reason.NONSENSE
    assert engine.counters.nonsense == 1
    assert engine.unanswered == 1  # it waits for the next session
    assert engine.received([b"garbage"], 2.0) == []


def test_more_payload_than_was_asked_for_is_nonsense() -> None:
    engine = opened_caller()
    number = engine.request(m.ReadLog(VOLUME, 1, 0, 10), 1.0, 60.0)
    log = m.Log(1, 1, 1, 0, (b"x" * 11,))
    assert reason_of(engine.received(to_caller(log, number), 1.0)) is Reason.NONSENSE


def test_what_comes_from_another_session_is_counted_and_ignored() -> None:
    engine = opened_caller()
    number = engine.request(SYNC, 1.0, 60.0)
    ack = m.Ack(1, 5, 5)
    assert engine.received(to_caller(ack, number, to=99), 1.0) == []
    assert engine.received(to_caller(ack, number, sender=99), 1.0) == []
    assert engine.received(to_caller(ack, number + 1), 1.0) == []
    assert engine.counters.stale == 3
    assert engine.received(to_caller(ack, number), 1.0) == [caller.Answered(number, ack)]
    assert engine.received(to_caller(ack, number), 1.0) == []


def test_an_error_ends_the_request_and_says_that_it_was_not_done() -> None:
    engine = opened_caller()
    number = engine.request(SYNC, 1.0, 60.0)
    error = m.Error(m.Code.STALE, 9, "epoch 8 is old")
    events = engine.received(to_caller(error, number), 1.0)
    assert events == [caller.Failed(number, "STALE: epoch 8 is old", error)]


def test_busy_is_asked_again_later() -> None:
    engine = opened_caller()
    number = engine.request(SYNC, 1.0, 60.0)
    assert sent(engine) == [(number, SYNC)]
    assert engine.received(to_caller(m.Error(m.Code.BUSY, 0, ""), number), 1.0) == []
    engine.poll(2.5)
    assert (number, SYNC) not in sent(engine)
    engine.poll(3.0)
    assert (number, SYNC) in sent(engine)


def test_no_more_is_sent_than_the_peer_holds() -> None:
    engine = new_caller()
    engine.received(to_caller(welcome(NODE, requests=2)), 0.0)
    numbers = [engine.request(SYNC, 0.0, 60.0) for _ in range(3)]
    assert [number for number, _ in sent(engine)] == [0, *numbers[:2]]
    engine.received(to_caller(m.Ack(1, 5, 5), numbers[0]), 0.0)
    assert sent(engine) == [(numbers[2], SYNC)]


def test_nothing_is_repeated_while_the_connection_takes_nothing() -> None:
    engine = opened_caller()
    engine.request(SYNC, 0.0, 60.0)
    now = 0.0
    while now < 4.9:
        now = max(now + 0.01, min(engine.deadline, 4.9))
        engine.poll(now)
    assert len(sent(engine)) == 1


def test_the_end_is_said_and_every_request_ends() -> None:
    engine = opened_caller()
    numbers = [engine.request(SYNC, 1.0, 60.0) for _ in range(9)]
    events = engine.close(1.0)
    assert [each.request for each in events if isinstance(each, caller.Failed)] == numbers
    assert sent(engine) == [(0, m.Bye())]
    assert engine.deadline == float("inf")


# -- who answers


def test_one_who_says_nothing_is_cut() -> None:
    engine = new_answerer()
    assert engine.poll(4.9) == []
    assert reason_of(engine.poll(5.0)) is Reason.HANDSHAKE
    engine = opened_answerer()
    engine.received(to_answerer(m.Ping(7)), 3.0)
    assert sent(engine) == [(0, m.Pong(7))]
    assert engine.poll(7.9) == []
    assert reason_of(engine.poll(8.0)) is Reason.SILENT


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (hello(cluster=OTHER), m.Error(m.Code.CLUSTER, 0, "of another one")),
        (
            m.Hello(NODE, b"c" * 16, 2, 3, 0, 0, ""),
            m.Error(m.Code.VERSION, 1, "versions 2 to 3; this node speaks 1"),
        ),
        (
            m.Hello(NODE, b"c" * 16, 1, 1, 6, 4, ""),
            m.Error(m.Code.VERSION, 4, "features 0x4 are not known here"),
        ),
    ],
)
def test_one_who_does_not_fit_is_told_why_and_cut(greeting: m.Hello, error: m.Error) -> None:
    engine = new_answerer()
    events = engine.received(to_answerer(greeting, to=0), 0.0)
    assert events == [answerer.Ended(Reason.REFUSED, error.text)]
    assert sent(engine) == [(0, error)]


def test_versions_and_features_that_both_know_are_agreed_on() -> None:
    engine = new_answerer()
    engine.received(to_answerer(m.Hello(NODE, b"c" * 16, 1, 9, 6, 0, ""), to=0), 0.0)
    ((_, message),) = sent(engine)
    assert isinstance(message, m.Welcome)
    assert (message.version, message.features) == (1, 0)


def test_one_who_takes_the_node_for_the_one_before_is_told() -> None:
    engine = new_answerer()
    assert reason_of(engine.received(to_answerer(SYNC, 4, to=77), 0.0)) is Reason.REFUSED
    assert isinstance(sent(engine)[0][1], m.Error)


@pytest.mark.parametrize(
    ("message", "request_number"),
    [(m.Pong(1), 0), (m.Ack(1, 1, 1), 3), (welcome(), 0), (SYNC, 0)],
    ids=lambda each: type(each).__name__,
)
def test_nonsense_of_one_who_asks_ends_the_session(message: Message, request_number: int) -> None:
    engine = opened_answerer()
    events = engine.received(to_answerer(message, request_number), 0.0)
    assert reason_of(events) is Reason.NONSENSE
    assert engine.received(to_answerer(SYNC, 1), 0.0) == []


def test_a_second_hello_of_another_session_is_nonsense_and_a_repeated_one_is_not() -> None:
    engine = opened_answerer()
    assert engine.received(to_answerer(hello(), to=0), 0.0) == []
    events = engine.received(to_answerer(hello(), sender=5, to=0), 0.0)
    assert reason_of(events) is Reason.NONSENSE


def test_what_is_asked_is_answered_once() -> None:
    engine = opened_answerer()
    assert engine.received(to_answerer(SYNC, 7), 0.0) == [answerer.Asked(7, SYNC)]
    assert engine.received(to_answerer(SYNC, 7), 0.0) == []  # repeated while it is worked on
    ack = m.Ack(1, 5, 5)
    assert engine.answer(7, ack)
    assert not engine.answer(7, ack)
    assert sent(engine) == [(7, ack)]
    assert engine.held_bytes == 0


def test_more_than_was_granted_is_busy() -> None:
    engine = opened_answerer()
    for number in (1, 2):
        assert engine.received(to_answerer(SYNC, number), 0.0) != []
    assert engine.received(to_answerer(SYNC, 3), 0.0) == []
    ((number, error),) = sent(engine)
    assert number == 3
    assert isinstance(error, m.Error)
    assert error.code == m.Code.BUSY
    # An answer that is not sent takes room as before.
    engine.answer(1, m.Ack(1, 5, 5))
    engine.received(to_answerer(SYNC, 3), 0.0)
    assert [type(message) for _, message in sent(engine)] == [m.Ack, m.Error]
    assert engine.received(to_answerer(SYNC, 3), 0.0) == [answerer.Asked(3, SYNC)]


def test_one_who_asks_and_takes_no_answers_is_cut() -> None:
    engine = opened_answerer()
    events: list[answerer.Event] = []
    for number in range(1, 20):
        events += engine.received(to_answerer(m.Ping(number)), 0.0)
    assert reason_of(events) is Reason.NONSENSE
    assert sent(engine) == []


def test_what_is_cancelled_keeps_its_room_until_it_is_answered() -> None:
    engine = opened_answerer()
    engine.received(to_answerer(SYNC, 7), 0.0)
    assert engine.received(to_answerer(m.Cancel(), 7), 0.0) == [answerer.Cancelled(7)]
    assert engine.received(to_answerer(m.Cancel(), 7), 0.0) == []
    assert sent(engine) == []
    assert engine.held_count == 1
    assert not engine.answer(7, m.Ack(1, 5, 5))
    assert sent(engine) == [(7, m.Error(m.Code.CANCELLED, 0, ""))]
    engine.received(to_answerer(m.Cancel(), 8), 0.0)  # one that there is not
    assert sent(engine) == [(8, m.Error(m.Code.CANCELLED, 0, ""))]


def test_going_down_is_said() -> None:
    engine = opened_answerer()
    engine.received(to_answerer(SYNC, 7), 0.0)
    assert reason_of(engine.close()) is Reason.CLOSED
    assert sent(engine) == [(0, m.Bye())]
    assert engine.close() == []
    engine = opened_answerer()
    assert reason_of(engine.received(to_answerer(m.Bye()), 0.0)) is Reason.BYE
