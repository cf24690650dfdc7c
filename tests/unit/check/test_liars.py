"""The rig can fail: recording clients of a server whose device lies get it found out."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.check.events import Recorder
from tests.check.judge import Report, judge_file
from tests.check.record import Addresses, Clients, Pace, read_whole
from tests.fakes import MemoryDevice
from tests.served import serving

SIZE = 256 << 10
SECTOR = 512
EVERY = 25
"""Each so many-th write or read goes wrong."""


class Liar(MemoryDevice):
    """Does one thing wrong, now and then: the name of the method that does it."""

    def __init__(self, lie: str) -> None:
        super().__init__("disk", SIZE, block_size=SECTOR)
        self._lie: Callable[[int, bytes], None] | None = getattr(self, lie, None)
        self._stale = lie == "stale_reads"
        self._old: dict[int, bytearray] = {}
        self._count = 0

    def _turn(self) -> bool:
        self._count += 1
        return self._count % EVERY == 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if self._lie is not None and len(data) >= 2 * SECTOR and any(data) and self._turn():
            self._lie(offset, bytes(data))
        else:
            super().write(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        if self._stale and self._turn():
            blocks, self._blocks = self._blocks, self._old
            found = super().read(offset, length)
            self._old = {number: bytearray(block) for number, block in blocks.items()}
            self._blocks = blocks
            return found
        return super().read(offset, length)

    def lost_writes(self, offset: int, data: bytes) -> None:
        """Acked, and not done."""

    def misdirected_writes(self, offset: int, data: bytes) -> None:
        super().write((offset + 8 * SECTOR) % (SIZE - len(data)), data)

    def torn_sectors(self, offset: int, data: bytes) -> None:
        super().write(offset, data[: len(data) - SECTOR // 2])

    def torn_writes(self, offset: int, data: bytes) -> None:
        super().write(offset, data[:-SECTOR])

    def zeros(self, offset: int, data: bytes) -> None:
        super().write(offset, bytes(len(data)))


def recorded(device: MemoryDevice, path: Path, *, requests: int = 600) -> Report:
    """What is found in the history of some clients of `device`, and a last look at it."""
    with serving(device=device) as served, Recorder(path, device.name, SIZE) as recorder:
        clients = Clients(recorder, 3, Pace(20000), seed=5)
        try:
            clients.go_on(Addresses(served.address, None))
            deadline = time.monotonic() + 60
            while recorder.count < requests and not clients.failures:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            clients.quiet()
            recorder.state(read_whole(served.address, device.name, SIZE, recorder.header.id))
        finally:
            clients.stop()
        assert not clients.failures
    return judge_file(path)


def test_an_honest_device_is_believed(tmp_path: Path) -> None:
    report = recorded(Liar("nothing"), tmp_path / "history")
    assert report.ok, report.findings
    assert report.sectors_read > SIZE // SECTOR


@pytest.mark.parametrize(
    ("lie", "invariants"),
    [
        ("lost_writes", {"I1"}),
        ("misdirected_writes", {"I8"}),
        ("torn_sectors", {"I5"}),
        ("torn_writes", {"I1"}),
        ("zeros", {"I1"}),
        ("stale_reads", {"I1"}),
    ],
)
def test_a_lie_is_found_out(lie: str, invariants: set[str], tmp_path: Path) -> None:
    report = recorded(Liar(lie), tmp_path / "history")
    assert invariants <= {finding.invariant for finding in report.findings}
