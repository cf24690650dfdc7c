"""What parts of volumes call, for tests that say when each of it is done."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from transport.group.around import synced
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from volume.replica import Replica

T = TypeVar("T")


class Watched:
    def cancel(self) -> None:
        pass


@dataclass
class Around:
    """Everything is kept, and done when a test says so."""

    now: float = 1.0
    asked: deque[tuple[bytes, m.Request, Callable[[Answered | Failed], None]]] = field(
        default_factory=deque
    )
    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    works: deque[Callable[[], None]] = field(default_factory=deque)
    stores: deque[Callable[[], None]] = field(default_factory=deque)
    taps: list[Callable[[], None]] = field(default_factory=list)

    def ask(
        self,
        node: bytes,
        message: m.Request,
        timeout_s: float,
        then: Callable[[Answered | Failed], None],
    ) -> None:
        self.asked.append((node, message, then))

    def features(self, node: bytes) -> int:
        return 0

    def after(self, delay_s: float, call: Callable[[], None]) -> Watched:
        self.timers.append((delay_s, call))
        return Watched()

    def post(self, call: Callable[[], None]) -> None:
        raise AssertionError("nothing is posted")

    def clock(self) -> float:
        return self.now

    def random(self) -> float:
        return 0.5

    def work(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self.works.append(lambda: then(call()))

    def sync(self, replica: Replica, then: Callable[[int | Exception], None]) -> None:
        self.work(lambda: synced(replica), then)

    def ask_store(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self.stores.append(lambda: then(call()))

    def watch_tap(self, descriptor: int, call: Callable[[], None]) -> Watched:
        self.taps.append(call)
        return Watched()
