"""An initiator's side of persistent reservations: CDBs, parameter lists, parameter data."""

import struct
from dataclasses import dataclass
from typing import Final

from blockd.scsi.nexus import Nexus
from blockd.scsi.reservations import (
    CLEAR,
    PREEMPT,
    REGISTER,
    REGISTER_AND_IGNORE,
    REGISTER_AND_MOVE,
    RELEASE,
    RESERVE,
)
from blockd.scsi.task import GOOD, Result
from tests.scsi_rig import Rig, joined

PERSIST: Final = 0x01  # APTPL
ALL_PORTS: Final = 0x04
WITH_OTHERS: Final = 0x08  # SPEC_I_PT
UNREGISTER: Final = 0x02  # of REGISTER AND MOVE

READ: Final = bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0))
WRITE: Final = bytes((0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0))
TEST_UNIT_READY: Final = bytes(6)
_OBSERVER: Final = Nexus("iqn.2026-11.test:observer", bytes(6), 0xFFFF)
BLOCK_OF_DATA: Final = b"w" * 512


@dataclass(frozen=True)
class Status:
    """One descriptor of READ FULL STATUS."""

    key: int
    all_ports: bool
    holds: bool
    kind: int
    target_port: int
    transport_id: bytes


def out_cdb(action: int, length: int, kind: int = 0, scope: int = 0) -> bytes:
    return struct.pack(">BBBHIB", 0x5F, action, scope << 4 | kind, 0, length, 0)


def out_list(key: int, action_key: int = 0, flags: int = 0, transport_ids: bytes = b"") -> bytes:
    basic = struct.pack(">QQIBBH", key, action_key, 0, flags, 0, 0)
    return basic + (struct.pack(">I", len(transport_ids)) + transport_ids) * bool(transport_ids)


def move_list(key: int, action_key: int, transport_id: bytes, port: int, flags: int = 0) -> bytes:
    length = len(transport_id)
    return struct.pack(">QQBBHI", key, action_key, 0, flags, port, length) + transport_id


def transport_id(initiator: str, isid: bytes | None = None) -> bytes:
    """SPC-4 7.6.4.6."""
    text = initiator if isid is None else f"{initiator},i,0x{isid.hex()}"
    data = text.encode() + b"\0"
    data += bytes(max(20 - len(data), -len(data) % 4))
    return bytes((0x05 if isid is None else 0x45, 0)) + len(data).to_bytes(2, "big") + data


def in_cdb(action: int, length: int = 0xFFFF) -> bytes:
    return struct.pack(">BB5xHB", 0x5E, action, length, 0)


class Host:
    """One nexus of a rig's unit, and the key that it uses."""

    def __init__(self, rig: Rig, nexus: Nexus, key: int) -> None:
        self.rig = rig
        self.nexus = nexus
        self.key = key

    def out(self, action: int, data: bytes, kind: int = 0, scope: int = 0) -> Result:
        return self.rig.run(out_cdb(action, len(data), kind, scope), data, nexus=self.nexus)

    def register(self, flags: int = 0, *, key: int = 0) -> Result:
        return self.out(REGISTER, out_list(key, self.key, flags))

    def register_and_ignore(self, flags: int = 0) -> Result:
        return self.out(REGISTER_AND_IGNORE, out_list(0, self.key, flags))

    def unregister(self, flags: int = 0) -> Result:
        return self.out(REGISTER, out_list(self.key, 0, flags))

    def reserve(self, kind: int) -> Result:
        return self.out(RESERVE, out_list(self.key), kind)

    def release(self, kind: int) -> Result:
        return self.out(RELEASE, out_list(self.key), kind)

    def clear(self) -> Result:
        return self.out(CLEAR, out_list(self.key))

    def preempt(self, victims_key: int, kind: int, action: int = PREEMPT) -> Result:
        return self.out(action, out_list(self.key, victims_key), kind)

    def move(self, to: Nexus, action_key: int, flags: int = 0) -> Result:
        data = move_list(
            *(self.key, action_key, transport_id(to.initiator, to.isid), to.port_group, flags)
        )
        return self.out(REGISTER_AND_MOVE, data)

    def run(self, cdb: bytes, data: bytes = b"") -> Result:
        return self.rig.run(cdb, data, nexus=self.nexus)

    def told(self, action: int, length: int = 0xFFFF) -> bytes:
        """What anybody is told, without taking a unit attention of this host."""
        result = self.rig.run(in_cdb(action, length), nexus=_OBSERVER)
        assert result.status == 0, result
        return joined(result)

    def keys(self) -> list[int]:
        data = self.told(0)
        return list(struct.unpack(f">{(len(data) - 8) // 8}Q", data[8:]))

    def generation(self) -> int:
        return int.from_bytes(self.told(0)[:4], "big")

    def reservation(self) -> tuple[int, int] | None:
        """Key and type."""
        data = self.told(1)
        if int.from_bytes(data[4:8], "big") == 0:
            return None
        return int.from_bytes(data[8:16], "big"), data[21]

    def full_status(self) -> list[Status]:
        data = self.told(3)
        assert int.from_bytes(data[4:8], "big") == len(data) - 8
        at, found = 8, []
        while at < len(data):
            key, flags, kind, port, length = struct.unpack_from(">Q4xBB4xHI", data, at)
            at += 24
            identifier = data[at : at + length]
            at += length
            found.append(Status(key, bool(flags & 2), bool(flags & 1), kind, port, identifier))
        return found

    def may_read(self) -> bool:
        return self._may(READ)

    def may_write(self) -> bool:
        return self._may(WRITE, BLOCK_OF_DATA)

    def _may(self, cdb: bytes, data: bytes = b"") -> bool:
        status = self.run(cdb, data).status
        assert status in (0x00, 0x18)
        return status == 0

    def attentions(self) -> list[tuple[int, int]]:
        """ASC and ASCQ of the pending unit attentions, which are taken."""
        found = []
        while (sense := self.rig.unit.next_attention(self.nexus)) is not None:
            found.append((sense.asc, sense.ascq))
        return found


def hosts(count: int = 3, rig: Rig | None = None) -> list[Host]:
    """Nexuses of different initiators, with the keys 1, 2, ..., none of them registered."""
    rig = rig or Rig()
    joined = [rig.nexus, *(rig.join(number) for number in range(2, count + 1))]
    return [Host(rig, joined[number], number + 1) for number in range(count)]


def registered(count: int = 3, rig: Rig | None = None) -> list[Host]:
    found = hosts(count, rig)
    for host in found:
        assert host.register().status == GOOD
    return found


def fault(result: Result) -> tuple[int, int]:
    assert result.sense is not None, result
    return result.sense.asc, result.sense.ascq
