import contextlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import crc32c
from tests.unit.volume.rig import hash_of
from tests.unit.volume.stream_rig import CHUNK, Site, boundaries, events, stored
from volume import stream_wire as wire
from volume.chunks import StoredChunk, chunk_id_of
from volume.commits import Commit, encode
from volume.layout import KIND_DATA, KIND_NODE, ZERO_ID
from volume.manifest import encode_node
from volume.model import MAX_CHUNK_SIZE
from volume.stream_errors import InvalidStream, StreamRefused
from volume.stream_wire import (
    START,
    Break,
    Decoder,
    Encoder,
    End,
    Frame,
    Position,
    ResumeToken,
    Scanner,
    StreamHeader,
)

COMMIT = Commit(
    volume_uuid=bytes(16),
    name="vm1",
    size=300 * CHUNK,
    block_size=512,
    chunk_size=CHUNK,
    height=2,
    root=hash_of(b"root"),
    parents=(),
    first_seq=1,
    last_seq=2,
    time_ns=3,
    epoch=4,
    site="here",
    writer="test",
)


def header(encoder: Encoder, commit: Commit = COMMIT, **options: object) -> bytes:
    data = encode(commit)
    return encoder.header(chunk_id_of(data), data, **options)  # type: ignore[arg-type]


def sample() -> bytes:
    """A stream with one frame of each kind. What is in them is nobody's business here."""
    encoder = Encoder()
    node = encode_node(0, hash_of(b"child") + bytes(255 * 32))
    parts = [
        header(encoder, base=hash_of(b"base"), frame_count=3, length=12345),
        encoder.frame(Position(7, 0), hash_of(b"a"), stored(1)),
        encoder.frame(Position(256, 1), chunk_id_of(node), StoredChunk(2, 0, len(node), node)),
        encoder.repeated(Position(512, 1), chunk_id_of(node)),
        encoder.end(),
    ]
    return b"".join(parts)


SAMPLE = sample()


def test_what_was_encoded_comes_back() -> None:
    first, data, node, again, end = events(SAMPLE)
    assert isinstance(first, StreamHeader)
    assert first.commit == COMMIT
    assert first.target == chunk_id_of(first.commit_bytes)
    assert (first.base, first.resume) == (hash_of(b"base"), START)
    assert (first.frame_count, first.length) == (3, 12345)
    assert data == Frame(Position(7, 0), hash_of(b"a"), stored(1))
    assert isinstance(node, Frame)
    assert node.chunk is not None
    assert node.chunk.kind == KIND_NODE
    assert again == Frame(Position(512, 1), node.chunk_id, None)
    assert end == End(3)


def test_counts_may_be_unknown_and_a_stream_may_be_a_rest() -> None:
    encoder = Encoder()
    data = header(encoder, resume=Position(256, 1)) + encoder.end()
    first, end = events(data)
    assert isinstance(first, StreamHeader)
    assert (first.frame_count, first.length, first.base) == (None, None, None)
    assert first.resume == Position(256, 1)
    assert end == End(0)


@given(st.lists(st.integers(0, 400), max_size=60))
def test_any_split_gives_the_same_events(pieces: list[int]) -> None:
    assert events(SAMPLE, pieces) == events(SAMPLE)


def test_a_truncated_stream_is_never_whole() -> None:
    for length in range(len(SAMPLE)):
        decoder = Decoder()
        list(decoder.feed(SAMPLE[:length]))
        assert not decoder.ended


def test_every_flipped_bit_is_noticed() -> None:
    for at in range(len(SAMPLE)):
        damaged = bytearray(SAMPLE)
        damaged[at] ^= 1 << at % 8
        decoder = Decoder()
        try:
            list(decoder.feed(damaged))
        except InvalidStream:
            continue
        assert not decoder.ended, at


@given(st.data())
def test_garbage_is_refused_or_awaits_more(data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([0, 5, wire.HEADER.size, boundaries(SAMPLE)[0], 4000]))
    garbage = data.draw(st.binary(max_size=300))
    decoder = Decoder()
    with contextlib.suppress(InvalidStream):
        list(decoder.feed(SAMPLE[:start] + garbage))
    assert not decoder.ended


def test_something_else_is_refused_at_its_first_byte() -> None:
    with pytest.raises(InvalidStream, match="not a version stream"):
        events(b"Q")


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(InvalidStream, match=f"at byte {len(SAMPLE)}: bytes follow"):
        events(SAMPLE + b"x")


def test_a_missing_frame_is_noticed_at_the_end() -> None:
    _, first, second, *_ = boundaries(SAMPLE)
    with pytest.raises(InvalidStream, match="whole stream"):
        events(SAMPLE[:first] + SAMPLE[second:])


def test_memory_is_bounded_by_one_frame() -> None:
    encoder = Encoder()
    commit = replace(COMMIT, size=MAX_CHUNK_SIZE * 10, chunk_size=MAX_CHUNK_SIZE, height=1)
    big = StoredChunk(KIND_DATA, 0, MAX_CHUNK_SIZE, bytes(MAX_CHUNK_SIZE))
    data = header(encoder, commit) + b"".join(
        encoder.frame(Position(at, 0), hash_of(b"%d" % at), big) for at in range(1, 4)
    )
    decoder = Decoder()
    most = 0
    for at in range(0, len(data), 50_000):
        list(decoder.feed(data[at : at + 50_000]))
        most = max(most, len(decoder._buffer) - decoder._at)
    assert most <= MAX_CHUNK_SIZE + wire.FRAME.size


def with_crc(fixed: bytes) -> bytes:
    return fixed[:-4] + struct.pack("<I", crc32c(fixed[:-4]))


def test_an_unknown_version_or_flag_is_refused_by_name() -> None:
    for offset, value, shown in ((8, 2, "version 2"), (12, 0x80, "flags 0x8")):
        fixed = bytearray(SAMPLE[: wire.HEADER.size])
        fixed[offset] = value
        with pytest.raises(InvalidStream, match=shown):
            events(with_crc(bytes(fixed)) + SAMPLE[wire.HEADER.size :])


@pytest.mark.parametrize("offset", [80, 88, 89, 96, 104, 115])
def test_header_fields_that_contradict_each_other_are_refused(offset: int) -> None:
    encoder = Encoder()
    whole = header(encoder)
    fixed = bytearray(whole[: wire.HEADER.size])
    fixed[offset] ^= 1
    with pytest.raises(InvalidStream, match="contradict"):
        events(with_crc(bytes(fixed)) + whole[wire.HEADER.size :])


@pytest.mark.parametrize(
    "commit",
    [
        replace(COMMIT, size=0),
        replace(COMMIT, size=1 << 61),
        replace(COMMIT, size=300 * CHUNK + 1),
        replace(COMMIT, block_size=1000),
        replace(COMMIT, chunk_size=5000),
        replace(COMMIT, chunk_size=2048),
        replace(COMMIT, height=1),
        replace(COMMIT, height=7),
    ],
)
def test_impossible_sizes_are_refused(commit: Commit) -> None:
    with pytest.raises(InvalidStream, match="not possible"):
        events(header(Encoder(), commit))


@pytest.mark.parametrize(
    ("position", "chunk"),
    [
        (Position(0, 0), stored(1)),
        (Position(65537, 0), stored(1)),
        (Position(255, 1), stored(1)),
        (Position(256, 1), stored(1)),
        (Position(1, 0), StoredChunk(KIND_DATA, 0, 512, bytes(512))),
        (Position(1, 0), StoredChunk(KIND_NODE, 0, CHUNK, bytes(CHUNK))),
        (Position(256, 1), StoredChunk(KIND_NODE, 0, 16384, bytes(16384))),
        (Position(65536, 3), StoredChunk(KIND_NODE, 0, 80, bytes(80))),
        (Position(1, 0), StoredChunk(KIND_DATA, 0, CHUNK, b"")),
        (Position(1, 0), StoredChunk(3, 0, CHUNK, bytes(CHUNK))),
    ],
)
def test_frames_that_cannot_be_are_refused(position: Position, chunk: StoredChunk) -> None:
    encoder = Encoder()
    data = header(encoder) + encoder.frame(position, hash_of(b"x"), chunk)
    with pytest.raises(InvalidStream, match="contradict"):
        events(data)


def test_a_frame_longer_than_a_chunk_is_refused_before_it_has_come() -> None:
    encoder = Encoder()
    data = header(encoder)
    long = wire.FRAME.pack(wire.FRAME_MAGIC, 1, 0, 0, 0, 1 << 31, 1 << 31, 1, hash_of(b"x"), 0)
    with pytest.raises(InvalidStream, match="no frame"):
        events(data + long)


def test_a_zero_id_has_no_frame() -> None:
    encoder = Encoder()
    with pytest.raises(InvalidStream, match="contradict"):
        events(header(encoder) + encoder.frame(Position(1, 0), ZERO_ID, stored(1)))


ids = st.binary(min_size=32, max_size=32).filter(any)


@given(ids, st.none() | ids, st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_a_token_comes_back(target: bytes, base: bytes | None, end: int, rank: int) -> None:
    token = ResumeToken(target, base, Position(end, rank))
    text = token.encode()
    assert text.replace("-", "").replace("_", "").isalnum()
    assert not text.startswith("-")
    assert ResumeToken.decode(text) == token


@pytest.mark.parametrize(
    "spoil", [lambda t: t[:-1], lambda t: "A" + t, lambda t: "", lambda t: "é"]
)
def test_a_token_that_is_not_whole_is_refused(spoil) -> None:  # type: ignore[no-untyped-def]
    text = ResumeToken(hash_of(b"t"), None, Position(5, 0)).encode()
    with pytest.raises(StreamRefused, match="token"):
        ResumeToken.decode(spoil(text))


@given(st.integers(1, 5000))
@settings(deadline=None)  # byte by byte takes its time
def test_the_scanner_follows_a_stream_in_any_pieces(piece: int) -> None:
    site = Site()
    data = site.stream(site.commit({at: at + 1 for at in range(0, 40, 2)}, chunks=40))
    scanner = Scanner()
    fractions = []
    for at in range(0, len(data), piece):
        scanner.feed(data[at : at + piece])
        fractions.append(scanner.fraction or 0.0)
    assert scanner.done == scanner.total == len(data)
    assert scanner.frames == 21
    assert scanner.fraction == 1.0
    assert fractions == sorted(fractions)


BROKEN = SAMPLE[: boundaries(SAMPLE)[2]] + wire.break_frame("volume vm1: chunk 3f is damaged")


@given(st.lists(st.integers(0, 400), max_size=60))
def test_a_sender_that_breaks_off_says_why(pieces: list[int]) -> None:
    found = events(BROKEN, pieces)
    assert found[:-1] == events(SAMPLE)[: len(found) - 1]
    assert found[-1] == Break("volume vm1: chunk 3f is damaged")


@given(st.integers(1, 500))
def test_the_scanner_finds_why_a_stream_was_broken_off(piece: int) -> None:
    scanner = Scanner()
    for at in range(0, len(BROKEN), piece):
        assert scanner.reason != "volume vm1: chunk 3f is damaged"
        scanner.feed(BROKEN[at : at + piece])
    assert scanner.reason == "volume vm1: chunk 3f is damaged"
    assert not scanner.ended


def test_nothing_follows_a_break() -> None:
    with pytest.raises(InvalidStream, match="follow its end"):
        events(BROKEN + b"x")


def test_a_reason_is_short_and_can_be_shown() -> None:
    start = SAMPLE[: boundaries(SAMPLE)[0]]
    assert events(start + wire.break_frame("a\x1b[2J\nb"))[-1] == Break("a?[2J?b")
    (shown,) = events(start + wire.break_frame("\u20ac" * 5000))[1:]
    assert shown == Break("\u20ac" * (wire.MAX_REASON_BYTES // 3))


@pytest.mark.parametrize("change", [{"rank": 1}, {"end": 1}, {"flags": 1}, {"codec": 1}])
def test_a_break_frame_has_nothing_but_its_reason(change: dict[str, int]) -> None:
    fields = {"codec": 0, "rank": 0, "flags": 0, "end": 0} | change
    frame = wire._frame(
        (wire.KIND_BREAK, fields["codec"], fields["rank"], fields["flags"], 3, 3),
        fields["end"],
        ZERO_ID,
        b"why",
    )
    with pytest.raises(InvalidStream, match="contradict"):
        events(SAMPLE[: boundaries(SAMPLE)[0]] + frame)


def test_the_scanner_counts_what_it_cannot_read() -> None:
    scanner = Scanner()
    scanner.feed(bytes(1000))
    assert (scanner.done, scanner.total, scanner.fraction) == (1000, None, None)
