"""Nodes over real sockets: who is let in, and what peers that misbehave can do to the others."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

import pytest
import zmq

from tests.peer_messages import hello
from tests.peer_nodes import (
    CLUSTER,
    QUICK,
    TIMEOUT_S,
    VOLUME,
    Line,
    PeerNode,
    RawServer,
    cluster_of,
    until,
)
from transport.errors import CannotListen, TransportError, UnknownPeer
from transport.keys import new_key_pair
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.peer.wire import Envelope, Frames, decode, encode
from transport.sessions import Guest, Peer
from transport.sockets import Arrived, Bounds, Left, Sockets

SYNC = m.Sync(VOLUME, 1, 5)
ACK = m.Ack(1, 5, 5)
MINE = 7  # incarnation of a session by hand


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[PeerNode, PeerNode]]:
    with cluster_of("a", "b") as (a, b):
        yield a, b


def started(stack: ExitStack, name: str, bounds: Bounds | None = None) -> PeerNode:
    node = PeerNode(name, bounds=bounds)
    stack.callback(node.sessions.stop)
    node.sessions.start()
    return node


class ByHand:
    """A node that `a` knows, with an open session at `a`, which does as the test likes."""

    def __init__(self, stack: ExitStack, a: PeerNode, others: Sequence[Peer], address: str) -> None:
        keys = new_key_pair()
        self.peer = Peer(b"n" * 16, "n", keys.public, ("127.0.0.1:1",))
        a.know([*others, self.peer])
        self._sockets = Sockets(keys, lambda _: False, QUICK, Bounds())
        stack.callback(self._sockets.close)
        self._link = self._sockets.connect(address, a.keys.public)
        assert self.send(encode(hello(self.peer.node, CLUSTER), Envelope(MINE, 0, 0)))
        found: list[Arrived | Left] = []
        while not found:
            found = self._sockets.wait(1.0)
        (event,) = found
        assert isinstance(event, Arrived), event
        envelope, message = decode(event.frames, m.KINDS)
        assert isinstance(message, m.Welcome), message
        self._theirs = envelope.sender

    def send(self, frames: Frames) -> bool:
        return self._sockets.send(self._link, frames)

    def ask(self, number: int, message: m.Request) -> bool:
        return self.send(encode(message, Envelope(MINE, self._theirs, number)))

    def wait_for_the_end(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not any(isinstance(each, Left) for each in self._sockets.wait(1.0)):
            assert time.monotonic() < deadline, "not cut"


# -- what works


def test_each_asks_the_other_and_is_answered(pair: tuple[PeerNode, PeerNode]) -> None:
    a, b = pair
    assert a.ask(b, SYNC) == ACK
    assert b.ask(a, SYNC) == ACK
    assert a.state(b).asks_us
    assert a.state(b).reason == ""


def test_payload_arrives_as_it_was_whether_it_is_copied_or_not(
    pair: tuple[PeerNode, PeerNode],
) -> None:
    a, b = pair
    for length in (1, 65535, 65536, 4 << 20):
        payload = os.urandom(length)
        ack = a.ask(b, m.Append(VOLUME, 1, 1, 1, 1, 0, (payload,)))
        assert isinstance(ack, m.Ack)
        assert ack.received == sum(payload)
    log = a.ask(b, m.ReadLog(VOLUME, 1, 0, 4 << 20))
    assert isinstance(log, m.Log)
    assert memoryview(log.payload[0]).nbytes == 4 << 20


def test_an_answer_may_come_from_another_thread(pair: tuple[PeerNode, PeerNode]) -> None:
    a, b = pair

    def answer() -> None:
        until(lambda: bool(b.held), "the request")
        b.held.pop()()

    thread = threading.Thread(target=answer)
    thread.start()
    assert isinstance(a.ask(b, m.Status()), m.NodeStatus)
    thread.join()


def test_what_nobody_serves_is_unknown_and_what_raises_has_failed(
    pair: tuple[PeerNode, PeerNode],
) -> None:
    a, b = pair
    end = a.end_of(b, m.Seal(VOLUME, 1))
    assert isinstance(end, Failed)
    assert end.text == "UNKNOWN: this node does not do Seal"

    def fail(*_: object) -> None:
        raise ValueError("no such thing")

    b.sessions.result_of(lambda: b.sessions.serve(m.Seal, fail))
    end = a.end_of(b, m.Seal(VOLUME, 1))
    assert isinstance(end, Failed)
    assert end.text == "FAILED: ValueError: no such thing"
    assert a.ask(b, SYNC) == ACK


def test_calls_come_later_unless_they_are_cancelled(pair: tuple[PeerNode, PeerNode]) -> None:
    sessions = pair[0].sessions
    rung: list[int] = []
    done = threading.Event()

    def begin() -> None:
        sessions.after(0.02, lambda: rung.append(2))
        sessions.after(0.01, lambda: rung.append(1))
        sessions.after(0.0, lambda: rung.append(9)).cancel()
        sessions.after(0.03, done.set)

    sessions.result_of(begin)
    assert done.wait(TIMEOUT_S)
    assert rung == [1, 2]


def test_a_node_that_restarts_is_asked_again_where_it_was(stack: ExitStack) -> None:
    a, b = started(stack, "a"), PeerNode("b")
    b.sessions.start()
    for node in (a, b):
        node.know([a.peer, b.peer])
    a.until_connected(b)
    b.sessions.stop()
    until(lambda: not a.connected(b), "a sees that b is gone")
    assert a.state(b).reason.startswith(("bye", "lost", "no greeting"))
    again = PeerNode("b", keys=b.keys)
    stack.callback(again.sessions.stop)
    again.sessions.start()
    again.know([a.peer])
    a.know([again.peer])
    assert a.ask(again, SYNC) == ACK


def test_a_node_that_connects_is_connected_to_at_once(stack: ExitStack) -> None:
    patient = replace(QUICK, reconnect_first_s=3600.0, reconnect_most_s=3600.0)
    a, b = PeerNode("a", policy=patient), PeerNode("b")
    for node in (a, b):
        stack.callback(node.sessions.stop)
    a.sessions.start()
    a.know([b.peer])  # which is not started, and lets nobody in
    until(lambda: a.state(b).reason != "", "a has tried")
    b.sessions.start()
    b.know([a.peer])
    a.until_connected(b)


def test_the_next_address_is_tried(stack: ExitStack) -> None:
    a, b = started(stack, "a"), started(stack, "b")
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
    both = Peer(b.node, "b", b.keys.public, (nowhere, "localhost:1", "[::1]:1", b.address))
    a.know([both])
    b.know([a.peer])
    assert a.ask(b, SYNC) == ACK
    assert a.state(b).address == b.address


def test_the_end_ends_every_request(pair: tuple[PeerNode, PeerNode]) -> None:
    a, b = pair
    ends: list[Answered | Failed] = []
    a.sessions.result_of(lambda: a.sessions.ask(b.node, m.Status(), 60.0, ends.append))
    until(lambda: bool(b.held), "the request")
    a.sessions.stop()
    assert [type(end) for end in ends] == [Failed]
    with pytest.raises(TransportError, match="have ended"):
        a.ask(b, SYNC)


# -- who is let in


def test_a_node_that_is_not_known_is_not_let_in(stack: ExitStack) -> None:
    a, stranger = started(stack, "a"), started(stack, "s")
    stranger.know([a.peer])
    until(lambda: "does not know our key" in stranger.state(a).reason, "the refusal")
    until(lambda: a.sessions.result_of(lambda: a.sessions.refused) > 0, "the count")
    assert isinstance(stranger.end_of(a, SYNC, 0.1), Failed)


def test_one_who_is_elsewhere_than_its_key_is_not_believed(stack: ExitStack) -> None:
    a, b = started(stack, "a"), started(stack, "b")
    b.know([a.peer])
    a.know([Peer(b.node, "b", new_key_pair().public, (b.address,))])
    until(lambda: a.state(b).reason != "", "the refusal")
    assert not a.connected(b)
    assert isinstance(a.end_of(b, SYNC, 0.3), Failed)


def test_a_node_that_says_to_be_another_one_is_refused(stack: ExitStack) -> None:
    a = started(stack, "a")
    liar = PeerNode("l", node=b"x" * 16)
    stack.callback(liar.sessions.stop)
    liar.sessions.start()
    a.know([Peer(b"l" * 16, "l", liar.keys.public, (liar.address,))])
    liar.know([a.peer])
    until(lambda: "NODE: its key is that of node 6c6c" in liar.state(a).reason, "the refusal")


@pytest.mark.parametrize("mechanism", ["null", "plain"])
def test_there_is_no_way_in_without_curve(stack: ExitStack, mechanism: str) -> None:
    a = started(stack, "a")
    context = zmq.Context()
    stack.callback(context.term)
    client = context.socket(zmq.DEALER)
    stack.callback(client.close, 0)
    if mechanism == "plain":
        client.plain_username, client.plain_password = b"user", b"password"
    client.connect(f"tcp://{a.address}")
    with suppress(zmq.Again):  # refused already: a send would wait for a way in forever
        message = encode(hello(b"x" * 16, CLUSTER), Envelope(1, 0, 0))
        client.send_multipart(message, zmq.DONTWAIT)
    until(lambda: a.sessions.result_of(lambda: a.sessions.refused) > 0, "the refusal")
    assert not client.poll(50)


def test_a_guest_may_ask_what_is_for_guests_only(stack: ExitStack) -> None:
    a = started(stack, "a")
    guest = started(stack, "g")
    a.know([], [Guest(guest.keys.public)])
    guest.know([a.peer])
    join = m.Join(guest.node, "g", guest.keys.public, ())
    assert guest.ask(a, join) == m.Joined(CLUSTER, "record")
    end = guest.end_of(a, SYNC)
    assert isinstance(end, Failed)
    assert end.text.startswith("REFUSED: Sync is not for")


def test_a_node_may_not_join_again(pair: tuple[PeerNode, PeerNode]) -> None:
    a, b = pair
    end = a.end_of(b, m.Join(a.node, "a", a.keys.public, ()))
    assert isinstance(end, Failed)
    assert end.text.startswith("REFUSED")


@pytest.mark.parametrize("welcome", [True, False])
def test_the_gate_may_be_asked_and_answer_later(stack: ExitStack, welcome: bool) -> None:
    asked: list[bytes] = []
    a = PeerNode("a", ask_gate=asked.append)
    stack.callback(a.sessions.stop)
    a.sessions.start()
    b = started(stack, "b")
    b.know([a.peer])
    until(lambda: bool(asked), "the question")
    assert asked[0] == b.keys.public
    if welcome:
        a.know([b.peer])
        b.until_connected(a)
    else:
        a.sessions.result_of(lambda: a.sessions.admit(b.keys.public))
        until(lambda: "does not know our key" in b.state(a).reason, "the refusal")


def test_a_node_that_is_removed_is_cut_off_and_one_that_comes_back_is_not(
    pair: tuple[PeerNode, PeerNode],
) -> None:
    a, b = pair
    ends: list[Answered | Failed] = []
    a.sessions.result_of(lambda: a.sessions.ask(b.node, m.Status(), 60.0, ends.append))
    a.know([])
    assert [type(end) for end in ends] == [Failed]
    with pytest.raises(UnknownPeer):
        a.ask(b, SYNC)
    until(lambda: not b.connected(a), "b is cut off")
    until(lambda: "does not know our key" in b.state(a).reason, "b is not let in")
    a.know([b.peer])
    b.until_connected(a)
    a.until_connected(b)


# -- peers that misbehave, and the others


def _silent(taken: socket.socket) -> None:
    while taken.recv(1 << 16):
        pass


def _garbage(taken: socket.socket) -> None:
    taken.sendall(os.urandom(1 << 16))
    _silent(taken)


def _zmtp_then_garbage(taken: socket.socket) -> None:
    taken.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32))
    taken.sendall(os.urandom(1 << 16))
    _silent(taken)


def _old_zmtp(taken: socket.socket) -> None:
    taken.sendall(b"\x01\x00" + b"\x05\x00BPER")  # ZMTP 1.0, in plain text
    _silent(taken)


@pytest.mark.parametrize("serve", [_silent, _garbage, _zmtp_then_garbage, _old_zmtp])
def test_a_server_that_is_no_node_costs_the_others_nothing(
    stack: ExitStack, serve: Callable[[socket.socket], None]
) -> None:
    a, b = stack.enter_context(cluster_of("a", "b"))
    raw = stack.enter_context(closing(RawServer(serve)))
    bad = raw.peer()
    a.know([b.peer, bad])
    ends: list[Answered | Failed] = []
    a.sessions.result_of(lambda: a.sessions.ask(bad.node, SYNC, TIMEOUT_S, ends.append))
    until(lambda: raw.accepted > 0, "a try")
    assert a.ask(b, SYNC) == ACK
    assert ends == []
    until(lambda: a.state(bad).reason.startswith("no greeting"), "it is given up")
    assert not a.connected(bad)
    assert a.ask(b, SYNC) == ACK
    assert isinstance(a.end_of(bad, SYNC, 0.1), Failed)


def test_clients_that_are_no_nodes_cost_the_others_nothing(stack: ExitStack) -> None:
    a, b = stack.enter_context(cluster_of("a", "b"))
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n", os.urandom(1 << 16)):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", a.port)))
        client.sendall(data)
        client.settimeout(TIMEOUT_S)
        assert b.ask(a, SYNC) == ACK
        try:  # it is cut within the handshake's time
            while client.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass


def test_more_connections_than_the_bound_push_out_who_says_nothing(stack: ExitStack) -> None:
    a = started(stack, "a", Bounds(connections=4))
    b = started(stack, "b")
    a.know([b.peer])
    b.know([a.peer])
    b.until_connected(a)
    crowd = [
        stack.enter_context(socket.create_connection(("127.0.0.1", a.port))) for _ in range(20)
    ]
    until(lambda: a.sessions.result_of(lambda: a.sessions.refused) >= 17, "the bound")
    assert b.ask(a, SYNC) == ACK
    assert b.connected(a)
    crowd[0].settimeout(TIMEOUT_S)
    assert crowd[0].recv(1) in (b"", b"\xff")  # the greeting of ZMTP may have come before


@pytest.mark.parametrize(
    "nonsense",
    [[b"garbage"], [b""], [b"BPER" + bytes(36)] * 300, [bytes(1 << 20)] * 9, [bytes(5 << 20)]],
    ids=["garbage", "empty", "too many parts", "too many bytes", "too long a part"],
)
def test_nonsense_of_a_node_ends_its_session_only(stack: ExitStack, nonsense: Frames) -> None:
    a, b = stack.enter_context(cluster_of("a", "b"))
    bad = ByHand(stack, a, [b.peer], a.address)
    assert bad.send(nonsense)
    bad.wait_for_the_end()
    assert b.ask(a, SYNC) == ACK
    assert b.connected(a)


def test_a_node_that_stops_reading_is_cut_and_the_others_go_on(stack: ExitStack) -> None:
    a, b = stack.enter_context(cluster_of("a", "b"))
    line = stack.enter_context(closing(Line(a.address)))
    bad = ByHand(stack, a, [b.peer], line.address)
    line.stall.set()
    for number in range(1, 15):  # 56 MiB of answers, which nobody takes
        assert bad.ask(number, m.ReadLog(VOLUME, 1, 0, 4 << 20))
    log = b.ask(a, m.ReadLog(VOLUME, 1, 0, 1 << 20))
    assert isinstance(log, m.Log)
    until(lambda: not a.state(bad.peer).asks_us, "it is cut")
    assert b.connected(a)


def test_a_link_that_sends_nothing_takes_no_more_than_its_bound(stack: ExitStack) -> None:
    a = started(stack, "a")
    line = stack.enter_context(closing(Line(a.address)))
    line.stall.set()
    bounds = Bounds(queue_bytes=8 << 20)
    sockets = Sockets(new_key_pair(), lambda _: False, QUICK, bounds)
    stack.callback(sockets.close)
    link = sockets.connect(line.address, a.keys.public)
    given = 0
    while sockets.send(link, [bytes(3 << 20)]):
        given += 1
    assert given == 2
    assert link.unsent_bytes() == 6 << 20


def test_a_line_that_goes_dead_is_noticed_within_the_policy(stack: ExitStack) -> None:
    a, b = started(stack, "a"), started(stack, "b")
    line = stack.enter_context(closing(Line(b.address)))
    a.know([line.to(b)])
    b.know([a.peer])
    a.until_connected(b)
    line.dead.set()
    ends: list[Answered | Failed] = []
    a.sessions.result_of(lambda: a.sessions.ask(b.node, SYNC, 60.0, ends.append))
    until(lambda: not a.connected(b), "a gives it up")
    assert a.state(b).reason.startswith(("silent", "lost"))
    line.dead.clear()
    until(lambda: bool(ends), "the answer, in the next session")
    assert isinstance(ends[0], Answered)


def test_a_slow_node_is_told_and_the_others_are_not_slower(stack: ExitStack) -> None:
    a, b, c = stack.enter_context(cluster_of("a", "b", "c"))
    ends: list[Answered | Failed] = []
    a.sessions.result_of(lambda: a.sessions.ask(b.node, m.Status(), 60.0, ends.append))
    until(lambda: a.state(b).slow, "slow")
    assert a.ask(c, SYNC) == ACK
    assert not a.state(c).slow
    assert a.connected(b)
    b.held.pop()()
    until(lambda: bool(ends) and not a.state(b).slow, "slow no more")


# -- the rest


def test_an_address_that_is_taken_is_named(stack: ExitStack) -> None:
    a, b = started(stack, "a"), PeerNode("b")
    stack.callback(b.sessions.stop)
    with pytest.raises(CannotListen, match=f"127.0.0.1:{a.port}: Address already in use"):
        b.sessions.listen("127.0.0.1", a.port)


def test_secrets_are_not_shown() -> None:
    keys = new_key_pair()
    assert keys.secret.hex() not in repr(keys)
    assert repr(keys.secret) not in repr(keys)


def test_a_single_node_does_without_zeromq() -> None:
    code = "import sys, blockd.daemon, blockd.wiring; print('zmq' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
