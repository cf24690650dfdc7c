"""NBD clients of the request loop get what the Python engine gives: same requests, same replies."""

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from blockd.access.book import Everybody
from blockd.config import ServeConfig, StoreConfig, TcpAddress
from blockd.listener import NbdListener
from blockd.nbd import wire
from blockd.request_loop import RequestLoop
from blockd.scheduler import LoopScheduler
from blockd.wiring import open_store
from tests.daemon import JOURNAL_BYTES
from tests.fakes import FakePolicies
from tests.nbd_client import NbdClient, in_transmission
from tests.served import TIMEOUT_S, OnLoop, loop_in_thread
from volume.store import Store

SIZE = 1 << 20
SLOT = 64 << 10
KINDS = ("simple", "structured", "extended")
WINDOWS = 12
Request = tuple[int, int, int, int, bytes]  # command, offset, length, flags, payload


class Server(OnLoop):
    """One store; `vol-a` is for the listener without a request loop, `vol-b` for the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, size: int = SIZE) -> None:
        super().__init__(loop)
        self.folder = folder
        folder.mkdir()
        config = ServeConfig(data=folder, store=StoreConfig(JOURNAL_BYTES))
        store = open_store(config, LoopScheduler(loop))
        assert isinstance(store, Store)
        self.store = store
        for name in ("vol-a", "vol-b"):
            store.create_volume(name, size)
        self.request_loop = RequestLoop(2)
        self.plain = self._listener(None)
        self.looped = self._listener(self.request_loop)
        self.begin(self._start()).result(TIMEOUT_S)

    def _listener(self, request_loop: RequestLoop | None) -> NbdListener:
        return NbdListener(
            self.store,
            FakePolicies({}),
            Everybody(),
            tcp=[TcpAddress("127.0.0.1", 0)],
            request_loop=request_loop,
        )

    async def _start(self) -> None:
        self.request_loop.start()
        await self.plain.start()
        await self.looped.start()

    def stop(self) -> None:
        self.begin(self._stop()).result(2 * TIMEOUT_S)
        self.store.close()

    async def _stop(self) -> None:
        await self.plain.stop(0.0)
        await self.looped.stop(0.0)
        await self.request_loop.stop()

    def client(self, listener: NbdListener, volume: str, kind: str = "simple") -> NbdClient:
        return in_transmission(listener.addresses[0], volume, kind)

    def until_in_loop(self) -> None:
        """Wait until the request loop serves every client of its listener."""
        self.until(lambda: all(client._served is not None for client in self.looped._clients))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with loop_in_thread(uvloop.new_event_loop()) as loop:
        server = Server(loop, tmp_path / "store")
        try:
            yield server
        finally:
            server.stop()


def draw(rng: random.Random, start: int) -> Request:
    """A request, good or bad, that changes nothing outside of [start, start + SLOT)."""
    length = rng.choice((1, 511, 512, 4096, 4097, 16384, SLOT // 2))
    offset = start + rng.randrange(0, SLOT // 2, rng.choice((1, 512, 4096)))
    fua = rng.choice((0, wire.CMD_FLAG_FUA))
    what = rng.randrange(16)
    if what < 5:
        return wire.CMD_WRITE, offset, length, fua, rng.randbytes(length)
    if what < 9:
        return wire.CMD_READ, offset, length, 0, b""
    if what == 9:
        return wire.CMD_FLUSH, 0, 0, 0, b""
    if what == 10:
        return wire.CMD_TRIM, offset, length, fua, b""
    if what == 11:
        flags = rng.choice((0, wire.CMD_FLAG_NO_HOLE, wire.CMD_FLAG_FAST_ZERO))
        return wire.CMD_WRITE_ZEROES, offset, length, flags | fua, b""
    if what == 12:  # beyond the end, with its payload
        return wire.CMD_WRITE, SIZE - 1, length + 1, 0, bytes(length + 1)
    if what == 13:
        return wire.CMD_READ, SIZE - 1, length + 1, 0, b""
    if what == 14:
        return wire.CMD_CACHE, offset, length, 0, b""
    return 99, offset, length, 0, b""


def ask(client: NbdClient, rng: random.Random, window: list[Request]) -> dict[int, object]:
    """Send all of `window` in pieces; what was answered, by cookie."""
    encoded = b"".join(
        client.prepare(command, offset, length, flags, payload, cookie)[0]
        for cookie, (command, offset, length, flags, payload) in enumerate(window)
    )

    def send() -> None:
        at = 0
        while at < len(encoded):
            piece = rng.choice((1, 27, 28, 33, 4096, len(encoded)))
            client.send_raw(encoded[at : at + piece])
            at += piece

    sender = threading.Thread(target=send)
    sender.start()
    answers: dict[int, object] = {}
    for _ in window:
        reply = client.read_reply()
        text = reply.message.replace("vol-b", "vol-a")
        answers[reply.cookie] = (reply.error, text, reply.data)
    sender.join()
    return answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_requests_are_answered_as_by_the_engine(server: Server, kind: str, seed: int) -> None:
    rng = random.Random(f"{kind} {seed}")
    with (
        server.client(server.plain, "vol-a", kind) as plain,
        server.client(server.looped, "vol-b", kind) as looped,
    ):
        for number in range(WINDOWS):
            slots = rng.sample(range(SIZE // SLOT - 1), 12)
            window = [draw(rng, slot * SLOT) for slot in slots]
            expected = ask(plain, rng, window)
            assert ask(looped, rng, window) == expected, f"window {number}: {window}"
            server.until_in_loop()
        assert looped.read(0, SIZE) == plain.read(0, SIZE)
        stats = [server.on_loop(each.connections)[0] for each in (server.plain, server.looped)]
        assert len({(info.read_count, info.read_bytes) for info in stats}) == 1
        assert len({(info.write_count, info.write_bytes) for info in stats}) == 1


def test_a_write_of_which_a_part_came_is_not_applied(server: Server) -> None:
    with server.client(server.looped, "vol-b") as client:
        client.write(0, b"a" * 4096)
        server.until_in_loop()
        client.send_raw(client.prepare(wire.CMD_WRITE, 0, 4096, payload=b"b" * 4096)[0][:-1])
    server.until(lambda: not server.looped.connections())
    with server.client(server.looped, "vol-b") as client:
        assert client.read(0, 4096) == b"a" * 4096


def test_whoever_disconnects_gets_all_replies_first(server: Server) -> None:
    with server.client(server.looped, "vol-b") as client:
        client.write(0, b"a" * SLOT)
        server.until_in_loop()
        parts = [client.prepare(wire.CMD_READ, 0, SLOT)[0] for _ in range(200)]
        write = client.prepare(wire.CMD_WRITE, SLOT, 1, wire.CMD_FLAG_FUA, b"b")[0]
        client.send_raw(b"".join((*parts, write, client.prepare(wire.CMD_DISC)[0])))
        for _ in range(201):
            reply = client.read_reply()
            assert reply.error == 0
            assert reply.data in (None, b"a" * SLOT)
        assert client.socket.recv(1) == b""
