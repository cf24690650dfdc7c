"""Clients of a world: each is a thread that talks to the daemon and tells the ledger what it hears.

A client sends a few requests at once and takes their replies, in whatever order they come. What it
is answered is a promise, and what it reads must be one of the contents that the ledger allows; what
it is not answered, because the connection or the daemon is gone, may have happened or not.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from blockd.nbd import wire
from tests.nbd_client import Reply, Session
from tests.sim.world.ledger import Ledger, VolumeLedger
from tests.sim.world.net import Link, Reset
from tests.sim.world.stamps import stamped
from tests.sim.world.threads import Threads
from volume.disk import SECTOR_SIZE

LENGTHS = (512, 512, 1024, 4096, 4096, 4096, 8192, 20480)
GONE = (Reset, EOFError, ConnectionRefusedError)
"""What a client finds when the other side is not there any more."""
OUTSIDE = (wire.EINVAL, wire.ENOSPC)
"""Errors of what is past the end, when a volume has shrunk."""


class Surroundings(Protocol):
    """What a client needs of its world."""

    run: Threads
    ledger: Ledger

    def connect(self, port: int) -> Link: ...
    def note(self, what: str) -> None: ...
    def failed(self, client: str, what: str, error: int) -> None:
        """A request was answered with an error."""


class Client(Protocol):
    """What a world needs of a client."""

    def act(self, kind: str, rng: random.Random) -> None:
        """Do one thing. One of GONE when the other side goes."""

    def lost(self) -> None:
        """The connection is gone."""


@dataclass(slots=True)
class Asked:
    """A request that is under way."""

    kind: str
    offset: int = 0
    length: int = 0
    write: int = 0
    durable: bool = False
    since: int = 0
    """Position of the log, or what had been acked, when it was sent."""
    floors: list[int] = field(default_factory=list)
    generation: int = 0


def drawn_range(rng: random.Random, size: int) -> tuple[int, int]:
    length = min(rng.choice(LENGTHS), size)
    step = 4096 if length >= 4096 and rng.random() < 0.6 else SECTOR_SIZE
    return rng.randrange(0, size - length + 1, step), length


def drawn_requests(rng: random.Random, size: int, ledger: Ledger) -> list[Asked]:
    found = []
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        offset, length = drawn_range(rng, size)
        kind = rng.choices(("write", "read", "trim", "zero", "flush"), (50, 25, 8, 8, 9))[0]
        if kind == "flush":
            offset = length = 0
        durable = kind in ("write", "trim", "zero") and rng.random() < 0.1
        asked = Asked(kind, offset, length, durable=durable)
        if kind == "write":
            asked.write = ledger.new_write()
        found.append(asked)
    return found


def begin(asked: Asked, volume: VolumeLedger, ledger: Ledger) -> None:
    """It is sent now."""
    asked.since = ledger.acked if asked.kind == "flush" else ledger.position
    asked.generation = volume.generation
    if asked.kind == "read":
        asked.floors = ledger.floors(volume, asked.offset, asked.length)


def succeeded(asked: Asked, volume: VolumeLedger, ledger: Ledger, data: bytes) -> None:
    """Its answer is here: hold the store to it."""
    if asked.kind == "write":
        ledger.write_acked(volume, asked.write, asked.offset, asked.length, asked.durable)
    elif asked.kind in ("trim", "zero"):
        ledger.zero_acked(volume, asked.offset, asked.length, asked.since, asked.durable)
    elif asked.kind == "flush":
        ledger.flush_acked(asked.since)
    elif asked.generation == volume.generation:
        ledger.check_read(volume, asked.offset, data, asked.floors)


class NbdClient:
    """One NBD client of one volume."""

    COMMANDS: ClassVar = {
        "write": wire.CMD_WRITE,
        "read": wire.CMD_READ,
        "trim": wire.CMD_TRIM,
        "zero": wire.CMD_WRITE_ZEROES,
        "flush": wire.CMD_FLUSH,
    }

    def __init__(self, world: Surroundings, name: str, volume: str, port: int) -> None:
        self.name = name
        self._world = world
        self._volume = volume
        self._port = port
        self._link: Link | None = None
        self._session: Session

    def act(self, kind: str, rng: random.Random) -> None:
        link = self._link or self._open(rng)
        link.hope()
        if kind == "leave":
            self.close()
            return
        waiting = self._send(rng)
        if kind == "vanish":
            self._end(lambda link: link.abort())
            return
        if kind == "dawdle":
            self._world.run.sleep(0.05 + rng.random() * 0.4)
        if rng.random() < 0.02:
            assert self._link is not None
            self._link.shut()
        while waiting:
            self._take(waiting, self._session.read_reply())

    def lost(self) -> None:
        """The connection is gone."""
        self._end(lambda link: link.abort())

    def _end(self, how: Callable[[Link], None]) -> None:
        link, self._link = self._link, None
        if link is not None:
            how(link)

    def _open(self, rng: random.Random) -> Link:
        self._link = link = self._world.connect(self._port)
        self._session = session = Session(link.send, link.take)
        session.greet()
        if rng.random() < 0.5:
            session.extended_headers()
        elif rng.random() < 0.7:
            session.structured_reply()
        session.go(self._volume)
        return link

    def close(self) -> None:
        """Go, politely."""
        if self._link is not None:
            self._session.send_disconnect()
            self._end(lambda link: link.shut())

    def _send(self, rng: random.Random) -> dict[int, Asked]:
        ledger = self._world.ledger
        volume = ledger.by_name[self._volume]
        waiting: dict[int, Asked] = {}
        sent = bytearray()
        size = min(volume.size, self._session.info.size)
        for asked in drawn_requests(rng, size, ledger):
            payload = b""
            if asked.kind == "write":
                first, count = asked.offset // SECTOR_SIZE, asked.length // SECTOR_SIZE
                payload = stamped(asked.write, volume.tag, first, count)
            begin(asked, volume, ledger)
            encoded, cookie = self._session.prepare(
                self.COMMANDS[asked.kind],
                *(asked.offset, asked.length),
                wire.CMD_FLAG_FUA if asked.durable else 0,
                payload,
            )
            waiting[cookie] = asked
            sent += encoded
        self._session.send_raw(bytes(sent))
        return waiting

    def _take(self, waiting: dict[int, Asked], reply: Reply) -> None:
        asked = waiting.pop(reply.cookie)
        self._world.note(f"{self.name} {asked.kind} {asked.offset}+{asked.length} {reply.error}")
        ledger = self._world.ledger
        volume = ledger.by_name[self._volume]
        if not reply.error:
            succeeded(asked, volume, ledger, reply.data or b"")
        elif reply.error == wire.ESHUTDOWN:
            raise Reset  # the volume has another head, or goes: look for it again
        elif reply.error not in OUTSIDE or asked.offset + asked.length <= volume.size:
            self._world.failed(self.name, asked.kind, reply.error)
