"""ZeroMQ sockets of one node: messages in and out, each from somebody whose key is proven.

The only module that imports zmq. It knows no protocol: `transport.sessions` does.

**Sockets.** One ROUTER listens. Each session that this node begins has a DEALER of its own, which
goes with it, so that nothing of an old session comes in a new one; libzmq is not to reconnect by
itself. All belong to the thread that calls `wait`; only `wake` is for others.

**Who.** CURVE on every socket and no other mechanism: a DEALER is given the key that has to be at
the other end, and who connects to the ROUTER is asked about at the gate (ZAP, answered by the same
thread) before its first message can come. Without an answer within the handshake's time it is cut.
The gate is open for business before the ROUTER is, and closed after it: without one, libzmq would
let everybody in.

**Bounds.** libzmq counts messages and not bytes, so bytes that it has not sent are counted here:
beyond `queue_bytes` of one link `send` says no. What is received is bounded by what the sender was
granted in its WELCOME (and by `high_water` messages, each part by MAX_PART_BYTES). A ROUTER closes
no connection of its own accord; so one that has to go is shut down below libzmq, by the file
descriptor that it tells with each message.

**Buffers.** A part of COPY_BELOW bytes or more is not copied on its way out: it must not change
until it was sent, so give bytes, or memory that is not used again. What was received is the
message's own memory, and lives as long as there is a view of it.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import zmq
from typing_extensions import Buffer

from transport.errors import CannotListen, TransportError
from transport.keys import KEY_BYTES, KeyPair
from transport.peer.policy import Policy
from transport.peer.wire import MAX_FRAME_BYTES, MAX_FRAMES, Frames, size_of

COPY_BELOW: Final = 64 << 10  # to track a part's memory costs more than to copy that much
MAX_PART_BYTES: Final = MAX_FRAME_BYTES + 1024  # CURVE puts a nonce and a tag around a part
TURN: Final = 64  # messages of one socket that are taken before the others have their turn
RETRY_S: Final = 0.005  # a ROUTER does not tell when a link has room again
MAX_KNOCKS: Final = 64  # who waits at the gate
_DONTWAIT: Final = int(zmq.DONTWAIT)  # enum arithmetic costs more than a send
_SNDMORE: Final = int(zmq.DONTWAIT | zmq.SNDMORE)
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_ZAP: Final = "inproc://zeromq.zap.01"  # RFC 27 (ZAP): where libzmq asks
_ZAP_VERSION: Final = b"1.0"
_EVENT: Final = struct.Struct("=Hi")  # zmq_socket_monitor(3)

UNKNOWN_KEY: Final = "it does not know our key"
_BROKEN: Final[dict[int, str]] = {
    zmq.EVENT_CLOSED: "nothing accepts connections there",
    zmq.EVENT_DISCONNECTED: "the connection broke",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the connection broke while keys were exchanged",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it does not speak this protocol, or has another key",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: UNKNOWN_KEY,
}
_REFUSED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What sockets may cost, beside the policy of each peer."""

    connections: int = 256
    """That others have here at once; more push out the oldest that has not said anything yet."""
    high_water: int = 256
    """Messages of one link that libzmq holds, in each direction."""
    queue_bytes: int = 16 << 20
    """Bytes of one link that libzmq has not sent; one message may be longer."""
    linger_ms: int = 200
    """How long a last word may take, at the end."""


@dataclass(slots=True, eq=False)
class Link:
    """One connection, of which the other end has `key`."""

    key: bytes
    _socket: zmq.Socket[bytes]
    _route: bytes = b""
    """How the ROUTER calls it; empty for one that we made."""
    _fd: int = -1
    _monitor: zmq.Socket[bytes] | None = None
    _unsent: deque[tuple[zmq.MessageTracker, int]] = field(default_factory=deque)
    _unsent_bytes: int = 0
    _gone: bool = False

    @property
    def incoming(self) -> bool:
        return bool(self._route)

    def unsent_bytes(self) -> int:
        """Of what was not copied, the bytes that are not sent yet."""
        while self._unsent and self._unsent[0][0].done:
            self._unsent_bytes -= self._unsent.popleft()[1]
        return self._unsent_bytes


@dataclass(frozen=True, slots=True)
class Arrived:
    link: Link
    frames: Frames


@dataclass(frozen=True, slots=True)
class Left:
    """The link is no more. Nothing comes from it, and it need not be dropped."""

    link: Link
    text: str


Event = Arrived | Left

Gate = Callable[[bytes], bool | None]
"""Whether the holder of a key may come in; None: `decide` will say so."""


class Sockets:
    """The sockets of the node that has `keys`. Every method but `wake` belongs to one thread."""

    def __init__(self, keys: KeyPair, gate: Gate, policy: Policy, bounds: Bounds) -> None:
        if not zmq.has("curve"):
            raise TransportError("pyzmq was built without CURVE; install its wheel from PyPI")
        self.refused = 0
        """Connections that came to no message: no CURVE, a wrong key, an unknown one, too many."""
        self._keys = keys
        self._gate = gate
        self._policy = policy
        self._bounds = bounds
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wakeup_lock = threading.Lock()  # a descriptor that was closed may be another's
        self._poller.register(self._wakeup, zmq.POLLIN)
        self._dealers: dict[Link, None] = {}
        self._links: dict[tuple[bytes, int], Link] = {}
        self._accepted: dict[int, None] = {}  # file descriptors, the oldest first
        self._knocks: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self._events: list[Event] = []
        self._ports: set[int] = set()
        self._count = 0
        self._zap = self._context.socket(zmq.ROUTER)
        self._zap.bind(_ZAP)
        self._poller.register(self._zap, zmq.POLLIN)
        self._router = self._listener()
        self._monitor = self._monitored(self._router, zmq.EVENT_ACCEPTED)
        self._poller.register(self._router, zmq.POLLIN)

    # -- links

    def listen(self, host: str, port: int) -> str:
        """Take connections at a numeric address, "" for every interface; HOST:PORT, as it is
        bound. CannotListen."""
        shown = f"[{host}]" if ":" in host else host or "*"
        if ":" in host:
            self._router.ipv6 = True
        try:
            self._router.bind(f"tcp://{shown}:{port or '*'}")
        except zmq.ZMQError as error:
            raise CannotListen(f"{shown}:{port}", error.strerror) from None
        address = bytes(self._router.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        address = address.removeprefix("tcp://")
        self._ports.add(int(address.rpartition(":")[2]))
        return address

    def connect(self, address: str, key: bytes, keys: KeyPair | None = None) -> Link:
        """Begin to connect to HOST:PORT, where `key` has to be. Messages may be sent at once.
        `keys` are those we show, if not the node's. TransportError: that is no numeric address;
        libzmq would look a name up in the thread that moves all bytes, however long that takes."""
        _check_numeric(address)
        dealer = self._socket(zmq.DEALER, keys or self._keys)
        dealer.curve_serverkey = key
        dealer.reconnect_ivl = -1
        dealer.ipv6 = address.startswith("[")
        monitor = self._monitored(dealer, 0)
        try:
            dealer.connect(f"tcp://{address}")
        except zmq.ZMQError as error:
            self._close_dealer(dealer, monitor)
            raise TransportError(f"peer address {address!r}: {error.strerror}") from None
        link = Link(key, dealer, _monitor=monitor)
        self._dealers[link] = None
        self._poller.register(dealer, zmq.POLLIN)
        return link

    def send(self, link: Link, frames: Frames) -> bool:
        """Whether the message is on its way. If not, the link has enough to send: try again, in
        RETRY_S, or has gone, which the next `wait` tells."""
        if link._gone:
            return False
        held = link.unsent_bytes()
        if held and held + size_of(frames) > self._bounds.queue_bytes:
            return False
        parts: Sequence[Buffer] = [link._route, *frames] if link._route else frames
        last = len(parts) - 1
        for number, part in enumerate(parts):
            flags = _SNDMORE if number < last else _DONTWAIT
            try:
                self._send_part(link, part, flags)
            except zmq.ZMQError as error:
                if error.errno != zmq.EAGAIN or number:
                    self._lose(link, _BROKEN[zmq.EVENT_DISCONNECTED])
                return False
        return True

    def drop(self, link: Link, *, last_word: bool = False) -> None:
        """Be done with a link, and with what it has not sent; a last word may take `linger_ms`."""
        if link._gone:
            return
        self._forget(link, self._bounds.linger_ms if last_word else 0)
        if link.incoming:
            self._hang_up(link._fd)

    def decide(self, key: bytes, welcome: bool) -> None:
        """What the gate left open."""
        for knock in self._knocks.pop(key, ()):
            self._answer(*knock, key if welcome else None)

    def also(self, descriptor: int) -> None:
        """Have `wait` return when a file descriptor is readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    # -- the loop

    def wait(self, timeout_s: float) -> list[Event]:
        """What has happened; waits for it, or for `wake`, for `timeout_s` at most."""
        timeout_s = 0.0 if self._events else timeout_s
        ready = dict(self._poller.poll(max(0, int(timeout_s * 1000 + 0.999))))
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wakeup)
        if self._zap in ready:
            self._at_the_gate()
        if self._router in ready or self._monitor in ready:
            # Before the messages: it says to whom descriptors belong now.
            self._watch_accepted()
        if self._router in ready:
            self._receive_incoming()
        for link in [link for link in self._dealers if link._socket in ready]:
            self._receive(link)
        # After the messages: a last one says why. What is told meanwhile is there the next time.
        for link in [link for link in self._dealers if link._monitor in ready]:
            self._watch(link)
        events, self._events = self._events, []
        return events

    def wake(self) -> None:
        """Have `wait` return at once. Any thread; nothing happens after `close`."""
        with self._wakeup_lock, contextlib.suppress(BlockingIOError):
            if self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """End all connections; last words may take `linger_ms`."""
        with self._wakeup_lock:
            os.close(self._wakeup)
            self._wakeup = -1
        for link in list(self._dealers):
            self._forget(link, self._bounds.linger_ms)
        self._close_dealer(self._router, self._monitor, self._bounds.linger_ms)
        self._zap.close(0)
        self._context.term()

    # -- making sockets

    def _socket(self, kind: int, keys: KeyPair) -> zmq.Socket[bytes]:
        policy, bounds = self._policy, self._bounds
        made: zmq.Socket[bytes] = self._context.socket(kind)
        made.linger = 0
        made.sndhwm = made.rcvhwm = bounds.high_water
        made.maxmsgsize = MAX_PART_BYTES
        made.handshake_ivl = _ms(policy.handshake_s)
        # Finds what TCP would not tell: a peer without power, a cable that was cut.
        made.heartbeat_ivl = _ms(policy.ping_every_s)
        made.heartbeat_timeout = made.heartbeat_ttl = _ms(policy.silent_after_s)
        made.curve_publickey = keys.public
        made.curve_secretkey = keys.secret
        return made

    def _listener(self) -> zmq.Socket[bytes]:
        router = self._socket(zmq.ROUTER, self._keys)
        router.curve_server = True
        router.zap_domain = b"blockd"
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        router.router_mandatory = True
        return router

    def _monitored(self, made: zmq.Socket[bytes], more: int) -> zmq.Socket[bytes]:
        """Told of what becomes of the connections of `made`."""
        self._count += 1
        name = f"inproc://monitor{self._count}"
        events = zmq.EVENT_DISCONNECTED | _REFUSED | (more or zmq.EVENT_CLOSED)
        made.monitor(name, events)
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        monitor.linger = 0
        monitor.connect(name)
        self._poller.register(monitor, zmq.POLLIN)
        return monitor

    def _close_dealer(
        self, made: zmq.Socket[bytes], monitor: zmq.Socket[bytes], linger_ms: int = 0
    ) -> None:
        for each in (made, monitor):
            if each in self._poller:
                self._poller.unregister(each)
        made.monitor(None, 0)
        made.close(linger_ms)
        monitor.close(0)

    # -- links, inner

    def _send_part(self, link: Link, part: Buffer, flags: int) -> None:
        length = len(part) if isinstance(part, bytes) else memoryview(part).nbytes
        if length < COPY_BELOW:
            link._socket.send(part, flags)
            return
        tracker = link._socket.send(part, flags, copy=False, track=True)
        assert tracker is not None
        link._unsent.append((tracker, length))
        link._unsent_bytes += length

    def _forget(self, link: Link, linger_ms: int = 0) -> None:
        link._gone = True
        if link._monitor is not None:
            del self._dealers[link]
            self._close_dealer(link._socket, link._monitor, linger_ms)
        else:
            self._links.pop((link._route, link._fd), None)

    def _lose(self, link: Link, text: str) -> None:
        if not link._gone:
            self._forget(link)
            self._events.append(Left(link, text))

    def _hang_up(self, fd: int) -> None:
        """Shut down what a ROUTER has accepted. libzmq may have closed the descriptor, and the
        process may have it again for something else: only what is at our port is touched. If that
        is another peer by now, it loses a connection, and connects again."""
        if fd not in self._accepted:
            return
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family != socket.AF_UNIX and copy.getsockname()[1] in self._ports:
                copy.shutdown(socket.SHUT_RDWR)

    # -- receiving

    def _receive(self, link: Link) -> None:
        for _ in range(TURN):
            if link._gone or (frames := _message(link._socket)) is None:
                return
            self._events.append(Arrived(link, [frame.buffer for frame in frames]))
            if not _has_more(link._socket):
                return

    def _receive_incoming(self) -> None:
        for _ in range(TURN):
            if not _has_more(self._router):
                return
            frames = _message(self._router)
            if frames is None:
                return
            if len(frames) < 2:
                continue  # libzmq's own route, and nothing behind it
            route, head = frames[0].bytes, frames[1]
            try:
                key, fd = bytes.fromhex(_property(head, "User-Id")), int(_property(head, "__fd"))
            except ValueError:
                continue  # what did not come through the gate does not come in
            link = self._link(route, fd, key)
            if link is not None:
                self._events.append(Arrived(link, [frame.buffer for frame in frames[1:]]))

    def _link(self, route: bytes, fd: int, key: bytes) -> Link | None:
        """The link that a message came on; None for the rest of one that is gone."""
        if fd not in self._accepted:
            return None
        link = self._links.get((route, fd))
        if link is None or link.key != key:
            link = self._links[route, fd] = Link(key, self._router, route, fd)
        return link

    # -- monitors and the gate

    def _watch(self, link: Link) -> None:
        monitor = link._monitor
        assert monitor is not None
        for event, _ in _occurred(monitor):
            self._lose(link, _BROKEN.get(event, "the connection broke"))
            return

    def _watch_accepted(self) -> None:
        for event, fd in _occurred(self._monitor):
            if event == zmq.EVENT_ACCEPTED:
                self._accepted[fd] = None
                self._make_room()
            elif event == zmq.EVENT_DISCONNECTED:
                self._accepted.pop(fd, None)
                for link in [link for link in self._links.values() if link._fd == fd]:
                    self._lose(link, _BROKEN[event])
            else:
                self.refused += 1

    def _make_room(self) -> None:
        """Above the bound who has not said anything goes first: a real peer needs only
        milliseconds for its first message."""
        if len(self._accepted) <= self._bounds.connections:
            return
        known = {link._fd for link in self._links.values()}
        oldest = next((fd for fd in self._accepted if fd not in known), None)
        if oldest is None:
            oldest = next(reversed(self._accepted))
        self.refused += 1
        self._hang_up(oldest)
        del self._accepted[oldest]

    def _at_the_gate(self) -> None:
        for _ in range(TURN):
            try:
                route, _, version, number, *rest = self._zap.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            assert version == _ZAP_VERSION  # libzmq's own words
            key = rest[-1]
            if rest[3] != b"CURVE" or len(key) != KEY_BYTES:
                self._answer(route, number, None)
                continue
            welcome = self._gate(key)
            if welcome is not None:
                self._answer(route, number, key if welcome else None)
            elif sum(map(len, self._knocks.values())) < MAX_KNOCKS:
                self._knocks.setdefault(key, []).append((route, number))
            else:
                self._answer(route, number, None)

    def _answer(self, route: bytes, number: bytes, key: bytes | None) -> None:
        status, text = (b"400", b"unknown key") if key is None else (b"200", b"OK")
        user = b"" if key is None else key.hex().encode()
        with contextlib.suppress(zmq.ZMQError):  # it did not wait
            self._zap.send_multipart(
                [route, b"", _ZAP_VERSION, number, status, text, user, b""], zmq.DONTWAIT
            )


def _message(source: zmq.Socket[bytes]) -> list[zmq.Frame] | None:
    """The next message; None when there is none. Parts beyond what a message may have are taken
    off the socket and let go, all but one: so it is seen to be too many."""
    try:
        frames = [source.recv(_DONTWAIT, copy=False)]
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, errno.EINTR):
            return None
        raise
    while frames[-1].more:
        frame = source.recv(_DONTWAIT, copy=False)  # parts come together
        if len(frames) > MAX_FRAMES + 2:
            frames.pop()
        frames.append(frame)
    return frames


def _has_more(source: zmq.Socket[bytes]) -> bool:
    """Whether there is another message: an error that says there is none costs more."""
    return bool(int(source.get(_EVENTS)) & _POLLIN)


def _occurred(monitor: zmq.Socket[bytes]) -> list[tuple[int, int]]:
    """Events with their values: descriptors, for those of connections."""
    found = []
    # Asking for its state has libzmq look at all that other threads have told, unlike `recv`.
    while int(monitor.get(zmq.EVENTS)) & zmq.POLLIN:
        head, _ = monitor.recv_multipart(zmq.DONTWAIT)
        event, value = _EVENT.unpack(head)
        found.append((event, value))
    return found


def _check_numeric(address: str) -> None:
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        raise TransportError(f"peer address {address!r} is not numeric, HOST:PORT") from None


def _property(frame: Any, name: str) -> str:
    """A property of the connection that a message came on. ValueError: it has none."""
    try:
        value: str = frame.get(name)
    except zmq.ZMQError:
        raise ValueError(name) from None
    return value


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
