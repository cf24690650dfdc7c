"""ACKs that are read in C, beside the engine in Python: the same events, whatever comes between."""

import random
from collections import deque
from contextlib import suppress
from itertools import count

import pytest

from transport.errors import PeerBusy
from transport.peer import messages as m
from transport.peer.caller import Answered, Caller, Connect, Event, Failed
from transport.peer.policy import Policy
from transport.peer.wire import VERSION, Envelope, Frames, Message, encode

THEIRS = 1 << 63 | 9
STEPS = 300
VOLUME = b"v" * 16
POLICY = Policy(
    requests=8,
    request_bytes=64 << 20,
    nonsense_s=0.1,
    slow_after_s=30.0,
    silent_after_s=20.0,
    reconnect_most_s=0.2,
)


class End:
    """One that asks, in a session."""

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain
        self.answered = 0
        hello = m.Hello(*(b"n" * 16, b"c" * 16, VERSION, VERSION, 0, 0, "test"))
        numbers = count(77)
        self.engine = Caller("peer", hello, None, POLICY, lambda: next(numbers), lambda: 0.5)
        self.mine = 76
        self.greet(1.0)

    def greet(self, now: float) -> list[Event]:
        events = self.engine.poll(now)
        if any(isinstance(each, Connect) for each in events):
            self.mine += 1
            welcome = m.Welcome(
                *(b"m" * 16, b"c" * 16, VERSION, 0),
                *(POLICY.requests, POLICY.request_bytes, "test"),
            )
            events += self.engine.received(encode(welcome, Envelope(THEIRS, self.mine, 0)), now)
        return events

    def feed(self, frames: Frames, now: float) -> list[Event]:
        if self._plain and (event := self.engine.plain(frames, now)) is not None:
            self.answered += 1
            return [event]
        return self.engine.received(frames, now)

    def seen(self) -> object:
        engine = self.engine
        sent = []
        while (frames := engine.take()) is not None:
            sent.append([bytes(memoryview(frame)) for frame in frames])
        counters = engine.counters
        return (
            *(sent, engine.open, engine.slow, engine.unanswered, engine.held_bytes),
            *(counters.stale, counters.nonsense, counters.repeated, counters.timed_out),
        )


class Drawn:
    """What comes next, for both."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._number = 0
        self._open: deque[int] = deque()
        self.now = 1.0

    def step(self) -> tuple[str, Message | float, int, int, bool]:
        rng = self._rng
        kind = rng.choices(("ask", "answer", "time", "break"), (48, 48, 4, 1))[0]
        if kind == "ask":
            self._number += 1
            self._open.append(self._number)
            return kind, self._request(), self._number, 0, False
        if kind == "answer":
            # In their order mostly, now and then one that has ended, or that there never was.
            number = self._open.popleft() if self._open else self._number + 1
            if rng.random() < 0.05:
                number = rng.randrange(self._number + 2)
            return (
                kind,
                self._answer(),
                number,
                rng.choice((0,) * 12 + (1, -1)),
                rng.random() < 0.005,
            )
        return kind, rng.choice((0.01, 0.5, 1.0, 2.1)), 0, 0, False

    def _request(self) -> m.Request:
        rng = self._rng
        if rng.random() < 0.95:
            return m.Append(VOLUME, 1, 1, 1, 1, 0, (rng.randbytes(9),))
        return rng.choice((m.Sync(VOLUME, 1, 0), m.Look(VOLUME), m.ReadLog(VOLUME, 1, 0, 2 << 20)))

    def _answer(self) -> Message:
        rng = self._rng
        received = rng.randrange(100)
        ack = m.Ack(1, received, rng.randrange(received + 1))
        error = m.Error(rng.choice((m.Code.BUSY, m.Code.GAP)), 3, "text")
        return rng.choices((ack, error, m.Looked(1, 1, 1, 1, 0, 0), m.Streamed(1)), (90, 6, 1, 1))[
            0
        ]


@pytest.mark.parametrize("seed", range(20))
def test_c_hears_what_python_hears(seed: int) -> None:
    drawn, c, python = Drawn(seed), End(plain=True), End(plain=False)
    for _ in range(STEPS):
        kind, what, number, off, spoiled = drawn.step()
        told = [happen(end, drawn.now, kind, what, number, off, spoiled) for end in (c, python)]
        assert told[0] == told[1]
        assert c.seen() == python.seen()
        drawn.now += what if isinstance(what, float) else 0.05
        assert c.greet(drawn.now) == python.greet(drawn.now)
    assert c.answered > STEPS / 40
    assert python.answered == 0


def happen(
    end: End, now: float, kind: str, what: Message | float, number: int, off: int, spoiled: bool
) -> list[Event]:
    engine = end.engine
    if isinstance(what, m.Request):
        with suppress(PeerBusy):
            engine.request(what, now, 8.0)
        return []
    if isinstance(what, Message):
        frames = [
            bytes(memoryview(each))
            for each in encode(what, Envelope(THEIRS + off, end.mine, number))
        ]
        if spoiled:
            frames[0] = frames[0][:-1] + bytes([frames[0][-1] ^ 1])
        return end.feed(frames, now)
    if kind == "break":
        return engine.lost(now, "broke")
    return []


def test_an_ack_that_nobody_waits_for_changes_nothing() -> None:
    end = End(plain=True)
    frames = encode(m.Ack(1, 2, 0), Envelope(THEIRS, end.mine, 1))
    assert end.engine.plain(frames, 2.0) is None
    number = end.engine.request(m.Look(VOLUME), 2.0, 5.0)  # not answered by an ACK
    assert number == 1
    assert end.engine.plain(frames, 2.0) is None
    assert end.engine.unanswered == 1
    (failed,) = [each for each in end.engine.close(3.0) if isinstance(each, Failed)]
    assert failed.request == number
    assert end.engine.plain(frames, 3.0) is None


def test_what_an_ack_makes_room_for_is_sent() -> None:
    end = End(plain=True)
    for number in range(1, POLICY.requests + 2):
        end.engine.request(m.Sync(VOLUME, 1, number), 2.0, 5.0)
    sent = 0
    while end.engine.take() is not None:
        sent += 1
    assert sent == 1 + POLICY.requests  # and the HELLO
    ack = encode(m.Ack(1, 2, 0), Envelope(THEIRS, end.mine, 1))
    assert end.engine.plain(ack, 2.5) == Answered(1, m.Ack(1, 2, 0))
    assert end.engine.take() is not None
