"""An iSCSI initiator in a world: `tests.iscsi_initiator` over a simulated connection.

As `tests.sim.world.clients`: a few commands at once, answers in any order, all told to the ledger.
Long writes send a part at once and the rest when the target asks for it.
"""

import random
from collections.abc import Mapping

from blockd.iscsi import pdu
from blockd.iscsi.targets import IQN_PREFIX
from tests import scsi_cdbs as cdbs
from tests.iscsi_initiator import Initiator, Pdu, parse
from tests.sim.world.clients import Asked, Surroundings, begin, drawn_requests, succeeded
from tests.sim.world.ledger import VolumeLedger
from tests.sim.world.net import Link, Reset
from tests.sim.world.stamps import Violation, stamped
from volume.disk import SECTOR_SIZE

PIECE = 8192  # of data in one PDU: what every target takes
FUA = 0x08  # in byte 1 of READ and WRITE
UNIT_ATTENTION, NOT_READY = 6, 2
OUTSIDE = ((5, 0x21), (7, 0x27))
"""Key and ASC of what is past the end: out of range; no space, when it shrinks meanwhile."""
DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}


class LinkedInitiator(Initiator):
    """Numbers and PDUs of one connection; `take` waits for the next PDU."""

    def __init__(self, link: Link, name: str, volume: str) -> None:
        # Not the base's: there is no engine here, but a network.
        self.name = name
        self.isid = bytes.fromhex("00023d000001")
        self.cmd_sn, self.stat_sn, self.itt = 100, 0, 0
        self.header_digest = self.data_digest = False
        self._link = link
        self._target = IQN_PREFIX + volume

    def feed(self, data: bytes, piece: int = 0) -> None:
        self._link.send(data)

    def take(self) -> list[Pdu]:
        bhs = self._link.take(pdu.HEADER_BYTES)
        length = int.from_bytes(bhs[5:8], "big")
        rest = pdu.DIGEST_BYTES * self.header_digest + pdu.padded(length)
        rest += pdu.DIGEST_BYTES * (self.data_digest and length > 0)
        found = parse(
            bhs + self._link.take(rest),
            header_digest=self.header_digest,
            data_digest=self.data_digest,
        )
        return found

    def first(self, **keys: str) -> dict[str, str]:
        return {
            "InitiatorName": self.name,
            "TargetName": self._target,
            "SessionType": "Normal",
            **keys,
        }

    def open(self, keys: Mapping[str, str]) -> None:
        """Log in. Reset: the target is not there, for now."""
        answer = self.login({**self.first(), **keys}, flags=0x87)
        if answer is None or answer.status != (0, 0):
            raise Reset
        self.stat_sn = answer.stat_sn + 1
        self.header_digest = answer.keys.get("HeaderDigest") == "CRC32C"
        self.data_digest = answer.keys.get("DataDigest") == "CRC32C"


class IscsiClient:
    """One initiator of one volume."""

    def __init__(self, world: Surroundings, name: str, volume: str, port: int) -> None:
        self.name = name
        self._world = world
        self._volume = volume
        self._port = port
        self._link: Link | None = None
        self._session: LinkedInitiator
        self._data: dict[int, bytes] = {}  # of writes that are under way, by ITT
        self._read: dict[int, bytearray] = {}

    def act(self, kind: str, rng: random.Random) -> None:
        link = self._link or self._open(rng)
        link.hope()
        if kind == "leave":
            self.close()
            return
        asked = drawn_requests(rng, self._ledger_volume().size, self._world.ledger)
        for _ in range(3):
            waiting = self._send(asked, rng)
            if kind == "vanish":
                self.lost()
                return
            if kind == "dawdle":
                self._world.run.sleep(0.05 + rng.random() * 0.4)
            asked = []  # those that a unit attention came instead of
            while waiting:
                self._take(waiting, asked)
            if not asked:
                return

    def lost(self) -> None:
        """The connection is gone."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    def close(self) -> None:
        """Log out."""
        if self._link is not None:
            session = self._session
            session.feed(session.other(pdu.LOGOUT, pdu.FINAL, tag=0, immediate=True))
            while session.take()[0].opcode != pdu.LOGOUT_RESPONSE:
                pass
            self.lost()

    def _ledger_volume(self) -> VolumeLedger:
        return self._world.ledger.by_name[self._volume]

    def _open(self, rng: random.Random) -> Link:
        self._link = link = self._world.connect(self._port)
        name = f"iqn.2026-11.test:{self.name}"
        self._session = LinkedInitiator(link, name, self._volume)
        self._session.open(DIGESTS if rng.random() < 0.5 else {})
        return link

    # -- commands

    def _send(self, requests: list[Asked], rng: random.Random) -> dict[int, Asked]:
        volume = self._ledger_volume()
        waiting: dict[int, Asked] = {}
        sent = bytearray()
        self._data.clear()
        self._read.clear()
        for asked in requests:
            if asked.kind in ("trim", "zero"):
                asked.durable = False
            begin(asked, volume, self._world.ledger)
            encoded = self._encoded(asked, rng.choice((10, 16)), volume.tag)
            waiting[self._session.itt] = asked
            sent += encoded
        self._session.feed(bytes(sent))
        return waiting

    def _encoded(self, asked: Asked, size: int, tag: int) -> bytes:
        lba, count = asked.offset // SECTOR_SIZE, asked.length // SECTOR_SIZE
        flags = FUA if asked.durable else 0
        command = self._session.command
        if asked.kind == "flush":
            return command(cdbs.synchronize(size=size))
        if asked.kind == "read":
            return command(cdbs.read(lba, count, size=size), read=asked.length)
        if asked.kind == "trim":
            data = cdbs.unmap_list((lba, count))
            return command(cdbs.unmap(len(data)), write=len(data), data=data)
        if asked.kind == "zero":
            data = bytes(SECTOR_SIZE)
            return command(cdbs.write_same(lba, count, size=16), write=len(data), data=data)
        data = stamped(asked.write, tag, lba, count)
        encoded = command(
            cdbs.write(lba, count, size=size, flags=flags), write=len(data), data=data[:PIECE]
        )
        self._data[self._session.itt] = data
        return encoded

    # -- answers

    def _take(self, waiting: dict[int, Asked], again: list[Asked]) -> None:
        session = self._session
        (answer,) = session.take()
        if answer.opcode == pdu.R2T:
            self._send_more(answer)
        elif answer.opcode == pdu.DATA_IN:
            data = self._read.setdefault(answer.itt, bytearray())
            offset = answer.u32(40)
            if offset != len(data):
                raise Violation(f"{self.name}: data at {offset} after {len(data)} bytes")
            data += answer.data
            if answer.flags & pdu.STATUS:
                session.stat_sn = answer.stat_sn + 1
                self._finish(waiting, again, answer, answer.bhs[3])
        elif answer.opcode == pdu.SCSI_RESPONSE:
            session.stat_sn = answer.stat_sn + 1
            self._finish(waiting, again, answer, answer.bhs[3])
        elif answer.opcode == pdu.NOP_IN:
            if answer.ttt != pdu.RESERVED_TAG:
                session.feed(
                    session.other(pdu.NOP_OUT, tag=answer.ttt, itt=pdu.RESERVED_TAG, immediate=True)
                )
        elif answer.opcode == pdu.ASYNC:
            raise Reset  # it asks us to go
        else:
            raise Violation(f"{self.name}: an answer with opcode {answer.opcode:#x}")

    def _send_more(self, r2t: Pdu) -> None:
        offset, length = r2t.u32(40), r2t.u32(44)
        data = self._data[r2t.itt][offset : offset + length]
        for number, at in enumerate(range(0, length, PIECE)):
            part = data[at : at + PIECE]
            self._session.feed(
                self._session.data_out(
                    *(r2t.itt, r2t.ttt, offset + at, part),
                    data_sn=number,
                    final=at + PIECE >= length,
                )
            )

    def _finish(
        self, waiting: dict[int, Asked], again: list[Asked], answer: Pdu, status: int
    ) -> None:
        asked = waiting.pop(answer.itt)
        self._world.note(f"{self.name} {asked.kind} {asked.offset}+{asked.length} {status}")
        volume = self._ledger_volume()
        if not status:
            data = bytes(self._read.get(answer.itt, b""))
            succeeded(asked, volume, self._world.ledger, data)
            return
        if status != 2:
            self._world.failed(self.name, asked.kind, -status)
            return
        key, asc, _ = answer.sense
        if key == UNIT_ATTENTION:
            again.append(asked)
        elif key == NOT_READY:
            raise Reset  # the volume has another head: look for it again
        elif (key, asc) not in OUTSIDE or asked.offset + asked.length <= volume.size:
            self._world.failed(self.name, asked.kind, key << 8 | asc)
