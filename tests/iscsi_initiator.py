"""An iSCSI initiator without sockets, against `blockd.iscsi.connection.Connection`.

`Initiator` keeps the numbers, makes PDUs and reads what comes back; devices and calls are carried
out at once, unless the test holds them. Every PDU can be made wrong by its fields.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from blockd.device import BlockDevice
from blockd.iscsi import pdu, text
from blockd.iscsi.connection import Connection
from blockd.iscsi.events import Close, LookUp, Prove, Submit, Work
from blockd.iscsi.limits import Limits
from blockd.iscsi.node import Node
from blockd.iscsi.targets import Access, Portal, Target
from native import Request, crc32c
from tests.scsi_rig import Rig

NAME: Final = "iqn.2026-11.test:host"
TARGET: Final = "iqn.2026-11.io.blockd:vm1"
ISID: Final = bytes.fromhex("00023d000001")
PORTAL: Final = Portal("127.0.0.1", 3260, 1)
ADDRESS: Final = "192.0.2.7"
OPERATIONAL: Final = {"HeaderDigest": "None", "DataDigest": "None"}
_BHS = struct.Struct(">BBBBI8sI")


class FakeTargets:
    """Targets by name; `past` are opened by a look-up only."""

    def __init__(self, *targets: Target) -> None:
        self.discovery = Access()
        self.past: dict[str, Target] = {}
        self._targets = {target.name: target for target in targets}

    def get(self, name: str) -> Target | None:
        return self._targets.get(name)

    def all(self) -> Sequence[Target]:
        return list(self._targets.values())

    def volume_of(self, name: str) -> BlockDevice | None:
        return None

    def portals(self, arrived_at: Portal, target: Target) -> Sequence[Portal]:
        return [arrived_at]


@dataclass(frozen=True)
class Pdu:
    """One PDU of the target."""

    bhs: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.bhs[0]

    @property
    def flags(self) -> int:
        return self.bhs[1]

    @property
    def itt(self) -> int:
        return self.u32(16)

    @property
    def ttt(self) -> int:
        return self.u32(20)

    @property
    def stat_sn(self) -> int:
        return self.u32(24)

    @property
    def exp_cmd_sn(self) -> int:
        return self.u32(28)

    @property
    def max_cmd_sn(self) -> int:
        return self.u32(32)

    @property
    def status(self) -> tuple[int, int]:
        """Of a login response."""
        return self.bhs[36], self.bhs[37]

    @property
    def residual(self) -> int:
        return self.u32(44)

    @property
    def sense(self) -> tuple[int, int, int]:
        """Key, ASC, ASCQ of a SCSI Response with sense data in the fixed format."""
        assert self.data[2] & 0x7F == 0x70, self
        return self.data[4] & 0xF, self.data[14], self.data[15]

    @property
    def keys(self) -> dict[str, str]:
        return text.parse(self.data)

    def u32(self, at: int) -> int:
        return int.from_bytes(self.bhs[at : at + 4], "big")


def parse(stream: bytes, *, header_digest: bool = False, data_digest: bool = False) -> list[Pdu]:
    """The PDUs in what a target sent; all whole, with right digests."""
    found = []
    at = 0
    while at < len(stream):
        bhs = stream[at : at + pdu.HEADER_BYTES]
        length = int.from_bytes(bhs[5:8], "big")
        assert bhs[4] == 0
        at += pdu.HEADER_BYTES
        if header_digest:
            assert crc32c(bhs) == int.from_bytes(stream[at : at + 4], "little")
            at += 4
        data = stream[at : at + length]
        assert len(data) == length, "cut off"
        whole = stream[at : at + pdu.padded(length)]
        at += pdu.padded(length)
        if data_digest and length:
            assert crc32c(whole) == int.from_bytes(stream[at : at + 4], "little")
            at += 4
        found.append(Pdu(bhs, data))
    return found


def pairs(keys: Mapping[str, str]) -> bytes:
    return text.encode(list(keys.items()))


@dataclass
class World:
    """A node with one target, whose unit is on a device in memory."""

    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    deferred: bool = False
    redirect: str | None = None

    def __post_init__(self) -> None:
        self.rig = Rig(deferred=self.deferred) if self.deferred else Rig()
        self.rig.target.detach(self.rig.nexus)
        self.target = Target(
            TARGET, self.access, self.rig.target, alias="a disk", redirect=self.redirect
        )
        self.targets = FakeTargets(self.target)
        self.node = Node(self.targets, self.limits)

    def initiator(self, *, isid: bytes = ISID) -> "Initiator":
        return Initiator(self, isid=isid)

    def logged_in(self, **keys: str) -> "Initiator":
        """A session in its full feature phase."""
        made = self.initiator()
        made.log_in(keys)
        return made


class Initiator:
    """See the module's text."""

    def __init__(self, world: World, *, name: str = NAME, isid: bytes = ISID) -> None:
        self.world = world
        self.name = name
        self.isid = isid
        self.connection = Connection(world.node, PORTAL, ADDRESS)
        self.connection.wake = self.run
        self.cmd_sn = 100
        self.stat_sn = 0
        self.itt = 0
        self.closed: Close | None = None
        self.proofs: list[tuple[BlockDevice, ...]] = []
        """Volumes whose attach tokens were asked about, and what is answered."""
        self.refusal: str | None = None
        self.held: list[Work] = []
        self.holding = False
        """Work is kept in `held` instead of being done."""
        self.header_digest = self.data_digest = False
        self._received: list[Pdu] = []

    # -- bytes

    def feed(self, data: bytes, piece: int = 0) -> None:
        """Send bytes, in pieces if so asked."""
        at = 0
        while at < len(data) and self.connection.wants_input:
            room = self.connection.buffer(65536)
            part = data[at : at + min(len(room), piece or len(room))]
            room[: len(part)] = part
            self.connection.received(len(part))
            at += len(part)
            self.run()

    def run(self) -> None:
        """Carry out events, collect what is sent."""
        while True:
            event = self.connection.next_event()
            if isinstance(event, Submit):
                event.device.submit(event.batch, self._completed)
            elif isinstance(event, Work):
                self.held.append(event)
                if not self.holding:
                    self.work()
            elif isinstance(event, LookUp):
                self.connection.answered(self.world.targets.past.get(event.name))
            elif isinstance(event, Prove):
                self.proofs.append(event.volumes)
                self.connection.proved(self.refusal)
            elif isinstance(event, Close):
                assert self.closed is None
                self.closed = event
            output = b"".join(bytes(part) for part in self.connection.output())
            self._received += parse(
                output, header_digest=self.header_digest, data_digest=self.data_digest
            )
            if event is None and not output:
                return

    def work(self) -> None:
        """Do the call that was held for longest."""
        work = self.held.pop(0)
        try:
            value = work.call()
        except Exception as error:
            self.connection.worked(work.token, None, error)
        else:
            self.connection.worked(work.token, value)
        self.run()

    def _completed(self, requests: list[Request]) -> None:
        self.connection.completed(requests)
        self.run()

    def take(self) -> list[Pdu]:
        """What came since the last call."""
        taken, self._received = self._received, []
        return taken

    def one(self) -> Pdu:
        """The only PDU that came."""
        (found,) = self.take()
        return found

    # -- PDUs

    def make(
        self,
        opcode: int,
        flags: int,
        *,
        itt: int | None = None,
        lun: bytes = bytes(8),
        rest: bytes = b"",
        data: bytes = b"",
        ahs: bytes = b"",
        lengths: int | None = None,
        byte2: int = 0,
    ) -> bytes:
        """Bytes of a PDU; `rest` is from byte 20 on."""
        if itt is None:
            self.itt += 1
            itt = self.itt
        if lengths is None:
            lengths = len(ahs) // 4 << 24 | len(data)
        bhs = _BHS.pack(opcode, flags, byte2, 0, lengths, lun, itt) + rest.ljust(28, b"\0")
        header = bhs + ahs
        if self.header_digest:
            header += crc32c(header).to_bytes(4, "little")
        padded = data.ljust(pdu.padded(len(data)), b"\0")
        if self.data_digest and data:
            padded += crc32c(padded).to_bytes(4, "little")
        return header + padded

    def login(
        self,
        keys: Mapping[str, str] | bytes,
        *,
        flags: int,
        tsih: int = 0,
        cid: int = 0,
        version_min: int = 0,
    ) -> Pdu | None:
        """One login request; its response, if there is one."""
        data = keys if isinstance(keys, bytes) else pairs(keys)
        rest = struct.pack(">HHII", cid, 0, self.cmd_sn, self.stat_sn)
        lun = self.isid + tsih.to_bytes(2, "big")
        self.feed(
            self.make(
                pdu.LOGIN | pdu.IMMEDIATE,
                flags,
                itt=1,
                lun=lun,
                rest=rest,
                data=data,
                byte2=0,
                lengths=None,
            )
            if not version_min
            else self._versioned(flags, lun, rest, data, version_min)
        )
        answers = self.take()
        return answers[-1] if answers else None

    def _versioned(self, flags: int, lun: bytes, rest: bytes, data: bytes, low: int) -> bytes:
        made = bytearray(
            self.make(pdu.LOGIN | pdu.IMMEDIATE, flags, itt=1, lun=lun, rest=rest, data=data)
        )
        made[2] = made[3] = low
        return bytes(made)

    def first(self, **keys: str) -> dict[str, str]:
        """The keys that a first request has."""
        return {"InitiatorName": self.name, "TargetName": TARGET, "SessionType": "Normal", **keys}

    def log_in(self, keys: Mapping[str, str] | None = None, *, discovery: bool = False) -> Pdu:
        """From nothing to the full feature phase, without security."""
        names = (
            {"InitiatorName": self.name, "SessionType": "Discovery"} if discovery else self.first()
        )
        answer = self.login({**names, **OPERATIONAL, **(keys or {})}, flags=0x87)
        assert answer is not None
        assert answer.status == (0, 0), answer
        self.stat_sn = answer.stat_sn + 1
        self.header_digest = answer.keys.get("HeaderDigest") == "CRC32C"
        self.data_digest = answer.keys.get("DataDigest") == "CRC32C"
        return answer

    def command(
        self,
        cdb: bytes,
        *,
        read: int = 0,
        write: int = 0,
        data: bytes = b"",
        final: bool = True,
        lun: int = 0,
        immediate: bool = False,
        itt: int | None = None,
        cmd_sn: int | None = None,
        ahs: bytes = b"",
    ) -> bytes:
        """Bytes of a SCSI Command; `read` and `write`: the expected data transfer length."""
        flags = pdu.FINAL * final | pdu.READ * bool(read) | pdu.WRITE * bool(write)
        if cmd_sn is None:
            cmd_sn = self.cmd_sn
            self.cmd_sn += not immediate
        rest = struct.pack(">III", read or write, cmd_sn & 0xFFFFFFFF, self.stat_sn)
        return self.make(
            pdu.SCSI_COMMAND | pdu.IMMEDIATE * immediate,
            flags,
            itt=itt,
            lun=bytes((0, lun)) + bytes(6),
            rest=rest + cdb[:16].ljust(16, b"\0"),
            data=data,
            ahs=ahs,
        )

    def ask(self, cdb: bytes, **options: object) -> list[Pdu]:
        """Send a SCSI Command; everything that comes back."""
        self.feed(self.command(cdb, **options))  # type: ignore[arg-type]
        return self.take()

    def data_out(
        self,
        itt: int,
        ttt: int,
        offset: int,
        data: bytes,
        *,
        data_sn: int = 0,
        final: bool = True,
    ) -> bytes:
        rest = struct.pack(">IIIIII", ttt, 0, self.stat_sn, 0, data_sn, offset)
        return self.make(pdu.DATA_OUT, pdu.FINAL * final, itt=itt, rest=rest, data=data)

    def other(
        self,
        opcode: int,
        flags: int = pdu.FINAL,
        *,
        tag: int = pdu.RESERVED_TAG,
        data: bytes = b"",
        itt: int | None = None,
        lun: int = 0,
        immediate: bool = False,
        more: bytes = b"",
        cmd_sn: int | None = None,
    ) -> bytes:
        """NOP-Out, Text, Task Management, Logout: `tag` is bytes 20 to 23, `more` from 32 on."""
        if cmd_sn is None:
            cmd_sn = self.cmd_sn
            self.cmd_sn += not immediate
        rest = struct.pack(">III", tag, cmd_sn & 0xFFFFFFFF, self.stat_sn) + more
        return self.make(
            opcode | pdu.IMMEDIATE * immediate,
            flags,
            itt=itt,
            lun=bytes((0, lun)) + bytes(6),
            rest=rest,
            data=data,
        )
