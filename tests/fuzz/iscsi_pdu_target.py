"""Fuzz target of iSCSI connections: any bytes in, and still

- no exception escapes, and the connection ends with one Close when the initiator goes;
- what is sent is whole PDUs with right digests, StatSN going up by one, ExpCmdSN and MaxCmdSN never
  going back, data no longer than the initiator takes, in order and never more than announced;
- a task tag that was used once is answered once at the most;
- PDUs that come in pieces are answered as whole ones;
- memory is bounded: receive buffer, bytes held for commands, output not taken;
- nothing is left of a connection that is gone: sessions, nexuses, attachments.

Input: one byte of switches (see _Setup), one byte of piece length (0: each PDU as a whole), then
what the initiator sends, without digests: they are put in where they are agreed on. A PDU whose
third byte (which is reserved) is BAD_HEADER or BAD_DATA gets a wrong one.

`iscsi_pdu_target` takes bytes and returns nothing, as atheris, AFL++ and the corpus replay want it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from blockd.iscsi import pdu, text
from blockd.iscsi.connection import BASE_BUFFER, KEPT_BUFFER, Connection
from blockd.iscsi.events import Close, LookUp, Submit, Work
from blockd.iscsi.limits import COMMAND_WINDOW, MAX_IMMEDIATE, Limits
from blockd.iscsi.node import Node
from blockd.receive import MESSAGE_SLACK, MIN_ROOM, PAGE
from blockd.scsi.disk import MAX_TRANSFER_BYTES
from native import crc32c
from tests.fuzz.iscsi_text_target import ISID, OPEN, PAST, PORTAL, Setup, Targets
from tests.fuzz.scsi_target import WatchedDevice
from tests.scsi_rig import Rig

NOTHING, PLAIN, DIGESTS, DISCOVERY = range(4)  # the preamble
BAD_HEADER: Final = 0xEE
BAD_DATA: Final = 0xEF
INITIATOR: Final = "iqn.2026-11.test:host"
FIRST_CMD_SN: Final = 1
LIMITS: Final = Limits(max_in_flight_bytes=1 << 20)
MAX_RECV: Final = 4096  # of the initiator, in the preamble
DEFAULT_MAX_RECV: Final = 8192
MAX_INPUT: Final = 1 << 17
MAX_PDU: Final = pdu.HEADER_BYTES + 255 * 4 + text.OUR_MAX_RECV + 3 + 2 * pdu.DIGEST_BYTES
MAX_BUFFER: Final = max(BASE_BUFFER, KEPT_BUFFER, MAX_PDU + MESSAGE_SLACK + MIN_ROOM + PAGE)
# Data-in is charged when it is begun, so the last command may go beyond the limit as a whole.
MAX_HELD: Final = LIMITS.max_in_flight_bytes + MAX_TRANSFER_BYTES
# Responses hold back what they answer: headers, sense, text of every command and PDU that came.
MAX_OUTPUT: Final = MAX_HELD + 16 * MAX_INPUT + (COMMAND_WINDOW + MAX_IMMEDIATE) * 4096
_COUNTED: Final = (pdu.NOP_OUT, pdu.SCSI_COMMAND, pdu.TASK_MANAGEMENT, pdu.TEXT, pdu.LOGOUT)
_USES_STAT_SN: Final = (
    *(pdu.SCSI_RESPONSE, pdu.TASK_MANAGEMENT_RESPONSE, pdu.LOGIN_RESPONSE, pdu.TEXT_RESPONSE),
    *(pdu.LOGOUT_RESPONSE, pdu.ASYNC, pdu.REJECT),
)


@dataclass(frozen=True)
class _Setup:
    """The switches in the first byte."""

    preamble: int  # NOTHING, or a login that was PLAIN, with DIGESTS, or for DISCOVERY
    deferred: bool  # devices and calls end when the initiator has sent all
    lazy: bool  # takes no output until it has sent all
    careful: bool  # InitialR2T and small bursts
    numbered: bool  # CmdSNs are made right
    at_once: bool  # all PDUs in one round
    drain: bool  # the server stops in the middle


def _setup(switches: int) -> _Setup:
    return _Setup(switches & 3, *(bool(switches & 1 << bit) for bit in range(2, 8)))


def iscsi_pdu_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    setup = _setup(data[0] if data else 0)
    piece = data[1] if len(data) > 1 else 0
    sent = data[2:][:MAX_INPUT]
    if setup.numbered:
        sent = numbered(sent)
    whole = _Client(setup)
    whole.run(sent, piece=0)
    if piece and not setup.at_once:
        pieces = _Client(setup)
        pieces.run(sent, piece)
        assert pieces.sent == whole.sent


def split(data: bytes) -> Iterator[bytes]:
    """The PDUs of a stream without digests; the last one may be cut off."""
    at = 0
    while at < len(data):
        header = data[at : at + pdu.HEADER_BYTES]
        lengths = int.from_bytes(header[4:8], "big")
        length = pdu.HEADER_BYTES + (lengths >> 24) * 4 + pdu.padded(lengths & 0xFFFFFF)
        if len(header) < pdu.HEADER_BYTES:
            length = len(header)
        yield data[at : at + length]
        at += length


def numbered(data: bytes) -> bytes:
    """The same PDUs with the CmdSNs that they should have."""
    out = bytearray()
    cmd_sn = FIRST_CMD_SN
    for one in split(data):
        fixed = bytearray(one)
        if len(one) >= pdu.HEADER_BYTES and one[0] & pdu.OPCODE_MASK in _COUNTED:
            fixed[24:28] = (cmd_sn & 0xFFFFFFFF).to_bytes(4, "big")
            cmd_sn += not one[0] & pdu.IMMEDIATE
        out += fixed
    return bytes(out)


class _Client:
    """An initiator, and the socket side of its connection."""

    def __init__(self, setup: _Setup) -> None:
        self.setup = setup
        self.targets = Targets(Setup())
        self.rig = Rig()
        self.rig.target.detach(self.rig.nexus)
        self.device = self.rig.device = self.rig.unit.device = WatchedDevice(
            "vm1", self.rig.device.size, block_size=512, deferred=setup.deferred
        )
        target = self.targets.get(OPEN)
        assert target is not None
        target.device.units[0] = self.rig.unit
        target.device.luns_changed()
        self.node = Node(self.targets, LIMITS)
        self.connection = Connection(self.node, PORTAL, "192.0.2.77")
        self.sent = b""
        """All that the target sent."""
        self.closed: Close | None = None
        self.answering = True  # events are carried out at once
        self._held: list[Work] = []
        self._digests = False
        self._session_began = 0  # where in `sent`
        self.tags: Counter[int] = Counter()
        """How often each task tag began a command."""
        if setup.preamble:
            self._log_in()
        self.answering = not setup.deferred

    def _log_in(self) -> None:
        setup = self.setup
        keys = [("InitiatorName", INITIATOR), ("MaxRecvDataSegmentLength", str(MAX_RECV))]
        if setup.preamble == DISCOVERY:
            keys.append(("SessionType", "Discovery"))
        else:
            keys.append(("TargetName", OPEN))
        if setup.preamble == DIGESTS:
            keys += [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]
        if setup.careful:
            keys += [("InitialR2T", "Yes"), ("MaxBurstLength", "1024"), ("FirstBurstLength", "512")]
        else:
            keys += [("InitialR2T", "No"), ("MaxOutstandingR2T", "4")]
        self.feed(login(keys), 0)
        assert self.connection.initiator == INITIATOR
        assert not self.connection.negotiating
        self._digests = setup.preamble == DIGESTS
        self._session_began = len(self.sent)

    def run(self, sent: bytes, piece: int) -> None:
        pdus = list(split(sent))
        self._note(pdus)
        if self._digests:
            pdus = [_digested(one) for one in pdus]
        if self.setup.at_once:
            pdus = [b"".join(pdus)]
        for number, one in enumerate(pdus):
            if self.setup.drain and number == len(pdus) // 2:
                self.connection.drain()
                self.pump()
            if self.closed is not None:
                break
            self.feed(one, piece)
        self._end()
        self._check_output()

    def _note(self, pdus: list[bytes]) -> None:
        """Task tags that will be used."""
        for one in pdus:
            if len(one) >= pdu.HEADER_BYTES:
                self.tags[int.from_bytes(one[16:20], "big")] += 1

    def feed(self, data: bytes, piece: int) -> None:
        """As a socket would, as long as the connection wants input."""
        at = 0
        while at < len(data) and self.connection.wants_input:
            room = self.connection.buffer(1)
            part = data[at : at + min(piece or len(data), len(room))]
            room[: len(part)] = part
            self.connection.received(len(part))
            at += len(part)
            self.pump()
            self._check_bounds()

    def pump(self) -> None:
        """Carry out events and take the output, unless the setup says later."""
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, Submit):
                event.device.submit(event.batch, self.connection.completed)
            elif isinstance(event, Work):
                self._held.append(event)
            elif isinstance(event, LookUp):
                assert event.name == PAST or "@" in event.name
                self.connection.answered(self.targets.get(OPEN) if event.name == PAST else None)
            else:
                assert isinstance(event, Close), "no volume here has other nodes"
                assert self.closed is None
                self.closed = event
            if self.answering:
                self._work()
        if not self.setup.lazy or self.answering:
            self.take()

    def _work(self) -> None:
        while self._held:
            work = self._held.pop(0)
            try:
                value = work.call()
            except OSError as error:
                self.connection.worked(work.token, None, error)
            else:
                self.connection.worked(work.token, value)

    def take(self) -> None:
        self.sent += b"".join(bytes(part) for part in self.connection.output())

    def _check_bounds(self) -> None:
        connection = self.connection
        assert connection._rx.capacity <= MAX_BUFFER
        assert sum(memoryview(part).nbytes for part in connection._out) <= MAX_OUTPUT
        session = connection._session
        if session is not None:
            assert 0 <= session.room.held <= MAX_HELD
            assert len(session.commands) <= COMMAND_WINDOW + MAX_IMMEDIATE

    def _end(self) -> None:
        """Everything in flight ends, the initiator goes."""
        self.answering = True
        self._settle()
        if self.closed is None:
            self.connection.eof()
            self._settle()
        assert self.closed is not None
        assert self.closed.reason
        assert self.connection.idle
        assert not self.connection.wants_input
        assert self.node.sessions() == []
        assert self.rig.unit.nexuses == []
        assert self.device.clients == []

    def _settle(self) -> None:
        while True:
            self.pump()
            self._work()
            self.take()
            if not self.device.waiting:
                break
            self.device.finish()
        self.pump()
        self._check_bounds()

    # -- what was sent

    def _check_output(self) -> None:
        at, last = 0, None
        checker = _Checker(self.tags)
        while at < len(self.sent):
            digests = self._digests and at >= self._session_began
            header = self.sent[at : at + pdu.HEADER_BYTES]
            assert len(header) == pdu.HEADER_BYTES
            at += pdu.HEADER_BYTES
            if digests:
                assert crc32c(header) == int.from_bytes(self.sent[at : at + 4], "little")
                at += pdu.DIGEST_BYTES
            length = int.from_bytes(header[5:8], "big")
            data = self.sent[at : at + pdu.padded(length)]
            assert len(data) == pdu.padded(length)
            assert not any(data[length:])
            at += len(data)
            if digests and length:
                assert crc32c(data) == int.from_bytes(self.sent[at : at + 4], "little")
                at += pdu.DIGEST_BYTES
            checker.take(header, data[:length])
            last = header[0]
        assert last is not None or self.setup.preamble == NOTHING


class _Checker:
    """Looks at the PDUs of a target, one after the other."""

    def __init__(self, tags: Counter[int]) -> None:
        self._tags = tags
        self._stat_sn: int | None = None
        self._exp_cmd_sn: int | None = None
        self._max_cmd_sn: int | None = None
        self._answered: Counter[int] = Counter()
        self._data_at: dict[int, tuple[int, int]] = {}  # by tag: next offset, next DataSN

    def take(self, header: bytes, data: bytes) -> None:
        opcode, flags = header[0], header[1]
        itt, _, stat_sn, exp_cmd_sn, max_cmd_sn = (
            int.from_bytes(header[at : at + 4], "big") for at in range(16, 36, 4)
        )
        if (
            opcode in _USES_STAT_SN
            or (opcode == pdu.DATA_IN and flags & pdu.STATUS)
            or (opcode == pdu.NOP_IN and itt != pdu.RESERVED_TAG)  # not a ping of the target
        ):
            assert self._stat_sn in (None, stat_sn)
            self._stat_sn = stat_sn + 1 & 0xFFFFFFFF
        if self._exp_cmd_sn is not None and self._max_cmd_sn is not None:
            assert exp_cmd_sn - self._exp_cmd_sn & 0xFFFFFFFF < 1 << 31
            assert max_cmd_sn - self._max_cmd_sn & 0xFFFFFFFF < 1 << 31
        if opcode != pdu.LOGIN_RESPONSE:
            self._exp_cmd_sn, self._max_cmd_sn = exp_cmd_sn, max_cmd_sn
        if opcode == pdu.DATA_IN:
            self._data_in(header, itt, data)
        elif opcode == pdu.SCSI_RESPONSE:
            assert flags & 0x81 == 0x80
            status = header[3]
            assert bool(data) == (status == 0x02)  # CHECK CONDITION and its sense
            if data:
                assert int.from_bytes(data[:2], "big") == len(data) - 2
            self._answer(itt)
        elif opcode == pdu.R2T:
            assert itt in self._tags
            assert int.from_bytes(header[44:48], "big") > 0
        elif opcode == pdu.REJECT:
            assert len(data) == pdu.HEADER_BYTES
        elif opcode in (pdu.TASK_MANAGEMENT_RESPONSE, pdu.LOGOUT_RESPONSE):
            assert itt in self._tags
        else:
            assert opcode in (pdu.NOP_IN, pdu.TEXT_RESPONSE, pdu.ASYNC, pdu.LOGIN_RESPONSE)

    def _data_in(self, header: bytes, itt: int, data: bytes) -> None:
        data_sn, offset = (int.from_bytes(header[at : at + 4], "big") for at in (36, 40))
        assert len(data) > 0
        assert (offset, data_sn) == self._data_at.get(itt, (0, 0))
        self._data_at[itt] = (offset + len(data), data_sn + 1)
        if header[1] & pdu.STATUS:
            assert header[1] & pdu.FINAL
            del self._data_at[itt]
            self._answer(itt)

    def _answer(self, itt: int) -> None:
        self._answered[itt] += 1
        assert self._answered[itt] <= self._tags[itt]


def login(keys: list[tuple[str, str]], *, flags: int = 0x87, cid: int = 1) -> bytes:
    """A login request that is the whole login."""
    data = text.encode(keys)
    bhs = pdu.LOGIN_BHS.pack(
        *(pdu.LOGIN | pdu.IMMEDIATE, flags, 0, 0, len(data), ISID, 0, 0x77, cid, FIRST_CMD_SN, 1)
    )
    return bhs + data.ljust(pdu.padded(len(data)), b"\0")


def _digested(one: bytes) -> bytes:
    """A PDU with its digests; one that is cut off stays so."""
    if len(one) < pdu.HEADER_BYTES:
        return one
    lengths = int.from_bytes(one[4:8], "big")
    header = one[: pdu.HEADER_BYTES + (lengths >> 24) * 4]
    data = one[len(header) :]
    header_digest = crc32c(header) ^ (one[2] == BAD_HEADER)
    out = header + header_digest.to_bytes(4, "little") + data
    if not data:
        return out
    return out + (crc32c(data) ^ (one[2] == BAD_DATA)).to_bytes(4, "little")
