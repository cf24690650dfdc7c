"""Fuzz target of what other nodes send: any frames

- are a message within its bounds, or refused by BadMessage;
- that are taken are the frames that we would send for this message;
- hold no memory that they do not have: payload of a message is the received frames.

Input: one byte of switches (SEALED: heads get the length, count and checksum that they need), then
messages: count of frames (1), and for each frame its length (2, little-endian) and the bytes.
"""

import struct
from collections.abc import Iterator

from native import crc32c
from transport.errors import BadMessage
from transport.peer.messages import KINDS
from transport.peer.wire import CRC, HEADER, HEADER_BYTES, decode, encode

SEALED = 1
MAX_MESSAGES = 32


def peer_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    for frames in messages_in(data):
        _codec(frames)


def messages_in(data: bytes) -> Iterator[list[bytes]]:
    """The messages of an input, as frames."""
    sealed = bool(data[:1] and data[0] & SEALED)
    at = 1
    for _ in range(MAX_MESSAGES):
        if at >= len(data):
            return
        count, at = data[at], at + 1
        frames = []
        for _ in range(count):
            if at + 2 > len(data):
                break
            length = int.from_bytes(data[at : at + 2], "little")
            frames.append(data[at + 2 : at + 2 + length])
            at += 2 + length
        yield seal(frames) if sealed else frames


def seal(frames: list[bytes]) -> list[bytes]:
    """`frames` with a head whose length, count and checksum are right."""
    if not frames or len(frames[0]) < HEADER_BYTES:
        return frames
    head = bytearray(frames[0])
    struct.pack_into("<H", head, 6, len(frames) - 1 & 0xFFFF)
    struct.pack_into("<I", head, 32, len(head) - HEADER_BYTES)
    checksum = crc32c(head[HEADER_BYTES:], crc32c(head[: HEADER.size]))
    CRC.pack_into(head, HEADER.size, checksum)
    return [bytes(head), *frames[1:]]


def _codec(frames: list[bytes]) -> None:
    try:
        envelope, message = decode(frames, KINDS)
    except BadMessage:
        return
    assert encode(message, envelope) == frames
    held = [memoryview(each).obj for each in message.frames]
    assert all(mine is theirs for mine, theirs in zip(held, frames[1:], strict=True))
