"""Files in memory for the C core, and a journal, table and volume over them."""

from dataclasses import dataclass, field

from typing_extensions import Buffer

from native import OP_READ, OP_WRITE, Journal, PlaceTable, Request, VolumeCore

STORE_UUID = bytes(range(16))
SEGMENT_BYTES = 1 << 20
CHUNK_SIZE = 4096


class MemoryFile:
    """What the core asks of a simulated file. `error`, if set, is raised by the next call."""

    def __init__(self, size: int = SEGMENT_BYTES) -> None:
        self.image = bytearray(size)
        self.error: BaseException | None = None

    def _fail(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error

    def pread(self, length: int, offset: int) -> bytes:
        self._fail()
        return bytes(self.image[offset : offset + length])

    def pwrite(self, data: Buffer, offset: int) -> int:
        self._fail()
        view = memoryview(data)
        self.image[offset : offset + len(view)] = view
        return len(view)

    def sync(self) -> None:
        self._fail()


@dataclass
class Rig:
    """A volume of `size` bytes; its journal has `segments` segments."""

    size: int = 1 << 20
    chunk_size: int = CHUNK_SIZE
    segments: int = 4
    table_limit: int = 1 << 20
    files: list[MemoryFile] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.journal = Journal(STORE_UUID, SEGMENT_BYTES, 1)
        self.table = PlaceTable(self.table_limit)
        self.now_ns = 1_000_000_000
        for slot in range(self.segments):
            self.files.append(MemoryFile())
            self.journal.add_ready(slot, self.files[slot])
        self.core = self.volume(1)

    def volume(self, number: int) -> VolumeCore:
        return VolumeCore(self.journal, self.table, number, 1, self.chunk_size, self.size, 0, 0)

    def submit(self, *batch: Request) -> tuple[int, ...]:
        """How many are done, to be read, waiting for a sync, waiting for space."""
        return tuple(len(group) for group in self.core.submit(batch, self.now_ns))

    def write(self, offset: int, data: bytes) -> None:
        request = Request(OP_WRITE, offset, len(data), data)
        assert self.submit(request) == (1, 0, 0, 0)
        assert request.error == 0

    def read(self, offset: int, length: int) -> bytes:
        """What is not hot has to be in the table."""
        return read(self.core, offset, length)


def read(core: VolumeCore, offset: int, length: int) -> bytes:
    """A READ as a front end does it; the slow path only if it has to."""
    request = Request(OP_READ, offset, length)
    _, waiting, _, _ = core.submit([request], 1)
    if waiting:
        assert core.fill(request, 0, length), "a chunk's place is missing"
    assert request.error == 0
    assert isinstance(request.data, bytes)
    return request.data
