"""Messages of peers: round trips, and what is refused."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native import crc32c
from tests.peer_messages import ENVELOPES, MESSAGES, hello
from transport.errors import BadMessage
from transport.peer.messages import (
    ALL,
    KINDS,
    MAX_CHUNKS,
    MAX_IDS,
    Ack,
    Append,
    ChunkList,
    Chunks,
    Get,
    Have,
    Hello,
    Log,
    Looked,
    Ping,
    Request,
    Sealed,
    Want,
)
from transport.peer.wire import (
    HEADER_BYTES,
    MAX_FIELDS_BYTES,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    Envelope,
    Message,
    decode,
    encode,
    layout,
)

HERE = Envelope(1, 2, 3)
VOLUME = b"v" * 16
ID = b"i" * 32


def resealed(head: bytes) -> bytes:
    """`head` with the checksum that its bytes need."""
    checksum = crc32c(head[:36] + head[HEADER_BYTES:])
    return head[:36] + struct.pack("<I", checksum) + head[HEADER_BYTES:]


def head_of(message: Message) -> bytearray:
    return bytearray(memoryview(encode(message, HERE)[0]))


def refused(frames: Sequence[bytes], why: str) -> None:
    with pytest.raises(BadMessage, match=why):
        decode(frames, KINDS)


@given(MESSAGES, ENVELOPES)
def test_what_is_sent_is_what_is_received(message: Message, envelope: Envelope) -> None:
    frames = encode(message, envelope)
    got_envelope, got = decode(frames, KINDS)
    assert got_envelope == envelope
    assert got == message
    assert encode(got, envelope) == frames


@given(MESSAGES, st.data())
def test_a_flipped_bit_in_the_head_is_noticed(message: Message, data: st.DataObject) -> None:
    frames = [bytes(memoryview(each)) for each in encode(message, HERE)]
    bit = data.draw(st.integers(0, 8 * len(frames[0]) - 1))
    head = bytearray(frames[0])
    head[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadMessage):
        decode([bytes(head), *frames[1:]], KINDS)


@given(MESSAGES, st.data())
def test_a_head_of_another_length_is_refused_though_its_checksum_holds(
    message: Message, data: st.DataObject
) -> None:
    frames = [bytes(memoryview(each)) for each in encode(message, HERE)]
    cut = data.draw(st.integers(0, len(frames[0]) - 1))
    for head in (frames[0][:cut], frames[0] + b"\0"):
        head = resealed(head) if len(head) >= HEADER_BYTES else head
        with pytest.raises(BadMessage):
            decode([head, *frames[1:]], KINDS)


def test_payload_is_not_copied() -> None:
    records = bytearray(b"r" * 4096)
    frames = encode(Append(VOLUME, 1, 1, 1, 1, 0, (records,)), HERE)
    assert memoryview(frames[1]).obj is records
    _, message = decode(frames, KINDS)
    assert isinstance(message, Append)
    assert memoryview(message.payload[0]).obj is records


def test_the_header_says_what_the_frames_have_to_be() -> None:
    frames = [bytes(memoryview(f)) for f in encode(Append(VOLUME, 1, 1, 1, 1, 0, (b"r",)), HERE)]
    refused(frames[:1], "1 frames, but is not so")
    refused([*frames, b"more"], "1 frames, but is not so")
    refused([], "no frame")
    refused([b""], "head of 0 bytes")
    refused([bytes(HEADER_BYTES + MAX_FIELDS_BYTES + 1)], "head of")


def test_what_is_not_known_is_refused() -> None:
    head = head_of(Ping(7))
    refused([resealed(bytes(b"XPER" + head[4:]))], "begins with")
    head[4] = 2
    refused([resealed(bytes(head))], "has version 2; this program speaks 1")
    head = head_of(Ping(7))
    head[5] = 255
    refused([resealed(bytes(head))], "unknown type 255")
    head = head_of(Ping(7))
    head[-1] ^= 1
    refused([bytes(head)], "fails its checksum")


def test_fields_that_contradict_each_other_are_neither_sent_nor_taken() -> None:
    wrong: list[tuple[Message, str]] = [
        (Ack(1, 5, 6), "6 records synced of 5"),
        (Looked(1, 1, 5, 6, 0, 0), "6 records synced of 5"),
        (Append(VOLUME, 1, 1, 9, 8, 0, (b"r",)), "records 9 to 8"),
        (Sealed(4, 0, 0, ((2, 10), (1, 11))), "epoch 1 ends at 11"),
        (Hello(VOLUME, VOLUME, 2, 1, 0, 0, ""), "contradict"),
        (Hello(VOLUME, VOLUME, 1, 1, 0, 4, ""), "contradict"),
        (Chunks(((ID, 1, 0, 10),), (b"x" * 11,)), "more bytes than it has"),
        (ChunkList(((ID, 1, 0, 10),), ()), "1 chunks in 0 frames"),
    ]
    for message, why in wrong:
        with pytest.raises(BadMessage, match=why):
            encode(message, HERE)
    head = head_of(Ack(1, 6, 6))
    struct.pack_into("<Q", head, HEADER_BYTES + 16, 7)
    refused([resealed(bytes(head))], "7 records synced of 6")


@pytest.mark.parametrize(
    "message",
    [
        Ack(0, 0, 0),  # there is no epoch 0
        Ack(1 << 63, 0, 0),
        Have(VOLUME, 1, (ID,) * (MAX_IDS + 1)),
        Have(VOLUME, 1, (b"short",)),
        Get(1, (ID,) * (MAX_CHUNKS + 1)),
        Get(0, (ID,)),
        Get(MAX_PAYLOAD_BYTES + 1, (ID,)),
        Hello(VOLUME, VOLUME, 1, 1, 0, 0, "x" * 65),
        Append(VOLUME, 1, 1, 1, 1, 0, ()),
        Append(VOLUME, 1, 1, 1, 1, 0, (b"",)),
        Append(VOLUME, 1, 1, 1, 1, 0, (b"a",) * 65),
        Append(VOLUME, 1, 2, 1, 1, 0, (b"a",)),  # written later than it is asked for
        Append(VOLUME, 1, 1, 1, 1, 0, (bytes(MAX_FRAME_BYTES + 1),)),
        Log(1, 0, 0, 2),
        Chunks(tuple((ID, 1, 0, 1 << 20) for _ in range(9)), (bytes(1 << 20),) * 9),
        Chunks(((ID, 5, 0, 1),), (b"x",)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_out_of_bounds_is_not_sent(message: Message) -> None:
    with pytest.raises(BadMessage):
        encode(message, HERE)


def test_text_that_is_not_utf_8_is_refused() -> None:
    head = head_of(hello())
    head[-1] = 0xFF
    refused([resealed(bytes(head))], "is not UTF-8")


def test_counts_that_promise_more_than_there_is_take_no_memory() -> None:
    head = head_of(Want((ID,)))
    struct.pack_into("<I", head, HEADER_BYTES, MAX_IDS)
    refused([resealed(bytes(head))], "cut off")
    struct.pack_into("<I", head, HEADER_BYTES, 0xFFFFFFFF)
    refused([resealed(bytes(head))], "items, above")


def test_every_message_fits_into_the_bound_of_its_fields() -> None:
    for kind in ALL:
        assert sum(field.most for _, field in layout(kind)) <= MAX_FIELDS_BYTES, kind
        assert kind.FRAMES[1] <= MAX_CHUNKS
    assert {kind.ANSWER for kind in ALL if issubclass(kind, Request)} <= set(ALL)
