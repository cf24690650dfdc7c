"""The network between simulated nodes, under the engines of the peer protocol.

What the engines do on it is tested in tests/unit/transport/peer/test_faults.py.
"""

from collections.abc import Sequence

import pytest

from tests.sim.cluster.network import Network, Reply, Sessions, Weather
from tests.sim.cluster.timeline import NodeClock, Process, Stuck, Timeline
from transport.peer import caller
from transport.peer import messages as m
from transport.peer.policy import Policy

A, B, C = ("a" * 32, "b" * 32, "c" * 32)
VOLUME = b"v" * 16


class Node:
    """Answers each SYNC with its seq, and keeps what it was asked."""

    def __init__(self, network: Network, name: str, others: Sequence[str]) -> None:
        self.heard: list[caller.Event] = []
        self.was_asked: list[tuple[str, int]] = []
        self.ends: list[str] = []
        self.clock = NodeClock(network.timeline, name)
        self.process = Process(network.timeline, self.clock)
        self.sessions = Sessions(
            *(network, self.process, name, others, self, Policy()),
            lambda peer, event: self.heard.append(event),
        )

    def asked(self, peer: str, message: m.Request, reply: Reply) -> None:
        assert isinstance(message, m.Sync)
        self.was_asked.append((peer, message.seq))
        reply(m.Ack(message.epoch, message.seq, message.seq))

    def ask(self, peer: str, seq: int, timeout_s: float = 30.0) -> None:
        def ended(end: caller.Answered | caller.Failed) -> None:
            self.ends.append(f"{seq} {type(end).__name__}")

        self.sessions.ask(peer, m.Sync(VOLUME, 1, seq), timeout_s, ended)

    def downs(self) -> list[str]:
        return [str(event.reason) for event in self.heard if isinstance(event, caller.Down)]

    def die(self, network: Network, *, told: bool) -> None:
        self.process.end()
        network.ended(self.sessions, told=told)


class Trio:
    def __init__(self, seed: str = "trio") -> None:
        self.timeline = Timeline()
        self.seen: list[tuple[str, str]] = []
        self.network = Network(
            self.timeline, seed, lambda source, target, _: self.seen.append((source, target))
        )
        self.nodes = {
            name: Node(self.network, name, [each for each in (A, B, C) if each != name])
            for name in (A, B, C)
        }
        self.timeline.run(1.0)


def test_each_node_asks_each_other_one() -> None:
    trio = Trio()
    for name, node in trio.nodes.items():
        for peer in trio.nodes:
            if peer != name:
                node.ask(peer, ord(name[0]))
    trio.timeline.run(1.0)
    for name, node in trio.nodes.items():
        assert node.ends == [f"{ord(name[0])} Answered"] * 2
        others = [each for each in trio.nodes if each != name]
        assert sorted(node.was_asked) == [(each, ord(each[0])) for each in others]


def test_messages_keep_their_order_unless_the_weather_says_otherwise() -> None:
    orders = []
    for reorder in (0.0, 1.0):
        trio = Trio()
        trio.network.weather = Weather(slowest_s=0.5, reorder=reorder)
        for seq in range(20):
            trio.nodes[A].ask(B, seq)
        trio.timeline.run(1.5)
        orders.append([seq for _, seq in trio.nodes[B].was_asked])
    assert orders[0] == list(range(20))
    assert sorted(orders[1]) == orders[0]
    assert orders[1] != orders[0]


def test_a_direction_that_is_blocked_lets_the_other_one_through() -> None:
    trio = Trio()
    trio.network.blocked.add((B, A))
    trio.nodes[A].ask(B, 1)
    trio.nodes[B].ask(A, 2, 4.0)
    trio.timeline.run(1.0)
    assert trio.nodes[B].was_asked == [(A, 1)]
    assert trio.nodes[A].was_asked == []
    trio.timeline.run(9.0)
    assert trio.nodes[A].ends == []
    assert trio.nodes[A].downs()[0] == "silent"
    assert trio.nodes[B].ends == ["2 Failed"]
    trio.network.blocked.clear()
    trio.timeline.run(20.0)
    assert trio.nodes[A].ends == ["1 Answered"]


def test_a_stopped_process_answers_when_it_goes_on() -> None:
    trio = Trio()
    node = trio.nodes[B]
    node.process.stop()
    trio.nodes[A].ask(B, 1)
    trio.timeline.run(3.0)
    assert node.was_asked == []
    node.process.go_on()
    trio.timeline.run(1.0)
    assert trio.nodes[A].ends == ["1 Answered"]
    assert trio.nodes[A].downs() == []


def test_a_process_that_dies_is_noticed_at_once_where_its_kernel_lives() -> None:
    for told, reason in ((True, "lost"), (False, "silent")):
        trio = Trio()
        if not told:
            trio.network.off.add(B)
        trio.nodes[B].die(trio.network, told=told)
        trio.timeline.run(0.5)
        assert trio.nodes[A].downs()[:1] == (["lost"] if told else [])
        trio.timeline.run(6.0)
        assert trio.nodes[A].downs()[0] == reason


def test_the_next_process_of_a_node_is_found_by_its_peers() -> None:
    trio = Trio()
    trio.network.off.add(B)
    trio.nodes[B].die(trio.network, told=False)
    trio.nodes[A].ask(B, 1)
    trio.timeline.run(0.5)
    trio.network.off.clear()
    again = Node(trio.network, B, [A, C])
    trio.timeline.run(10.0)
    assert again.was_asked == [(A, 1)]
    assert trio.nodes[A].ends == ["1 Answered"]


def test_a_reset_is_seen_by_both_sides_and_mended() -> None:
    trio = Trio()
    line = trio.nodes[A].sessions.line_to(B)
    assert line is not None
    trio.network.reset(line)
    trio.nodes[A].ask(B, 1)
    trio.timeline.run(0.01)
    assert trio.nodes[A].downs() == ["lost"]
    assert len(trio.nodes[B].sessions.answerers()) == 1  # C's
    trio.timeline.run(1.0)
    assert trio.nodes[A].ends == ["1 Answered"]


def test_a_node_that_goes_politely_says_so() -> None:
    trio = Trio()
    trio.nodes[B].sessions.close()
    trio.timeline.run(0.01)
    assert trio.nodes[A].downs() == ["bye"]
    assert len(trio.nodes[A].sessions.answerers()) == 1


def test_the_same_seed_sends_the_same_messages() -> None:
    def lived(seed: str) -> list[tuple[str, str]]:
        trio = Trio(seed)
        trio.network.weather = Weather(loss=0.2, repeat=0.2, reorder=0.3, slowest_s=0.3)
        for seq in range(10):
            trio.nodes[A].ask(B, seq)
            trio.nodes[C].ask(B, seq)
        trio.timeline.run(20.0)
        return trio.seen

    assert lived("one") == lived("one")
    assert lived("one") != lived("two")


# -- time


def test_events_come_in_their_order_and_time_with_them() -> None:
    timeline = Timeline()
    seen: list[tuple[str, float]] = []
    for name, delay_s in (("late", 2.0), ("first", 1.0), ("second", 1.0)):
        timeline.after(delay_s, lambda name=name: seen.append((name, timeline.now_s)))  # type: ignore[misc]
    timeline.run(1.5)
    assert seen == [("first", 1.0), ("second", 1.0)]
    assert timeline.now_s == 1.5
    assert timeline.step()
    assert not timeline.step()
    assert timeline.now_s == 2.0


def test_events_without_end_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sim.cluster.timeline.MAX_EVENTS", 50)
    timeline = Timeline()

    def again() -> None:
        timeline.after(0.0, again)

    again()
    with pytest.raises(Stuck, match=r"50 events in 0\.000 s"):
        timeline.run(1.0)


@pytest.mark.parametrize("rate", [0.9, 1.0, 1.1])
def test_a_process_is_woken_when_its_own_clock_says_so(rate: float) -> None:
    timeline = Timeline()
    clock = NodeClock(timeline, "n")
    process = Process(timeline, clock)
    woken: list[float] = []
    process.on_due.append(lambda: woken.append(clock.monotonic()))
    timeline.run(0.3)
    clock.drift(rate)
    due = clock.monotonic() + 7.0
    process.wake_at(due + 5.0)
    process.wake_at(due)
    timeline.run(6.9 / rate)
    assert woken == []
    timeline.run(0.2 / rate)
    assert woken == [pytest.approx(due)]
    timeline.run(6.0 / rate)
    assert len(woken) == 1  # who has more to wait for says so


def test_a_stopped_process_gets_what_came_in_its_order_and_a_dead_one_nothing() -> None:
    timeline = Timeline()
    process = Process(timeline, NodeClock(timeline, "n"))
    seen: list[int] = []
    for number in range(4):
        process.after(number, lambda number=number: seen.append(number))  # type: ignore[misc]
    timeline.run(0.5)
    process.stop()
    timeline.run(2.0)
    assert seen == [0]
    process.go_on()
    assert seen == [0, 1, 2]
    process.end()
    timeline.run(2.0)
    assert seen == [0, 1, 2]
