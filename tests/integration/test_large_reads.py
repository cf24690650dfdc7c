"""Large reads of chunks at rest send pages of packs: same replies as the Python engine's."""

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from blockd.nbd import wire
from native import spliced_bytes
from tests.integration.test_request_loop import KINDS, Request, Server, ask
from tests.served import loop_in_thread

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB
BLOCK = 4 * KIB


class AtRest(Server):
    """What `vol-a` has is in packs: most chunks raw, some packed, some raw with blocks of zeros,
    some holes; `content` has the same bytes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        super().__init__(loop, folder, SIZE)
        self.rng = random.Random(1)
        self.content = bytearray(self.rng.randbytes(SIZE))
        for start in range(0, SIZE, MIB):
            packed, holes, sparse = start + 128 * KIB, start + 256 * KIB, start + 448 * KIB
            self.content[packed : packed + 64 * KIB] = b"packed  " * (8 * KIB)
            self.content[holes : holes + 64 * KIB] = bytes(64 * KIB)
            self.content[sparse + BLOCK : sparse + 2 * BLOCK] = bytes(BLOCK)
        with self.client(self.plain, "vol-a") as client:
            for at in range(0, SIZE, MIB):
                client.write(at, bytes(self.content[at : at + MIB]))
        self.store.destage()

    def packs(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("packs/**/*") if path.is_file())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AtRest]:
    with loop_in_thread(uvloop.new_event_loop()) as loop:
        server = AtRest(loop, tmp_path_factory.mktemp("large") / "store")
        try:
            yield server
        finally:
            server.stop()


def draw(rng: random.Random) -> Request:
    unit = rng.choice((1, 512, BLOCK, BLOCK, 64 * KIB))
    most = rng.choice((16 * KIB, 64 * KIB, 256 * KIB, MIB, MIB, 2 * MIB))
    length = rng.randrange(unit, max(most, unit) + 1, unit)
    return wire.CMD_READ, rng.randrange(0, SIZE - length + 1, unit), length, 0, b""


@pytest.mark.parametrize("kind", KINDS)
def test_large_reads_are_answered_as_by_the_engine(server: AtRest, kind: str) -> None:
    rng = random.Random(kind)
    before = spliced_bytes()
    with (
        server.client(server.plain, "vol-a", kind) as plain,
        server.client(server.looped, "vol-a", kind) as looped,
    ):
        server.until_in_loop()
        for number in range(6):
            for _ in range(number):  # and some of it is in the journal
                at = rng.randrange(0, SIZE - BLOCK, 512)
                server.content[at : at + BLOCK] = data = rng.randbytes(BLOCK)
                plain.write(at, data)
            window = [draw(rng) for _ in range(12)]
            answers = ask(looped, rng, window)
            assert answers == ask(plain, rng, window), f"window {number}: {window}"
            for cookie, (_, offset, length, _, _) in enumerate(window):
                assert answers[cookie] == (0, "", bytes(server.content[offset : offset + length]))
    assert spliced_bytes() - before > MIB


def test_who_leaves_in_the_middle_of_a_reply_costs_others_nothing(server: AtRest) -> None:
    with server.client(server.looped, "vol-a") as stays:
        for _ in range(20):
            with server.client(server.looped, "vol-a") as leaves:
                server.until_in_loop()
                requests = [
                    leaves.prepare(wire.CMD_READ, at, MIB)[0] for at in range(0, MIB, BLOCK)
                ]
                leaves.send_raw(b"".join(requests[:64]))
                leaves.socket.recv(100_000)
            assert stays.read(MIB, MIB) == server.content[MIB : 2 * MIB]
    descriptors = len(os.listdir("/proc/self/fd"))
    server.until(lambda: not server.looped.connections())
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_error_and_no_bytes(tmp_path: Path, kind: str) -> None:
    with loop_in_thread(uvloop.new_event_loop()) as loop:
        server = AtRest(loop, tmp_path / "store")
        try:
            with server.client(server.looped, "vol-a", kind) as client:
                server.until_in_loop()
                assert client.read(0, MIB) == server.content[:MIB]  # it is mapped from now on
                needle = bytes(server.content[16 * KIB : 17 * KIB])
                found = [(path, path.read_bytes().find(needle)) for path in server.packs()]
                ((path, at),) = [(path, at) for path, at in found if at >= 0]
                with path.open("r+b") as pack:
                    pack.seek(at)
                    pack.write(bytes([needle[0] ^ 1]))
                client.send_request(wire.CMD_READ, 0, MIB)
                reply = client.read_reply()
                assert (reply.error, reply.data) == (wire.EIO, None)
                assert client.read(MIB, MIB) == server.content[MIB : 2 * MIB]
        finally:
            server.stop()


def test_a_pack_that_is_cut_short_under_reads_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """Nobody but a person does that; to look at a page that is gone ends a process by SIGBUS."""
    with loop_in_thread(uvloop.new_event_loop()) as loop:
        server = AtRest(loop, tmp_path / "store")
        try:
            with server.client(server.looped, "vol-a", "structured") as client:
                server.until_in_loop()
                wanted = bytes(server.content[:MIB])
                cookies = [client.send_request(wire.CMD_READ, 0, MIB) for _ in range(48)]
                seen: dict[int, int] = {}
                for number in range(48):
                    if number == 8:
                        for path in server.packs():
                            os.truncate(path, BLOCK)
                    reply = client.read_reply()
                    seen[reply.cookie] = reply.error
                    assert reply.error in (0, wire.EIO)
                    if reply.error == 0 and number < 8:
                        assert reply.data == wanted
                assert sorted(seen) == sorted(cookies)
                for at in (0, MIB):
                    client.send_request(wire.CMD_READ, at, MIB)
                    reply = client.read_reply()
                    assert (reply.error, reply.data) == (wire.EIO, None)
                client.write(0, b"new " * KIB)  # and goes on
                assert client.read(0, BLOCK) == b"new " * KIB
        finally:
            server.stop()
