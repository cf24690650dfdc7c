"""Nodes of a cluster that talk over real sockets on loopback, for tests."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from transport.keys import KeyPair, new_key_pair
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.peer.policy import Policy
from transport.peer.wire import Message
from transport.sessions import Answer, Guest, Me, Peer, PeerState, Sessions
from transport.sockets import Bounds

CLUSTER = b"c" * 16
VOLUME = b"v" * 16
TIMEOUT_S = 60.0  # only a hang reaches it, on a machine with other work
POLL_S = 0.005
MAX_POLL_S = 0.1
POLL_SHARE = 0.05  # of the time that was waited: what is noticed is noticed that much later

QUICK = Policy(
    handshake_s=1.0,
    ping_every_s=0.1,
    silent_after_s=0.8,
    slow_after_s=0.3,
    reconnect_first_s=0.02,
    reconnect_most_s=0.2,
    nonsense_s=0.5,
)
"""As the usual one, in less time."""


def until(reached: Callable[[], bool], what: str = "it", timeout_s: float = TIMEOUT_S) -> None:
    """Wait for something that has no event, looking less and less often: a look at a daemon is a
    call of its control API, which has other things to do."""
    began = time.monotonic()
    while not reached():
        waited = time.monotonic() - began
        assert waited < timeout_s, f"{what}: not in {timeout_s} s"
        threading.Event().wait(min(MAX_POLL_S, max(POLL_S, waited * POLL_SHARE)))


class PeerNode:
    """One node: answers SYNC with what was asked for, READ_LOG with as many bytes, APPEND with
    the sum of its bytes as `received`, and JOIN of guests."""

    def __init__(
        self,
        name: str,
        *,
        policy: Policy = QUICK,
        bounds: Bounds | None = None,
        keys: KeyPair | None = None,
        node: bytes | None = None,
        ask_gate: Callable[[bytes], None] | None = None,
    ) -> None:
        self.name = name
        self.node = node or name.encode().ljust(16, b".")
        self.keys = keys or new_key_pair()
        me = Me(self.node, CLUSTER, self.keys, "test")
        self.sessions = Sessions(me, policy, bounds, ask_gate=ask_gate)
        self.address = self.sessions.listen("127.0.0.1", 0)
        self.held: list[Callable[[], None]] = []
        """Answers to STATUS, which are given when a test calls them."""
        self.sessions.serve(m.Sync, _sync)
        self.sessions.serve(m.ReadLog, _read_log)
        self.sessions.serve(m.Append, _append)
        self.sessions.serve(m.Join, _join, guests=True)
        self.sessions.serve(m.Status, self._hold)

    @property
    def peer(self) -> Peer:
        return Peer(self.node, self.name, self.keys.public, (self.address,))

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def know(self, peers: Iterable[Peer], guests: Iterable[Guest] = ()) -> None:
        found, invited = list(peers), list(guests)
        self.sessions.result_of(lambda: self.sessions.know(found, invited))

    def ask(
        self, other: "PeerNode | Peer", message: m.Request, timeout_s: float = TIMEOUT_S
    ) -> Message:
        """The answer. AssertionError when there is none."""
        end = self.end_of(other, message, timeout_s)
        assert isinstance(end, Answered), end
        return end.message

    def end_of(
        self, other: "PeerNode | Peer", message: m.Request, timeout_s: float = TIMEOUT_S
    ) -> Answered | Failed:
        return self.sessions.ask_and_wait(other.node, message, timeout_s)

    def state(self, other: "PeerNode | Peer") -> PeerState:
        found = self.sessions.result_of(self.sessions.states)
        return next(each for each in found if each.peer.node == other.node)

    def connected(self, other: "PeerNode | Peer") -> bool:
        return self.state(other).connected

    def until_connected(self, *others: "PeerNode | Peer") -> None:
        for other in others:
            until(lambda other=other: self.connected(other), f"{self.name} -> {other.name}")  # type: ignore[misc]

    def _hold(self, who: Peer | Guest, message: m.Request, answer: Answer) -> None:
        status = m.NodeStatus("serving", "test", 0, 0, 0, 0, 0)
        self.held.append(lambda: answer(status))


@contextmanager
def cluster_of(*names: str, policy: Policy = QUICK) -> Iterator[list[PeerNode]]:
    """Nodes that know each other and are connected."""
    nodes = [PeerNode(name, policy=policy) for name in names]
    try:
        for node in nodes:
            node.sessions.start()
        for node in nodes:
            node.know(each.peer for each in nodes)
        for node in nodes:
            node.until_connected(*(each for each in nodes if each is not node))
        yield nodes
    finally:
        for node in nodes:
            node.sessions.stop()


class RawServer:
    """A TCP server that is no node: `serve` gets each connection, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._taken: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.accepted = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._begin(self._accept)

    def peer(self, name: str = "raw", key: bytes | None = None) -> Peer:
        node = name.encode().ljust(16, b".")
        return Peer(node, name, key or new_key_pair().public, (self.address,))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._taken:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._taken):
            each.close()

    def _begin(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                taken, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._taken.append(taken)
            self._begin(lambda taken=taken: self._run(taken))  # type: ignore[misc]

    def _run(self, taken: socket.socket) -> None:
        with suppress(OSError):
            self._serve(taken)


class Line(RawServer):
    """A TCP line to another address. While `dead` it takes all and passes nothing on; while
    `stall` it takes nothing that comes back."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.dead = threading.Event()
        self.stall = threading.Event()
        super().__init__(self._pass_on)

    def to(self, node: PeerNode) -> Peer:
        return replace(node.peer, addresses=(self.address,))

    def close(self) -> None:
        self.stall.clear()
        super().close()

    def _pass_on(self, taken: socket.socket) -> None:
        with socket.create_connection(self._target) as other:
            back = threading.Thread(target=self._pump, args=(other, taken, self.stall))
            back.start()
            self._pump(taken, other, threading.Event())
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, stall: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                while stall.is_set():
                    threading.Event().wait(POLL_S)
                if not self.dead.is_set():
                    sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _sync(who: Peer | Guest, message: m.Request, answer: Answer) -> None:
    assert isinstance(message, m.Sync)
    answer(m.Ack(message.epoch, message.seq, message.seq))


def _read_log(who: Peer | Guest, message: m.Request, answer: Answer) -> None:
    assert isinstance(message, m.ReadLog)
    first = message.after + 1
    answer(m.Log(message.epoch, first, first, 0, (bytes(message.limit),)))


def _append(who: Peer | Guest, message: m.Request, answer: Answer) -> None:
    assert isinstance(message, m.Append)
    answer(m.Ack(message.epoch, sum(bytes(message.payload[0])), 0))


def _join(who: Peer | Guest, message: m.Request, answer: Answer) -> None:
    answer(m.Joined(CLUSTER, "record"))
