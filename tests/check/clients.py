"""One connection of a recording client, over NBD or iSCSI: a request goes out, a reply comes back.

Both have the same two calls. `send` does not wait; `receive` waits for the next reply, in the
server's order. `Gone` is raised once the server has gone, and everything it had sent was received.
"""

import errno
import itertools
from typing import Final, NamedTuple, Protocol

from blockd.iscsi import pdu
from blockd.iscsi.targets import IQN_PREFIX
from blockd.nbd import wire
from tests import scsi_cdbs
from tests.check.events import FLUSH, FUA, READ, TRIM, WRITE, WRITES, ZERO
from tests.check.stamps import SECTOR
from tests.iscsi_initiator import World, parse
from tests.nbd_client import NbdClient
from tests.served_iscsi import Wire

FUA_BIT: Final = 0x08  # of byte 1 of a WRITE CDB
UNMAP_BIT: Final = 0x08  # the same of WRITE SAME
GOOD: Final = 0
OPTIONS: Final = {"InitialR2T": "No", "ImmediateData": "Yes", "FirstBurstLength": "262144"}

_NBD: Final = {
    READ: wire.CMD_READ,
    WRITE: wire.CMD_WRITE,
    FUA: wire.CMD_WRITE,
    ZERO: wire.CMD_WRITE_ZEROES,
    TRIM: wire.CMD_TRIM,
    FLUSH: wire.CMD_FLUSH,
}


class Gone(Exception):
    """The server has gone."""


class Answer(NamedTuple):
    """Of the request with this tag; `error` is an errno, `data` what a read got."""

    tag: int
    error: int
    data: bytes


class Connection(Protocol):
    def send(self, tag: int, kind: str, first: int, count: int, data: bytes) -> None:
        """Send a request for `count` sectors from `first` on. Raises Gone."""

    def receive(self) -> Answer:
        """Wait for the next reply. Raises Gone."""

    def close(self) -> None:
        """Leave; what is in flight is not waited for."""


class NbdConnection:
    """Over a TCP socket."""

    def __init__(self, address: tuple[str, int], export: str) -> None:
        try:
            self._client = NbdClient(address)
        except OSError as error:
            raise Gone from error
        try:
            self._client.greet()
            self._client.structured_reply()
            self._client.go(export)
        except (OSError, EOFError) as error:
            self.close()
            raise Gone from error

    def send(self, tag: int, kind: str, first: int, count: int, data: bytes) -> None:
        flags = wire.CMD_FLAG_FUA if kind == FUA else 0
        try:
            self._client.send_request(
                _NBD[kind],
                first * SECTOR,
                count * SECTOR,
                flags=flags,
                payload=data,
                cookie=tag,
            )
        except OSError as error:
            raise Gone from error

    def receive(self) -> Answer:
        try:
            reply = self._client.read_reply()
        except (OSError, EOFError) as error:
            raise Gone from error
        return Answer(reply.cookie, reply.error, reply.data or b"")

    def close(self) -> None:
        self._client.close()


class IscsiConnection:
    """A session of one connection; writes are immediate data, so at most 64 KiB each."""

    _isids = itertools.count(1)

    def __init__(self, address: tuple[str, int], volume: str) -> None:
        isid = bytes.fromhex("0002") + next(self._isids).to_bytes(4, "big")
        self._tags: dict[int, tuple[int, bytearray]] = {}  # by ITT
        try:
            self._wire = _Socket(World(), address, isid=isid)
        except OSError as error:
            raise Gone from error
        try:
            self._wire.log_in({"TargetName": IQN_PREFIX + volume, **OPTIONS})
        except (OSError, EOFError) as error:
            self.close()
            raise Gone from error

    def send(self, tag: int, kind: str, first: int, count: int, data: bytes) -> None:
        length = count * SECTOR
        if kind == READ:
            command = self._wire.command(scsi_cdbs.read(first, count, size=16), read=length)
        elif kind in WRITES:
            cdb = scsi_cdbs.write(first, count, size=16, flags=FUA_BIT * (kind == FUA))
            command = self._wire.command(cdb, write=length, data=data)
        elif kind == FLUSH:
            command = self._wire.command(scsi_cdbs.synchronize())
        elif kind == TRIM:
            parameters = scsi_cdbs.unmap_list((first, count))
            cdb = scsi_cdbs.unmap(len(parameters))
            command = self._wire.command(cdb, write=len(parameters), data=parameters)
        else:
            cdb = scsi_cdbs.write_same(first, count, size=16, flags=UNMAP_BIT)
            command = self._wire.command(cdb, write=SECTOR, data=bytes(SECTOR))
        self._tags[self._wire.itt] = (tag, bytearray(length if kind == READ else 0))
        try:
            self._wire.feed(command)
        except OSError as error:
            raise Gone from error

    def receive(self) -> Answer:
        while True:
            try:
                (got,) = self._wire.take()
            except (OSError, EOFError) as error:
                raise Gone from error
            if got.opcode == pdu.NOP_IN:
                self._wire.answer(got.ttt)
                continue
            if got.opcode not in (pdu.DATA_IN, pdu.SCSI_RESPONSE):
                raise AssertionError(f"opcode {got.opcode:#x} was not asked for")
            tag, data = self._tags[got.itt]
            if got.opcode == pdu.DATA_IN:
                offset = got.u32(40)
                data[offset : offset + len(got.data)] = got.data
                if not got.flags & 0x01:  # S: status is in it
                    continue
            self._wire.stat_sn = got.stat_sn + 1
            del self._tags[got.itt]
            return Answer(tag, 0 if got.bhs[3] == GOOD else errno.EIO, bytes(data))

    def close(self) -> None:
        self._wire.socket.close()


class _Socket(Wire):
    """A Wire that tells the end of the connection from a wrong answer."""

    def take(self) -> list:  # type: ignore[type-arg]
        bhs = self._all(pdu.HEADER_BYTES)
        return parse(bhs + self._all(pdu.padded(int.from_bytes(bhs[5:8], "big"))))

    def answer(self, ttt: int) -> None:
        """Of a ping."""
        if ttt != pdu.RESERVED_TAG:
            self.feed(self.other(pdu.NOP_OUT, tag=ttt, itt=pdu.RESERVED_TAG, immediate=True))

    def _all(self, length: int) -> bytes:
        got = bytearray()
        while len(got) < length:
            piece = self.socket.recv(length - len(got))
            if not piece:
                raise EOFError
            got += piece
        return bytes(got)
