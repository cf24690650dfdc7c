"""The same initiator's streams, served by the Python engine alone and with the request loop: the
same answers and the same bytes, whatever commands are mixed and wherever the streams are cut."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from blockd.iscsi import handover, pdu
from tests.iscsi_loop_rig import BLOCK, SIZE, Answer, Wire, read_10, serving, write_10

BATCHES = 10
SLOT = 32 << 10  # of the volume; the commands of one batch have each an own one
SLOTS = SIZE // SLOT
SEEDS = range(16)

INQUIRY = b"\x12\0\0\0\xff\0"
SYNCHRONIZE = b"\x35" + bytes(9)
READ_CAPACITY = b"\x25" + bytes(9)
FUA = 0x08


def terms(chance: random.Random) -> dict[str, str]:
    """What a session agrees on."""
    return {
        "HeaderDigest": chance.choice(["None", "CRC32C"]),
        "DataDigest": chance.choice(["None", "CRC32C"]),
        "InitialR2T": chance.choice(["Yes", "No"]),
        "ImmediateData": chance.choice(["Yes", "No"]),
        "FirstBurstLength": chance.choice(["512", "4096", "16384"]),
        "MaxBurstLength": chance.choice(["16384", "32768"]),
        "MaxRecvDataSegmentLength": chance.choice(["512", "3000", "8192", "65536"]),
        "MaxOutstandingR2T": chance.choice(["1", "3"]),
    }


class Script:
    """Batches of commands, made of one seed; sent in pieces that another one makes."""

    def __init__(self, wire: Wire, agreed: dict[str, str], seed: int, pieces: int) -> None:
        self.wire = wire
        self._chance = random.Random(seed)
        self._pieces = random.Random(pieces)
        self._first_burst = int(agreed["FirstBurstLength"])
        self._immediate = agreed["ImmediateData"] == "Yes"
        self._unsolicited = agreed["InitialR2T"] == "No"

    def batch(self) -> dict[int, Answer]:
        slots = self._chance.sample(range(SLOTS), self._chance.randint(1, 14))
        rare = self._chance.random() < 0.4
        made = b"".join(self._command(slot * SLOT, rare=rare) for slot in slots)
        while made:
            length = self._pieces.choice([1, 47, 48, 49, 500, 5000, 100000])
            piece, made = made[:length], made[length:]
            self.wire.feed(piece)
        answers = dict(self.wire.answers())
        self.wire.answered.clear()
        return answers

    def _command(self, start: int, *, rare: bool) -> bytes:
        chance = self._chance
        length = chance.choice([1, 2, 8, 9, 32, 64]) * BLOCK
        offset = start + chance.randrange((SLOT - length) // BLOCK + 1) * BLOCK
        kind = chance.random()
        if rare and kind < 0.3:
            return self._rare(offset, length)
        if kind < 0.6:
            return self.wire.prepared(read_10(offset, length), read=length)
        data = chance.randbytes(length)
        immediate = unsolicited = 0
        if self._immediate and chance.random() < 0.7:
            immediate = min(chance.choice([BLOCK, length]), self._first_burst, length)
        if self._unsolicited and immediate < length and chance.random() < 0.7:
            unsolicited = min(self._first_burst, length) - immediate
        flags = FUA if chance.random() < 0.1 else 0
        piece = chance.choice([512, 1000, 4096, 65536])
        return self.wire.prepared(
            write_10(offset, length, flags),
            data=data,
            immediate=immediate,
            unsolicited=unsolicited,
            piece=piece,
        )

    def _rare(self, offset: int, length: int) -> bytes:
        wire = self.wire
        unmap = struct.pack(">HH4xQI4x", 22, 16, offset // BLOCK, length // BLOCK)
        choices: list[Callable[[], bytes]] = [
            lambda: wire.prepared(INQUIRY, read=255),
            lambda: wire.prepared(READ_CAPACITY, read=8),
            lambda: wire.prepared(SYNCHRONIZE),
            lambda: wire.prepared(bytes(6)),  # TEST UNIT READY
            lambda: wire.prepared(read_10(offset, length, FUA), read=length),
            lambda: wire.prepared(read_10(offset, length), read=length // 2),  # overflow
            lambda: wire.prepared(read_10(offset, length), read=length * 2),  # underflow
            lambda: wire.prepared(read_10(SIZE, BLOCK), read=BLOCK),  # behind the end
            lambda: wire.prepared(read_10(0, BLOCK), read=BLOCK, lun=9),  # no such unit
            lambda: wire.prepared(b"\xff" + bytes(15)),  # no such command
            lambda: wire.prepared(b"\x42" + bytes(6) + b"\0\x18\0", data=unmap),
            lambda: wire.prepared(b"\x03\0\0\0\xff\0", read=255),  # REQUEST SENSE
        ]
        return self._chance.choice(choices)()


def played(folder: Path, seed: int, *, threads: int) -> tuple[list[dict[int, Answer]], bytes]:
    """All answers, and what the volume holds in the end."""
    agreed = terms(random.Random(seed))
    with serving(folder, threads=threads) as server:
        with server.log_in(1, agreed) as wire:
            script = Script(wire, agreed, seed, seed * 2 + threads)
            answers = [script.batch() for _ in range(BATCHES)]
        with server.log_in(2) as wire:
            content = b"".join(
                wire.answer(wire.submit(read_10(at, SLOT), read=SLOT)).data
                for at in range(0, SIZE, SLOT)
            )
        return answers, content


@pytest.fixture
def hand_overs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sessions go over as soon and as often as they can; how often they did."""
    times: list[int] = []
    gone = handover.Handover.gone

    def counted(self: handover.Handover, elsewhere: handover.Elsewhere) -> None:
        times.append(1)
        gone(self, elsewhere)

    monkeypatch.setattr(handover, "FIRST_RUN", 1)
    monkeypatch.setattr(handover, "LONGEST_RUN", 1)
    monkeypatch.setattr(handover.Handover, "gone", counted)
    return times


@pytest.mark.parametrize("seed", SEEDS)
def test_the_loop_answers_as_the_engine_alone_does(
    tmp_path: Path, hand_overs: list[int], seed: int
) -> None:
    alone = played(tmp_path / "alone", seed, threads=0)
    assert not hand_overs
    served = played(tmp_path / "served", seed, threads=1)
    assert hand_overs, "the loop has served nothing"
    for number, (expected, got) in enumerate(zip(alone[0], served[0], strict=True)):
        assert got == expected, f"seed {seed}, batch {number}"
    assert served[1] == alone[1]
    assert pdu.GOOD in {answer.status for answer in alone[0][0].values()}
