"""Two engines under faults: every request ends once, in time, and with its own answer."""

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.peer_wire import NODE, VOLUME, PeerWire, Weather
from transport.errors import PeerBusy
from transport.peer import caller
from transport.peer import messages as m
from transport.peer.policy import Policy

SMALL = Policy(requests=4, request_bytes=16 << 20, waiting=16, waiting_bytes=16 << 20)
TIMEOUT_S = 20.0
ROUNDING_S = 1e-6  # engines have seconds as floats, the network whole nanoseconds

weathers = st.builds(
    Weather,
    loss=st.sampled_from((0.0, 0.1, 0.5, 0.9)),
    repeat=st.sampled_from((0.0, 0.3)),
    delay_s=st.sampled_from((0.001, 0.5, 4.0)),
    dead=st.sampled_from((0.0, 0.3)),
    work_s=st.sampled_from((0.0, 1.0, 30.0)),
)


def some_request(number: int) -> m.Request:
    match number % 3:
        case 0:
            return m.Sync(VOLUME, 1, number)
        case 1:
            return m.ReadLog(VOLUME, 1, number, 2 << 20)
        case _:
            return m.Append(VOLUME, 1, 1, number, number, 0, (bytes(1 << 20),))


def check_ends(wire: PeerWire) -> None:
    """Every request ended, and those that were answered with what belongs to them."""
    assert set(wire.ends) == set(wire.asked)
    for number, end in wire.ends.items():
        if isinstance(end, caller.Failed):
            assert end.text
            continue
        asked, got = wire.asked[number], end.message
        match asked:
            case m.Sync():
                assert got == m.Ack(1, asked.seq, asked.seq)
            case m.Append():
                assert got == m.Ack(1, asked.last_seq, 0)
            case m.ReadLog():
                assert isinstance(got, m.Log)
                assert got.first_seq == asked.after + 1
    assert wire.caller.unanswered == 0


@given(
    seed=st.integers(0, 1 << 32),
    weather=weathers,
    steps=st.lists(st.sampled_from("aaaaarcfw"), min_size=1, max_size=40),
)
@example(0, Weather(loss=0.5, repeat=0.0, delay_s=0.001), list("cwwwwwwa"))
def test_every_request_ends_once_whatever_the_wire_does(
    seed: int, weather: Weather, steps: list[str]
) -> None:
    wire = PeerWire(seed, weather, SMALL)
    for number, step in enumerate(steps, start=1):
        match step:
            case "a":
                with suppress(PeerBusy):
                    wire.ask(some_request(number), TIMEOUT_S)
            case "r":
                wire.restart()
            case "c":
                wire.cut()
            case "f":
                wire.freeze()
            case _:
                wire.run(3.0)
        assert wire.caller.held_bytes <= SMALL.waiting_bytes + (16 << 20)
    wire.run(TIMEOUT_S + ROUNDING_S)
    check_ends(wire)
    # And when the weather is fair again, so is the peer.
    wire.weather = Weather()
    wire.run(60.0)
    assert wire.caller.held_bytes == 0
    last = wire.ask(m.Sync(VOLUME, 1, 999))
    wire.run(1.0)
    assert isinstance(wire.ends[last], caller.Answered)


def test_nothing_ends_late() -> None:
    wire = PeerWire(1, Weather(loss=1.0), SMALL)
    number = wire.ask(m.Sync(VOLUME, 1, 1), 7.0)
    wire.run(6.9)
    assert number not in wire.ends
    wire.run(0.1)
    end = wire.ends[number]
    assert isinstance(end, caller.Failed)
    assert end.text == "no answer in time; no greeting: none in 5 s"


def test_a_lost_answer_is_asked_for_again() -> None:
    wire = PeerWire(1, Weather(), SMALL)
    wire.run(1.0)
    wire.weather = Weather(loss=1.0)
    number = wire.ask(m.Sync(VOLUME, 1, 1))
    wire.run(1.0)
    wire.weather = Weather()
    wire.run(2.0)
    assert isinstance(wire.ends[number], caller.Answered)
    assert wire.caller.counters.repeated == 1
    assert wire.down_reasons() == []


def test_what_is_under_way_goes_on_in_the_next_session_in_its_order() -> None:
    wire = PeerWire(3, Weather(delay_s=0.0, work_s=0.0), SMALL)
    wire.run(1.0)
    wire.freeze()
    numbers = [wire.ask(m.Sync(VOLUME, 1, seq)) for seq in range(1, 9)]
    wire.run(0.5)
    wire.cut()
    wire.run(2.0)
    assert list(wire.ends) == numbers
    assert all(isinstance(end, caller.Answered) for end in wire.ends.values())


def test_a_peer_that_is_silent_is_reported_within_its_policy() -> None:
    wire = PeerWire(4, Weather(), SMALL)
    wire.run(10.0)
    assert wire.caller.open
    wire.freeze()
    frozen = wire.now
    while wire.caller.open:
        wire.run(0.1)
    assert wire.now - frozen <= SMALL.silent_after_s + 0.2
    assert wire.down_reasons() == ["silent"]
    wire.run(1.0)
    assert wire.caller.open


def test_a_peer_that_restarted_is_greeted_again_at_once() -> None:
    wire = PeerWire(5, Weather(), SMALL)
    wire.run(1.0)
    wire.restart()
    number = wire.ask(m.Sync(VOLUME, 1, 1))
    wire.run(1.0)
    assert wire.down_reasons() == ["refused"]
    assert isinstance(wire.ends[number], caller.Answered)


def test_a_slow_peer_is_reported_and_keeps_its_session() -> None:
    wire = PeerWire(6, Weather(), SMALL)
    wire.run(1.0)
    wire.weather = Weather(work_s=20.0)
    for seq in range(1, 5):
        wire.ask(m.Sync(VOLUME, 1, seq), 60.0)
    wire.run(SMALL.slow_after_s + 0.1)
    assert wire.caller.slow
    assert wire.caller.open
    wire.run(30.0)
    assert not wire.caller.slow
    slow = [each for each in wire.events if isinstance(each, caller.Slow)]
    assert slow == [caller.Slow(True), caller.Slow(False)]
    assert wire.down_reasons() == []


def test_a_request_that_ended_keeps_its_room_until_the_peer_lets_go_of_it() -> None:
    wire = PeerWire(7, Weather(), SMALL)
    wire.run(1.0)
    wire.weather = Weather(work_s=50.0)
    late = [wire.ask(m.Sync(VOLUME, 1, seq), 1.0) for seq in range(1, 5)]
    wire.run(1.1)
    assert all(isinstance(wire.ends[each], caller.Failed) for each in late)
    wire.weather = Weather(work_s=0.0)
    waiting = wire.ask(m.Sync(VOLUME, 1, 9), 100.0)
    wire.run(1.0)
    assert waiting not in wire.ends
    wire.run(60.0)
    assert isinstance(wire.ends[waiting], caller.Answered)


def test_more_than_may_wait_is_refused_at_once() -> None:
    wire = PeerWire(8, Weather(loss=1.0), SMALL)
    for seq in range(1, 17):
        wire.ask(m.Sync(VOLUME, 1, seq))
    with pytest.raises(PeerBusy, match=f"peer {NODE}: 16 requests wait for it"):
        wire.ask(m.Sync(VOLUME, 1, 17))
    wire = PeerWire(8, Weather(loss=1.0), SMALL)
    for seq in range(1, 5):
        wire.ask(m.Append(VOLUME, 1, 1, seq, seq, 0, (bytes(4 << 20),))) if seq < 4 else None
    with pytest.raises(PeerBusy, match="bytes of requests wait for it"):
        wire.ask(m.Append(VOLUME, 1, 1, 9, 9, 0, (bytes(4 << 20),)))
    assert wire.ask(m.Sync(VOLUME, 1, 9))
