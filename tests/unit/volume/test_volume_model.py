"""A volume against a bytearray, by a Hypothesis state machine: all that can be done, in any order.

Offsets and lengths are bytes, cut anywhere; the volume ends in the middle of a chunk now and then.
After each step one random range is read; BLOCK_STATUS must fit the bytes; at the end all is read,
and read again after a kill, after a power cut with everything on disk, and after a clean close.
"""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from native import FLAG_FUA, OP_UNMAP, OP_WRITE, OP_WRITE_ZEROES, Request
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig
from volume.errors import OutOfSpace

STATE_HOLE, STATE_ZERO = 1, 2  # NBD's, as in blockd.device
BLOCK = 512
MAX_SIZE = 72 * KIB
MAX_WAITS = 4  # rounds after which a change that waited for journal space must be done
ROOMY = replace(SMALL, journal_limit=10 * SEGMENT_BYTES)

at = st.integers(0, MAX_SIZE)
length = st.one_of(st.integers(1, 5000), st.sampled_from([512, 4096, 8192, 20000, MAX_SIZE]))


class VolumeModel(RuleBasedStateMachine):
    @initialize(
        size=st.integers(1, MAX_SIZE // BLOCK),
        chunk_size=st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB]),
        compression=st.sampled_from(["none", "lz4", "zstd", "igzip"]),
    )
    def create(self, size: int, chunk_size: int, compression: str) -> None:
        self.rig = StoreRig(options=replace(ROOMY, compression=compression))
        self.rig.store.create_volume("v", size * BLOCK, block_size=BLOCK, chunk_size=chunk_size)
        self.rig.tend()
        self.model = bytearray(size * BLOCK)
        self.probe = (0, 1)
        self.written = 0

    def cut(self, offset: int, length: int) -> tuple[int, int]:
        """The range, moved into the volume."""
        offset %= len(self.model)
        return offset, min(length, len(self.model) - offset)

    def change(self, request: Request) -> None:
        """Submit, and do what the store's threads would until it is done."""
        done = self.rig.submit("v", request)
        for _ in range(MAX_WAITS):
            if not done:
                self.rig.settle()
                self.rig.tend()
        assert [request.error for request in done] == [0]

    @rule(at=at, length=length, fua=st.booleans())
    def write(self, at: int, length: int, fua: bool) -> None:
        at, length = self.cut(at, length)
        self.written = self.written % 250 + 1
        data = bytes([self.written]) * length
        self.change(Request(OP_WRITE, at, length, data, FLAG_FUA if fua else 0))
        self.model[at : at + length] = data
        self.probe = at, length

    @rule(at=at, length=length, unmap=st.booleans())
    def zero(self, at: int, length: int, unmap: bool) -> None:
        at, length = self.cut(at, length)
        self.change(Request(OP_UNMAP if unmap else OP_WRITE_ZEROES, at, length))
        self.model[at : at + length] = bytes(length)
        self.probe = at, length

    @rule(at=at, length=length)
    def look(self, at: int, length: int) -> None:
        self.probe = self.cut(at, length)

    @rule()
    def flush(self) -> None:
        assert self.rig.flush("v") == 0

    @rule()
    def destage(self) -> None:
        self.rig.store.destage()
        self.rig.tend()

    @rule()
    def collect(self) -> None:
        self.rig.store.collect()

    @rule()
    def close_and_open(self) -> None:
        self.rig = self.rig.closed()
        self.rig.tend()

    @rule()
    def kill_and_open(self) -> None:
        self.rig = self.rig.killed()
        self.rig.tend()

    @rule(blocks=st.integers(1, MAX_SIZE // BLOCK))
    def resize(self, blocks: int) -> None:
        """Shrinking drops what is beyond, growing shows zeros."""
        size = blocks * BLOCK
        try:
            self.rig.store.resize_volume("v", size, force=True)
        except OutOfSpace:  # there is no room for the trim in the journal
            self.rig.settle()
            self.rig.store.resize_volume("v", size, force=True)
        self.model = bytearray(self.model[:size].ljust(size, b"\0"))
        self.probe = self.cut(size - BLOCK, BLOCK)

    @rule(below=st.integers(1, MAX_SIZE // BLOCK))
    def shrink_and_grow(self, below: int) -> None:
        size = len(self.model)
        self.resize(max(1, len(self.model) // BLOCK - below))
        self.rig.store.resize_volume("v", size)
        self.model = bytearray(self.model.ljust(size, b"\0"))

    @invariant()
    def read_is_what_was_written(self) -> None:
        offset, length = self.cut(*self.probe)
        assert self.rig.read("v", offset, length) == self.model[offset : offset + length]

    @invariant()
    def extents_fit_the_bytes(self) -> None:
        offset, length = self.cut(*self.probe)
        extents = self.rig.extents("v", offset, length)
        assert extents
        end = offset + length
        for number, (run, flags) in enumerate(extents, start=1):
            assert run > 0
            assert offset + run <= end
            if flags & STATE_ZERO:
                assert not any(self.model[offset : offset + run])
            offset += run
            if number < len(extents):
                assert offset % BLOCK == 0

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            assert self.rig.read("v") == self.model
            assert self.rig.killed().read("v") == self.model
            assert self.rig.rebooted().read("v") == self.model
            assert self.rig.closed().read("v") == self.model


VolumeModel.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=30,
    deadline=None,
)
test_volume_is_its_model = VolumeModel.TestCase
