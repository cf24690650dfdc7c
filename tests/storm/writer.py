"""Random commands on one volume, many in flight, whose sectors say which command wrote them.

Commands in flight never overlap. So after a crash each sector must hold what the last acknowledged
command made of it, or what the one unanswered command on it would have made: anything else is a
lost write (I4), a torn sector (I5) or somebody else's bytes (I8).
"""

import contextlib
import random
import struct
from dataclasses import dataclass

from tests.integration.pipelined import (
    FLUSH,
    FUA,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    PipelinedClient,
    ServerGone,
)

SECTOR = 512
MAX_SECTORS = 64  # 32 KiB in one command
STAMP = struct.Struct("<QQ")
COMMANDS = (WRITE, WRITE, WRITE, WRITE, WRITE, WRITE_ZEROES, TRIM, FLUSH)


class Mismatch(AssertionError):
    """The daemon broke a promise: not a consequence of its death."""


@dataclass(frozen=True, slots=True)
class Command:
    kind: int
    first: int
    count: int
    content: bytes
    """What the sectors hold afterwards."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a snapshot of the volume may hold, sector by sector: what was acknowledged when it was
    asked for, or what a command in flight would have made of it."""

    image: bytes
    possible: dict[int, bytes]

    def check(self, name: str, found: bytes) -> None:
        """Raise Mismatch unless `found` is one of these states."""
        if len(found) != len(self.image):
            raise Mismatch(f"{name}: {len(found)} bytes instead of {len(self.image)}")
        for sector in range(len(self.image) // SECTOR):
            at = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if found[at] != self.image[at] and found[at] != self.possible.get(sector):
                raise Mismatch(f"{name}, {self._complaint(sector, found[at])}")

    def _complaint(self, sector: int, found: bytes) -> str:
        expected = STAMP.unpack_from(self.image, sector * SECTOR)
        torn = found != found[: STAMP.size] * (SECTOR // STAMP.size)
        return (
            f"sector {sector}: command and sector {STAMP.unpack_from(found)}"
            f"{', torn' if torn else ''}; the last acknowledged was {expected}"
        )


class Writer:
    """Makes random commands and knows what a volume of `sectors` must hold."""

    def __init__(self, seed: int, sectors: int) -> None:
        self.rng = random.Random(seed)
        self.sectors = sectors
        self.image = bytearray(sectors * SECTOR)
        self.in_flight: dict[int, Command] = {}
        self.acknowledged = 0
        self._number = 0

    def fill(self, client: PipelinedClient, in_flight: int) -> None:
        """Send until so many commands are in flight."""
        while len(self.in_flight) < in_flight:
            self.send_one(client)

    def send_one(self, client: PipelinedClient) -> None:
        self._number += 1
        command = self._random_command()
        self.in_flight[self._number] = command
        payload = command.content if command.kind == WRITE else b""
        flags = FUA if command.kind == WRITE and self.rng.random() < 0.05 else 0
        offset, length = command.first * SECTOR, command.count * SECTOR
        client.send(command.kind, self._number, offset, length, payload, flags)

    def take_reply(self, client: PipelinedClient) -> None:
        cookie, error = client.reply()
        if error:
            raise Mismatch(f"command {cookie} failed with error {error}")
        command = self.in_flight.pop(cookie)
        start = command.first * SECTOR
        self.image[start : start + len(command.content)] = command.content
        self.acknowledged += 1

    def drain(self, client: PipelinedClient) -> None:
        """Take the replies that the server had still sent, or all if it lives."""
        with contextlib.suppress(ServerGone):
            while self.in_flight:
                self.take_reply(client)

    def frozen(self) -> Frozen:
        """What the volume may hold now."""
        possible = {
            command.first + index: command.content[index * SECTOR : (index + 1) * SECTOR]
            for command in self.in_flight.values()
            for index in range(command.count)
        }
        return Frozen(bytes(self.image), possible)

    def settle(self, found: bytes) -> None:
        """Check `found`, the whole volume after a crash, and go on from it: it may not change any
        more by itself."""
        self.frozen().check("volume", found)
        self.image[:] = found
        self.in_flight.clear()

    def _random_command(self) -> Command:
        kind = self.rng.choice(COMMANDS)
        if kind == FLUSH:
            return Command(FLUSH, 0, 0, b"")
        first, count = self._free_range()
        if kind != WRITE:
            return Command(kind, first, count, bytes(count * SECTOR))
        stamps = (STAMP.pack(self._number, first + index) for index in range(count))
        content = b"".join(stamp * (SECTOR // STAMP.size) for stamp in stamps)
        return Command(WRITE, first, count, content)

    def _free_range(self) -> tuple[int, int]:
        while True:
            count = self.rng.choice((1, 2, 7, 8, 8, 8, 16, MAX_SECTORS))
            first = self.rng.randrange(self.sectors - count)
            if not any(
                first < other.first + other.count and other.first < first + count
                for other in self.in_flight.values()
            ):
                return first, count
