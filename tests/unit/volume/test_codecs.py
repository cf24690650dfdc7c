"""Volumes whose chunks are packed: every codec, every chunk size, any range, and damage."""

import logging
import random
import re
from dataclasses import replace

import pytest

from tests.sim.store_rig import SMALL, StoreRig
from volume import codecs
from volume.errors import CorruptChunk, InvalidSize, UnknownFormat
from volume.options import StoreOptions

KIB = 1024
MIB = 1024 * KIB
PACKING = ["lz4", "zstd", "igzip"]
LARGE = replace(
    SMALL, segment_bytes=MIB, journal_limit=16 * MIB, pack_bytes=8 * MIB, cache_bytes=4 * MIB
)
PACK = "packs/00000000.pack"


def words(length: int, seed: int = 0) -> bytes:
    """Text that compresses, but not to nothing."""
    generator = random.Random(seed)
    parts = [b"%06x and and and " % generator.getrandbits(24) for _ in range(length // 16)]
    return b"".join(parts).ljust(length, b".")[:length]


def options(compression: str) -> StoreOptions:
    return replace(LARGE, compression=compression)


def destaged(rig: StoreRig, offset: int, data: bytes) -> None:
    rig.fill("v", offset, data)
    rig.store.destage()
    rig.tend()


def codecs_stored(rig: StoreRig) -> list[int]:
    """The codecs of the store's data chunks, in the order of its packs."""
    packs = rig.store._chunks.packs
    return [
        place.codec
        for number in packs.numbers()
        for _, place in packs.places(number)
        if place.kind == 1
    ]


@pytest.mark.parametrize("chunk_size", [4 * KIB, 64 * KIB, MIB])
@pytest.mark.parametrize("compression", PACKING)
def test_any_range_of_a_packed_volume_reads_as_written(compression: str, chunk_size: int) -> None:
    rig = StoreRig(options=options(compression))
    rig.store.create_volume("v", 4 * MIB, block_size=512, chunk_size=chunk_size)
    length = 3 * chunk_size if chunk_size == MIB else 40 * chunk_size
    model = words(length) + bytes(4 * MIB - length)
    destaged(rig, 0, model[:length])
    assert set(codecs_stored(rig)) == {codecs.number(compression)}
    rig = rig.rebooted()
    rig.tend()
    generator = random.Random(5)
    for _ in range(150):
        offset = generator.randrange(length)
        count = generator.choice([1, 511, 4096, 70_000, MIB])
        count = generator.randint(1, min(count, 4 * MIB - offset))
        assert rig.read("v", offset, count) == model[offset : offset + count]
    assert rig.read("v") == model


def test_chunks_of_all_codecs_in_one_volume() -> None:
    """A chunk is stored as the volume has it that it is first written to."""
    rig = StoreRig(options=LARGE)
    rig.tend()
    rig.store.create_volume("v", MIB, block_size=512, compression="igzip")
    model = b""
    for number, compression in enumerate(["none", "lz4", "zstd"]):
        rig.store.create_volume(compression, MIB, block_size=512, compression=compression)
        piece = words(64 * KIB, seed=number)
        rig.fill(compression, 0, piece)
        rig.store.destage()
        model += piece
    model += words(64 * KIB, seed=3)
    destaged(rig, 0, model)
    assert codecs_stored(rig) == [0, 1, 2, 3]
    for reopened in (None, rig.rebooted, rig.closed):
        again = reopened() if reopened else rig
        again.tend()
        assert again.read("v", 0, len(model)) == model
        assert again.read("v", 60_001, 200_003) == model[60_001:260_004]


def test_hot_data_over_packed_chunks() -> None:
    rig = StoreRig(options=options("lz4"))
    rig.store.create_volume("v", 256 * KIB, block_size=512)
    model = bytearray(words(256 * KIB))
    destaged(rig, 0, bytes(model))
    generator = random.Random(9)
    for _ in range(3):
        for _ in range(40):
            offset = generator.randrange(500) * 512
            assert rig.write("v", offset, b"h" * 1024) == 0
            model[offset : offset + 1024] = b"h" * 1024
            assert rig.read("v", 0, len(model)) == bytes(model)
        rig.store.destage()
        rig.tend()
    assert rig.read("v") == bytes(model)


def test_a_volume_keeps_its_codec_when_the_default_changes() -> None:
    rig = StoreRig(options=options("zstd"))
    rig.store.create_volume("v", MIB, block_size=512)
    rig = rig.killed(options("igzip"))
    rig.tend()
    destaged(rig, 0, words(64 * KIB))
    rig.store.create_volume("w", MIB, block_size=512)
    rig.fill("w", 0, words(64 * KIB, seed=1))
    rig.store.destage()
    assert codecs_stored(rig) == [codecs.CODEC_ZSTD, codecs.CODEC_IGZIP]


@pytest.mark.parametrize("compression", PACKING)
def test_noise_is_stored_raw(compression: str) -> None:
    rig = StoreRig(options=options(compression))
    rig.store.create_volume("v", MIB, block_size=512)
    noise = random.Random(1).randbytes(64 * KIB)
    destaged(rig, 0, noise)
    assert codecs_stored(rig) == [codecs.CODEC_NONE]
    assert rig.read("v", 777, 40_000) == noise[777:40_777]


def test_places_of_packed_chunks_are_cached_ahead() -> None:
    """After a round, and once a client is attached, reads of packed chunks need no walk through the
    tree."""
    rig = StoreRig(options=options("lz4"))
    rig.store.create_volume("v", MIB, block_size=512)
    destaged(rig, 0, words(256 * KIB))
    assert rig.volume("v").core.missing(0, 256 * KIB) == []
    again = rig.rebooted()
    again.volume("v").attach("a client")
    again.store.upkeep.destage_if_due()
    assert again.volume("v").core.missing(0, 256 * KIB) == []
    assert again.read("v", 0, 256 * KIB) == words(256 * KIB)


# -- damage


@pytest.mark.parametrize("at", [64 + 9, 64 + 4 * 12 + 5, 10_000], ids=["table", "first", "middle"])
@pytest.mark.parametrize("compression", PACKING)
def test_a_flipped_bit_is_an_error_naming_the_chunk(
    compression: str, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    rig = StoreRig(options=options(compression))
    rig.store.create_volume("v", 128 * KIB, block_size=512)
    destaged(rig, 0, words(128 * KIB))
    rig = rig.rebooted()
    rig.tend()
    rig.disk.flip_bit(PACK, 64 + at)
    with caplog.at_level(logging.ERROR):
        assert rig.read_error("v", 4096, 512) == 5
        assert rig.read_error("v", 0, 64 * KIB) == 5
    assert re.search(r"chunk [0-9a-f]{64}", caplog.text)
    assert "volume=v offset=4096" in caplog.text
    assert "00000000" in caplog.text
    assert rig.read("v", 64 * KIB, 64 * KIB) == words(128 * KIB)[64 * KIB :]


@pytest.mark.parametrize("compression", PACKING)
def test_a_chunk_that_unpacks_to_something_shorter_is_an_error(compression: str) -> None:
    """Its entry and checksums are sound: whoever wrote it was wrong."""
    rig = StoreRig(options=options(compression))
    rig.store.create_volume("v", 128 * KIB, block_size=512)
    real = codecs.compress

    def shorter(codec: int, data: bytes, length: int) -> tuple[int, object]:
        return real(codec, bytes(data[: length - 512]), length - 512)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "compress", shorter)
        destaged(rig, 0, words(64 * KIB))
    assert rig.read_error("v", 0, 64 * KIB) == 5
    assert rig.read_error("v", 64 * KIB - 512, 512) == 5


@pytest.mark.parametrize(
    ("codec", "said"), [(77, "codec 77"), (codecs.CODEC_LZ4, "cannot take 65536")]
)
def test_entries_of_another_time_or_hand_are_errors(
    codec: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A codec that is not known yet, and a packed chunk as long as a raw one."""
    rig = StoreRig(options=options("lz4"))
    rig.store.create_volume("v", 128 * KIB, block_size=512)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "compress", lambda _codec, data, _length: (codec, bytes(data)))
        destaged(rig, 0, words(64 * KIB))  # which ends well: only places were not cached ahead
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert rig.read_error("v", 0, 512) == 5
    assert said in caplog.text
    assert rig.read("v", 64 * KIB, 64 * KIB) == bytes(64 * KIB)


# -- the functions


def test_names_and_numbers() -> None:
    for number, name in codecs.CODEC_NAMES.items():
        assert codecs.number(name) == number
        assert codecs.name_of(number, "it") == name
    with pytest.raises(InvalidSize, match="none, lz4, zstd, igzip"):
        codecs.number("brotli")
    with pytest.raises(UnknownFormat, match=r"it.*codec 77"):
        codecs.name_of(77, "it")
    assert StoreOptions().compression == codecs.CODEC_NAMES[codecs.DEFAULT_CODEC]


@pytest.mark.parametrize("codec", [1, 2, 3])
def test_round_trip_and_damage(codec: int) -> None:
    data = words(64 * KIB)
    used, stored = codecs.compress(codec, data, len(data))
    assert used == codec
    assert isinstance(stored, bytes)
    assert codecs.decompress(codec, stored, len(data), "it") == data
    for wrong in (stored[:-1], stored[: len(stored) // 2], b"", bytes(len(stored))):
        with pytest.raises(CorruptChunk, match="it: "):
            codecs.decompress(codec, wrong, len(data), "it")
