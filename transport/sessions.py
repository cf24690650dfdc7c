"""The sessions of one node with all others: engines of `transport.peer` on `transport.sockets`.

One thread runs all of it: it waits for the sockets, then changes state. Handlers of requests, ends
of requests, timers and what was posted are called on it, one after the other, and must not wait:
what waits for a disk or for etcd goes to another thread and comes back by `post`. So what uses the
sessions, like a volume's group, needs no lock of its own.

    know      who there is: a caller for each, and whom the gate lets in
    ask       a request to another node; its end comes back once
    serve     what this node does when it is asked
    after     a call later
    watched   a call when a file descriptor is readable

**Who may what.** The key that a connection was made with says which node it is; a HELLO that says
something else is refused. A *guest* shows the key of a token, and may ask what is served for
guests, nothing else. Of one node there is one incoming session: a newer one ends an older one. When
a node is known no more, its sessions end, in both directions.

A peer costs what its policy and the bounds of the sockets say, and its own time only: what cannot
be sent now waits in its engine, and the others go on.
"""

import logging
import random
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from math import inf
from typing import Final, TypeVar

from typing_extensions import Buffer

from native import VolumeCore, answer_append
from transport.descriptors import Descriptors, Watched
from transport.errors import TransportError, UnknownPeer
from transport.keys import KeyPair
from transport.peer import answerer, caller
from transport.peer import messages as m
from transport.peer.answerer import Answerer
from transport.peer.caller import Answered, Caller, Failed
from transport.peer.policy import Policy, Reason
from transport.peer.wire import VERSION, Message, kind_of, size_of
from transport.sockets import RETRY_S, Arrived, Bounds, Left, Link, Sockets

logger = logging.getLogger(__name__)

LAST_WORD_S: Final = 1.0  # to have an ERROR arrive before its connection goes
IDLE_S: Final = 60.0
MAX_ERROR_BYTES: Final = 1024
JOIN_S: Final = 10.0  # more than a turn of the loop ever takes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peer:
    """A node of the cluster."""

    node: bytes
    name: str
    key: bytes
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Guest:
    """Who has the key of a token."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Me:
    """What this node says of itself."""

    node: bytes
    cluster: bytes
    keys: KeyPair
    program: str


Answer = Callable[[Message], None]
"""Answers a request, once; from any thread. Nothing happens when nobody waits for it any more."""
Handler = Callable[[Peer | Guest, m.Request, Answer], None]
Then = Callable[[Answered | Failed], None]


@dataclass(frozen=True, slots=True)
class PeerState:
    """How this node stands with another one."""

    peer: Peer
    connected: bool
    """Whether it can be asked."""
    since_s: float
    """For how long that has been so."""
    address: str
    """Where it was reached, or is tried to be."""
    reason: str
    """Why it is not connected; empty when it is, or when nothing is known yet."""
    slow: bool
    unanswered: int
    asks_us: bool
    """Whether it has a session with us."""


class Timer:
    """A call to come; `cancel` on the sessions' thread."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self._call = None

    def ring(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


@dataclass(slots=True, eq=False)
class _Outgoing:
    """A peer that we ask."""

    peer: Peer
    caller: Caller
    since: float
    """When it came to be as it is: connected, or not."""
    up: bool = False
    link: Link | None = None
    tries: int = 0
    ends: dict[int, Then] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.peer.addresses[max(self.tries - 1, 0) % len(self.peer.addresses)]


@dataclass(slots=True, eq=False)
class _Incoming:
    """A connection of one who asks us."""

    who: Peer | Guest
    engine: Answerer
    ended: bool = False


class Sessions:
    """`ask_gate` is told, on the thread, of keys that are not known: `admit` may come later.

    Made and listening in any one thread, before `start`; from then on methods belong to its own
    thread, but for those that say otherwise."""

    def __init__(
        self,
        me: Me,
        policy: Policy | None = None,
        bounds: Bounds | None = None,
        *,
        ask_gate: Callable[[bytes], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy or Policy()
        self._me = me
        self._ask_gate = ask_gate
        self._clock = clock
        self._sockets = Sockets(me.keys, self._gate, self.policy, bounds or Bounds())
        self._peers: dict[bytes, Peer] = {}  # by key
        self._guests: dict[bytes, Guest] = {}
        self._outgoing: dict[bytes, _Outgoing] = {}  # by node
        self._by_link: dict[Link, _Outgoing] = {}
        self._incoming: dict[Link, _Incoming] = {}
        self._handlers: dict[type[m.Request], tuple[Handler, bool]] = {}
        self._watchers: list[Callable[[Peer, caller.Event], None]] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_count = 0
        self.sent: Counter[int] = Counter()
        """Bytes of messages that went out, by their type."""
        self.appended_to: dict[bytes, VolumeCore] = {}
        """Volumes, by uuid, to which other nodes may append plain records without a handler being
        asked (transport/group/member.py); the owner's to change, on the thread."""
        self._descriptors = Descriptors()
        self._sockets.also(self._descriptors.fileno())
        self._posted: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="blockd-peers")

    # -- life; any thread

    def listen(self, host: str, port: int) -> str:
        """HOST:PORT that is bound. Before `start`. CannotListen."""
        return self._sockets.listen(host, port)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Say good-bye to all, end every request, and the thread. Idempotent."""
        if not self._thread.ident:
            self._end()
            return
        self._stopping = True
        self._sockets.wake()
        self._thread.join(JOIN_S)

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` called on the thread, after what was posted before. Any thread; nothing
        happens once it has ended."""
        if self._stopped:
            return
        self._posted.append(call)
        if threading.current_thread() is not self._thread:
            self._sockets.wake()

    def result_of(self, call: Callable[[], T], timeout_s: float = JOIN_S) -> T:
        """What `call` gives on the thread, or raises; waits for it, on another one. TransportError
        when the thread has not begun, or has ended, or does not come to it in time."""
        assert threading.current_thread() is not self._thread
        if self._stopped or not self._thread.ident:
            raise TransportError("no sessions with peers: they have ended, or not begun")
        future: Future[T] = Future()

        def make() -> None:
            try:
                future.set_result(call())
            except Exception as error:  # is raised where it was asked for
                future.set_exception(error)

        self.post(make)
        return waited(future, timeout_s)

    def ask_and_wait(self, node: bytes, message: m.Request, timeout_s: float) -> Answered | Failed:
        """`ask` for threads that may wait. TransportError."""
        ended: Future[Answered | Failed] = Future()
        self.result_of(lambda: self.ask(node, message, timeout_s, ended.set_result))
        return waited(ended, timeout_s + JOIN_S)

    # -- the thread's

    def know(self, peers: Iterable[Peer], guests: Iterable[Guest] = ()) -> None:
        """All nodes there are, and all guests; this node itself among them or not."""
        wanted = {peer.node: peer for peer in peers if peer.node != self._me.node}
        self._peers = {peer.key: peer for peer in wanted.values()}
        self._guests = {guest.key: guest for guest in guests}
        now = self._clock()
        for node, each in list(self._outgoing.items()):
            if wanted.get(node) != each.peer:
                self._part(each, now)
        for node, peer in wanted.items():
            if node not in self._outgoing:
                self._outgoing[node] = self._asking(peer, now)
        for link, incoming in list(self._incoming.items()):
            if self._who(link.key) != incoming.who:
                self._send_away(link, incoming)
        for key in (*self._peers, *self._guests):
            self._sockets.decide(key, welcome=True)

    def admit(self, key: bytes) -> None:
        """An answer to `ask_gate`, after `know`: whether it is known by now."""
        self._sockets.decide(key, self._who(key) is not None)

    def ask(self, node: bytes, message: m.Request, timeout_s: float, then: Then) -> None:
        """Ask a node; `then` is called once, `timeout_s` from now at the latest. Payload must not
        change, also afterwards: give bytes. UnknownPeer, PeerBusy, BadMessage: nothing was queued,
        and `then` is not called."""
        outgoing = self._outgoing.get(node)
        if outgoing is None:
            raise UnknownPeer(node)
        number = outgoing.caller.request(message, self._clock(), timeout_s)
        outgoing.ends[number] = then

    def features(self, node: bytes) -> int:
        """What a node can do beyond the version, as far as it can be asked now."""
        outgoing = self._outgoing.get(node)
        return 0 if outgoing is None else outgoing.caller.features

    def serve(self, kind: type[m.Request], handler: Handler, *, guests: bool = False) -> None:
        """Have `handler` called for requests of this kind; of guests only those with `guests`. What
        it raises is answered by ERROR FAILED, as is a kind without a handler by UNKNOWN."""
        self._handlers[kind] = (handler, guests)

    def watch(self, watcher: Callable[[Peer, caller.Event], None]) -> None:
        """Have `watcher` told of Up, Down and Slow of each node that we ask."""
        self._watchers.append(watcher)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call later, unless it is cancelled before."""
        timer = Timer(call)
        self._timer_count += 1
        heappush(self._timers, (self._clock() + delay_s, self._timer_count, timer))
        return timer

    def watched(self, descriptor: int, call: Callable[[], None]) -> Watched:
        """Call whenever a file descriptor has become readable, until that is cancelled."""
        return self._descriptors.watch(descriptor, call)

    def states(self) -> list[PeerState]:
        """All other nodes, by name."""
        now = self._clock()
        asking = {each.who for each in self._incoming.values() if each.engine.open}
        found = [
            PeerState(
                each.peer,
                each.caller.open,
                now - each.since,
                each.address,
                _why(each.caller),
                each.caller.slow,
                each.caller.unanswered,
                each.peer in asking,
            )
            for each in self._outgoing.values()
        ]
        return sorted(found, key=lambda each: each.peer.name)

    @property
    def refused(self) -> int:
        """Connections that were not let in, since the start."""
        return self._sockets.refused

    # -- the loop

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except Exception:  # a thread ends here: nothing of the cluster works without it
            logger.exception("peers crashed; this node is cut off from the cluster")
        finally:
            self._end()

    def _turn(self) -> None:
        now = self._clock()
        for event in self._sockets.wait(min(max(0.0, self._due() - now), IDLE_S)):
            self._hear(event)
        for watched in self._descriptors.ready():
            if not watched.cancelled:
                _call(watched.call)
        self._ring()
        for _ in range(len(self._posted)):  # what these post has to wait for the sockets
            _call(self._posted.popleft())
        now = self._clock()
        for each in list(self._outgoing.values()):
            self._follow(each, each.caller.poll(now), now)
        for link, incoming in list(self._incoming.items()):
            self._follow_incoming(link, incoming, incoming.engine.poll(now))
        self._send()

    def _due(self) -> float:
        """When there is something to do at the latest."""
        if self._posted:
            return -inf
        due = self._timers[0][0] if self._timers else inf
        waits = False
        for each in self._outgoing.values():
            due = min(due, each.caller.deadline)
            waits |= each.link is not None and each.caller.wants_to_send
        for incoming in self._incoming.values():
            due = min(due, incoming.engine.deadline)
            waits |= incoming.engine.wants_to_send
        return min(due, self._clock() + RETRY_S) if waits else due

    def _ring(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            _call(heappop(self._timers)[2].ring)

    def _hear(self, event: Arrived | Left) -> None:
        now = self._clock()
        link = event.link
        if not link.incoming:
            if each := self._by_link.get(link):
                engine = each.caller
                if isinstance(event, Arrived) and (plain := engine.plain(event.frames, now)):
                    if then := each.ends.pop(plain.request, None):
                        _call(partial(then, plain))
                    return
                self._follow(
                    each,
                    engine.received(event.frames, now)
                    if isinstance(event, Arrived)
                    else engine.lost(now, event.text),
                    now,
                )
        elif isinstance(event, Left):
            if gone := self._incoming.pop(link, None):
                gone.engine.close()
        else:
            incoming = self._incoming.get(link) or self._met(link, now)
            if incoming is not None and not incoming.ended:
                if isinstance(incoming.who, Peer) and incoming.engine.plain(
                    event.frames, now, self._answer_append
                ):
                    return
                events = incoming.engine.received(event.frames, now)
                self._follow_incoming(link, incoming, events)

    def _answer_append(self, theirs: int, mine: int, head: Buffer, records: Buffer) -> bytes | None:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return answer_append(
            *(self.appended_to, theirs, mine, head, records),
            *(time.time_ns(), boot_ns),
        )

    def _send(self) -> None:
        for each in self._outgoing.values():
            while each.link is not None and (frames := each.caller.take()) is not None:
                if not self._sockets.send(each.link, frames):
                    each.caller.put_back(frames)
                    break
                self.sent[kind_of(frames)] += size_of(frames)
        for link, incoming in self._incoming.items():
            engine = incoming.engine
            while (frames := engine.first()) is not None and self._sockets.send(link, frames):
                self.sent[kind_of(frames)] += size_of(frames)
                engine.take()

    def _end(self) -> None:
        """Last words, and nothing after them."""
        if self._stopped:
            return
        self._stopped = True
        now = self._clock()
        for each in list(self._outgoing.values()):
            self._part(each, now)
        for link, incoming in list(self._incoming.items()):
            incoming.engine.close()
            while (frames := incoming.engine.take()) is not None:
                self._sockets.send(link, frames)
        self._sockets.close()
        self._descriptors.close()

    # -- peers that we ask

    def _asking(self, peer: Peer, now: float) -> _Outgoing:
        me = self._me
        hello = m.Hello(me.node, me.cluster, VERSION, VERSION, int(m.FEATURES), 0, me.program)
        engine = Caller(peer.name, hello, peer.node, self.policy, _incarnation, random.random)
        return _Outgoing(peer, engine, now)

    def _follow(self, each: _Outgoing, events: list[caller.Event], now: float) -> None:
        for event in events:
            match event:
                case caller.Connect():
                    self._unlink(each)
                    each.tries += 1
                    try:
                        each.link = self._sockets.connect(each.address, each.peer.key)
                        self._by_link[each.link] = each
                    except TransportError as error:
                        self._follow(each, each.caller.lost(now, str(error)), now)
                case caller.Answered(number) | caller.Failed(number):
                    if then := each.ends.pop(number, None):
                        _call(partial(then, event))
                    continue
                case caller.Up():
                    each.up, each.since = True, now
                    logger.info("peer connected", extra=_facts(each))
                case caller.Down(reason, text):
                    if each.link is not None and reason is not Reason.CLOSED:
                        self._unlink(each)
                    self._note_down(each, reason, text, now)
            for watcher in self._watchers:
                _call(partial(watcher, each.peer, event))

    def _note_down(self, each: _Outgoing, reason: Reason, text: str, now: float) -> None:
        if each.up or each.tries == 1:  # not each try of many
            facts = {**_facts(each), "reason": str(reason), "text": text}
            logger.info("peer not connected", extra=facts)
        if each.up:
            each.up, each.since = False, now

    def _unlink(self, each: _Outgoing, *, last_word: bool = False) -> None:
        if each.link is not None:
            del self._by_link[each.link]
            self._sockets.drop(each.link, last_word=last_word)
            each.link = None

    def _part(self, each: _Outgoing, now: float) -> None:
        """Ask it no more: every request ends."""
        self._outgoing.pop(each.peer.node, None)
        self._follow(each, each.caller.close(now), now)
        if each.link is not None:
            while (frames := each.caller.take()) is not None:
                self._sockets.send(each.link, frames)
        self._unlink(each, last_word=True)

    # -- who asks us

    def _gate(self, key: bytes) -> bool | None:
        if self._who(key) is not None:
            return True
        if self._ask_gate is None:
            return False
        self._ask_gate(key)
        return None

    def _who(self, key: bytes) -> Peer | Guest | None:
        return self._peers.get(key) or self._guests.get(key)

    def _met(self, link: Link, now: float) -> _Incoming | None:
        """A connection that says something for the first time; None when it has to go."""
        who = self._who(link.key)
        if who is None:  # it was removed after it came through the gate
            self._sockets.drop(link)
            return None
        me = self._me
        welcome = m.Welcome(
            *(me.node, me.cluster, VERSION, int(m.FEATURES)),
            *(self.policy.requests, self.policy.request_bytes, me.program),
        )

        def judge(hello: m.Hello) -> m.Error | None:
            if hello.cluster != me.cluster:
                return error(m.Code.CLUSTER, f"this is cluster {me.cluster.hex()}")
            if isinstance(who, Peer) and hello.node != who.node:
                return error(m.Code.NODE, f"its key is that of node {who.node.hex()}")
            return None

        engine = Answerer(welcome, judge, self.policy, _incarnation(), now)
        self._incoming[link] = _Incoming(who, engine)
        return self._incoming[link]

    def _follow_incoming(
        self, link: Link, incoming: _Incoming, events: list[answerer.Event]
    ) -> None:
        for event in events:
            match event:
                case answerer.Opened():
                    self._replace_older(link, incoming)
                    self._hurry(incoming.who)
                case answerer.Asked(number, message):
                    self._asked(incoming, number, message)
                case answerer.Ended(reason, text):
                    incoming.ended = True
                    who = incoming.who.name if isinstance(incoming.who, Peer) else "a guest"
                    facts = {"peer": who, "reason": str(reason), "text": text}
                    logger.info("peer asks no more", extra=facts)
                    self.after(LAST_WORD_S, lambda: self._hang_up(link))

    def _replace_older(self, link: Link, incoming: _Incoming) -> None:
        """Who greets anew has given up its older session: it has restarted, or lost it."""
        for other, each in list(self._incoming.items()):
            if other is not link and each.who == incoming.who and isinstance(each.who, Peer):
                self._send_away(other, each)

    def _hurry(self, who: Peer | Guest) -> None:
        """Who has connected can be connected to."""
        if isinstance(who, Peer) and (outgoing := self._outgoing.get(who.node)):
            outgoing.caller.hurry(self._clock())

    def _send_away(self, link: Link, incoming: _Incoming) -> None:
        self._follow_incoming(link, incoming, incoming.engine.close())

    def _hang_up(self, link: Link) -> None:
        if self._incoming.pop(link, None) is not None:
            self._sockets.drop(link)

    def _asked(self, incoming: _Incoming, number: int, message: m.Request) -> None:
        def answer(reply: Message) -> None:
            if threading.current_thread() is self._thread:
                incoming.engine.answer(number, reply)
            else:
                self.post(lambda: answer(reply))

        handler, guests = self._handlers.get(type(message), (None, False))
        name = type(message).__name__
        if handler is None:
            answer(error(m.Code.UNKNOWN, f"this node does not do {name}"))
        elif guests != isinstance(incoming.who, Guest):
            answer(error(m.Code.REFUSED, f"{name} is not for who has this key"))
        else:
            try:
                handler(incoming.who, message, answer)
            except Exception as problem:  # of one request; the session goes on
                logger.exception("request of a peer failed", extra={"request": name})
                answer(error(m.Code.FAILED, f"{type(problem).__name__}: {problem}"))


def waited(future: Future[T], timeout_s: float) -> T:
    """What the sessions' thread sets; for threads that may wait. TransportError: it has not."""
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.done():  # it is what was set
            raise
        raise TransportError(
            f"this node's sessions have not answered within {timeout_s:g} s; `blockd cluster "
            "status` shows how far it is"
        ) from None


def error(code: m.Code, text: str, detail: int = 0) -> m.Error:
    """An ERROR, its text cut to what fits."""
    cut = text.encode(errors="replace")[:MAX_ERROR_BYTES].decode(errors="ignore")
    return m.Error(code, detail, cut)


def _call(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:  # whoever left it here is not here; the sessions go on
        logger.exception("call on the peers' thread failed")


def _why(engine: Caller) -> str:
    down = engine.last
    return "" if engine.open or down is None else f"{down.reason}: {down.text}"


def _facts(each: _Outgoing) -> dict[str, str]:
    return {"peer": each.peer.name, "node": each.peer.node.hex(), "address": each.address}


def _incarnation() -> int:
    return secrets.randbelow((1 << 64) - 1) + 1
