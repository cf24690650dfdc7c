"""I4: kill -9 in mid-write loses no acknowledged write, and tears no sector (I5).

Each of 30 rounds keeps 32 commands in flight, kills the daemon after a random number of replies,
reads the replies that it had still sent, starts it again and looks at every sector of the volume.
A sector must hold what the last acknowledged command made of it, or what the one unanswered command
on it would have made; commands in flight do not overlap, so there is at most one. What was found is
what the next rounds go on from: it may not change any more.
"""

import contextlib
import random
import struct
from dataclasses import dataclass

from tests.daemon import Daemon, StartDaemon
from tests.integration.pipelined import (
    FLUSH,
    FUA,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    PipelinedClient,
    ServerGone,
)

ROUNDS = 30
IN_FLIGHT = 32
SECTOR = 512
SECTORS = (16 << 20) // SECTOR
MAX_SECTORS = 64  # 32 KiB in one command
STAMP = struct.Struct("<QQ")
COMMANDS = (WRITE, WRITE, WRITE, WRITE, WRITE, WRITE_ZEROES, TRIM, FLUSH)


@dataclass(frozen=True, slots=True)
class Command:
    kind: int
    first: int
    count: int
    content: bytes
    """What the sectors hold afterwards."""


class Writer:
    """Makes random commands and knows what the volume must hold."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.image = bytearray(SECTORS * SECTOR)
        self.in_flight: dict[int, Command] = {}
        self._number = 0

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
        assert error == 0
        command = self.in_flight.pop(cookie)
        start = command.first * SECTOR
        self.image[start : start + len(command.content)] = command.content

    def settle(self, found: bytes) -> None:
        """Check `found`, the whole volume after a crash, and go on from it."""
        possible = {
            command.first + index: command.content[index * SECTOR : (index + 1) * SECTOR]
            for command in self.in_flight.values()
            for index in range(command.count)
        }
        for sector in range(SECTORS):
            at = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if found[at] != self.image[at] and found[at] != possible.get(sector):
                raise AssertionError(self._complaint(sector, found[at]))
        self.image[:] = found
        self.in_flight.clear()

    def _complaint(self, sector: int, found: bytes) -> str:
        expected = STAMP.unpack_from(self.image, sector * SECTOR)
        torn = found != found[: STAMP.size] * (SECTOR // STAMP.size)
        return (
            f"sector {sector}: command and sector {STAMP.unpack_from(found)}"
            f"{', torn' if torn else ''}; the last acknowledged was {expected}"
        )

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
            first = self.rng.randrange(SECTORS - count)
            if not any(
                first < other.first + other.count and other.first < first + count
                for other in self.in_flight.values()
            ):
                return first, count


def crash_in_mid_write(server: Daemon, writer: Writer) -> None:
    """Fill the pipeline, kill the daemon after some replies, and take those that it had sent."""
    kill_after = writer.rng.randrange(1, 1500)
    with PipelinedClient(server.host_port, "demo") as client:
        for _ in range(IN_FLIGHT):
            writer.send_one(client)
        for _ in range(kill_after):
            writer.take_reply(client)
            writer.send_one(client)
        server.kill()
        with contextlib.suppress(ServerGone):
            while True:
                writer.take_reply(client)


def whole_volume(server: Daemon) -> bytes:
    step = 4 << 20
    with PipelinedClient(server.host_port, "demo") as client:
        assert client.size == SECTORS * SECTOR
        return b"".join(client.read(at, step) for at in range(0, client.size, step))


def test_no_acknowledged_write_is_lost_by_kill_9(daemon: StartDaemon) -> None:
    server = daemon("--volume", f"demo={SECTORS * SECTOR}")
    writer = Writer(seed=7)
    for _ in range(ROUNDS):
        crash_in_mid_write(server, writer)
        server.start()
        writer.settle(whole_volume(server))
