"""A store served over iSCSI in this process, with the request loop or without, and an initiator
that sends streams of commands and answers R2Ts."""

import asyncio
import random
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from blockd.access.book import Everybody
from blockd.config import IscsiConfig, ServeConfig, StoreConfig, parse_portal
from blockd.iscsi import pdu
from blockd.iscsi.connection import Connection
from blockd.iscsi.targets import IQN_PREFIX
from blockd.iscsi_listener import IscsiListener
from blockd.request_loop import RequestLoop
from blockd.scheduler import LoopScheduler
from blockd.wiring import make_iscsi, open_store, open_targets
from tests.daemon import JOURNAL_BYTES
from tests.fake_cluster import FakePaths
from tests.iscsi_initiator import ISID, NAME, Initiator, Pdu, World, parse
from tests.served import TIMEOUT_S, OnLoop, loop_in_thread
from volume.replica import Replica
from volume.store import Store

VOLUME: Final = "vm1"
UUID: Final = b"v" * 16
BLOCK: Final = 512
SIZE: Final = 1 << 20


class Server(OnLoop):
    """One store with one volume, and its listener; everything on the loop's thread but `store`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        *,
        threads: int,
        keepalive_s: float,
        mirrored: bool = False,
    ) -> None:
        """`mirrored`: other nodes have the volume, and the test says what (`replica`)."""
        super().__init__(loop)
        iscsi = IscsiConfig(listen=(parse_portal("127.0.0.1:0"),), keepalive_s=keepalive_s)
        config = ServeConfig(data=folder, iscsi=iscsi, store=StoreConfig(JOURNAL_BYTES))
        folder.mkdir(exist_ok=True)
        store = open_store(config, LoopScheduler(loop))
        assert isinstance(store, Store)
        self.store = store
        if mirrored:
            store.replicas.create(UUID, VOLUME, SIZE, BLOCK, 65536, 1)
        elif VOLUME not in [volume.name for volume in store.volumes()]:
            store.create_volume(VOLUME, SIZE)
        self.request_loop = RequestLoop(threads) if threads else None
        targets = open_targets(config, self.store)
        self.listener: IscsiListener = make_iscsi(
            config, targets, Everybody(), [], self.request_loop
        )
        if mirrored:
            paths = FakePaths()
            paths.are("serving")
            self.listener.follow(paths)
        self.begin(self._start()).result(TIMEOUT_S)

    async def _start(self) -> None:
        if self.request_loop is not None:
            self.request_loop.start()
        await self.listener.start()

    def stop(self, drain_s: float = TIMEOUT_S) -> None:
        self.begin(self._stop(drain_s)).result(2 * TIMEOUT_S)
        self.store.close()

    async def _stop(self, drain_s: float) -> None:
        for replica in self.store.replicas:
            replica.shut()
        await self.listener.stop(drain_s)
        if self.request_loop is not None:
            await self.request_loop.stop()

    @property
    def replica(self) -> Replica:
        found = self.store.replicas.get(UUID)
        assert found is not None
        return found

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.addresses[0].rsplit(":", 1)
        return host, int(port)

    def log_in(self, number: int = 1, keys: Mapping[str, str] | None = None) -> "Wire":
        """A session of initiator port `number`; `keys` beside the usual ones."""
        wire = Wire(self.address, number)
        wire.log_in(wire.first(TargetName=IQN_PREFIX + VOLUME, **(keys or {})))
        wire.settle()
        return wire

    def in_loop(self, number: int = 1, keys: Mapping[str, str] | None = None) -> "Wire":
        """A session that the request loop serves."""
        wire = self.log_in(number, keys)
        read_plainly(wire)
        self.until_elsewhere(wire)
        return wire

    def content(self, offset: int, length: int) -> bytes:
        """What the volume holds, read by another session."""
        with self.log_in(99) as wire:
            return wire.answer(wire.submit(read_10(offset, length), read=length)).data

    def engine(self, wire: "Wire") -> Connection:
        """The connection's engine; to be asked on the loop."""
        host, port = wire.socket.getsockname()
        (found,) = [
            client.engine
            for client in self.listener._clients
            if client.engine.peer == f"{host}:{port}"
        ]
        return found

    def elsewhere(self, wire: "Wire") -> bool:
        """Whether the request loop serves that session."""
        return self.on_loop(lambda: self.engine(wire).elsewhere)

    def until_elsewhere(self, wire: "Wire") -> None:
        self.until(lambda: self.engine(wire).elsewhere)

    def until_here(self, wire: "Wire") -> None:
        self.until(lambda: not self.engine(wire).elsewhere)


@contextmanager
def serving(
    folder: Path, *, threads: int = 1, keepalive_s: float = 30.0, mirrored: bool = False
) -> Iterator[Server]:
    with loop_in_thread(uvloop.new_event_loop()) as loop:
        server = Server(loop, folder, threads=threads, keepalive_s=keepalive_s, mirrored=mirrored)
        try:
            yield server
        finally:
            server.stop(0.0)


@dataclass
class Answer:
    """How a command ended."""

    status: int
    data: bytes
    sense: bytes
    residual: tuple[int, int]


@dataclass
class Asked:
    """A command on its way. `data` is what a WRITE has to send, of which `sent` bytes need no R2T;
    `piece` bytes go into a Data-Out."""

    data: bytes = b""
    piece: int = 8192
    parts: dict[int, bytes] = field(default_factory=dict)
    data_sn: int = 0


class Wire(Initiator):
    """An initiator on a socket: `submit` sends commands, `answers` waits for all of them."""

    def __init__(self, address: tuple[str, int], number: int) -> None:
        isid = ISID[:5] + bytes((number,))
        super().__init__(World(), name=f"{NAME}{number}", isid=isid)
        self.socket = socket.create_connection(address, timeout=TIMEOUT_S)
        self.max_recv = 8192
        self.asked: dict[int, Asked] = {}
        self.answered: dict[int, Answer] = {}
        self.others: list[Pdu] = []
        """What belongs to no command: NOP-In, task management responses, Reject."""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def feed(self, data: bytes, piece: int = 0) -> None:
        self.socket.sendall(data)

    def take(self) -> list[Pdu]:
        bhs = self._exactly(pdu.HEADER_BYTES)
        whole = bhs + self._exactly(pdu.DIGEST_BYTES * self.header_digest)
        length = int.from_bytes(bhs[5:8], "big")
        if length:
            whole += self._exactly(pdu.padded(length) + pdu.DIGEST_BYTES * self.data_digest)
        return parse(whole, header_digest=self.header_digest, data_digest=self.data_digest)

    def _exactly(self, length: int) -> bytes:
        got = bytearray()
        while len(got) < length:
            piece = self.socket.recv(length - len(got))
            if not piece:
                raise ConnectionError(f"closed after {len(got)} of {length} bytes")
            got += piece
        return bytes(got)

    def settle(self) -> None:
        """Take the unit attention that a new session may find, so that what follows is ordinary."""
        self.submit(bytes(6))
        self.answers()
        self.answered.clear()

    # -- commands

    def submit(self, cdb: bytes, **options: Any) -> int:
        """Send a command at once; its tag."""
        made = self.prepared(cdb, **options)
        self.feed(made)
        return self.itt

    def prepared(
        self,
        cdb: bytes,
        *,
        data: bytes = b"",
        immediate: int = 0,
        unsolicited: int = 0,
        piece: int = 8192,
        **options: Any,
    ) -> bytes:
        """The bytes of a command, and of the Data-Outs that follow it unasked; it is awaited from
        now on."""
        options.setdefault("write", len(data))
        final = not unsolicited
        made = self.command(cdb, data=data[:immediate], final=final, **options)
        self.asked[self.itt] = Asked(data, piece)
        end, at, number = immediate + unsolicited, immediate, 0
        while at < end:
            stop = min(at + piece, end)
            made += self.data_out(
                *(self.itt, pdu.RESERVED_TAG, at, data[at:stop]),
                data_sn=number,
                final=stop == end,
            )
            at, number = stop, number + 1
        return made

    def answers(self) -> dict[int, Answer]:
        """Wait until every command is answered, sending the data that is asked for."""
        while self.asked:
            for each in self.take():
                self._took(each)
        return self.answered

    def answer(self, itt: int) -> Answer:
        """Wait for the answer of one command."""
        while itt in self.asked:
            for each in self.take():
                self._took(each)
        return self.answered.pop(itt)

    def next_other(self) -> Pdu:
        while not self.others:
            for each in self.take():
                self._took(each)
        return self.others.pop(0)

    def _took(self, each: Pdu) -> None:
        if each.opcode == pdu.R2T:
            self._send_asked_for(each)
        elif each.opcode == pdu.DATA_IN:
            asked = self.asked[each.itt]
            assert each.u32(36) == asked.data_sn, "DataSN"
            asked.data_sn += 1
            asked.parts[each.u32(40)] = each.data
            if each.flags & pdu.STATUS:
                self._ended(each, each.flags & (pdu.OVERFLOW | pdu.UNDERFLOW))
        elif each.opcode == pdu.SCSI_RESPONSE:
            self._ended(each, each.flags & (pdu.OVERFLOW | pdu.UNDERFLOW))
        else:
            if each.itt != pdu.RESERVED_TAG or each.opcode == pdu.REJECT:
                self._counts(each)
            self.others.append(each)

    def _ended(self, each: Pdu, residual: int) -> None:
        self._counts(each)
        asked = self.asked.pop(each.itt)
        data, at = b"", 0
        for offset, part in asked.parts.items():
            assert offset == at
            data, at = data + part, at + len(part)
        sense = each.data if each.opcode == pdu.SCSI_RESPONSE else b""
        self.answered[each.itt] = Answer(each.bhs[3], data, sense, (residual, each.residual))

    def _counts(self, each: Pdu) -> None:
        """Status numbers have no gap; the window only opens."""
        assert each.stat_sn == self.stat_sn, f"StatSN {each.stat_sn}, not {self.stat_sn}"
        self.stat_sn = each.stat_sn + 1 & 0xFFFFFFFF

    def _send_asked_for(self, r2t: Pdu) -> None:
        asked = self.asked[r2t.itt]
        at, length = r2t.u32(40), r2t.u32(44)
        assert at + length <= len(asked.data)
        end, number, made = at + length, 0, b""
        while at < end:
            stop = min(at + asked.piece, end)
            made += self.data_out(
                *(r2t.itt, r2t.ttt, at, asked.data[at:stop]), data_sn=number, final=stop == end
            )
            at, number = stop, number + 1
        self.feed(made)


def read_10(offset: int, length: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", 0x28, flags, offset // BLOCK, 0, length // BLOCK, 0)


def write_10(offset: int, length: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, flags, offset // BLOCK, 0, length // BLOCK, 0)


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def read_plainly(wire: Wire, count: int = 16) -> None:
    """Plain commands in a row, one after the other: enough of them to be handed over."""
    for _ in range(count):
        assert wire.answer(wire.submit(read_10(0, BLOCK), read=BLOCK)).status == 0
