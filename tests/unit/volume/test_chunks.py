import errno

import pytest
from blake3 import blake3

from tests.sim.crash import CrashPlanner
from tests.sim.faults import Fail, Fault
from tests.unit.volume.rig import Rig, chunk
from volume import codecs
from volume.chunks import ChunkStore
from volume.errors import CorruptChunk, OutOfSpace, UnknownFormat
from volume.index import Place
from volume.layout import KIND_COMMIT, KIND_DATA, KIND_NODE, ZERO_ID

TEXT = b"the same words again and again, " * 128  # 4 KiB that compress well


def test_a_chunk_is_named_by_its_hash_and_comes_back() -> None:
    rig = Rig()
    chunk_id = rig.store.put(chunk(1))
    assert chunk_id == blake3(chunk(1)).digest()
    assert rig.store.get(chunk_id) == chunk(1)
    rig.store.sync()
    assert rig.store.get(chunk_id) == chunk(1)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken(wrap: type) -> None:
    rig = Rig()
    assert rig.store.get(rig.store.put(wrap(chunk(1)))) == chunk(1)


def test_zeros_are_not_stored() -> None:
    rig = Rig()
    assert rig.store.put(bytes(4096)) == ZERO_ID
    assert rig.packs.total_bytes == 0
    assert rig.store.counters.zero_count == 1


def test_a_chunk_is_stored_once_within_a_round_and_across_rounds() -> None:
    rig = Rig()
    rig.store.put(chunk(1))
    rig.store.put(chunk(1))
    rig.store.sync()
    before = rig.packs.total_bytes
    rig.put_synced(1)
    again = rig.killed()
    again.put_synced(1)
    assert rig.packs.total_bytes == before
    assert again.store.counters.stored_count == 0
    counters = rig.store.counters
    assert (counters.put_count, counters.stored_count, counters.duplicate_count) == (3, 1, 2)
    assert (counters.put_bytes, counters.stored_bytes) == (3 * 4096, 4096)
    assert (counters.stored_raw_bytes, counters.duplicate_bytes) == (4096, 2 * 4096)


def test_the_index_learns_of_a_chunk_only_after_the_packs_are_synced() -> None:
    rig = Rig()
    chunk_id = rig.store.put(chunk(1))
    assert rig.index.get(chunk_id) is None
    rig.disk.faults.add(Fault("sync", Fail(errno.EIO), "packs/*"))
    with pytest.raises(OSError, match="scripted"):
        rig.store.sync()
    assert rig.index.get(chunk_id) is None


def test_whatever_the_index_names_is_durable_after_every_crash() -> None:
    rig = Rig()
    for round_number in range(3):
        rig.put_synced(*range(round_number * 5, round_number * 5 + 5))
        rig.disk.mark(rig.kv.snapshot())
    for image in CrashPlanner(rig.disk.trace).images():
        marks = rig.disk.trace.marks(image.point)
        index = marks[-1] if marks else None
        assert index is None or isinstance(index, dict)
        again = Rig(image, index=index)
        for number in range(5 * len(marks)):
            chunk_id = blake3(chunk(number)).digest()
            assert again.store.get(chunk_id, verify=True) == chunk(number), image.why
        again.put_synced(*range(15))
        rebuilt = again.without_index()
        assert all(rebuilt.store.get(blake3(chunk(n)).digest()) == chunk(n) for n in range(15))


def test_an_abandoned_round_can_be_done_again() -> None:
    rig = Rig(capacity=64 * 1024)
    kept = rig.put_synced(1)
    with pytest.raises(OutOfSpace):
        rig.put_synced(*range(2, 30))
    rig.store.abandon()
    assert rig.store.pending_count == 0
    rig.disk.capacity = 1 << 20
    ids = kept + rig.put_synced(*range(2, 30))
    again = rig.without_index()
    assert [again.store.get(chunk_id) for chunk_id in ids] == [chunk(n) for n in range(1, 30)]


def test_sync_goes_on_where_a_full_index_stopped_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    chunk_id = rig.store.put(chunk(1))

    def refuse(*_: object) -> None:
        raise OutOfSpace("index: no space")

    with monkeypatch.context() as patch:
        patch.setattr(rig.kv, "update", refuse)
        with pytest.raises(OutOfSpace):
            rig.store.sync()
    rig.store.sync()
    assert rig.index.get(chunk_id) is not None


# -- codecs


def test_data_is_compressed_when_that_pays_and_else_stored_raw() -> None:
    rig = Rig(codec=codecs.CODEC_LZ4)
    packed, raw = rig.store.put(TEXT), rig.store.put(chunk(1))
    rig.store.sync()
    first, second = rig.index.get(packed), rig.index.get(raw)
    assert first is not None
    assert first.codec == codecs.CODEC_LZ4
    assert first.stored_length < 400
    assert second is not None
    assert (second.codec, second.stored_length) == (codecs.CODEC_NONE, 4096)
    assert [rig.store.get(packed), rig.store.get(raw)] == [TEXT, chunk(1)]


def test_nodes_are_stored_raw() -> None:
    rig = Rig(codec=codecs.CODEC_LZ4)
    place = rig.store.place(rig.store.put(TEXT, KIND_NODE))
    assert place is not None
    assert place.codec == codecs.CODEC_NONE


def test_compression_must_save_twelve_percent() -> None:
    noise = chunk(1, 4096)
    for zeros, codec in ((300, codecs.CODEC_NONE), (900, codecs.CODEC_LZ4)):
        data = noise[zeros:] + bytes(zeros)
        assert codecs.compress(codecs.CODEC_LZ4, data, 4096)[0] == codec


@pytest.mark.parametrize("raw_length", [4095, 4097, 8192, 2 << 20])
def test_a_wrong_raw_length_is_corrupt(raw_length: int) -> None:
    _, stored = codecs.compress(codecs.CODEC_LZ4, TEXT, len(TEXT))
    with pytest.raises(CorruptChunk, match="it: "):
        codecs.decompress(codecs.CODEC_LZ4, bytes(stored), raw_length, "it")
    with pytest.raises(CorruptChunk, match="it: "):
        codecs.decompress(codecs.CODEC_NONE, TEXT, raw_length, "it")


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(UnknownFormat, match=r"chunk.*codec 77"):
        codecs.decompress(77, b"x", 4096, "chunk")


def test_the_codec_of_a_put_goes_before_the_store_s() -> None:
    rig = Rig(codec=codecs.CODEC_LZ4)
    for number, codec in enumerate([codecs.CODEC_ZSTD, codecs.CODEC_NONE, None]):
        text = TEXT[number:] + TEXT[:number]
        place = rig.store.place(rig.store.put(text, codec=codec))
        assert place is not None
        assert place.codec == (codecs.CODEC_LZ4 if codec is None else codec)
    node = rig.store.place(rig.store.put(TEXT + b"node", KIND_NODE, codec=codecs.CODEC_ZSTD))
    assert node is not None
    assert node.codec == codecs.CODEC_NONE


# -- damage


def wrongly_named(rig: Rig, kind: int, codec: int) -> bytes:
    """A chunk whose checksums hold, but which is not what its id says."""
    used, stored = codecs.compress(codec, TEXT, len(TEXT))
    chunk_id = b"!" * 32
    place = rig.packs.append(kind, chunk_id, stored, len(TEXT), used)
    rig.packs.sync()
    rig.index.put({chunk_id: place})
    return chunk_id


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        (KIND_NODE, codecs.CODEC_NONE),
        (KIND_COMMIT, codecs.CODEC_NONE),
        (KIND_DATA, codecs.CODEC_LZ4),
    ],
)
def test_nodes_commits_and_compressed_data_are_hashed_when_read(kind: int, codec: int) -> None:
    rig = Rig()
    chunk_id = wrongly_named(rig, kind, codec)
    with pytest.raises(CorruptChunk, match=f"{chunk_id.hex()} at offset 64 of pack 00000000"):
        rig.store.get(chunk_id)


def test_raw_data_is_hashed_when_asked() -> None:
    rig = Rig()
    chunk_id = wrongly_named(rig, KIND_DATA, codecs.CODEC_NONE)
    assert rig.store.get(chunk_id) == TEXT
    with pytest.raises(CorruptChunk, match="hash to"):
        rig.store.get(chunk_id, verify=True)


def test_an_unknown_chunk_is_an_error_naming_it() -> None:
    with pytest.raises(CorruptChunk, match=r"6161.*no pack has it"):
        Rig().store.get(b"a" * 32)


def test_a_chunk_found_damaged_is_stored_anew_when_it_comes_again() -> None:
    rig = Rig()
    (chunk_id,) = rig.put_synced(1)
    rig.disk.flip_bit("packs/00000000.pack", 1000)
    with pytest.raises(CorruptChunk):
        rig.store.get(chunk_id)
    rig.put_synced(1)
    assert rig.store.get(chunk_id) == chunk(1)
    assert rig.killed().store.get(chunk_id) == chunk(1)


def test_a_reader_follows_a_chunk_that_gc_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    (chunk_id,) = rig.put_synced(1)
    rig.packs.seal()
    real = rig.packs.read

    def moved_first(place: Place, wanted: bytes) -> bytes:
        if place.pack == 0:
            copy = rig.packs.append(KIND_DATA, chunk_id, chunk(1), 4096, codecs.CODEC_NONE)
            rig.packs.sync()
            rig.index.put({chunk_id: copy})
            rig.packs.unlink(0)
        return real(place, wanted)

    monkeypatch.setattr(rig.packs, "read", moved_first)
    assert rig.store.get(chunk_id) == chunk(1)


def test_locate_leads_to_the_stored_bytes() -> None:
    rig = Rig()
    (chunk_id,) = rig.put_synced(7)
    found = ChunkStore(rig.packs, rig.index).locate(chunk_id)
    assert found.pack.file.pread(found.stored_length, found.data_offset) == chunk(7)


def test_putting_syncs_by_itself_before_too_much_is_kept_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("volume.chunks.MAX_PENDING", 3)
    rig = Rig()
    ids = [rig.store.put(chunk(number)) for number in range(5)]
    assert rig.store.pending_count == 2
    assert all(rig.index.get(each) for each in ids[:3])
    rig.store.abandon()
    assert [rig.index.get(each) is not None for each in ids] == [True] * 3 + [False] * 2
    again = rig.killed()
    assert [again.store.get(each) for each in ids[:3]] == [chunk(number) for number in range(3)]
