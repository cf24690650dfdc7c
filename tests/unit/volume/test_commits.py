from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.volume.rig import Rig, hash_of
from volume.commits import MAX_PARENTS, Commit, decode, encode, get_commit, put_commit
from volume.errors import CorruptManifest

COMMIT = Commit(
    volume_uuid=bytes(range(16)),
    name="vm1",
    size=10 << 30,
    block_size=4096,
    chunk_size=65536,
    height=3,
    root=hash_of(b"root"),
    parents=(hash_of(b"a"), hash_of(b"b")),
    first_seq=10,
    last_seq=99,
    time_ns=1_790_000_000_000_000_000,
    epoch=4,
    site="berlin",
    writer="node-1",
)

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
ids = st.binary(min_size=32, max_size=32)
strings = st.text(st.characters(codec="utf-8"), max_size=40)
commits = st.builds(
    Commit,
    volume_uuid=st.binary(min_size=16, max_size=16),
    name=strings,
    size=u64,
    block_size=u32,
    chunk_size=u32,
    height=st.integers(0, 255),
    root=ids,
    parents=st.lists(ids, max_size=MAX_PARENTS).map(tuple),
    first_seq=u64,
    last_seq=u64,
    time_ns=u64,
    epoch=u64,
    site=strings,
    writer=strings,
)


@given(commits)
def test_decode_undoes_encode(commit: Commit) -> None:
    assert decode(encode(commit)) == commit


def test_a_commit_is_a_chunk_named_by_its_hash() -> None:
    rig = Rig()
    first = put_commit(rig.store, COMMIT)
    assert put_commit(rig.store, COMMIT) == first
    assert put_commit(rig.store, replace(COMMIT, last_seq=100)) != first
    rig.store.sync()
    assert get_commit(rig.killed().store, first) == COMMIT


@given(st.binary(max_size=400))
def test_garbage_is_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(CorruptManifest):
        decode(data)


@given(st.integers(0, len(encode(COMMIT)) - 1), st.integers(0, 255))
def test_a_changed_byte_decodes_or_is_corrupt(at: int, value: int) -> None:
    data = bytearray(encode(COMMIT))
    data[at] = value
    try:
        assert encode(decode(bytes(data))) == data
    except CorruptManifest:
        assert data != encode(COMMIT)


@pytest.mark.parametrize("cut", [0, 3, 103, 104, 170, 173, -1])
def test_a_cut_off_commit_is_corrupt(cut: int) -> None:
    with pytest.raises(CorruptManifest, match="commit"):
        decode(encode(COMMIT)[:cut])


def test_bytes_behind_a_commit_are_corrupt() -> None:
    with pytest.raises(CorruptManifest, match="instead of"):
        decode(encode(COMMIT) + b"\0")


def test_an_unknown_version_is_refused() -> None:
    data = bytearray(encode(COMMIT))
    data[4] = 9
    with pytest.raises(CorruptManifest, match="version 9"):
        decode(bytes(data))
