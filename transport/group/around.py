"""What a part of a volume lives in: time, other nodes, threads that may wait. Real in the daemon
(`blockd.cluster`), simulated in tests."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.peer.wire import Message
from volume.replica import Replica

T = TypeVar("T")


class Timer(Protocol):
    def cancel(self) -> None: ...


class Around(Protocol):
    """All calls that are handed over come back on one thread, each once."""

    def ask(
        self,
        node: bytes,
        message: m.Request,
        timeout_s: float,
        then: Callable[[Answered | Failed], None],
    ) -> None:
        """Ask another node, as `Sessions.ask`. TransportError: nothing was asked."""

    def features(self, node: bytes) -> int:
        """What another node can do beyond the version (`messages.Feature`), as far as is known."""

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer: ...

    def post(self, call: Callable[[], None]) -> None:
        """Call on the thread; from any thread."""

    def clock(self) -> float:
        """CLOCK_BOOTTIME in seconds."""

    def random(self) -> float:
        """One of [0, 1)."""

    def work(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Do what waits for the disk."""

    def sync(self, replica: Replica, then: Callable[[int | Exception], None]) -> None:
        """`Replica.sync`; then the seq up to which its records are durable."""

    def ask_store(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Do what waits for the MetaStore."""

    def watch_tap(self, descriptor: int, call: Callable[[], None]) -> Timer:
        """Have `call` called when the eventfd of a tap is readable, until that is cancelled. Once
        after each time that it became so is enough."""


class Clients(Protocol):
    """Who uses volumes at this node. Called on the thread, but for `opening`; must not wait."""

    def opening(self, volume: bytes) -> None:
        """Clients are about to be let in: see that none goes by what held in an earlier epoch. Not
        on the thread; may wait, a few seconds. VolumeError, OSError: they are not let in."""

    def opened(self, volume: bytes, epoch: int) -> None:
        """This node is the volume's primary: clients may come."""

    def closed(self, volume: bytes, why: str) -> None:
        """It is no more: cut them off. Nothing that they asked is answered any more."""

    def deleted(self, volume: bytes) -> None:
        """The volume is there no more: let this node's part go. The part has ended."""


def synced(replica: Replica) -> int:
    """What `Around.sync` does, for a thread that may wait."""
    replica.sync()
    return replica.held[1]


def outcome(end: Answered | Failed) -> Message | str:
    """Of a request: the answer, an ERROR among them, or why there is none."""
    if isinstance(end, Answered):
        return end.message
    return end.text if end.error is None else end.error


def text_of(result: Message | str | Exception) -> str:
    """Why a request did not have the answer that it should have."""
    match result:
        case m.Error():
            return result.text or m.Code(result.code).name
        case str() | Exception():
            return str(result)
    return f"it answered {type(result).__name__}"
