"""Warming the place table, beside its Python twin: how far it gets, and what is in the table."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import (
    CHUNK_HOLE,
    CHUNK_PACKED,
    CHUNK_RAW,
    OP_READ,
    REFERRED,
    PackFile,
    Request,
    crc32c_pages,
    reference,
)
from tests.unit.native.rig import MemoryFile, Rig, read
from volume import codecs, layout
from volume.index import Place
from volume.layout import ZERO_ID
from volume.packfile import encode_entry_header

CHUNK = 8192
PACKS = (5, 900)
ROW_LENGTH = layout.INDEX_PLACE.size
HOLE = "hole"
SOUND = (HOLE, "none", "lz4", "zstd", "igzip")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: where, how it is stored, and which byte of what is wrong."""

    index: int
    how: str
    pack: int = PACKS[0]
    kind: int = layout.KIND_DATA
    length: int = CHUNK
    damage: tuple[str, int] | None = None


class Warming:
    """Packs with chunks, and what manifest and index say of them."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self.files = {number: MemoryFile() for number in PACKS}
        self.ends = dict.fromkeys(PACKS, 64)
        self.wanted: dict[int, bytes] = {}
        self.rows: list[tuple[int, bytes, bytes]] = []
        for number, chunk in enumerate(chunks):
            self._add(number, chunk)

    def _add(self, number: int, chunk: Chunk) -> None:
        data = b"" if chunk.how == HOLE else bytes([number % 251 + 1]) * chunk.length
        self.wanted[chunk.index] = data or bytes(CHUNK)
        if chunk.how == HOLE:
            self.rows.append((chunk.index, ZERO_ID, bytes(ROW_LENGTH)))
            return
        codec, packed = codecs.compress(codecs.number(chunk.how), data, len(data))
        stored, chunk_id = bytes(packed), bytes([number % 251 + 1]) * 32
        offset, table = self.ends[chunk.pack], crc32c_pages(stored)
        place = Place(chunk.pack, offset, len(stored), chunk.length, number, codec, chunk.kind)
        entry = bytearray(encode_entry_header(place, chunk_id, table) + table + stored)
        row = bytearray(layout.INDEX_PLACE.pack(*place))
        if chunk.damage is not None:
            what, at = chunk.damage
            target = row if what == "row" else entry
            span = {"row": 16, "header": 64, "table": len(table)}[what]
            target[(64 if what == "table" else 0) + at % span] ^= 1
        self.files[chunk.pack].image[offset : offset + len(entry)] = entry
        self.ends[chunk.pack] += -(-len(entry) // 64) * 64
        self.rows.append((chunk.index, chunk_id, bytes(row)))

    def packs(self) -> dict[int, PackFile]:
        return {number: PackFile(file, number) for number, file in self.files.items()}

    def warm(self, rig: Rig, generation: int = 0) -> int:
        indexes = b"".join(index.to_bytes(8, "little") for index, _, _ in self.rows)
        ids = b"".join(chunk_id for _, chunk_id, _ in self.rows)
        rows = b"".join(row for _, _, row in self.rows)
        return rig.core.warm(generation, indexes, ids, rows, tuple(self.packs().values()))

    def twin(self, rig: Rig) -> tuple[int, list[int]]:
        """The same by the twin and `put_place`: how far, and which chunks cannot be read."""
        images = {number: bytes(file.image) for number, file in self.files.items()}
        found = reference.warm(self.rows, images, CHUNK)
        packs = self.packs()
        bad = [row[0] for row, place in zip(self.rows, found, strict=False) if place is None]
        for place in filter(None, found):
            kind = CHUNK_RAW if place.codec == codecs.CODEC_NONE else CHUNK_PACKED
            if place.pack is None:
                rig.core.put_place(place.index, 0, CHUNK_HOLE, None, 0, CHUNK, b"")
                continue
            rig.core.put_place(
                *(place.index, 0, kind, packs[place.pack], place.data_offset, CHUNK, place.table),
                *(place.codec, place.stored_length),
            )
        return len(found), bad


def is_read(rig: Rig, offset: int) -> bool:
    """Whether a chunk can be read without looking its place up."""
    request = Request(OP_READ, offset, CHUNK)
    _, waiting, _, _ = rig.core.submit([request], 0)
    return not waiting or rig.core.fill(request, 0, CHUNK)


def rigs() -> tuple[Rig, Rig]:
    return Rig(chunk_size=CHUNK), Rig(chunk_size=CHUNK)


def chunks() -> st.SearchStrategy[list[Chunk]]:
    """Mostly sound ones: what follows one that is not is never looked at."""
    damage = st.one_of(
        *[st.none()] * 12,
        st.tuples(st.sampled_from(["row", "header", "table"]), st.integers(0, 63)),
    )
    lists = st.lists(
        st.builds(
            Chunk,
            index=st.integers(0, 127),
            how=st.sampled_from(SOUND),
            pack=st.sampled_from(PACKS),
            kind=st.sampled_from([layout.KIND_DATA] * 9 + [layout.KIND_DAMAGED, layout.KIND_NODE]),
            length=st.sampled_from([CHUNK] * 15 + [CHUNK // 2]),
            damage=damage,
        ),
        max_size=24,
        unique_by=lambda chunk: chunk.index,
    )
    return lists


@settings(max_examples=100, deadline=None)
@given(chunks())
def test_kernel_and_twin_get_equally_far_and_read_the_same(given_chunks: list[Chunk]) -> None:
    warming = Warming(given_chunks)
    ours, twins = rigs()
    done = warming.warm(ours)
    far, bad = warming.twin(twins)
    assert done == far == ours.table.stats()[0]
    for number, chunk in enumerate(given_chunks):
        offset = chunk.index * CHUNK
        assert ours.core.missing(offset, CHUNK) == ([] if number < done else [chunk.index])
        if chunk.index in bad:
            assert not is_read(ours, offset)
            assert ours.core.missing(offset, CHUNK) == [chunk.index]
        elif number < done:
            assert read(ours.core, offset, CHUNK) == warming.wanted[chunk.index]
            assert read(twins.core, offset, CHUNK) == warming.wanted[chunk.index]
    assert ours.table.stats()[:2] == twins.table.stats()[:2]  # when all of them have been read


@pytest.mark.parametrize("how", SOUND[1:])
@pytest.mark.parametrize("what", ["row", "header", "table"])
def test_no_wrong_bit_of_a_place_is_read_by(how: str, what: str) -> None:
    for at in range(64):
        damaged = Chunk(1, how, damage=(what, at))
        warming = Warming([Chunk(0, how), damaged, Chunk(2, how)])
        ours, twins = rigs()
        done = warming.warm(ours)
        assert (done, [1] if done == 3 else []) == warming.twin(twins)
        assert done == 3 or what == "row"
        assert not is_read(ours, CHUNK)
        assert ours.core.missing(0, 2 * CHUNK) == [1]


def test_chunks_of_an_older_head_are_passed_over() -> None:
    warming = Warming([Chunk(0, "none"), Chunk(1, HOLE)])
    rig = Rig(chunk_size=CHUNK)
    assert warming.warm(rig, generation=7) == 2
    assert rig.table.stats()[0] == 0


def test_it_stops_at_what_the_index_or_the_packs_do_not_have() -> None:
    for spoilt in ((2, b"\x07" * 32, bytes(ROW_LENGTH)), None):
        warming = Warming([Chunk(0, "none"), Chunk(1, "lz4"), Chunk(2, "lz4", pack=PACKS[1])])
        if spoilt is None:
            del warming.files[PACKS[1]]
        else:
            warming.rows[2] = spoilt
        assert warming.warm(Rig(chunk_size=CHUNK)) == 2


def test_it_does_not_read_the_disk() -> None:
    warming = Warming([Chunk(0, HOLE), Chunk(1, "none")])
    warming.files[PACKS[0]].error = OSError(5, "rotten")
    rig = Rig(chunk_size=CHUNK)
    assert warming.warm(rig) == 2
    assert not is_read(rig, CHUNK)
    assert rig.core.missing(0, 2 * CHUNK) == [1]
    assert warming.warm(rig) == 2


def test_what_a_record_refers_to_is_not_warmed() -> None:
    warming = Warming([Chunk(3, "none")])
    warming.rows = [(index | REFERRED, *rest) for index, *rest in warming.rows]  # type: ignore[misc]
    assert warming.warm(Rig(chunk_size=CHUNK)) == 0


def test_lists_of_different_lengths_are_refused() -> None:
    rig = Rig(chunk_size=CHUNK)
    for lists in (
        (b"x" * 7, b"", b""),
        (bytes(8), bytes(31), bytes(24)),
        (bytes(8), bytes(32), b""),
    ):
        with pytest.raises(ValueError, match="equally many"):
            rig.core.warm(0, *lists, ())
    with pytest.raises(TypeError, match="PackFile"):
        rig.core.warm(0, b"", b"", b"", (1,))  # type: ignore[arg-type]
