"""Recording clients: several connections at work on one volume, over NBD and iSCSI, that note all
they do in a history.

Connections come and go; each keeps a few requests in flight, anywhere in the volume, so they meet
each other. When the server dies, every worker takes the replies that it had sent still, and waits:

    clients.quiet()         all workers wait; nothing is in flight, or the server is gone
    clients.go_on(...)      at these addresses
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.check.clients import Connection, Gone, IscsiConnection, NbdConnection
from tests.check.device import append_runs
from tests.check.events import FLUSH, FUA, READ, TRIM, WRITE, WRITES, ZERO, Recorder
from tests.check.stamps import SECTOR, Run, runs_of

KINDS: Final = (WRITE,) * 9 + (READ,) * 8 + (FLUSH, FUA, ZERO, TRIM)
COUNTS: Final = (1, 2, 7, 8, 8, 8, 8, 16, 33, 64)
"""Sectors of a request."""
DEPTH: Final = 6
LIFE: Final = (20, 400)
"""Requests of a connection."""
HOT: Final = 0.3
"""Share of requests that go to the first sixteenth of the volume, where they meet."""
STEP: Final = 2048  # sectors of one read of a whole volume
TURN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Addresses:
    nbd: tuple[str, int]
    iscsi: tuple[str, int] | None


class Pace:
    """At most so many requests per second, over all who ask; `take` waits."""

    def __init__(self, per_second: float) -> None:
        self._step_s = 1 / per_second
        self._next_s = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._next_s = max(self._next_s, now - 1.0) + self._step_s
            wait_s = self._next_s - now
        if wait_s > 0:
            time.sleep(wait_s)


class Clients:
    """Workers on threads; `count` connections at a time."""

    def __init__(self, recorder: Recorder, count: int, pace: Pace, seed: int) -> None:
        self.recorder = recorder
        self.failures: list[BaseException] = []
        """What ended workers that should not have ended."""
        self.connections = 0
        self._pace = pace
        self._changed = threading.Condition()
        self._addresses: Addresses | None = None
        self._stopping = False
        self._busy = count
        self._threads = [
            threading.Thread(target=self._work, args=(number, seed), name=f"recorded-{number}")
            for number in range(1, count + 1)
        ]
        for thread in self._threads:
            thread.start()

    def go_on(self, addresses: Addresses) -> None:
        """Let all workers attach there."""
        with self._changed:
            self._addresses = addresses
            self._changed.notify_all()

    def quiet(self) -> None:
        """Wait until all workers wait. They finish what is in flight, or see the server gone."""
        with self._changed:
            self._addresses = None
            done = self._changed.wait_for(lambda: self._busy == 0, TURN_S)
        assert done or self.failures, "recording clients did not come to rest"

    def stop(self) -> None:
        """End the workers."""
        with self._changed:
            self._stopping = True
            self._addresses = None
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, writer: int, seed: int) -> None:
        rng = random.Random(f"{seed}/{writer}")
        try:
            while (addresses := self._turn()) is not None:
                self._attach(writer, rng, addresses)
        except BaseException as error:
            self.failures.append(error)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _turn(self) -> Addresses | None:
        """Where to attach next; waits while nobody may. None: no more."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopping or self._addresses is not None)
            self._busy += 1
            return None if self._stopping else self._addresses

    def _attach(self, writer: int, rng: random.Random, addresses: Addresses) -> None:
        try:
            connection = connect(rng, addresses, self.recorder.header.volume)
        except Gone:
            time.sleep(0.01)  # it has been killed just now; `quiet` is about to be called
            return
        self.connections += 1
        try:
            session = _Session(self.recorder, connection, writer, rng)
            session.run(rng.randint(*LIFE), self._pace, lambda: self._addresses is addresses)
        finally:
            connection.close()


class _Session:
    """What one worker does on one connection."""

    def __init__(
        self, recorder: Recorder, connection: Connection, writer: int, rng: random.Random
    ) -> None:
        self._recorder = recorder
        self._connection = connection
        self._writer = writer
        self._rng = rng
        self._sectors = recorder.header.size // SECTOR
        self._sent: dict[int, tuple[str, int]] = {}  # operation -> kind, first sector

    def run(self, count: int, pace: Pace, wanted: Callable[[], bool]) -> None:
        """So many requests, while they are `wanted`; then all replies."""
        depth = self._rng.randint(1, DEPTH)
        try:
            while count and wanted():
                pace.take()
                self._send()
                count -= 1
                if len(self._sent) >= depth:
                    self._receive()
        except Gone:
            pass
        try:
            while self._sent:
                self._receive()
        except Gone:
            pass

    def _send(self) -> None:
        kind, first, count = _request(self._rng, self._sectors)
        operation = self._recorder.begin(self._writer, kind, first, count)
        data = b""
        if kind in WRITES:
            data = self._recorder.payload(self._writer, operation, first, count)
        self._sent[operation] = (kind, first)
        self._connection.send(operation, kind, first, count, data)

    def _receive(self) -> None:
        answer = self._connection.receive()
        kind, first = self._sent.pop(answer.tag)
        if kind == READ and not answer.error:
            self._recorder.saw(answer.tag, first, answer.data)
        else:
            self._recorder.end(answer.tag, answer.error)


def _request(rng: random.Random, sectors: int) -> tuple[str, int, int]:
    kind = rng.choice(KINDS)
    if kind == FLUSH:
        return kind, 0, 0
    count = rng.choice(COUNTS)
    room = max(sectors // 16, 2 * max(COUNTS)) if rng.random() < HOT else sectors
    first = rng.randrange(room - count)
    if count % 8 == 0:
        first = first // 8 * 8
    return kind, first, count


def connect(rng: random.Random, addresses: Addresses, volume: str) -> Connection:
    """Over either protocol. Raises Gone."""
    if addresses.iscsi is not None and rng.random() < 0.4:
        return IscsiConnection(addresses.iscsi, volume)
    return NbdConnection(addresses.nbd, volume)


def read_whole(address: tuple[str, int], export: str, size: int, history: int) -> list[Run]:
    """What a volume, or a version of it, consists of, over NBD. Raises Gone, OSError."""
    runs: list[Run] = []
    connection = NbdConnection(address, export)
    try:
        for first in range(0, size // SECTOR, STEP):
            count = min(STEP, size // SECTOR - first)
            connection.send(1, READ, first, count, b"")
            answer = connection.receive()
            if answer.error:
                raise OSError(answer.error, f"{export}: read of {count} sectors at {first}")
            append_runs(runs, runs_of(answer.data, first, history))
    finally:
        connection.close()
    return runs
