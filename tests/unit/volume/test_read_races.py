"""Reads beside a head that moves and a gc that takes what only the old head had."""

import errno
from collections.abc import Callable
from typing import TypeVar

import pytest

from native import OP_BLOCK_STATUS, OP_READ, Request
from tests.sim.store_rig import StoreRig
from volume.chunks import ChunkStore, chunk_id_of
from volume.layout import ChunkId
from volume.manifest import Manifests
from volume.nodecache import NodeCache

CHUNK = 4096
T = TypeVar("T")


def rig_with_old_and_new() -> tuple[StoreRig, Callable[[], None]]:
    """A volume with all chunks destaged, and a call that replaces them and removes the old ones."""
    rig = StoreRig()
    rig.tend()
    rig.store.create_volume("a", 64 * CHUNK, chunk_size=CHUNK)

    def write(data: bytes) -> None:
        for offset in range(0, len(data), CHUNK):
            assert rig.write("a", offset, data[offset : offset + CHUNK]) == 0
            rig.tend()
        rig.settle()
        rig.store._chunks.packs.seal()  # gc leaves the pack that is appended to alone

    def replace() -> None:
        write(new_bytes())

    write(old_bytes())
    rig.store._table.drop_volume(rig.volume("a").record.number)

    return rig, replace


def old_bytes() -> bytes:
    return b"".join(bytes([index + 1]) * CHUNK for index in range(6))


def new_bytes() -> bytes:
    return b"".join(bytes([index + 101]) * CHUNK for index in range(6))


def test_read_that_loses_its_chunk_to_gc_sees_the_new_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, replace = rig_with_old_and_new()
    original = ChunkStore.locate
    calls: list[ChunkId] = []

    def locate(store: ChunkStore, chunk_id: ChunkId) -> object:
        calls.append(chunk_id)
        if len(calls) == 1:
            replace()
        return original(store, chunk_id)

    monkeypatch.setattr(ChunkStore, "locate", locate)
    request = rig.run("a", Request(OP_READ, 0, 6 * CHUNK))
    assert (request.error, request.message) == (0, None)
    assert request.data == new_bytes()
    old = {chunk_id_of(old_bytes()[at : at + CHUNK]) for at in range(0, 6 * CHUNK, CHUNK)}
    assert calls[0] in old
    assert old.isdisjoint(calls[1:])


def test_block_status_that_loses_its_node_to_gc_sees_the_new_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, replace = rig_with_old_and_new()
    original = Manifests.extents
    calls: list[ChunkId] = []

    def extents(manifests: Manifests, root: ChunkId, *rest: int) -> object:
        calls.append(root)
        if len(calls) == 1:
            replace()
            manifests.cache = NodeCache(64 * 1024)
        return original(manifests, root, *rest)

    monkeypatch.setattr(Manifests, "extents", extents)
    request = rig.run("a", Request(OP_BLOCK_STATUS, 0, 64 * CHUNK))
    assert request.error == 0
    assert request.data == [(6 * CHUNK, 0), (58 * CHUNK, 3)]
    assert len(set(calls)) == 2


def test_read_of_a_chunk_that_is_gone_from_its_head_is_an_error() -> None:
    rig, _ = rig_with_old_and_new()
    rig.store._index.remove([chunk_id for chunk_id, _ in entries(rig)])
    request = rig.run("a", Request(OP_READ, 0, CHUNK))
    assert request.error == errno.EIO
    assert request.data is None


def entries(rig: StoreRig) -> list[tuple[ChunkId, object]]:
    packs = rig.store._chunks.packs
    return [entry for number in packs.numbers() for entry in packs.places(number)]
