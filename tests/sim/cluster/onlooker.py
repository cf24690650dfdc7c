"""An onlooker of a node: what is on its disk, read as it would read it, whatever it may answer."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from native import OP_READ, Request
from tests.sim.faults import FaultScript
from volume.errors import VolumeError
from volume.layout import KIND_DATA, KIND_NODE, ChunkId

if TYPE_CHECKING:
    from tests.sim.cluster.node import Node

PIECE = 4096  # of what a node reads as: a chunk


class Onlooker:
    def __init__(self, node: "Node") -> None:
        self._node = node
        self._chunks: dict[ChunkId, bytes] = {}

    def image(self) -> bytes:
        """All bytes of the volume as this node has it, whatever it may answer to clients, and
        whatever has gone bad on its disk."""
        with self.seeing_through():
            request = self._read(0, self._node.volume.size)
        assert isinstance(request.data, (bytes, bytearray)), request.message
        return self._node.world.spec.seen(bytes(request.data))

    def pieces(self) -> list[bytes | None]:
        """The same as the disk has it, up to the size that clients know; None: that is an error."""
        size = min(self._node.volume.size, self._node.world.spec.size)
        found = [self._read(at, min(PIECE, size - at)) for at in range(0, size, PIECE)]
        return [
            bytes(each.data) if isinstance(each.data, (bytes, bytearray)) else None
            for each in found
        ]

    def chunk_ids(self, pieces: Iterable[int]) -> list[ChunkId]:
        """What is below these, where that can be told."""
        found = []
        for piece in pieces:
            with suppress(VolumeError):
                resolver = self._node.volume._reader._resolver
                found.append(resolver.visible_id(self._node.volume.target(), piece))
        return found

    @contextmanager
    def seeing_through(self) -> Iterator[None]:
        """Whoever looks at the world sees no damage, and no faults of this disk."""
        disk, rescue = self._node.machine.disk, self._node.store.chunk_repair.rescue
        faults, disk.faults = disk.faults, FaultScript()
        kept = rescue._kept
        rescue._kept = OrderedDict(self._chunks | kept)
        disk.seen_through = True
        try:
            yield
        finally:
            disk.faults, disk.seen_through = faults, False
            rescue._kept = kept
            if disk.rot and self._node.machine.store is not None:
                self.forget_what_was_read()  # or clients would be shown it

    def note_chunks(self) -> None:
        """Remember, for whoever looks, what is stored now."""
        with self.seeing_through():
            chunks = self._node.store._chunks
            for chunk_id, place in chunks.index.group(b""):
                if place.kind == KIND_DATA or place.kind == KIND_NODE:
                    with suppress(VolumeError):
                        self._chunks[chunk_id] = chunks.get(chunk_id)

    def forget_what_was_read(self) -> None:
        self._node.store._table.clear()
        self._node.store._manifests.cache.clear()

    def _read(self, offset: int, length: int) -> Request:
        """As a client would, but that it is always let in."""
        volume = self._node.volume
        gate = volume.gate
        assert gate is not None
        request = Request(OP_READ, offset, length)
        rescue = self._node.store.chunk_repair.rescue
        ask, rescue._ask = rescue._ask, None  # or it would wait
        if gate.shut:  # for this moment only, in which nobody else asks
            volume.core.gate_open(volume.seq, False, 0)
        _, reads, _, _ = volume.core.submit([request], self._node.clock.now_ns())
        if reads:
            volume._reader.submit(volume.target(), reads, lambda _: None)
        if gate.shut:
            volume.core.gate_shut()
        rescue._ask = ask
        return request
